"""On PYTHONPATH: workers train invented packs, and do without torch."""

import sys
from types import ModuleType

from tests.benchmarks.simulated import invented

from modmix.execution import local

local.train = invented.train
# A worker imports it for the training that it does; here it would be half a minute of 64 workers.
sys.modules["modmix.training.trainer"] = ModuleType("modmix.training.trainer")
