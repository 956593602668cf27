"""The declaration of a method for the table, and hyperparameters that several methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modmix.base.space import Hyperparameter


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """One method of the table. With ``inputs`` "raw" it takes flattened inputs, no features."""

    path: str  # "module:Class", or the reference of a user-defined class
    doc: str
    hyperparameters: tuple[Hyperparameter, ...] = ()
    min_modalities: int = 1
    inputs: Literal["features", "raw"] = "features"
    # Whether each modality of a shared encoder (taps of a ResNet) gets its own copy of it.
    separate_encoders: bool = False
    # Sets of encoders with their own initial weights. "" is the plain one; the features of a set
    # "teacher/" are called "teacher/audio" and so on.
    encoder_sets: tuple[str, ...] = ("",)
    # Further problems of a configuration, as `modmix.methods.table.problems`, from the names of
    # the modalities and the hyperparameters.
    check: Callable[[Sequence[str], Mapping[str, Any]], list[str]] | None = None
    # What never happens in so short a training, as a sentence, or None; from the number of
    # modalities, the hyperparameters and the training setting ``epochs``.
    idle: Callable[[int, Mapping[str, Any], int], str | None] | None = None


def depth(default: int, what: str) -> Hyperparameter:
    doc = f"hidden layers of {what}; 0 is a linear layer"
    return Hyperparameter(name="depth", kind="int", default=default, low=0, doc=doc)


WIDTH = Hyperparameter(
    name="width", kind="int", default=64, low=1, doc="units of each hidden layer"
)
HIDDEN = Hyperparameter(
    name="hidden",
    kind="ints",
    default=None,
    optional=True,
    low=1,
    doc="units of each hidden layer of g, instead of depth and width; null: use those",
)
PROJECT = Hyperparameter(
    name="project",
    kind="int",
    default=None,
    optional=True,
    low=1,
    doc="units of a linear layer with ReLU on each modality before the merge; null: none",
)
MERGE = Hyperparameter(
    name="merge",
    kind="str",
    default="concat",
    choices=("concat", "sum", "mean"),
    doc="how features become one vector; sum and mean need equal widths",
)
