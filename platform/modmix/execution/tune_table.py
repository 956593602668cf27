"""Ray Tune's own table of trials, printed while a study runs with MODMIX_TUNE_VERBOSE=1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import tune

from modmix.execution.description import varied

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

PARAMETERS = ("method", "configurations", "models")
RESULTS = ("epoch", "epochs", "active", "finished", "val/error", "val/error/best")
_WIDTH = 36  # of a column; Tune shortens what is longer


class TrialTable(tune.CLIReporter):
    """Columns: the method, the hyperparameters that vary, the pack's progress and errors.

    A column is added once it is known to vary: searches propose values while the study runs. The
    metric that decides about early stopping is added where it is not the error.
    """

    def __init__(self) -> None:
        super().__init__(
            parameter_columns=list(PARAMETERS),
            metric_columns=list(RESULTS),
            max_column_length=_WIDTH,
        )
        self._shown = {*PARAMETERS, *RESULTS}

    def report(self, trials: list[Trial], done: bool, *sys_info: Any) -> None:
        for name in varied([trial.config for trial in trials]):
            if name not in self._shown:
                self._shown.add(name)
                self.add_parameter_column(name)
        for name in [name for trial in trials for name in trial.last_result or {}]:
            if name.startswith("val/") and name not in self._shown:
                self._shown.add(name)
                self.add_metric_column(name)
        super().report(trials, done, *sys_info)
