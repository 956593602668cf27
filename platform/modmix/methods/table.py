"""Table of methods: hyperparameters and requirements. Does not import torch.

User-defined methods are named by references (see `modmix.base.sources`); `method_entry` returns
entries for both. Configurations are checked with `problems` when a study is planned, so the classes
do not validate them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb
from typing import Any, Literal

from modmix.base import sources as own
from modmix.base.settings import TRAINING
from modmix.base.signature import hyperparameters, summary
from modmix.base.space import Hyperparameter

MAX_SOURCES = 127  # 2⁷ − 1: all mixtures of seven modalities


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """One method of the table. With ``inputs`` "raw" it takes flattened inputs, not features."""

    path: str  # "module:Class", or the reference of a user-defined class
    doc: str
    hyperparameters: tuple[Hyperparameter, ...] = ()
    min_modalities: int = 1
    inputs: Literal["features", "raw"] = "features"
    # Whether each modality of a shared encoder (taps of a ResNet) gets its own copy of it.
    separate_encoders: bool = False


def _depth(default: int, what: str) -> Hyperparameter:
    doc = f"hidden layers of {what}; 0 is a linear layer"
    return Hyperparameter(name="depth", kind="int", default=default, low=0, doc=doc)


_WIDTH = Hyperparameter(
    name="width", kind="int", default=64, low=1, doc="units of each hidden layer"
)
_HIDDEN = Hyperparameter(
    name="hidden",
    kind="ints",
    default=None,
    optional=True,
    low=1,
    doc="units of each hidden layer of g, instead of depth and width; null: use those",
)
_PROJECT = Hyperparameter(
    name="project",
    kind="int",
    default=None,
    optional=True,
    low=1,
    doc="units of a linear layer with ReLU on each modality before the merge; null: none",
)
_MERGE = Hyperparameter(
    name="merge",
    kind="str",
    default="concat",
    choices=("concat", "sum", "mean"),
    doc="how features become one vector; sum and mean need equal widths",
)
_COMBINATION = (
    Hyperparameter(
        name="beta",
        kind="float",
        default=1.0,
        low=0.0,
        stackable=True,
        doc="β of eq. 8, how strongly correct sources suppress the others; 0: plain average",
    ),
    Hyperparameter(
        name="margin",
        kind="float",
        default=None,
        optional=True,
        low=0.0,
        stackable=True,
        doc="δ of eq. 10 (boosted training), in units of the loss; null: every example counts",
    ),
    Hyperparameter(
        name="detach_weights",
        kind="bool",
        default=True,
        doc="whether to stop gradients through q and the focal factor",
    ),
    Hyperparameter(
        name="alpha",
        kind="float",
        default=0.0,
        low=0.0,
        stackable=True,
        doc="exponent of the focal factor (1 − p) on each source's own loss; 0: none",
    ),
    Hyperparameter(
        name="weights",
        kind="mapping",
        default=None,
        optional=True,
        low=0.0,
        stackable=True,
        doc="weight of each source's loss by name (mixtures: a+b); missing names and null: 1",
    ),
)

METHODS: dict[str, MethodEntry] = {
    "base": MethodEntry(
        path="modmix.methods.unimodal:Unimodal",
        doc="one modality alone",
        hyperparameters=(
            Hyperparameter(
                name="modality",
                kind="str",
                default=None,
                optional=True,
                doc="which modality; null: one configuration for each",
            ),
            _depth(0, "the classifier"),
            _WIDTH,
        ),
    ),
    "early": MethodEntry(
        path="modmix.methods.early:Early",
        doc="inputs flattened and concatenated, one network (eq. 1); no tokens",
        hyperparameters=(
            Hyperparameter(
                name="hidden",
                kind="ints",
                default=[64],
                low=1,
                doc="units of each hidden layer; []: linear",
            ),
        ),
        min_modalities=2,
        inputs="raw",
    ),
    "late": MethodEntry(
        path="modmix.methods.late:Late",
        doc="independent classifiers, predictions combined (eq. 2)",
        hyperparameters=(
            Hyperparameter(
                name="combine",
                kind="str",
                default="mean",
                choices=("mean", "learned"),
                doc="mean of the probabilities, or a linear layer on the log-probabilities",
            ),
            _depth(0, "each modality's classifier"),
            _WIDTH,
        ),
        min_modalities=2,
        separate_encoders=True,
    ),
    "add": MethodEntry(
        path="modmix.methods.add:Add",
        doc="features merged, then one network g (eqs. 3-5)",
        hyperparameters=(_MERGE, _PROJECT, _depth(1, "g"), _WIDTH, _HIDDEN),
        min_modalities=2,
    ),
    "attend": MethodEntry(
        path="modmix.methods.attend:Attend",
        doc="features weighted by modality attention and summed, then g (Moon et al. 2018)",
        hyperparameters=(
            Hyperparameter(
                name="score",
                kind="str",
                default="joint",
                choices=("joint", "tanh"),
                doc="attention scores of all features jointly, or of each modality by a tanh layer",
            ),
            _PROJECT,
            _depth(1, "g"),
            _WIDTH,
            _HIDDEN,
        ),
        min_modalities=2,
    ),
    "mul": MethodEntry(
        path="modmix.methods.mul:Mul",
        doc="a classifier per modality, combined multiplicatively (eqs. 8-10)",
        hyperparameters=(
            *_COMBINATION,
            _depth(0, "each modality's classifier"),
            _WIDTH,
        ),
        min_modalities=2,
    ),
    "cldl": MethodEntry(
        path="modmix.methods.cldl:CLDL",
        doc="mul with β = 1 and source weights 0.3, but 1 for the last modality (Jin et al. 2016)",
        hyperparameters=(_depth(0, "each modality's classifier"), _WIDTH),
        min_modalities=2,
    ),
    "mulmix": MethodEntry(
        path="modmix.methods.mulmix:MulMix",
        doc="a classifier per mixture of modalities, combined multiplicatively (eqs. 11-13)",
        hyperparameters=(
            *_COMBINATION,
            _MERGE,
            _PROJECT,
            _depth(1, "each mixture's g"),
            _WIDTH,
            _HIDDEN,
            Hyperparameter(
                name="max_subset",
                kind="int",
                default=None,
                optional=True,
                low=1,
                doc="largest number of modalities in a mixture; null: all",
            ),
        ),
        min_modalities=2,
    ),
}


def method_entry(name: str) -> MethodEntry:
    """The entry of a method, built-in or user-defined.

    Raises:
        InputError: the class is missing, is not a `Method`, or has an unsupported signature.
    """
    return METHODS[name] if name in METHODS else _own_entry(name)


@cache
def _own_entry(name: str) -> MethodEntry:
    from modmix.methods.base import Method

    found = own.load_subclass(name, Method, "modmix.Method")
    declared = hyperparameters(found, own.place(name), reserved={*TRAINING, "class"})
    return MethodEntry(path=name, doc=summary(found), hyperparameters=declared)


def modalities(method: str, names: Sequence[str], params: Mapping[str, Any]) -> tuple[str, ...]:
    """The modalities that a configuration of this method uses, in the task's order."""
    chosen = params.get("modality") if method == "base" else None
    return tuple(names) if chosen is None else (chosen,)


def subsets(names: Sequence[str], largest: int | None = None) -> tuple[tuple[str, ...], ...]:
    """All non-empty subsets of at most ``largest`` names, smallest first (eq. 11).

    Example:
        >>> subsets(["a", "b"])
        (('a',), ('b',), ('a', 'b'))
    """
    sizes = range(1, min(largest or len(names), len(names)) + 1)
    return tuple(subset for size in sizes for subset in combinations(names, size))


def sources(method: str, names: Sequence[str], params: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the sources: the mixtures for mulmix, the modalities for all other methods."""
    used = modalities(method, names, params)
    if method != "mulmix":
        return used
    return tuple("+".join(subset) for subset in subsets(used, params.get("max_subset")))


def problems(method: str, names: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """Problems with a configuration of a method on a task with modalities ``names``.

    Each value in ``params`` must already have been checked by itself. Each problem is a clause: the
    rule, the value given and the remedy.
    """
    entry = method_entry(method)
    found: list[str] = []
    if len(names) < entry.min_modalities:
        found.append(f"needs at least {entry.min_modalities} modalities, got {', '.join(names)}")
    chosen = params.get("modality")
    if method == "base" and chosen is not None and chosen not in names:
        found.append(f"modality must be one of {', '.join(names)}, got {chosen!r}")
    if method == "mulmix" and _count(len(names), params.get("max_subset")) > MAX_SOURCES:
        found.append(
            f"at most {MAX_SOURCES} mixtures can be combined, {len(names)} modalities make "
            f"{_count(len(names), params.get('max_subset'))}; set max_subset"
        )
    elif params.get("weights") and method in METHODS:
        known = sources(method, names, params)
        unknown = [name for name in params["weights"] if name not in known]
        if unknown:
            found.append(f"weights must name sources ({', '.join(known)}), got {unknown[0]!r}")
    return found


def _count(names: int, largest: int | None) -> int:
    return sum(comb(names, size) for size in range(1, min(largest or names, names) + 1))
