"""modmix: studies of how to combine modalities, from one file to figures with error bars.

The modules, in reading order; each imports only what stands above it:

    errors      what can go wrong, as a tree, with the exit codes
    allocator   memory that was freed is kept
    home        where everything a person's studies produce lies
    ledger/     studies, configurations, replicates, histories: the truth, in a database
    space       hyperparameters, constants, grids, ranges, choices, conditions
    settings    the training settings a study file may give, with their defaults
    spec        the study file as read: its outline, checked, with lines
    metrics     error, AUC, NLL, ECE, macro-F1
    halving     which configurations go on after a rung, and which get all their seeds
    packing     what travels to a worker and back
    grouping    which replicates share a pack
    tasks/      shelf: data
    encoders/   shelf: networks for one modality
    methods/    shelf: combinations
    domains     what a study file says about one hyperparameter
    checker     a study file held against the shelves: every problem at once
    plan        a checked file with its data: configurations, search spaces, seeds, replicates
    costs       what training a pack costs, estimated
    search      ask and tell: Optuna behind one small class
    optim       SGD, Adam, AdamW, schedules and clipping with a leading model axis
    products    products of matrices for K models, by the library that is fastest here
    linear      fully connected layers of K models on a processor
    stacked     K models of one structure as one
    training/   parts of the trainer: batches, groups of models, records, checkpoints
    trainer     train one pack: epochs, evaluation, checkpoints, records
    runners     what a runner is, and the one in this process
    mailbox     packs to workers, events to the driver
    seat        what a worker does: pack after pack
    bridge      the driver's half: who gets which pack, who died
    ray_seats   seats as Ray Tune trials
    ray_runner  a runner on a Ray cluster, there or started here
    state        what a running study knows of its configurations and replicates
    waiting     models that wait for a worker, and the packs they make
    rungs       values at rungs of halving over all packs
    searches    what the searches of a running study ask for and are told
    study       run a study: ask, pack, run, record, tell; continue; extend
    tracking/   ledger -> MLflow
    analysis/   shelf: frames, statistics, tables, curves, figures, report
    pyfunc      what a registered model runs
    registry    best configurations, final runs, registered models
    starting    a runner that starts while the study is still being checked
    api         the whole of a run in one call
    display     what a person sees while a study runs
    cli_data    the commands about a task's data
    cli         what people type

For users: `run` starts or continues a study file and returns its `Study`; `open_study` opens a
finished one. `Method`, `Encoder` and `Task` are what classes of your own derive from.

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
