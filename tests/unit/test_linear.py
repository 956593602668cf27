"""Layers of K models at once against a loop over the models in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from modmix.training.linear import Layers, Sink

# (batch, inputs, outputs): small ones, a narrow one, and large ones
SHAPES = [(5, 3, 4), (32, 64, 10), (7, 10, 2), (128, 300, 300), (96, 256, 130)]


def leaves_of(parameters_KP: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Views (K, *shape), matrices transposed where that puts the longer side last."""
    found, start = [], 0
    for shape in shapes:
        size = torch.Size(shape).numel()
        part = parameters_KP[:, start : start + size].detach()
        turned = len(shape) == 2 and shape[0] > shape[1]
        view = part.view(-1, *reversed(shape)).mT if turned else part.view(-1, *shape)
        found.append(view.requires_grad_())
        start += size
    return found


def through_layers(
    parameters_KP: Tensor, shapes: list[tuple[int, ...]], x: Tensor, *, stacked: bool
) -> tuple[Tensor, Tensor]:
    """Outputs and gradients (K, P) of Σ tanh(layer(x))."""
    leaves = leaves_of(parameters_KP, shapes)
    sink = Sink(parameters_KP, leaves)
    sink.begin()
    module = nn.Linear(*reversed(shapes[0]), bias=len(shapes) > 1)
    layers = Layers(module, stacked=stacked)
    layers.sink = sink
    state = dict(zip(("weight", "bias"), leaves))
    if stacked:
        y = vmap(lambda state, x: functional_call(module, state, (x,)))(state, x)
    else:
        row = {name: leaf[0] for name, leaf in state.items()}
        y = functional_call(module, row, (x[0],)).unsqueeze(0)
    gradients = torch.autograd.grad(y.tanh().sum(), leaves, allow_unused=True)
    sink.finish(leaves, gradients)
    return y.detach(), sink.gradient_KP


@pytest.mark.parametrize(("batch", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_a_loop(
    batch: int, inputs: int, outputs: int, models: int, bias: bool
) -> None:
    torch.manual_seed(1)
    shapes: list[tuple[int, ...]] = [(outputs, inputs)] + [(outputs,)] * bias
    size = sum(torch.Size(shape).numel() for shape in shapes)
    parameters_KP = torch.randn(models, size) / inputs**0.5
    x = torch.randn(models, batch, inputs)
    y, gradient_KP = through_layers(parameters_KP, shapes, x, stacked=models > 1)
    for k in range(models):
        own = [leaf.double() for leaf in leaves_of(parameters_KP[k : k + 1], shapes)]
        weight = own[0][0].detach().requires_grad_()
        offset = own[1][0].detach().requires_grad_() if bias else None
        expected = x[k].double() @ weight.T + (0 if offset is None else offset)
        wanted = [weight] if offset is None else [weight, offset]
        gradients = torch.autograd.grad(expected.tanh().sum(), wanted)
        torch.testing.assert_close(y[k].double(), expected.detach(), rtol=1e-5, atol=1e-5)
        found = leaves_of(gradient_KP[k : k + 1], shapes)
        for mine, theirs in zip(found, gradients, strict=True):
            scale = theirs.abs().max()
            assert (mine[0].double() - theirs).abs().max() <= 3e-6 * scale


class _Shared(nn.Module):
    """One weight used twice, a part of one used, one not used at all, one outside of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(160, 160)
        self.part = nn.Linear(160, 4)
        self.unused = nn.Linear(160, 6)
        self.scale = nn.Parameter(torch.randn(160))

    def forward(self, x: Tensor) -> Tensor:
        z = self.twice(torch.tanh(self.twice(x))) * self.scale
        return F.linear(z[:, :3], self.part.weight[:, :3], self.part.bias)


def test_weights_used_twice_in_part_or_not_at_all_get_their_gradients() -> None:
    torch.manual_seed(2)
    modules = [_Shared() for _ in range(3)]
    names = [name for name, _ in modules[0].named_parameters()]
    shapes = [tuple(p.shape) for p in modules[0].parameters()]
    rows = []
    for module in modules:
        flat = [p.detach().T if s[:1] > s[1:2] != () else p.detach() for p, s in _with(module)]
        rows.append(torch.cat([value.flatten() for value in flat]))
    parameters_KP = torch.stack(rows)
    leaves = leaves_of(parameters_KP, shapes)
    sink = Sink(parameters_KP, leaves)
    x = torch.randn(3, 90, 160)

    def one(state: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(modules[0], state, (row,)).square().sum()

    sink.gradient_KP.fill_(7.0)  # what a step before left there
    sink.begin()
    Layers(modules[0], stacked=True).sink = sink
    loss = vmap(one)(dict(zip(names, leaves, strict=True)), x).sum()
    sink.finish(leaves, torch.autograd.grad(loss, leaves, allow_unused=True))
    found = dict(zip(names, leaves_of(sink.gradient_KP, shapes), strict=True))
    for k, trained in enumerate(modules):
        module = _Shared()  # without layers of ours
        module.load_state_dict(trained.state_dict())
        module(x[k]).square().sum().backward()
        for name, parameter in module.named_parameters():
            expected = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            torch.testing.assert_close(found[name][k].detach(), expected, rtol=1e-4, atol=1e-4)


def _with(module: nn.Module) -> list[tuple[Tensor, tuple[int, ...]]]:
    return [(p, tuple(p.shape)) for p in module.parameters()]


def test_a_layer_under_two_vmaps_and_with_shared_inputs() -> None:
    """Where the weights are not those of one vmap alone, the rule of vmap takes over."""
    layer = nn.Linear(5, 4)
    Layers(layer, stacked=True)
    weights, biases = torch.randn(3, 4, 5), torch.randn(3, 4)
    x = torch.randn(6, 7, 5)

    def one(weight: Tensor, bias: Tensor, given: Tensor) -> Tensor:
        out: Tensor = functional_call(layer, {"weight": weight, "bias": bias}, (given,))
        return out

    expected = torch.einsum("nbi,koi->knbo", x, weights) + biases[:, None, None]
    shared = vmap(one, in_dims=(0, 0, None))(weights, biases, x)
    torch.testing.assert_close(shared, expected)
    last = vmap(one, in_dims=(2, 0, None))(weights.movedim(0, 2), biases, x)
    torch.testing.assert_close(last, expected)
    same = vmap(one, in_dims=(0, None, None))(weights, biases[0], x)
    torch.testing.assert_close(same, expected - (biases - biases[0])[:, None, None])
    twice = vmap(vmap(one, in_dims=(None, None, 0)), in_dims=(0, 0, None))(weights, biases, x)
    torch.testing.assert_close(twice, expected)
    both = vmap(vmap(one, in_dims=(0, 0, None)), in_dims=(None, None, 0))(weights, biases, x)
    torch.testing.assert_close(both.transpose(0, 1), expected)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("active", [True, False])
def test_a_rectified_layer_is_a_layer_and_a_relu(stacked: bool, active: bool) -> None:
    torch.manual_seed(3)

    def make() -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(7, 40), nn.ReLU(), nn.Linear(40, 90), nn.ReLU(), nn.Dropout(0.0), nn.ReLU(),
            nn.Linear(90, 3),
        )  # fmt: skip

    modules = [make() for _ in range(3 if stacked else 1)]
    x = torch.randn(len(modules), 70, 7)
    template = make()
    names = [name for name, _ in template.named_parameters()]
    state = {
        name: torch.stack([dict(m.named_parameters())[name].detach() for m in modules])
        for name in names
    }
    leaves = {name: value.requires_grad_() for name, value in state.items()}
    layers = Layers(template, stacked=stacked)
    layers.active = active

    def one(state: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(template, state, (row,))

    if stacked:
        y = vmap(one)(leaves, x)
    else:
        y = one({name: value[0] for name, value in leaves.items()}, x[0]).unsqueeze(0)
    found = torch.autograd.grad(y.tanh().sum(), list(leaves.values()))
    for k, module in enumerate(modules):
        module.double()
        expected = module(x[k].double())
        torch.testing.assert_close(y[k].double(), expected, rtol=1e-4, atol=1e-5)
        expected.tanh().sum().backward()
        for gradient, parameter in zip(found, module.parameters(), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(gradient[k].double(), parameter.grad, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        x[0, 0, 0] = float("nan")  # a NaN stays one
        assert template(x[0]).isnan().any() if not stacked else vmap(one)(leaves, x).isnan().any()


def test_hooks_on_a_layer_and_its_relu_are_called() -> None:
    torch.manual_seed(4)
    template = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    Layers(template, stacked=False)
    x = torch.randn(6, 3)
    plain = template(x)
    first, relu, last = template
    for part in (first, relu):
        handle = part.register_forward_hook(lambda _module, _inputs, output: 2 * output)
        torch.testing.assert_close(template(x), 2 * (plain - last.bias) + last.bias)
        handle.remove()
    torch.testing.assert_close(template(x), plain)


def test_a_layer_without_inputs_has_the_gradient_of_this_step_alone() -> None:
    parameters_KP = torch.randn(2, 7)
    weight_KOI, bias_KO = parameters_KP[:, :0].view(2, 7, 0), parameters_KP.detach()
    leaves = [weight_KOI.requires_grad_(), bias_KO.requires_grad_()]
    sink = Sink(parameters_KP, leaves)
    sink.gradient_KP.fill_(7.0)  # of a step before
    sink.begin()
    loss = vmap(lambda w, b, x: F.linear(x, w, b).sum())(*leaves, torch.randn(2, 4, 0)).sum()
    sink.finish(leaves, torch.autograd.grad(loss, leaves, allow_unused=True))
    assert sink.gradient_KP.tolist() == [[4.0] * 7] * 2
