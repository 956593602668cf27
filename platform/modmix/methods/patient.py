"""A stage in which early stopping begins later.

Not in `modmix.methods.base`, on whose code the results of all methods depend.
"""

from __future__ import annotations

from dataclasses import dataclass

from modmix.methods.base import Stage


@dataclass(frozen=True, kw_only=True)
class PatientStage(Stage):
    """A stage that does something only from epoch ``patience_from`` (0-based) on.

    Evaluations before count for the best one, but not for patience, so that no model stops before.
    In a stage that has no such epoch, patience counts from its beginning.
    """

    patience_from: int
