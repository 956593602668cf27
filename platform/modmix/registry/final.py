"""Registers the best replicate of a finished final study in MLflow's model registry."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modmix.base import sources, ties
from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.base.metrics import higher_is_better
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ConfigurationRecord, ReplicateRecord, StudyRecord

if TYPE_CHECKING:
    from modmix.registry.models import NewModel

ALIAS = "champion"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A registered model version."""

    name: str
    version: str
    alias: str


def register(ledger: Ledger, home: Home, study: str, uri: str) -> Registered:
    """Register the replicate of a final study that is best on validation, and set the alias.

    Idempotent. Updates the study's runs in MLflow first.

    Raises:
        InputError: not a final study, not finished, or its weights are missing.
        TrackingError: MLflow is unreachable or refuses.
    """
    from modmix.registry.models import add_version, find_version, set_alias
    from modmix.tracking import mirror
    from modmix.tracking.store import Store

    record = ledger.study(study)
    final = record.spec.get("final")
    if not final:
        raise InputError(
            f"study {study!r} is not a final study: run 'modmix best {study}', then 'modmix final' "
            "with one of its files"
        )
    configuration, replicates = _final_configuration(ledger, record, final)
    chosen = _best_replicate(record, replicates)
    weights = home.weights / f"{chosen.key}.safetensors"
    if not weights.is_file():
        raise InputError(
            f"the weights {weights} of study {study!r} are missing: restore them, or train again "
            f"under another study name in {record.source}"
        )
    mirror.sync(ledger, study, uri, home)
    run = next(p.mlflow_run for p in ledger.configurations(study) if p.key == configuration.key)
    assert run is not None, "sync creates a run for every ended configuration"
    of = "-".join(str(final[key]) for key in ("of", "task", "method") if final.get(key))
    name, store = of.replace("/", "-"), Store(uri)
    found = find_version(store, name, "modmix.replicate", chosen.key)
    if found is None:
        with tempfile.TemporaryDirectory(prefix="modmix-") as folder:
            experiment = store.run(run)
            assert experiment is not None
            model = _model(record, configuration, weights, Path(folder))
            found = add_version(
                store,
                model,
                name=name,
                run=run,
                experiment=experiment.info.experiment_id,
                description=_description(record, configuration, replicates, chosen, model),
                tags=_tags(record, configuration, replicates, chosen),
                folder=Path(folder),
            )
    set_alias(store, name, found, ALIAS)
    return Registered(name=name, version=found, alias=ALIAS)


def _final_configuration(
    ledger: Ledger, record: StudyRecord, final: Mapping[str, Any]
) -> tuple[ConfigurationRecord, list[ReplicateRecord]]:
    """The configuration of a final study, and its finished replicates."""
    configurations = {
        configuration.key: configuration for configuration in ledger.configurations(record.name)
    }
    configuration = configurations.get(final["configuration"]) or (
        next(iter(configurations.values())) if len(configurations) == 1 else None
    )
    mine = [
        r
        for r in ledger.replicates(record.name)
        if configuration and r.configuration == configuration.key
    ]
    left = sum(r.state in ("pending", "running", "interrupted") for r in mine)
    if configuration is None or left or not any(r.state == "done" for r in mine):
        raise InputError(
            f"study {record.name!r} has {left or 'no'} {'un' if left else ''}finished replicates: "
            f"run 'modmix final {record.source}' first"
        )
    return configuration, [r for r in mine if r.state == "done"]


def _best_replicate(record: StudyRecord, replicates: Sequence[ReplicateRecord]) -> ReplicateRecord:
    """The best by the first objective; the first seed wins ties, NaN never wins."""
    objective = record.spec.get("objective", ["val/error"])[0]
    values = [replicate.metrics.get(objective, math.nan) for replicate in replicates]
    index = ties.best(values, higher_is_better=higher_is_better(objective))
    return replicates[index or 0]


def _summary(replicates: Sequence[ReplicateRecord]) -> dict[str, str]:
    """Metric -> "mean ± std (n=…)" over the replicates."""
    import statistics

    found = {}
    for name in sorted({name for r in replicates for name in r.metrics}):
        values = [v for r in replicates if math.isfinite(v := r.metrics.get(name, math.nan))]
        if values and name.startswith(("val/", "test/")):
            spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
            found[name] = f"{statistics.fmean(values):.5g}{spread} (n={len(values)})"
    return found


def _tags(
    record: StudyRecord,
    configuration: ConfigurationRecord,
    replicates: Sequence[ReplicateRecord],
    chosen: ReplicateRecord,
) -> dict[str, str]:
    from modmix.tracking.content import key_of

    return {
        "modmix.study": record.name,
        "modmix.of": str(record.spec["final"]["of"]),
        "modmix.method": configuration.method,
        "modmix.task": str(record.details.get("task", "")),
        "modmix.fingerprint": str(record.details.get("fingerprint", "")),
        "modmix.configuration": configuration.key,
        "modmix.replicate": chosen.key,
        "modmix.seed": str(chosen.seed),
        **{key_of(name): value for name, value in _summary(replicates).items()},
    }


def _description(
    record: StudyRecord,
    configuration: ConfigurationRecord,
    replicates: Sequence[ReplicateRecord],
    chosen: ReplicateRecord,
    model: NewModel,
) -> str:
    params = ", ".join(
        f"{k}={json.dumps(v)}" for k, v in configuration.params.items() if v is not None
    )
    shapes = ", ".join(
        f"{name} ({' × '.join(map(str, shape))})"
        for name, shape in model.settings["inputs"].items()
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in _summary(replicates).items())
    return f"""\
Method **{configuration.method}** on task {record.details.get("task")}: the replicate of study \
`{record.name}` that is best on validation (seed {chosen.seed}).

Hyperparameters: {params}

Inputs (raw values, one row per example): {shapes}

| over all seeds | mean ± std |
|---|---|
{rows}
"""


# ---------------------------------------------------------------- content of the model


def _model(
    record: StudyRecord, configuration: ConfigurationRecord, weights: Path, folder: Path
) -> NewModel:
    """The model's files, columns and example; new files are written to ``folder``."""
    from modmix._version import VERSION
    from modmix.methods.model import unpack_weights
    from modmix.registry.models import NewModel

    blob = weights.read_bytes()
    model, description = unpack_weights(blob)
    spec = description["model"]
    shapes = {name: spec.inputs[name].shape for name in model.inputs}
    known = _scaling(record, configuration)
    scaling = {name: known[name] for name in shapes if name in known}
    (folder / "scaling.json").write_text(json.dumps(scaling), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(blob)
    labels = [str(name) for name in description["class_names"]]
    here = Path(__file__).parent
    return NewModel(
        script=here / "pyfunc.py",
        files={"weights": folder / "model.safetensors", "scaling": folder / "scaling.json"},
        package=here.parent,
        requirements=_requirements(),
        inputs=tuple(shapes),
        outputs={
            "class": "long",
            "label": "string",
            **{f"probability.{label}": "double" for label in labels},
        },
        example=_example(shapes, scaling),
        settings={
            "modmix": VERSION,
            "inputs": {name: list(shape) for name, shape in shapes.items()},
            # Loading the model runs this code.
            "own_code": sorted(file for given in spec.sources.values() for file in given["texts"]),
            "scaled": sorted(scaling),
            "labels": labels,
        },
    )


def _scaling(
    record: StudyRecord, configuration: ConfigurationRecord
) -> Mapping[str, Mapping[str, Any]]:
    """Input -> mean and scale used when its data was prepared (see `tasks.writer`).

    Integers are prepared unscaled; theirs are the mean and scale used in training.
    """
    from modmix.base.errors import DataError
    from modmix.tasks.base import load_task, prepare_task

    sources.register(record.details.get("sources", {}))
    task = record.details.get("task_reference", record.details["task"])
    options = dict(record.details.get("task_options", {}))
    for name, value in configuration.params.items():
        if name.startswith("task."):
            options[name.removeprefix("task.")] = value
    try:
        folder = prepare_task(task, options)
        inputs = load_task(task, options).inputs
    except DataError as error:
        raise InputError(
            f"registering a model of study {record.name!r} needs its data, for the scaling of "
            f"inputs: {error}"
        ) from error
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    found: dict[str, Mapping[str, Any]] = dict(meta.get("scaling") or {})
    for name, given in inputs.items():
        if given.mean is not None and given.scale is not None:
            found[name] = {"mean": given.mean.tolist(), "scale": given.scale.tolist()}
    return found


def _example(
    shapes: Mapping[str, tuple[int, ...]], scaling: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Two average examples; real ones may be confidential."""
    import numpy as np

    means = {name: scaling[name]["mean"] if name in scaling else 0.0 for name in shapes}
    return {
        name: np.broadcast_to(np.asarray(means[name]), (2, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def _requirements() -> tuple[str, ...]:
    """Requirements for running the model; modmix itself is copied into it."""
    packages = ("mlflow", "numpy", "pandas", "safetensors", "torch")
    return tuple(f"{package}=={version(package).partition('+')[0]}" for package in packages)
