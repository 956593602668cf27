"""The task ``weak``: synthetic data with a known set of weak inputs for each example.

An informative input m of an example of class y is

    x_m = signal · c_{m,y} + noise · ε

with class means c_{m,k} ~ N(0, I) drawn once per input, and ε ~ N(0, I) per example. Each input
of each example is independently weak with probability ``share``. A weak input keeps the fraction
``kept`` (κ) of its signal:

    noise      x_m = κ · signal · c_{m,y} + noise · ε
    conflict   x_m = signal · (κ · c_{m,y} + (1 − κ) · c_{m,z}) + noise · ε, another class z ≠ y
    missing    x_m = κ · (the informative x_m)

where z is drawn per example and input. With ``always_one``, an example whose inputs would all be
weak has one of them, chosen at random, made informative. ``Split.extras["informative"]``, (N, M)
bool, is the mask of informative inputs. Each split has its own generator, so changing the number of
training rows does not change validation and test. Values are not standardised.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from modmix.tasks.base import Contents, Task
from modmix.tasks.data import SPLITS, Array, Input
from modmix.tasks.files import Progress
from modmix.tasks.splits import generator
from modmix.tasks.writer import Writer


class Weak(Task):
    name: ClassVar[str] = "weak"

    def write(self, writer: Writer, progress: Progress) -> Contents:  # noqa: ARG002 - fast
        options = self.options
        names = [f"m{i + 1}" for i in range(options["inputs"])]
        means_MCD = class_means(options)
        for split in SPLITS:
            labels_N, informative_NM = draw_masks(options, split)
            inputs: dict[str, Array] = {}
            for m, name in enumerate(names):
                values_ND = draw_input(
                    options, split, name, means_MCD[m], labels_N, informative_NM[:, m]
                )
                inputs[name] = values_ND
                writer.content(f"{split}_{name}", values_ND)
            writer.content(f"{split}_labels", labels_N)
            writer.split(split, inputs, labels_N, {"informative": informative_NM})
        return Contents(
            inputs=tuple(Input(name=n, shape=(options["dim"],)) for n in names),
            class_names=tuple(str(k) for k in range(options["classes"])),
            rows={split: options[f"{split}_rows"] for split in SPLITS},
            extras=("informative",),
        )


def class_means(options: Any) -> Array:
    """Draw the class means, (M, C, D)."""
    shape = (options["inputs"], options["classes"], options["dim"])
    return generator(options["seed"], "means").standard_normal(shape)


def draw_masks(options: Any, split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Draw a split's balanced labels (N,) and its mask of informative inputs (N, M)."""
    rows, inputs = options[f"{split}_rows"], options["inputs"]
    rng = generator(options["seed"], split, "masks")
    labels_N = rng.permutation(np.arange(rows, dtype=np.int64) % options["classes"])
    informative_NM = rng.random((rows, inputs)) >= options["share"]
    if options["always_one"]:
        given_back_N = rng.integers(inputs, size=rows)
        none_N = ~informative_NM.any(axis=1)
        informative_NM[none_N, given_back_N[none_N]] = True
    return labels_N, informative_NM


def draw_input(
    options: Any,
    split: str,
    name: str,
    means_CD: Array,
    labels_N: npt.NDArray[np.int64],
    informative_N: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """Draw one input of a split, (N, D)."""
    rng = generator(options["seed"], split, name)
    rows, kept = len(labels_N), options["kept"]
    noise_ND = options["noise"] * rng.standard_normal((rows, options["dim"]))
    steps_N = rng.integers(1, options["classes"], size=rows)
    signal_ND = options["signal"] * means_CD[labels_N]
    match options["weakness"]:
        case "noise":
            weak_ND = kept * signal_ND + noise_ND
        case "conflict":
            others_N = (labels_N + steps_N) % options["classes"]
            other_ND = options["signal"] * means_CD[others_N]
            weak_ND = kept * signal_ND + (1 - kept) * other_ND + noise_ND
        case _:
            weak_ND = kept * (signal_ND + noise_ND)
    values_ND = np.where(informative_N[:, None], signal_ND + noise_ND, weak_ND)
    return np.asarray(values_ND, dtype=np.float32)
