"""A model: one encoder per modality and a method on top; how it is built, written and read."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from modmix.base.errors import InputError
from modmix.encoders.table import ENCODERS
from modmix.methods.base import Method, Outputs
from modmix.methods.table import METHODS
from modmix.methods.table import modalities as modalities_used

Shapes = Mapping[str, tuple[int, ...]]


def derive_seed(seed: int, *words: str | int) -> int:
    """A seed for one use of a replicate's seed ("weights"; "batches" of an epoch; …)."""
    text = json.dumps([seed, *words])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


class Model(nn.Module):
    """Encoders and a method, for one model and one batch.

    Encoders are kept in a list in the order of ``modalities``: a dictionary of modules refuses
    names that a modality may well have ("values", "face.left").
    """

    def __init__(self, modalities: Sequence[str], encoders: Sequence[nn.Module], method: Method):
        super().__init__()
        self.modalities = tuple(modalities)
        self.encoders = nn.ModuleList(encoders)
        self.method = method

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features (B, D_m) of the inputs (B, *shape) by modality."""
        pairs = zip(self.modalities, self.encoders, strict=True)
        return {name: encoder(inputs[name]) for name, encoder in pairs}

    def forward(self, inputs: Mapping[str, Tensor]) -> Outputs:
        return self.method(self.features(inputs))

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        return self.method.loss(outputs, target_B)

    def scores(self, outputs: Outputs) -> Tensor:
        return self.method.scores(outputs)

    def log_probabilities(self, outputs: Outputs) -> Tensor:
        return self.method.log_probabilities(outputs)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.modalities

    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Parts that train as if each were alone, see `Method.parts`."""
        return self.method.parts({m: f"encoders.{i}." for i, m in enumerate(self.modalities)})


def build_model(
    method: str,
    params: Mapping[str, Any],
    encoders: Mapping[str, Mapping[str, Any]],
    modalities: Shapes,
    classes: int,
    seed: int,
) -> Model:
    """Build and initialise a model from names and values; the global generator is not moved.

    ``encoders`` has an entry per modality, ``{"name": "mlp", "hidden": [64]}``; ``modalities``
    are the task's, in order, with the shapes of one example.

    Raises:
        InputError: values that fit one by one but not together (features that cannot be summed).
    """
    used = modalities_used(method, list(modalities), params)
    raw = METHODS[method].inputs == "raw"
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also reseed every accelerator.
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        parts = [
            _build_encoder({"name": "identity"} if raw else encoders[name], modalities[name])
            for name in used
        ]
        widths = {name: int(cast(Any, part).features) for name, part in zip(used, parts)}
        top = _load(METHODS[method].path)(widths, classes, **params)
        return Model(used, parts, top)


def _build_encoder(spec: Mapping[str, Any], shape: tuple[int, ...]) -> nn.Module:
    hyperparameters = {name: value for name, value in spec.items() if name != "name"}
    encoder: nn.Module = _load(ENCODERS[spec["name"]].path)(tuple(shape), **hyperparameters)
    return encoder


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


# ---------------------------------------------------------------- weights as bytes


def pack_weights(state: Mapping[str, Tensor], description: Mapping[str, Any]) -> bytes:
    """Weights and buffers with what `build_model` needs, as safetensors."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    blob: bytes = save(tensors, metadata={"modmix": json.dumps(description)})
    return blob


def unpack_weights(blob: bytes) -> tuple[Model, dict[str, Any]]:
    """The model that `pack_weights` wrote, in evaluation mode, and its description.

    Raises:
        InputError: bytes that are not such a model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + length])
        description: dict[str, Any] = json.loads(header["__metadata__"]["modmix"])
        tensors = load(blob)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"a model must be safetensors written by modmix, got {len(blob)} bytes that are not "
            f"({error}); train it again with keep_weights"
        ) from error
    model = build_model(
        description["method"],
        description["params"],
        description["encoders"],
        {name: tuple(shape) for name, shape in description["modalities"].items()},
        description["classes"],
        description["seed"],
    )
    model.load_state_dict(tensors)
    return model.eval(), description
