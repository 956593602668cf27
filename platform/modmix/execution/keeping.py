"""Which replicates' test predictions are kept: the key ``predictions`` of a study file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from modmix.base.messages import Replicate, TaskRef
from modmix.base.predictions import ExampleTargets
from modmix.ledger.ledger import Ledger
from modmix.study.configurations import Configuration
from modmix.study.tasks_plan import StudyPlan
from modmix.tasks.data import ROWS

# Of a test split, up to which ``predictions: auto`` keeps them.
AUTO_ROWS = 100_000


class Keeping:
    """Decides for each replicate, and stores the test splits that predictions belong to.

    ``true`` keeps those of all replicates, ``false`` none. ``auto`` keeps those of grids (final
    studies are grids) and of parts with ``best_of``, on test splits of at most `AUTO_ROWS`
    examples: a search proposes many configurations that nobody looks at again.
    """

    def __init__(self, plan: StudyPlan, ledger: Ledger) -> None:
        self._plan = plan
        self._ledger = ledger
        self._setting = plan.spec.predictions
        self._kept: set[str] = set()  # replicates, with `auto`
        self._known: set[str] = set()  # fingerprints of the test splits in the ledger

    def add(self, configurations: Iterable[Configuration]) -> None:
        """Note configurations of a grid or of a part with ``best_of``."""
        if self._setting != "auto":
            return
        small: dict[str, bool] = {}  # by fingerprint
        for one in configurations:
            task = one.task
            if task.fingerprint not in small:
                rows = self._plan.data_for(task).test.rows
                small[task.fingerprint] = rows <= AUTO_ROWS
            if small[task.fingerprint]:
                self._kept |= {replicate.key for replicate in one.replicates}

    def chosen(self, replicates: Sequence[Replicate], task: TaskRef) -> tuple[str, ...]:
        """Those of a pack's replicates that are kept, by key.

        The test split is stored first: where there are predictions, there is their split.
        """
        every = self._setting is True
        keys = tuple(r.key for r in replicates if every or r.key in self._kept)
        if keys and task.fingerprint not in self._known:
            test = self._plan.data_for(task).test
            numbers = test.extras.get(ROWS)
            split = ExampleTargets(
                np.asarray(test.labels), None if numbers is None else np.asarray(numbers)
            )
            self._ledger.add_test_split(task.fingerprint, split)
            self._known.add(task.fingerprint)
        return keys
