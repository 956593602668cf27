"""modmix: studies of how to combine modalities, from one file to figures with error bars.

The spine, in reading order; each module imports only what stands above it:

    errors      what can go wrong, as a tree, with the exit codes
    home        where everything a person's studies produce lies
    ledger      studies, points, replicates, histories: the truth, in a database
    space       hyperparameters, constants, grids, ranges, choices, conditions
    spec        the study file, checked; all its errors at once
    metrics     error, AUC, NLL, ECE, macro-F1
    packing     which replicates share a pack, and what travels to a worker and back
    tasks/      shelf: data                encoders/  shelf: networks for one modality
    methods/    shelf: combinations
    plan        spec + shelves -> points of a grid, space of a search, seeds, replicates
    search      ask and tell: Optuna behind one small class
    halving     which points of a pack go on after a rung
    optim       SGD, Adam, AdamW, schedules and clipping with a leading model axis
    stacked     K models of one structure as one
    trainer     train one pack: epochs, evaluation, checkpoints, records
    runners     what a runner is, and the one in this process
    ray_runner  packs as Ray Tune trials
    tracking    ledger -> MLflow
    study       run a study: ask, pack, run, record, tell; continue; extend
    analysis/   frames, statistics, tables, curves, figures, report
    registry    best points, final runs, registered models
    cli         what people type

For users: `run` starts or continues a study file and returns its `Study`; `open_study` opens a
finished one.

    >>> import modmix                                       # doctest: +SKIP
    >>> modmix.run("studies/quickstart.yaml").frame()       # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modmix._version import VERSION as __version__

if TYPE_CHECKING:
    from modmix.api import Study, open_study, run

__all__ = ["Study", "__version__", "open_study", "run"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import modmix` stays light for scripts that only read a version.
    if name in ("Study", "open_study", "run"):
        from modmix import api

        return getattr(api, name)
    raise AttributeError(f"module 'modmix' has no attribute {name!r}")
