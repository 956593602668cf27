"""Methods with several sets of encoders: a teacher of its own beside the plain encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modmix.base import sources
from modmix.base.errors import InputError
from modmix.encoders.resnet import ResNet
from modmix.methods.base import Method, Stage, cross_entropy
from modmix.methods.model import InputSpec, Model, ModelSpec, build_model, model_spec
from modmix.methods.model import unpack_weights as unpack
from modmix.methods.table import method_entry
from modmix.study.dry_run import check_model
from plainloop import tensors
from toypack import add_method, is_stacked, make_data, make_replicates, train

DATA = make_data(widths=(6, 4), rows=(96, 40, 30))
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}
SETS = ("", "teacher/")


class Distilled(Method):
    """A teacher of its own encoders first; then the plain encoders learn its features."""

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        assert not any("/" in name for name in features)
        self.heads = nn.ModuleList(nn.Linear(sum(features.values()), classes) for _ in SETS)
        self.student = False

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        merged = [torch.cat([features[s + m] for m in self.modalities], dim=-1) for s in SETS]
        logits = [head(x) for head, x in zip(self.heads, merged, strict=True)]
        return logits[0], logits[1], (merged[0] - merged[1].detach()).square().mean(-1)

    def loss(self, outputs: tuple[Tensor, ...], target_B: Tensor) -> Tensor:
        if self.student:
            return cross_entropy(outputs[0], target_B) + outputs[2]
        return cross_entropy(outputs[1], target_B)

    def scores(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0 if self.student else 1]

    def stages(self) -> tuple[Stage, ...]:
        plain = tuple(self.encoder_prefixes[m] for m in self.modalities)
        teacher = tuple(self.encoder_prefixes[f"teacher/{m}"] for m in self.modalities)
        return (
            Stage(name="teacher", frozen=(*plain, "method.heads.0.")),
            Stage(name="student", frozen=(*teacher, "method.heads.1.")),
        )

    def enter(self, stage: Stage) -> None:
        self.student = stage.name == "student"


class Plain(Method):
    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.head = nn.Linear(sum(features.values()), classes)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, "distilled", Distilled, encoder_sets=SETS)
    add_method(monkeypatch, "plain", Plain)


def built(method: str, seed: int = 0) -> Model:
    (replicate,) = make_replicates(method, seeds=[seed], data=DATA, encoder=ENCODER)
    return build_model(model_spec(replicate, DATA), seed)


def test_a_set_has_its_own_initial_weights_and_the_plain_ones_do_not_change() -> None:
    both, plain = built("distilled"), built("plain")
    assert len(both.encoders) == 4
    prefixes = ["encoders.0.", "encoders.1.", "encoders.2.", "encoders.3."]
    names = ["m0", "m1", "teacher/m0", "teacher/m1"]
    assert dict(both.method.encoder_prefixes) == dict(zip(names, prefixes, strict=True))
    assert both.modalities == both.method.modalities == ("m0", "m1")
    for i in (0, 1):
        own = plain.encoders[i].state_dict()
        for name, value in both.encoders[i].state_dict().items():
            assert torch.equal(value, own[name])
            if name.endswith("0.weight") and value.dim() == 2:
                other = both.encoders[2 + i].state_dict()[name]
                assert other.shape == value.shape
                assert not torch.isclose(other, value).any()
    again = built("distilled").state_dict()
    assert all(torch.equal(again[name], value) for name, value in both.state_dict().items())


def test_features_of_every_set_are_those_of_its_encoders() -> None:
    model = built("distilled").eval()
    inputs, _ = tensors(DATA.val)
    features = model.features(inputs)
    assert list(features) == ["m0", "m1", "teacher/m0", "teacher/m1"]
    for i, name in enumerate(features):
        expected = model.encoders[i](inputs[name.removeprefix("teacher/")])
        assert torch.equal(features[name], expected)


@pytest.mark.parametrize("stack", ["always", "never"])
def test_the_frozen_teacher_stays_while_the_students_learn(
    stack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more epochs for the students the teacher is the same to the last bit."""
    stages = Distilled.stages

    def weights(epochs: int) -> dict[str, Tensor]:
        def changed(self: Distilled) -> tuple[Stage, ...]:
            first, second = stages(self)
            fields = {"name": second.name, "frozen": second.frozen}
            return first, Stage(epochs=epochs, **fields)  # type: ignore[arg-type]

        monkeypatch.setattr(Distilled, "stages", changed)
        made = make_replicates(
            "distilled", data=DATA, encoder=ENCODER, epochs=2, batch_size=16, select="last",
            optimizer="adamw", weight_decay=0.1, stack=stack,
        )  # fmt: skip
        assert is_stacked(made, DATA) == (stack == "always")
        end = train(made, DATA, keep_weights=True)[made[0].key]
        return unpack(end.weights or b"")[0].state_dict()

    short, long = weights(1), weights(3)
    for name, value in short.items():
        still = name.startswith(("encoders.2.", "encoders.3.", "method.heads.1."))
        assert torch.equal(long[name], value) == still, name


def test_a_saved_model_has_every_set() -> None:
    made = make_replicates("distilled", data=DATA, encoder=ENCODER, epochs=1, batch_size=16)
    for end in train(made, DATA, keep_weights=True).values():
        model, _ = unpack(end.weights or b"")
        assert isinstance(model.method, Distilled)
        model.method.student = True
        inputs, labels = tensors(DATA.test)
        with torch.no_grad():
            wrong = model.scores(model(inputs)).argmax(-1) != labels
        assert 100 * wrong.double().mean().item() == pytest.approx(end.metrics["test/error"])


def test_taps_are_copied_in_every_set(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, "apart", Plain, encoder_sets=SETS, separate_encoders=True)
    spec = ModelSpec(
        method="apart",
        params={},
        encoders={"photo": {"name": "resnet", "depth": 8, "width": 2, "taps": True}},
        inputs={"photo": InputSpec(shape=(8, 8, 3), kind="image")},
        classes=2,
    )
    model = build_model(spec, 0)
    assert len(model.encoders) == 6
    assert model.feature_names[3:] == ("teacher/unit1", "teacher/unit2", "teacher/unit3")
    first = [encoder.state_dict() for encoder in model.encoders if isinstance(encoder, ResNet)]
    name = next(iter(first[0]))
    weights = [state[name] for state in first]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


OWN = """\
from torch import nn
from torch.nn import functional as F
import modmix

class Two(modmix.Method):
    encoder_sets = SETS

    def __init__(self, features, classes):
        super().__init__(features, classes)
        self.head = nn.Linear(sum(features.values()), classes)

    def forward(self, features):
        return self.head(sum(features[s + "m0"] for s in self.encoder_sets))

    def loss(self, outputs, target_B):
        return F.cross_entropy(outputs, target_B, reduction="none")
"""


def own(folder: Path, sets: str) -> str:
    (folder / "two.py").write_text(OWN.replace("SETS", sets))
    return sources.find("two.py:Two", folder)


def test_a_class_of_ones_own_declares_its_sets(tmp_path: Path) -> None:
    name = own(tmp_path, '("", "other/")')
    assert method_entry(name).encoder_sets == ("", "other/")
    spec = ModelSpec(
        method=name, params={}, encoders={"m0": ENCODER}, inputs={"m0": InputSpec(shape=(6,))},
        classes=2, sources=sources.bundles([name]),
    )  # fmt: skip
    check_model(spec)
    assert len(build_model(spec, 0).encoders) == 2


@pytest.mark.parametrize("sets", ['("other/",)', '""', '("", "a", "a")', '("", 1)', "()"])
def test_sets_that_are_not_names_are_refused(tmp_path: Path, sets: str) -> None:
    with pytest.raises(InputError, match="encoder_sets must be a tuple of different names that"):
        method_entry(own(tmp_path, sets))
