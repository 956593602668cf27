"""Study files for final runs of best configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from modmix.base.home import Home, is_name, write_text
from modmix.base.messages import digest
from modmix.base.metrics import higher_is_better
from modmix.base.owner import owner_and_name
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ReplicateRecord, StudyRecord, of_task
from modmix.study.checks import task_options
from modmix.study.variables import escaped

if TYPE_CHECKING:
    from modmix.analysis.best import BestConfiguration

FIRST_FRESH_SEED = 1000  # final runs use unused seeds from here on
MIN_SEEDS = 5


def write_best(
    ledger: Ledger, home: Home, study: str, best_configurations: Sequence[BestConfiguration]
) -> list[Path | None]:
    """Write ``<home>/<study>/best/<method>.yaml`` for each configuration; return the paths.

    None for a configuration whose hyperparameters changed during training (`pbt`): no constants
    describe it.

    Each is a complete study file: the configuration's hyperparameters as constants, seeds that the
    study has not used, everything else as in the study. Its header has the command, the cost and
    the expected result.
    """
    record = ledger.study(study)
    replicates: dict[str, list[ReplicateRecord]] = {}
    for replicate in ledger.replicates(study):
        replicates.setdefault(replicate.configuration, []).append(replicate)
    used = {r.seed for rs in replicates.values() for r in rs}
    used |= set(record.spec.get("seeds", ()))
    paths: list[Path | None] = []
    for best in best_configurations:
        if best.by_pbt:
            paths.append(None)
            continue
        name = f"{best.task}.{best.method}" if best.task else best.method
        path = home.study(study) / "best" / f"{name}.yaml"
        content = _study_file(record, best, _final_name(ledger, record, best), used)
        body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=96)
        header = _header(
            record, best, path, content["seeds"], replicates.get(best.configuration, [])
        )
        write_text(path, header + body)
        paths.append(path)
    return paths


def _study_file(
    record: StudyRecord, best: BestConfiguration, name: str, used: set[int]
) -> dict[str, Any]:
    of = record.name
    if best.task:
        record = of_task(record, best.task)
    spec, details = record.spec, record.details
    resolved = details.get("task_options", {})  # with absolute paths
    classes = details.get("classes_at", {})  # absolute paths of users' own classes
    task = {key: resolved.get(key, value) for key, value in spec["task"].items()}
    task = _with_class_path({**task, **escaped(task_options(task))}, classes)
    encoders = {
        name: _with_class_path(encoder, classes)
        for name, encoder in spec.get("encoders", {}).items()
    }
    seeds = _fresh_seeds(max(MIN_SEEDS, len(spec.get("seeds", ()))), used)
    options = {name: value for name, value in best.params.items() if name.startswith("task.")}
    params = {**best.params, **escaped(options)}
    block = {name: _constant(value) for name, value in params.items()}
    block = _with_class_path({**_own_class(spec, best.method), **block}, classes)
    content: dict[str, Any] = {
        "study": name,
        "description": f"Best configuration of {best.method} in study {of}, on new seeds",
        "task": task,
        "encoders": encoders or None,
        "training": spec.get("training") or None,
        "seeds": seeds,
        "objective": list(spec.get("objective", ["val/error"])),
        "parts": {"final": {"methods": {best.method: block}}},
        "paper": {best.method: paper}
        if (paper := spec.get("paper", {}).get(best.method))
        else None,
        "final": {
            "of": of,
            **({"task": best.task} if best.task else {}),
            "method": best.method,
            "configuration": best.configuration,
        },
        "resources": _resources(spec, best.method) or None,
        # Results of other studies come without weights.
        "reuse": False,
    }
    return {key: value for key, value in content.items() if value is not None}


def _resources(spec: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The study's resources, as far as packs of this method need them."""
    given = _without_nulls(spec.get("resources") or {})
    own = _without_nulls(given.pop("methods", {}).get(method, {}))
    return {**given, "methods": {method: own}} if own else given


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _own_class(spec: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The ``class`` key of a user's own method, as in its block of the study file."""
    blocks = [part["methods"].get(method) or {} for part in spec["parts"].values()]
    return next(({"class": block["class"]} for block in blocks if "class" in block), {})


def _with_class_path(block: Mapping[str, Any], classes: Mapping[str, str]) -> dict[str, Any]:
    """The block with the absolute path of its class, if it has one.

    Args:
        classes: "file:Class" -> the same with an absolute path.
    """
    if "class" not in block:
        return dict(block)
    file, _, name = block["class"].rpartition(":")
    return {**block, "class": classes.get(f"{Path(file).name}:{name}", block["class"])}


def _constant(value: Any) -> Any:
    """A constant in a study file, where a plain mapping would be a domain."""
    return {"value": dict(value)} if isinstance(value, Mapping) else value


def _fresh_seeds(count: int, used: set[int]) -> list[int]:
    seeds: list[int] = []
    candidate = FIRST_FRESH_SEED
    while len(seeds) < count:
        if candidate not in used:
            seeds.append(candidate)
        candidate += 1
    return seeds


def _final_name(ledger: Ledger, record: StudyRecord, best: BestConfiguration) -> str:
    """The name of the final study; a longer one if another configuration has taken it."""
    plain = owner_and_name(record.name)[1]
    of = f"{plain}-{best.task}" if best.task else plain
    name = f"{of}-{best.method}-final"
    longer = f"{name[:80]}-{digest([record.name, best.configuration])[:8]}"
    if not is_name(name):
        return longer
    if ledger.has_study(name):
        final = ledger.study(name).spec.get("final") or {}
        if final.get("configuration") != best.configuration:
            return longer
    return name


def _header(
    record: StudyRecord,
    best: BestConfiguration,
    path: Path,
    seeds: Sequence[int],
    replicates: Sequence[ReplicateRecord],
) -> str:
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    seconds = sum(r.seconds for r in replicates) / max(1, len(replicates))
    own = f"test/{best.metric.partition('/')[2]}"
    names = sorted(best.test, key=lambda name: (name != own, name))[:3]
    test = ", ".join(f"{n} {_estimate(best.test[n]['mean'], best.test[n]['std'])}" for n in names)
    over = "(one seed)" if best.n == 1 else f"(mean ± std over {best.n} seeds)"
    low = "high" if higher_is_better(best.metric) else "low"
    cost = _duration(seconds * len(seeds))
    return f"""\
# modmix final {shown}
#
# Cost:      {len(seeds)} models, about {cost} of device time (estimated from the study).
# Expected:  {best.metric} {_estimate(best.mean, best.std)} or slightly worse, since it was \
selected for a {low} value.
#            In the study: {test} {over}.
# From:      best configuration of {best.method} in study {record.name}, selected by {best.metric}.
"""


def _estimate(mean: float, std: float) -> str:
    """ "3.104 ± 0.21"; of a single replicate "3.104"."""
    return f"{mean:.4g}" if math.isnan(std) else f"{mean:.4g} ± {std:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
