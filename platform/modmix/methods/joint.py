"""`Joint`, the base class of methods with one classifier of all modalities, trained end to end."""

from __future__ import annotations

from torch import Tensor

from modmix.methods.base import Method, cross_entropy
from modmix.methods.unimodal import Logits


class Joint(Method):
    """Trained with the cross-entropy of the logits that ``forward`` returns."""

    def loss(self, outputs: Logits, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs.logits_BC, target_B)


def conditioning(modalities: tuple[str, ...], condition: str | None) -> str:
    """The modality that conditions the others: ``condition``, or the first one if that is None."""
    assert condition is None or condition in modalities, (condition, modalities)
    return modalities[0] if condition is None else condition
