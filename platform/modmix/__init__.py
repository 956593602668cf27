"""modmix: hyperparameter studies of methods that combine modalities.

Packages in reading order; each imports only those above it:

    base       errors, paths, hyperparameter domains, settings, messages, metrics
    ledger     the database of studies, configurations and results: the source of truth
    encoders   networks that turn an input into features
    tasks      data sets: inputs, splits, default recipes
    methods    ways to combine features into class scores and losses
    training   packs of models trained as one stacked model
    study      the study file: read, validated, planned
    search     samplers, run state, successive halving across packs
    execution  packs on workers: this process or a Ray cluster
    tracking   mirrors the ledger to MLflow
    analysis   statistics, tables, figures, report
    registry   best configurations, final runs, registered models
    api        a study in one call, for Python and the command line
    cli        the command line

One study's way through them: `study.files` reads ``studies/x.yaml`` and `study.make_plan` resolves
it against its data. `search` proposes configurations, `execution` packs their replicates and hands
the packs to workers, where `training` builds encoders and methods for the task's data and trains
them together. Results are recorded in the `ledger` first; then the samplers are told and `tracking`
mirrors them to MLflow. When all is done, `analysis` writes tables, figures and the report from the
ledger, and `registry` turns a best configuration into a registered model.

For users: `run` starts or continues a study file and returns its `Study`; `open_study` opens one
that ran before. `Method`, `Encoder` and `Task` are what classes of your own derive from.

    >>> import modmix                                       # doctest: +SKIP
    >>> modmix.run("studies/quickstart.yaml").frame()       # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modmix._version import VERSION as __version__

if TYPE_CHECKING:
    from modmix.api import Study, open_study, run
    from modmix.encoders.base import Encoder
    from modmix.methods.base import Method
    from modmix.tasks.base import Task

__all__ = ["Encoder", "Method", "Study", "Task", "__version__", "open_study", "run"]

_PLACES = {
    "Encoder": "modmix.encoders.base",
    "Method": "modmix.methods.base",
    "Study": "modmix.api",
    "Task": "modmix.tasks.base",
    "open_study": "modmix.api",
    "run": "modmix.api",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import modmix` stays light for scripts that only read a version.
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'modmix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
