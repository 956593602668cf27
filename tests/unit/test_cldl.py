"""CLDL is `mul` with fixed values: β 1, weights 0.3 and, of the last modality, 1."""

from __future__ import annotations

import torch

from modmix.methods.cldl import CLDL
from modmix.methods.mul import Mul


def test_cldl_is_mul_with_fixed_values() -> None:
    features = {"unit1": 4, "unit2": 3, "unit3": 5}
    torch.manual_seed(0)
    cldl = CLDL(features, 6, depth=1, width=7)
    weights = {"unit1": 0.3, "unit2": 0.3, "unit3": 1.0}
    mul = Mul(features, 6, beta=1.0, weights=weights, depth=1, width=7)
    mul.load_state_dict(cldl.state_dict())
    assert cldl.sources == ("unit1", "unit2", "unit3")
    x = {name: torch.randn(8, width) for name, width in features.items()}
    target = torch.arange(8) % 6
    loss, expected = cldl.loss(cldl(x), target), mul.loss(mul(x), target)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    loss.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(cldl.parameters(), mul.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_loss_by_hand() -> None:
    """Both sources give p = (0.8, 0.2): ℓ^0 = −1.3 · 0.2 · log 0.8, ℓ^1 = −1.3 · 0.8 · log 0.2."""
    method = CLDL({"a": 1, "b": 1}, 2)
    bias = torch.tensor([0.8, 0.2]).log()
    for parameters in method.heads.parameters():
        parameters.data = bias.clone() if parameters.dim() == 1 else torch.zeros(2, 1)
    outputs = method({"a": torch.ones(2, 1), "b": torch.ones(2, 1)})
    expected = torch.tensor([0.0580173, 1.6738154])
    torch.testing.assert_close(method.loss(outputs, torch.tensor([0, 1])), expected)
