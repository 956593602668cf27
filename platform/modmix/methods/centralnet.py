"""CentralNet: a central network merges the hidden layers of the modalities' networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modmix.methods.base import Method, cross_entropy


class CentralOutputs(NamedTuple):
    """Logits of the central network and of each modality's network."""

    logits_BC: Tensor
    own_MBC: Tensor


class Level(nn.Module):
    """Hidden layer i of every network.

    Maps h_m^{i−1} and u^{i−1}, None in the first level, to h_m^i and u^i.
    """

    def __init__(self, widths: Sequence[int], width: int, *, first: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(d, width) for d in widths)
        self.central = None if first else nn.Linear(width, width)
        terms = len(widths) + (not first)
        self.alpha = nn.Parameter(torch.full((terms,), 1.0 / terms))

    def forward(
        self, hidden: Sequence[Tensor], joined_BD: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        hidden = [layer(h_BD).relu() for layer, h_BD in zip(self.own, hidden, strict=True)]
        terms = hidden
        if self.central is not None:
            terms = [*hidden, self.central(joined_BD).relu()]
        return hidden, (torch.stack(terms, dim=-1) * self.alpha).sum(-1)


class CentralNet(Method):
    """CentralNet (Vielzeuf et al., ECCV 2018 workshops, arXiv 1808.07275).

    With h_m^0 = f_m, the networks of the modalities have ``depth`` layers i = 1, …, L:

        h_m^i = ReLU(A_m^i h_m^{i−1} + a_m^i)       z_m = W_m h_m^L + b_m

    and the central network, with learned scalars α,

        u^1 = Σ_m α_m^1 h_m^1                       c^i = ReLU(A^i u^{i−1} + a^i)
        u^i = α^i c^i + Σ_m α_m^i h_m^i             z = W u^L + b

        loss = CE(z, y) + weight · Σ_m CE(z_m, y)

    The prediction is that of z. Differs from the published method: the merged layers follow the
    encoders, whose own hidden layers have different shapes; logits are not merged; the α of a level
    are initialised to one over their number.

    Args:
        weight: weight of the loss of each modality's network.
        depth: hidden layers L of each network.
        width: units of each.
    """

    weight: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        weight: float = 1.0,
        depth: int = 2,
        width: int = 64,
    ) -> None:
        super().__init__(features, classes)
        self.register_buffer("weight", torch.tensor(float(weight)))
        widths = list(features.values())
        self.levels = nn.ModuleList(
            Level([width] * len(widths) if i else widths, width, first=i == 0) for i in range(depth)
        )
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for _ in widths)
        self.classifier = nn.Linear(width, classes)

    def forward(self, features: Mapping[str, Tensor]) -> CentralOutputs:
        hidden, joined_BD = self.ordered(features), None
        for level in self.levels:
            hidden, joined_BD = level(hidden, joined_BD)
        classified = zip(self.classifiers, hidden, strict=True)
        own_MBC = torch.stack([g(h_BD) for g, h_BD in classified])
        return CentralOutputs(self.classifier(joined_BD), own_MBC)

    def loss(self, outputs: CentralOutputs, target_B: Tensor) -> Tensor:
        own = [cross_entropy(logits_BC, target_B) for logits_BC in outputs.own_MBC.unbind()]
        central_B = cross_entropy(outputs.logits_BC, target_B)
        return central_B + self.weight * torch.stack(own).sum(0)
