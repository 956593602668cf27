"""Study files that name classes of the user's own, and inputs of every kind: what a plan makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modmix.base import sources
from modmix.base.errors import SpecError
from modmix.base.messages import Pack
from modmix.execution.costs import Costs
from modmix.methods.model import build_model, model_spec, pack_weights, unpack_weights
from modmix.methods.table import METHODS
from modmix.study import files, make_plan
from modmix.study.configurations import Configuration, sources_of
from modmix.study.plan import Plan
from modmix.tasks.data import Augmentation, Data, Input, Split
from toypack import make_pack

LEFT, RIGHT = Input(name="left", shape=(4,)), Input(name="right", shape=(3,))
PHOTO = Input(name="photo", shape=(8, 8, 3), kind="image", dtype="uint8")
TEXT = Input(name="text", shape=(6,), kind="tokens", dtype="int16", vocabulary=9)

GATE = """\
import torch
from torch import nn
from torch.nn import functional as F

import modmix
from near import scale

class Gate(modmix.Method):
    \"\"\"A sum of layers. And more.\"\"\"
    stackable = frozenset({"strength"})

    def __init__(self, features, classes, *, width: int = 8, strength: float = 1):
        super().__init__(features, classes)
        self.gates = nn.ModuleList(nn.Linear(d, width) for d in features.values())
        self.register_buffer("strength", torch.tensor(float(strength)))
        self.head = nn.Linear(width, classes)

    def forward(self, features):
        parts = [g(features[m]) for g, m in zip(self.gates, self.modalities)]
        return self.head(scale(self.strength * sum(parts)))

    def loss(self, outputs, target_B):
        return F.cross_entropy(outputs, target_B, reduction="none")

    def scores(self, outputs):
        return outputs
"""
NET = """\
import modmix
from torch import nn

class Net(modmix.Encoder):
    modalities = ("first", "rest")

    def __init__(self, shape, *, width: int = 5):
        super().__init__()
        self.features = {"first": 1, "rest": width}
        self.layer = nn.Linear(shape[0] - 1, width)

    def forward(self, inputs):
        return {"first": inputs[:, :1], "rest": self.layer(inputs[:, 1:])}
"""


def data_of(inputs: tuple[Input, ...], **fields: Any) -> Data:
    arrays = {one.name: np.zeros((6, *one.shape), one.dtype) for one in inputs}
    split = Split(inputs=arrays, labels=np.arange(6, dtype=np.int64) % 3)
    return Data(
        name="fake", inputs={one.name: one for one in inputs}, classes=3,
        class_names=("a", "b", "c"), train=split, val=split, test=split, fingerprint="f", **fields,
    )  # fmt: skip


class Bench:
    """A folder with a user's files, and data of any inputs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.data = data_of((LEFT, RIGHT))
        monkeypatch.setattr("modmix.tasks.base.load_task", lambda *_: self.data)
        self.write(my_fusion=GATE, near="def scale(x): return 2 * x\n", my_nets=NET)

    def write(self, **texts: str) -> None:
        for name, text in texts.items():
            (self.folder / f"{name}.py").write_text(text)

    def make(self, parts: str, more: str = "") -> Plan:
        text = f"study: s\ntask: digits\n{more}\nparts:\n{parts}"
        return make_plan.make(files.parse(text, name="x.yaml", folder=self.folder))

    def one(self, block: str, more: str = "", method: str = "gate") -> Configuration:
        plan = self.make(f"  p: {{methods: {{{method}: {{{block}}}}}}}", more)
        (assignment,) = plan.parts[0].assignments(method)
        return plan.configuration(method, assignment)

    def problems(self, parts: str, more: str = "") -> list[str]:
        with pytest.raises(SpecError) as caught:
            self.make(parts, more)
        return [str(p).replace(f"{self.folder}/", "") for p in caught.value.problems]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


CLASS = 'class: "my_fusion.py:Gate"'

# ---------------------------------------------------------------- own classes in a plan


def test_a_class_is_a_method_with_its_arguments(bench: Bench) -> None:
    plan = bench.make(
        f"  p: {{methods: {{gate: {{{CLASS}, width: {{grid: [4, 16]}}}}, mul: }}}}\n"
        "  q: {references: [gate], methods: {gate: {strength: 2}}}",
        "paper: {gate: {test/error: 3}}",
    )
    made = [plan.configuration("gate", a) for a in plan.parts[0].assignments("gate")]
    assert [c.params for c in made] == [{"width": w, "strength": 1.0} for w in (4, 16)]
    assert made[0].method == "gate"
    (replicate, *_) = made[0].replicates
    assert sources.place(replicate.method) == "my_fusion.py:Gate"
    model = build_model(model_spec(replicate, plan.data), replicate.seed)
    assert model.method.head.in_features == 4  # type: ignore[union-attr]
    assert Costs(plan, {replicate.structure: made[0].task}).of(replicate).each > 0


RATES = """\
import modmix
from torch import nn

class Whole(modmix.Encoder):
    def __init__(self, shape, *, size: int = 5):
        super().__init__()
        self.features = size
        self.layer = nn.Linear(shape[0], size)

    def forward(self, inputs):
        return self.layer(inputs)

class Part(modmix.Encoder):
    def __init__(self, shape, *, size: float = 0.5):
        super().__init__()
        self.features = max(1, int(size * shape[0]))

    def forward(self, inputs):
        return inputs[:, : self.features]
"""
BOTH = """encoders: {left: {class: "rates.py:Whole"}, right: {class: "rates.py:Part"}}"""
SWAPPED = """encoders: {right: {class: "rates.py:Part"}, left: {class: "rates.py:Whole"}}"""


@pytest.mark.parametrize("encoders", [BOTH, SWAPPED])
def test_encoder_fields_are_checked_against_each_encoder_they_apply_to(
    bench: Bench, encoders: str
) -> None:
    bench.write(rates=RATES)
    message = (
        "encoder.size must be a whole number, got {} for the encoder rates.py:Whole of input "
        "'left': set it for each input under encoders"
    )
    for value, search, wrong in (
        ("0.5", "", "0.5"),
        ("{grid: [1, 0.25]}", "", "0.25"),
        ("{choices: [1, 2, 0.25]}", "search: {configurations: 2}, ", "0.25"),
        ("{low: 1, high: 2, step: 0.5}", "search: {configurations: 2}, ", "1.5"),
    ):
        found = bench.problems(f"  p: {{{search}methods: {{add: {{encoder.size: {value}}}}}}}",
                               encoders)  # fmt: skip
        assert found == [f"line 5: parts.p.methods.add: {message.format(wrong)}"], value
    assert bench.problems("  p: {methods: {add: {encoder.size: many}}}", encoders)
    sizes = [
        e["size"]
        for e in bench.one("encoder.size: 1", encoders, "add").replicates[0].encoders.values()
    ]
    assert [(type(size), size) for size in sizes] == [(int, 1), (float, 1.0)]
    # Only `right` is used.
    chosen = bench.one("modality: right, encoder.size: 0.5", encoders, method="base")
    assert [encoder["size"] for encoder in chosen.replicates[0].encoders.values()] == [0.5]
    when = "modality: {grid: [left, right]}, encoder.size: {value: 0.5, when: {modality: right}}"
    assert bench.make(f"  p: {{methods: {{base: {{{when}}}}}}}", encoders).parts


@pytest.mark.parametrize("order", ["false, true", "true, false"])
def test_base_has_one_list_of_modalities(bench: Bench, order: str) -> None:
    bench.data = data_of((PHOTO,))
    encoders = "encoders: {default: {name: resnet, depth: 8, width: 2}}"
    part = "  p: {{methods: {{base: {{encoder.taps: {}}}}}}}"
    lists = ["photo", "unit1, unit2, unit3"]
    first, second = lists if order == "false, true" else lists[::-1]
    assert bench.problems(part.format(f"{{grid: [{order}]}}"), encoders) == [
        (
            f"line 5: parts.p.methods.base: its modalities are {first} for some values of "
            f"encoder.taps and {second} for others, but a block has one list of modalities: give "
            "each value a part of its own"
        )
    ]
    for value in order.split(", "):
        assert bench.make(part.format(value), encoders).parts
    (wrong,) = bench.problems(part.format("true, modality: left"), encoders)
    assert wrong.endswith("unknown modality 'left': it may be unit1, unit2, unit3")


def test_stackable_arguments_share_a_pack(bench: Bench) -> None:
    first, second = bench.one(CLASS), bench.one(f"{CLASS}, strength: 2")
    assert first.replicates[0].structure == second.replicates[0].structure
    assert first.replicates[0].key != second.replicates[0].key
    wider = bench.one(f"{CLASS}, width: 3")
    assert wider.replicates[0].structure != first.replicates[0].structure


def test_edited_code_is_another_result(bench: Bench) -> None:
    encoders = 'encoders: {left: {class: "my_nets.py:Net"}}'

    def keys() -> tuple[str, str, str]:
        made = (bench.one(CLASS), bench.one("", encoders, "mul"), bench.one("", "", "mul"))
        gate, net, plain = (configuration.replicates[0].key for configuration in made)
        return gate, net, plain

    before = keys()
    assert keys() == before
    bench.write(near="def scale(x): return 3 * x\n")  # imported by the method alone
    gate, net, plain = keys()
    assert gate != before[0]
    assert (net, plain) == before[1:]
    bench.write(my_nets=NET + "\n# a word\n")
    assert keys()[1] != net
    assert keys()[0] == gate


def test_one_class_under_two_names_is_two_methods(bench: Bench) -> None:
    plan = bench.make(f"  p: {{methods: {{gate: {{{CLASS}}}, other: {{{CLASS}}}}}}}")
    gate, other = (plan.configuration(name, {}) for name in ("gate", "other"))
    assert gate.key != other.key
    assert gate.replicates[0].key != other.replicates[0].key


def test_a_pack_carries_what_its_models_need(bench: Bench) -> None:
    configuration = bench.one(CLASS, 'encoders: {left: {class: "my_nets.py:Net"}}')
    (replicate, *_) = configuration.replicates
    needed = sources_of(configuration.task, replicate)
    texts = [sorted(bundle["texts"]) for bundle in needed.values()]
    assert texts == [["my_fusion.py", "near.py"], ["my_nets.py"]]
    pack = make_pack([replicate], sources=needed)
    assert Pack.from_json(pack.to_json()).sources == needed
    plain = bench.one("", "", "mul")
    assert sources_of(plain.task, plain.replicates[0]) == {}


def test_the_ledger_keeps_the_sources(bench: Bench) -> None:
    details = bench.make(f"  p: {{methods: {{gate: {{{CLASS}}}}}}}").details()
    assert details["classes_at"] == {"my_fusion.py:Gate": f"{bench.folder}/my_fusion.py:Gate"}
    (bundle,) = details["sources"].values()
    assert bundle["texts"]["my_fusion.py"] == GATE
    assert details["inputs"] == {"left": [4], "right": [3]}


def test_weights_carry_the_sources(bench: Bench) -> None:
    (replicate, *_) = bench.one(f"{CLASS}, strength: 3").replicates
    description = model_spec(replicate, bench.data)
    model = build_model(description, 0)
    blob = pack_weights(model.state_dict(), description, {})
    again, _ = unpack_weights(blob)
    batch = {"left": torch.ones(2, 4), "right": torch.ones(2, 3)}
    assert torch.equal(again.scores(again(batch)), model.scores(model(batch)))
    assert again.method.strength == 3


# ---------------------------------------------------------------- what is wrong with them


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (
            "  p: {methods: {mul: {class: 'my_fusion.py:Gate'}}}",
            (
                "line 5: parts.p.methods.mul.class: mul is a method that is here: give your class "
                "another name"
            ),
        ),
        (
            "  p: {methods: {gate: {class: 'my_fusin.py:Gate'}}}",
            (
                "line 5: parts.p.methods.gate.class: there is no file my_fusin.py: did you mean "
                "my_fusion.py?"
            ),
        ),
        (
            "  p: {methods: {gate: {class: 'my_nets.py:Net'}}}",
            (
                "line 5: parts.p.methods.gate.class: my_nets.py:Net must be a subclass of "
                "modmix.Method: class Net(modmix.Method)"
            ),
        ),
        (
            "  p: {methods: {gate: {class: 'my_fusion.py:Gate', widht: 3}}}",
            (
                "line 5: parts.p.methods.gate.widht: unknown hyperparameter of gate 'widht': did "
                "you "
                "mean 'width'?"
            ),
        ),
        (
            "  p: {methods: {gate: {class: 'my_fusion.py:Gate', width: wide}}}",
            "line 5: parts.p.methods.gate.width: must be a whole number, got 'wide'",
        ),
        (
            (
                "  p: {methods: {gate: {class: 'my_fusion.py:Gate'}}}\n"
                "  q: {methods: {gate: {class: 'near.py:Gate'}}}"
            ),
            (
                "line 6: parts.q.methods.gate.class: gate is my_fusion.py:Gate elsewhere in this "
                "file: "
                "give this another name"
            ),
        ),
        (
            f"  p: {{methods: {{{'g' * 65}: {{class: 'my_fusion.py:Gate'}}}}}}",
            (
                f"line 5: parts.p.methods.{'g' * 65}: a method's name has at most 64 characters, "
                f"got '{'g' * 65}' of 65"
            ),
        ),
        (
            "  p: {methods: {zzz: {}}}",
            (
                "line 5: parts.p.methods.zzz: unknown method 'zzz': it may be "
                f"{', '.join(sorted(METHODS))}, or have a class: FILE.py:CLASS"
            ),
        ),
    ],
)
def test_what_is_wrong_is_said_of_its_line(bench: Bench, parts: str, problem: str) -> None:
    assert bench.problems(parts) == [problem]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "super().__init__(features, classes)",
            "super().__init__(features, classes); int('x')",
            (
                "method: my_fusion.py:Gate cannot be built: my_fusion.py:13: "
                "super().__init__(features, "
                "classes); int('x'): ValueError: invalid literal for int() with base 10: 'x'"
            ),
        ),
        (
            'reduction="none"',
            'reduction="mean"',
            (
                "method my_fusion.py:Gate: loss must be of shape (2,) for 2 examples (one number "
                "per "
                "example), got ()"
            ),
        ),
        (
            "return outputs\n",
            "return outputs[:, 1:]\n",
            (
                "method my_fusion.py:Gate: scores must be of shape (2, 3) for 2 examples (a "
                "number per "
                "example and class), got (2, 2)"
            ),
        ),
        (
            "F.cross_entropy(outputs, target_B,",
            "F.cross_entropy(outputs, target_C,",
            (
                "method my_fusion.py:Gate: loss fails: my_fusion.py:23: return "
                "F.cross_entropy(outputs, "
                "target_C, reduction=\"none\"): NameError: name 'target_C' is not defined"
            ),
        ),
        (
            "sum(parts)",
            "torch.stack(parts)[:, :, 100]",
            (
                "method my_fusion.py:Gate: forward fails: my_fusion.py:20: return "
                "self.head(scale(self.strength * torch.stack(parts)[:, :, 100])): IndexError: "
                "index "
                "100 is out of bounds for dimension 2 with size 8"
            ),
        ),
        (
            'self.register_buffer("strength", torch.tensor(float(strength)))',
            "self.strength = strength",
            (
                "method my_fusion.py:Gate: the stackable hyperparameter 'strength' must be kept as "
                "a buffer (`self.register_buffer('strength', torch.tensor(strength))`), got none "
                "that depends on it"
            ),
        ),
        (
            "parts = ",
            "self.strength = self.strength * 1.0; parts = ",
            (
                "the buffer method.strength must be changed in place (`self.x.copy_(…)`), got a "
                "new tensor assigned to it"
            ),
        ),
        (
            "F.cross_entropy(outputs, target_B,",
            "F.cross_entropy(outputs.detach(), target_B,",
            ("method my_fusion.py:Gate: loss must depend on a parameter, it depends on none"),
        ),
    ],
)
def test_a_method_is_tried_before_anything_starts(
    bench: Bench, old: str, new: str, problem: str
) -> None:
    assert old in GATE
    bench.write(my_fusion=GATE.replace(old, new))
    found = bench.problems(f"  p: {{methods: {{gate: {{{CLASS}}}}}}}")
    assert found == [f"line 5: parts.p.methods.gate: {problem}"]


MODULATE = (
    GATE
    + """
    def modulate(self, outputs, target_B, gradients):
        return {RETURNED}
"""
)
HALVED = '{name: g / 2 for name, g in gradients["loss"].items() if name.startswith("method.head.")}'


@pytest.mark.parametrize(("returned", "warns"), [("{}", True), (HALVED, False)])
def test_a_modulate_without_effect_warns(bench: Bench, returned: str, warns: bool) -> None:
    bench.write(my_fusion=MODULATE.replace("{RETURNED}", returned))
    plan = bench.make(f"  p: {{methods: {{gate: {{{CLASS}}}}}}}")
    sentence = (
        "my_fusion.py:Gate: modulate returns no gradient, so it has no effect: return those to "
        "use by parameter name ('encoders.0.layers.0.weight')"
    )
    assert plan.warnings == ((sentence,) if warns else ())


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (
            'gradients["los"]',
            "modulate fails: my_fusion.py:58: return gradients[\"los\"]: KeyError: 'los'",
        ),
        (
            '{"head.weight": 0}',
            "modulate must return gradients by the names of the parameters that it is given",
        ),
        (
            '{"method.head.bias": gradients["loss"]["method.head.bias"].sum()}',
            "modulate: method.head.bias must be of shape (3,) for 2 examples (as given), got ()",
        ),
    ],
)
def test_modulate_is_tried(bench: Bench, returned: str, problem: str) -> None:
    bench.write(my_fusion=MODULATE.replace("{RETURNED}", returned))
    (found,) = bench.problems(f"  p: {{methods: {{gate: {{{CLASS}}}}}}}")
    assert re.sub(r"py:\d+", "py:58", problem) in re.sub(r"py:\d+", "py:58", found)


def test_outputs_without_logits_need_scores(bench: Bench) -> None:
    returned = "self.head(scale(self.strength * sum(parts)))"
    without = GATE.replace(f"return {returned}", f"return ({returned},)")
    without = without.replace("cross_entropy(outputs,", "cross_entropy(outputs[0],")
    bench.write(my_fusion=without.replace("def scores", "def other"))
    (found,) = bench.problems(f"  p: {{methods: {{gate: {{{CLASS}}}}}}}")
    assert found.endswith(
        "method Gate: define `scores`, or give the outputs a `logits_BC`: forward returns a "
        "tuple without one"
    )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            '"rest": width}',
            '"rest": 2}',
            (
                "encoder my_nets.py:Net of input left: features of rest must be of shape (2, 2) "
                "for 2 "
                "examples (as its attribute features says), got (2, 5)"
            ),
        ),
        (
            '{"first": 1, "rest": width}',
            "7",
            (
                "the attribute features of my_nets.py:Net must be a mapping with a whole number "
                "for "
                "'first', got 7: set it in the constructor, and name several modalities in the "
                "class "
                "attribute modalities"
            ),
        ),
        (
            "shape[0] - 1",
            "shape[0]",
            (
                "encoder my_nets.py:Net of input left does not take it: my_nets.py:13: return "
                '{"first": inputs[:, :1], "rest": self.layer(inputs[:, 1:])}: RuntimeError: '
                "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"
            ),
        ),
        (
            'return {"first": inputs[:, :1], "rest": self.layer(inputs[:, 1:])}',
            "return self.layer(inputs[:, 1:])",
            "encoder my_nets.py:Net of input left must return a mapping of tensors, got Tensor",
        ),
    ],
)
def test_an_encoder_is_tried_before_anything_starts(
    bench: Bench, old: str, new: str, problem: str
) -> None:
    assert old in NET
    bench.write(my_nets=NET.replace(old, new))
    more = 'encoders: {left: {class: "my_nets.py:Net"}}'
    found = bench.problems("  p: {methods: {add: }}", more)
    assert found == [f"line 5: parts.p.methods.add: {problem}"]


# ---------------------------------------------------------------- inputs and modalities


def test_an_encoder_of_several_modalities(bench: Bench) -> None:
    encoders = 'encoders: {left: {class: "my_nets.py:Net", width: 3}}'
    plan = bench.make("  p: {methods: {base: , mul: {weights: {left.first: 2}}}}", encoders)
    made = [plan.configuration("base", a) for a in plan.parts[0].assignments("base")]
    assert [c.params["modality"] for c in made] == ["left.first", "left.rest", "right"]
    assert [list(c.replicates[0].encoders) for c in made] == [["left"], ["left"], ["right"]]
    assert plan.details()["modalities"] == ["left.first", "left.rest", "right"]
    wrong = "  p: {methods: {mul: {weights: {left: 2}}}}"
    assert bench.problems(wrong, encoders) == [
        (
            "line 5: parts.p.methods.mul: weights must name sources (left.first, left.rest, "
            "right), "
            "got 'left'"
        )
    ]


def test_one_image_with_taps_is_several_modalities(bench: Bench) -> None:
    bench.data = data_of((PHOTO,))
    encoders = "encoders: {default: {name: resnet, depth: 8, width: 2}}"
    plan = bench.make("  p: {methods: {base: , cldl: }}", encoders)
    made = [plan.configuration("base", a) for a in plan.parts[0].assignments("base")]
    assert [c.params["modality"] for c in made] == ["unit1", "unit2", "unit3"]
    untapped = "  p: {methods: {base: {encoder.taps: false}}}"
    plan = bench.make(untapped, encoders)
    (only,) = (plan.configuration("base", a) for a in plan.parts[0].assignments("base"))
    assert only.params["modality"] == "photo"
    found = bench.problems(
        "  p: {methods: {cldl: {encoder.taps: {grid: [true, false]}}}}", encoders
    )
    assert found == ["line 5: parts.p.methods.cldl: needs at least 2 modalities, got photo"]


def test_inputs_have_encoders_of_their_kind(bench: Bench) -> None:
    bench.data = data_of((LEFT, PHOTO, TEXT))
    (replicate, *_) = bench.one("", "", "add").replicates
    names = {name: encoder["name"] for name, encoder in replicate.encoders.items()}
    assert names == {"left": "mlp", "photo": "mlp", "text": "char_cnn"}


@pytest.mark.parametrize(
    ("method", "encoders", "problem"),
    [
        (
            "add",
            "{photo: {name: char_lstm}}",
            (
                "encoder char_lstm takes tokens, and the input 'photo' is image: give that another "
                "encoder (encoders: {photo: …})"
            ),
        ),
        (
            "add",
            "{default: {name: mlp}}",
            (
                "encoder mlp takes dense and image and sequence and video, and the input 'text' "
                "is tokens: give that another encoder (encoders: {text: …})"
            ),
        ),
        (
            "add",
            "{text: {name: identity}}",
            (
                "encoder identity takes dense and image and sequence and video, and the input "
                "'text' is tokens: give that another encoder (encoders: {text: …})"
            ),
        ),
        (
            "early",
            "{}",
            "early reads raw inputs, and the input 'text' is tokens: use another method",
        ),
    ],
)
def test_encoders_refuse_other_kinds(
    bench: Bench, method: str, encoders: str, problem: str
) -> None:
    bench.data = data_of((LEFT, PHOTO, TEXT))
    found = bench.problems(f"  p: {{methods: {{{method}: }}}}", f"encoders: {encoders}")
    assert found == [f"line 5: parts.p.methods.{method}: {problem}"]


def test_augmentation_is_part_of_a_result(bench: Bench) -> None:
    def key(**augmentation: Augmentation) -> str:
        bench.data = data_of((PHOTO, LEFT), augmentation=augmentation)
        return bench.one("", "", "add").replicates[0].key

    found = {key(), key(photo=Augmentation(pad=4)), key(photo=Augmentation(pad=4, flip=True))}
    assert len(found) == 3


# ---------------------------------------------------------------- select


@pytest.mark.parametrize(
    ("block", "selected"),
    [
        ("", "last"),
        ("patience: 3", "best"),
        ("select: best", "best"),
        ("patience: 3, select: last", "last"),
    ],
)
def test_which_weights_count(bench: Bench, block: str, selected: str) -> None:
    assert bench.one(block, "", "mul").replicates[0].training["select"] == selected


def test_the_same_weights_by_other_words_are_the_same_result(bench: Bench) -> None:
    def key(block: str) -> str:
        return bench.one(block, "", "mul").replicates[0].key

    assert key("") == key("select: last")
    assert key("patience: 3") == key("patience: 3, select: best")
    assert key("") != key("select: best")
