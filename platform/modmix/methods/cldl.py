"""Collaborative layer-wise discriminative learning (CLDL; Jin et al. 2016, ECCV)."""

from __future__ import annotations

from collections.abc import Mapping

from modmix.methods.mul import Mul


class CLDL(Mul):
    """`Mul` with β = 1 and fixed source weights: 1 for the last modality, 0.3 for the others.

    Meant for the outputs of successive units of one network, the last being its final output. The
    weights are those of the code of "Learn to Combine Modalities" (2018), where CLDL is a baseline.
    """

    def __init__(
        self, features: Mapping[str, int], classes: int, *, depth: int = 0, width: int = 64
    ) -> None:
        *others, last = features
        weights = {**dict.fromkeys(others, 0.3), last: 1.0}
        super().__init__(features, classes, beta=1.0, weights=weights, depth=depth, width=width)
