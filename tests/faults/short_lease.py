"""`python -m tests.faults.short_lease` is `modmix` with leases of MODMIX_TEST_LEASE seconds."""

from __future__ import annotations

import os

from modmix.cli.main import command
from modmix.ledger import heartbeat, studies

_LEASE = float(os.environ["MODMIX_TEST_LEASE"])

studies.LEASE_SECONDS = _LEASE
heartbeat.HEARTBEAT_SECONDS = _LEASE / 5

if __name__ == "__main__":
    command()
