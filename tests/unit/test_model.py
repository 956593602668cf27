"""Models from descriptions: which inputs they read, their modalities, their initial weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from modmix.base.errors import InputError
from modmix.encoders.table import modality_inputs
from modmix.methods.model import (
    InputSpec,
    Model,
    ModelSpec,
    build_model,
    derive_seed,
    pack_weights,
    unpack_weights,
)
from modmix.methods.table import METHODS

INPUTS = {
    "photo": InputSpec(shape=(8, 8, 3), kind="image"),
    "flat": InputSpec(shape=(5,)),
    "text": InputSpec(shape=(6,), kind="tokens", vocabulary=11),
}
ENCODERS: dict[str, dict[str, Any]] = {
    "photo": {"name": "resnet", "depth": 8, "width": 2, "taps": True},
    "flat": {"name": "mlp", "hidden": [3]},
    "text": {"name": "char_cnn", "embedding": 4, "widths": [2], "filters": 7},
}


def spec(method: str, names: str = "photo flat text", **params: Any) -> ModelSpec:
    chosen = names.split()
    defaults = {h.name: h.default for h in METHODS[method].hyperparameters}
    return ModelSpec(
        method=method,
        params={**defaults, **params},
        encoders={name: ENCODERS[name] for name in chosen},
        inputs={name: INPUTS[name] for name in chosen},
        classes=3,
    )


def batch(names: Mapping[str, Any] | tuple[str, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    given = {
        "photo": torch.randn(4, 8, 8, 3, generator=generator),
        "flat": torch.randn(4, 5, generator=generator),
        "text": torch.randint(1, 11, (4, 6), generator=generator),
    }
    return {name: given[name] for name in names}


def test_an_encoder_s_modalities_are_named_after_the_input_where_there_are_several() -> None:
    several = modality_inputs(ENCODERS, prefixed=True)
    assert several == {
        "photo.unit1": ("photo", "unit1"),
        "photo.unit2": ("photo", "unit2"),
        "photo.unit3": ("photo", "unit3"),
        "flat": ("flat", None),
        "text": ("text", None),
    }
    assert list(build_model(spec("mul", "photo"), 0).modalities) == ["unit1", "unit2", "unit3"]
    model = build_model(spec("mul"), 0)
    assert model.modalities == tuple(several)
    assert model.inputs == ("photo", "flat", "text")
    widths = {name: x.shape[1] for name, x in model.features(batch(INPUTS)).items()}
    # Unit ends have 2, 4 and 8 channels; taps lead to twice the first width.
    assert widths == {"photo.unit1": 4, "photo.unit2": 4, "photo.unit3": 8, "flat": 3, "text": 7}


@pytest.mark.parametrize(
    ("modality", "reads"), [("flat", "flat"), ("text", "text"), ("photo.unit2", "photo")]
)
def test_one_modality_needs_one_input(modality: str, reads: str) -> None:
    model = build_model(spec("base", modality=modality), 0)
    assert model.inputs == (reads,)
    assert len(model.encoders) == 1
    assert list(model.features(batch((reads,)))) == [modality]
    assert spec("base", modality=modality).reads == (reads,)
    assert model.scores(model(batch((reads,)))).shape == (4, 3)


def test_raw_inputs_need_no_encoders() -> None:
    early = ModelSpec(
        method="early",
        params={"hidden": [4]},
        encoders={},
        inputs={name: INPUTS[name] for name in ("photo", "flat")},
        classes=2,
    )
    model = build_model(early, 0)
    widths = {name: x.shape[1] for name, x in model.features(batch(model.inputs)).items()}
    assert widths == {"photo": 8 * 8 * 3, "flat": 5}


def state(model: Model, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in model.state_dict().items()
        if name.startswith(prefix)
    }


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_initial_weights_of_an_encoder_depend_on_its_seed_and_input_alone() -> None:
    whole, without = build_model(spec("mul"), 3), build_model(spec("mul", "flat text"), 3)
    assert equal(state(whole, "encoders.1."), state(without, "encoders.0."))
    assert equal(state(whole, "encoders.2."), state(without, "encoders.1."))
    another = build_model(spec("mul", "flat text"), 4)
    assert not equal(state(another, "encoders.0."), state(without, "encoders.0."))
    deeper = build_model(spec("mul", "flat text", depth=1), 3)
    assert equal(state(deeper, "encoders.0."), state(without, "encoders.0."))


def test_initial_weights_are_those_of_these_generators() -> None:
    """Spelled out: another derivation is another numerics version."""
    model = build_model(spec("base", "flat"), 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(3, "weights", "encoder", "flat"))
        encoder = torch.nn.Linear(5, 3)
        torch.manual_seed(derive_seed(3, "weights", "method"))
        head = torch.nn.Linear(3, 3)
    expected = [encoder.weight, encoder.bias, head.weight, head.bias]
    for parameter, value in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter, value)


def test_a_model_survives_as_bytes() -> None:
    weighted = spec("mulmix", weights={"photo.unit1+text": 0.5})
    model = build_model(weighted, 1)
    model(batch(INPUTS))  # moves the statistics of batch norm
    blob = pack_weights(model.state_dict(), weighted, {"class_names": ["a", "b", "c"]})
    again, description = unpack_weights(blob)
    assert description["class_names"] == ["a", "b", "c"]
    assert description["model"] == weighted
    model.eval()
    assert torch.equal(again.scores(again(batch(INPUTS))), model.scores(model(batch(INPUTS))))


def test_weights_of_an_earlier_version_are_refused() -> None:
    old = {"method": "mul", "modalities": {"a": [3]}, "classes": 2, "seed": 0}
    blob = save({"x": torch.zeros(1)}, metadata={"modmix": json.dumps(old)})
    with pytest.raises(InputError) as caught:
        unpack_weights(blob)
    assert str(caught.value) == (
        "a model's weights must be of version 2, got version 1, which another release wrote: "
        "train the model again"
    )
