"""A stage in which early stopping begins later.

Not in `modmix.methods.base`, on whose code the results of all methods depend.
"""

from __future__ import annotations

from dataclasses import dataclass

from modmix.methods.base import Stage


@dataclass(frozen=True, kw_only=True)
class PatientStage(Stage):
    """A stage in which patience counts only from epoch ``patience_from`` (0-based) on.

    Earlier evaluations may be the best one, but do not count for patience: no model stops before.
    In a stage without such an epoch, patience counts from its beginning.
    """

    patience_from: int
