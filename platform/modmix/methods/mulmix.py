"""Multiplicative combination of modality mixtures, eqs. 11-13."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from modmix.methods.add import Merge
from modmix.methods.base import head, hidden_units
from modmix.methods.mul import MulOutputs, Multiplicative
from modmix.methods.table import subsets


class MulMix(Multiplicative):
    """One source per mixture (non-empty subset of modalities), combined as in `Mul`.

    Each mixture has its own projections, merge (as in `Add`) and head; a single modality goes to
    its head directly. Sources are named "a", "b", "a+b". ``max_subset`` is the largest number of
    modalities in a mixture; None means all.

    Raises:
        InputError: sum or mean over unequal widths without ``project``.
    """

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        beta: float = 1.0,
        margin: float | None = None,
        detach_weights: bool = True,
        alpha: float = 0.0,
        weights: Mapping[str, float] | None = None,
        merge: str = "concat",
        project: int | None = None,
        depth: int = 1,
        width: int = 64,
        hidden: Sequence[int] | None = None,
        max_subset: int | None = None,
    ) -> None:
        mixtures = subsets(tuple(features), max_subset)
        super().__init__(
            features,
            classes,
            ["+".join(subset) for subset in mixtures],
            beta=beta,
            margin=margin,
            detach_weights=detach_weights,
            alpha=alpha,
            weights=weights,
        )
        self.subsets = mixtures
        units = hidden_units(depth, width, hidden)
        self.merges = nn.ModuleList()
        self.heads = nn.ModuleList()
        for subset in self.subsets:
            widths = [features[m] for m in subset]
            several = len(subset) > 1
            merged = Merge(widths, merge=merge, project=project) if several else None
            self.merges.append(nn.Identity() if merged is None else merged)
            self.heads.append(
                head(widths[0] if merged is None else merged.features, units, classes)
            )

    def forward(self, features: Mapping[str, Tensor]) -> MulOutputs:
        logits = []
        for subset, merge, classify in zip(self.subsets, self.merges, self.heads, strict=True):
            parts = [features[m] for m in subset]
            logits.append(classify(merge(parts) if len(parts) > 1 else parts[0]))
        return self.combine(logits)
