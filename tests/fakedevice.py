"""Whole training steps on a device that only knows shapes: python fakedevice.py

Tensors without content lie on a device made in Python, so that the backward pass runs, too (torch's
"cuda" asks for a real one there). Tensors of other devices are refused by torch. Prints as JSON, by
case, the operations inside steps that would wait for a device: results read by the host, and
blocking copies from or to it. Torch's ways of making such a device are private and once for all in
a process; this is run in one of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "platform"), str(Path(__file__).parent)]

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.backend_registration import (  # noqa: E402
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

import gpucases  # noqa: E402
from modmix.methods.base import remembers  # noqa: E402
from modmix.methods.model import build_model, model_spec  # noqa: E402
from modmix.methods.table import METHODS  # noqa: E402
from modmix.training import batches  # noqa: E402
from modmix.training.batches import Examples, Order  # noqa: E402
from modmix.training.group import Group, Member  # noqa: E402
from modmix.training.stack import Stack  # noqa: E402
from modmix.training.timeline import StageEntry  # noqa: E402


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Waits(TorchDispatchMode):
    """Notes operations that a program on the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        result = func(*args, **(kwargs or {}))
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh"):
            self.found.append(name)
        if name in ("aten::_to_copy", "aten::copy_"):
            places = {
                x.device.type
                for x in tree_leaves((args, kwargs, result))
                if isinstance(x, torch.Tensor)
            }
            waits = not (args[-1] is True or (kwargs or {}).get("non_blocking"))
            if len(places) > 1 and waits:
                self.found.append(f"{name} {sorted(places)}")
        return result


def steps(replicates: Any, data: Any, device: torch.device, *, stacked: bool = True) -> list[str]:
    """Two steps of an epoch; what they would wait for."""
    if not stacked:
        replicates = replicates[:1]
    models = [build_model(model_spec(r, data), r.seed) for r in replicates]
    for model in models:
        remembers(model.method, data.train.rows)
    stack = Stack(models, device, stacked=stacked)
    members = [Member(index=i, seed=r.seed, training=r.training) for i, r in enumerate(replicates)]
    group = Group(members, stack)
    stage = stack.template.method.stages()[-1]
    group.start_stage(StageEntry(stage=stage, epochs=2, from_best=False, keeps_best=True))
    train = Examples(data, "train", stack.template.inputs, device)
    order = Order(train.rows, replicates[0].training["batch_size"], train.place)
    group.start_epoch(0, order, 0)
    with Waits() as waits:
        group.train(train, order, 0, 2)
    group.keep_best([True] * len(members), {name: [True] * len(members) for name in group.parts})
    found = stack.predict(next(train.chunks(5))[0], parts=bool(group.parts))
    assert group.best is not None
    assert found.scores.device == group.best.parameters_KP.device == stack.device
    return waits.found


def cases() -> Iterator[tuple[str, Any, Any, bool]]:
    for number, method in enumerate(METHODS):
        # The optimizer knows nothing of the method: each of them once is enough.
        recipes = list(gpucases.RECIPES)
        for recipe in recipes if method == "mul" else [recipes[number % len(recipes)]]:
            replicates = gpucases.every_setting(method, recipe)
            yield f"{method} {recipe}", replicates, gpucases.VECTORS, True
    yield "one alone", gpucases.every_setting("add", "adam"), gpucases.VECTORS, False
    yield "reading back", gpucases.reading_back(), gpucases.VECTORS, True
    yield "augmented, with dropout", gpucases.many_ends(), gpucases.images(), True
    small = gpucases.images(rows=(24, 12, 12), side=8)
    yield "resnet", gpucases.on_images(), small, True
    for encoder, spec in gpucases.TOKEN_ENCODERS.items():
        yield encoder, gpucases.on_tokens(spec), gpucases.texts(), True


def by_way_of_the_host(make: Any) -> Any:
    """`torch.tensor` of such a device; torch's own goes past the mode that fakes it."""

    def tensor(values: Any, *, device: Any = None, **rest: Any) -> torch.Tensor:
        like = make(values, **rest)
        made = torch.empty(like.shape, dtype=like.dtype)  # its content is not known to the mode
        return made if device is None else made.to(device)

    return tensor


def main() -> None:
    _setup_privateuseone_for_python_backend("fake_gpu", backend_module=_Backend())
    device = torch.device("fake_gpu:0")
    gpucases.add_encoders()
    batches.available = lambda *_: 1 << 30
    torch.tensor = by_way_of_the_host(torch.tensor)
    torch.nn.init.trunc_normal_ = lambda tensor, **_: tensor  # it looks into the tensor
    told = {}
    for name, replicates, data, stacked in cases():
        with FakeTensorMode():
            try:
                told[name] = steps(replicates, data, device, stacked=stacked)
            except Exception as error:
                told[name] = [f"{type(error).__name__}: {str(error)[:300]}"]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
