"""The plan: configurations counted by hand, keys that are the same and differ when they must,
problems.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from faketask import fake_data
from modmix.base.code import code_digest
from modmix.base.errors import InputError, SpecError
from modmix.base.messages import digest
from modmix.base.settings import TRAINING
from modmix.base.space import Choices, Constant, Range, every_value
from modmix.methods.table import METHODS
from modmix.search.proposer import Proposer
from modmix.study import configurations, files, make_plan
from modmix.study.configurations import Configuration
from modmix.study.plan import Plan
from modmix.study.spec import unknown
from modmix.study.variables import escaped, expanded
from modmix.tasks.data import Data

FOLDER = Path("/studies")


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every set of options that data was loaded with."""
    seen: list[dict[str, Any]] = []

    def load(_task: str, options: Mapping[str, Any], *_: Any) -> Data:
        seen.append(dict(options))
        return fake_data(digest({k: v for k, v in options.items() if k != "path"}))

    monkeypatch.setattr("modmix.tasks.base.load_task", load)
    return seen


def make(parts: str, more: str = "", *, task: str = "task: digits") -> Plan:
    text = f"study: s\n{task}\n{more}\nparts:\n{parts}"
    return make_plan.make(files.parse(text, name="x.yaml", folder=FOLDER))


def one(
    block: str, more: str = "", *, method: str = "mul", task: str = "task: digits"
) -> Configuration:
    """The single configuration of a study with one method's block."""
    (part,) = (plan := make(f"  p: {{methods: {{{method}: {{{block}}}}}}}", more, task=task)).parts
    (assignment,) = part.assignments(method)
    return plan.configuration(method, assignment)


def problems(parts: str, more: str = "", *, task: str = "task: digits") -> list[str]:
    with pytest.raises(SpecError) as caught:
        make(parts, more, task=task)
    return [str(problem) for problem in caught.value.problems]


# ---------------------------------------------------------------- configurations


def test_a_grid_with_conditions_becomes_these_configurations() -> None:
    plan = make(
        """\
  p:
    shared: {learning_rate: {grid: [0.01, 0.1]}}
    methods:
      add:
        merge: {grid: [concat, sum]}
        project: {grid: [8, 16], when: {merge: [sum]}}
"""
    )
    configurations = [plan.configuration("add", a) for a in plan.parts[0].assignments("add")]
    shown = [
        (p.params["learning_rate"], p.params["merge"], p.params["project"]) for p in configurations
    ]
    assert shown == [
        (rate, merge, project)
        for rate in (0.01, 0.1)
        for merge, project in (("concat", None), ("sum", 8), ("sum", 16))
    ]
    assert len({p.key for p in configurations}) == 6
    assert len({r.key for p in configurations for r in p.replicates}) == 6 * 5


def test_base_has_a_configuration_per_modality() -> None:
    plan = make("  p: {methods: {base: }}")
    configurations = [plan.configuration("base", a) for a in plan.parts[0].assignments("base")]
    assert [p.params["modality"] for p in configurations] == ["left", "right"]
    assert [list(p.replicates[0].encoders) for p in configurations] == [["left"], ["right"]]
    searched = (
        make("  p: {search: {configurations: 2}, methods: {base: }}").parts[0].domains["base"]
    )
    assert searched["modality"] == Choices(values=("left", "right"))


def test_a_configuration_is_resolved() -> None:
    configuration = one(
        "beta: 1, encoder.hidden: [5], clip_norm: 10",
        "training: {epochs: 3}\nseeds: [4, 2]\nencoders: {right: {name: mlp, activation: tanh}}",
    )
    (first, second) = configuration.replicates
    assert (first.seed, second.seed) == (4, 2)
    assert first.params == {
        "beta": 1.0, "margin": None, "detach_weights": True, "alpha": 0.0, "weights": None,
        "depth": 0, "width": 64,
    }  # fmt: skip
    assert configuration.params == {**first.params, "encoder.hidden": [5], "clip_norm": 10.0}
    assert first.encoders == {
        "left": {"name": "mlp", "hidden": [5], "activation": "relu", "batch_norm": False},
        "right": {"name": "mlp", "hidden": [5], "activation": "tanh", "batch_norm": False},
    }
    assert first.training["epochs"] == 3
    assert first.training["clip_norm"] == 10.0
    assert first.training["batch_size"] == 64  # the recipe of digits
    assert first.training["monitor"] == "val/error"
    assert isinstance(first.params["beta"], float)


def test_the_monitor_is_the_objective() -> None:
    assert one("", "objective: val/auc").replicates[0].training["monitor"] == "val/auc"
    configuration = one("", "objective: val/auc\ntraining: {monitor: val/nll}")
    assert configuration.replicates[0].training["monitor"] == "val/nll"


def test_directions() -> None:
    plan = make("  p: {methods: {mul: }}", "objective: [val/error, val/auc]")
    assert plan.directions == (False, True)


def test_domains_of_a_search() -> None:
    domains = (
        make(
            """\
  p:
    search: {configurations: 3}
    methods:
      mul:
        beta: {low: 0, high: 1, step: 0.25}
        width: {low: 8, high: 64, log: true}
        margin: {low: 1, high: 3, int: true}
        depth: {choices: [0, 2]}
        weights: {value: {left: 1, right: 2}}
        alpha: 0
"""
        )
        .parts[0]
        .domains["mul"]
    )
    assert domains == {
        "beta": Range(low=0, high=1, step=0.25),
        "width": Range(low=8, high=64, integer=True, log=True),
        "margin": Range(low=1, high=3, integer=True),
        "depth": Choices(values=(0, 2)),
        "weights": Constant(value={"left": 1.0, "right": 2.0}),
        "alpha": Constant(value=0.0),
    }


def test_a_step_and_its_bounds_are_decimal() -> None:
    """0.3 − 0.2 is a little below 0.1 in float64."""
    plan = make(
        "  p: {search: {configurations: 9, sampler: grid}, "
        "methods: {mul: {beta: {low: 0.2, high: 0.3, step: 0.1}}}}"
    )
    assert every_value(plan.parts[0].domains["mul"]["beta"]) == (0.2, 0.3)


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid", "qmc", "nsga2"])
def test_a_search_in_steps_proposes_the_configurations_of_the_grid(sampler: str) -> None:
    plan = make(
        f"""\
  grid: {{methods: {{mul: {{beta: {{grid: [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}}}}}}}}
  search:
    search: {{configurations: 30, sampler: {sampler}}}
    methods: {{mul: {{beta: {{low: 0, high: 0.7, step: 0.1}}}}}}
"""
    )
    grid, search = plan.parts
    keys = {plan.configuration("mul", values).key for values in grid.assignments("mul")}
    proposer = Proposer(
        search.domains["mul"], sampler=sampler, seed=0, label="x", directions=[False]
    )
    asked = [plan.configuration("mul", found.values) for found in proposer.ask(30)]
    assert {configuration.key for configuration in asked} <= keys
    assert len({configuration.params["beta"] for configuration in asked}) > 4


# ---------------------------------------------------------------- keys

BASE = "beta: 0.5"


@pytest.mark.parametrize(
    ("block", "more"),
    [
        ("beta: 5.0e-1", ""),
        ("beta: 0.49999999999999994", ""),  # the float below 0.5
        ("{beta: {value: 0.5}}"[1:-1], ""),
        ("beta: {grid: [0.5]}", ""),
        ("beta: 0.5, alpha: 0, width: 64", ""),
        ("beta: 0.5", "seeds: 5"),
        ("beta: 0.5", "training: {learning_rate: 1e-3, epochs: 20}"),
        ("beta: 0.5", "training: {stack: never, eval_batch_size: 7}"),
        ("beta: 0.5", "encoders: {default: {name: mlp, hidden: [64]}}"),
        ("beta: 0.5", "encoders: {left: {name: mlp}, right: {name: mlp, activation: relu}}"),
        ("beta: 0.5", "objective: [val/error, val/auc]"),
        ("beta: 0.5", "description: other\nresources: {cpus: 2}\nbudget: {wall_minutes: 1}"),
    ],
)
def test_the_same_thing_written_differently_has_the_same_keys(block: str, more: str) -> None:
    expected, found = one(BASE), one(block, more)
    assert found.key == expected.key
    assert [r.key for r in found.replicates] == [r.key for r in expected.replicates]


@pytest.mark.parametrize(
    ("block", "more", "task", "same_structure"),
    [
        ("beta: 0.6", "", "digits", True),
        ("beta: 0.5, margin: 1", "", "digits", True),
        ("beta: 0.5, weights: {left: 2}", "", "digits", True),
        ("beta: 0.5, width: 32", "", "digits", False),
        ("beta: 0.5, depth: 1", "", "digits", False),
        ("beta: 0.5, detach_weights: false", "", "digits", False),
        ("beta: 0.5, learning_rate: 0.01", "", "digits", True),
        ("beta: 0.5", "training: {learning_rate: 0.01}", "digits", True),
        ("beta: 0.5", "training: {weight_decay: 0.1, clip_norm: 1}", "digits", True),
        ("beta: 0.5", "training: {epochs: 21}", "digits", False),
        ("beta: 0.5", "training: {optimizer: sgd}", "digits", False),
        ("beta: 0.5", "objective: val/auc", "digits", False),  # another monitor
        ("beta: 0.5, encoder.hidden: [32]", "", "digits", False),
        ("beta: 0.5", "encoders: {left: {name: identity}}", "digits", False),
        ("beta: 0.5", "", "{name: digits, train_rows: 100}", False),
        ("beta: 0.5, task.train_rows: 100", "", "digits", False),
    ],
)
def test_another_thing_has_other_keys(
    block: str, more: str, task: str, same_structure: bool
) -> None:
    expected, found = one(BASE), one(block, more, task=f"task: {task}")
    assert found.key != expected.key
    assert not {r.key for r in found.replicates} & {r.key for r in expected.replicates}
    structures = {r.structure for p in (found, expected) for r in p.replicates}
    assert len(structures) == (1 if same_structure else 2)


def test_where_the_data_lies_is_not_part_of_a_key(tmp_path: Path) -> None:
    here = one(BASE, task="task: {name: arrays, path: a.npz}")
    there = one(BASE, task=f"task: {{name: arrays, path: {tmp_path}/b.npz}}")
    assert here.task.options["path"] == "/studies/a.npz"
    assert here.key == there.key
    assert here.replicates[0].key == there.replicates[0].key
    assert here.replicates[0].structure == there.replicates[0].structure


def test_seeds_only_add_replicates() -> None:
    few, many = one(BASE, "seeds: [0, 1]"), one(BASE, "seeds: [1, 7, 0]")
    assert few.key == many.key
    keys = {r.seed: r.key for r in many.replicates}
    assert [r.key for r in few.replicates] == [keys[0], keys[1]]
    assert len(set(keys.values())) == 3


def test_without_reuse_a_study_keeps_to_itself() -> None:
    shared, own = one(BASE), one(BASE, "reuse: false")
    assert own.key == shared.key
    assert own.replicates[0].structure == shared.replicates[0].structure
    assert not {r.key for r in own.replicates} & {r.key for r in shared.replicates}


def test_nor_does_it_share_with_another_owner_s_of_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = []
    for owner in ("alice", "bob"):
        monkeypatch.setenv("MODMIX_OWNER", owner)
        keys.append({r.key for r in one(BASE, "reuse: false").replicates})
    assert not keys[0] & keys[1]


def test_raw_methods_do_not_know_encoders() -> None:
    plain = one("", method="early")
    encoded = one("", "encoders: {default: {name: mlp, hidden: [9]}}", method="early")
    assert plain.replicates[0].encoders == {}
    assert plain.key == encoded.key


def test_a_key_is_this_digest() -> None:
    """Spelled out: whoever changes what a key holds hides all earlier results."""
    (replicate, *_) = one(BASE, "seeds: [3]").replicates
    training = dict(replicate.training)
    for name in ("stack", "eval_batch_size", "compile", "cuda_graphs"):  # change no number
        del training[name]
    assert training.pop("pbt") is None  # without it, a model has nothing to do with the others
    encoder = {"name": "mlp", "hidden": [64], "activation": "relu", "batch_norm": False}
    fingerprint = digest({"inputs": None, "train_rows": None, "split_seed": 0})
    assert replicate.key == digest(
        {
            "method": "mul",
            "params": dict(replicate.params),
            "training": training,
            "encoders": {"left": encoder, "right": encoder},
            "task": ["digits", fingerprint],
            "seed": 3,
            "augmentation": {},
            "numerics": 2,
            "code": {
                "mul": code_digest("modmix.methods.mul:Mul"),
                "mlp": code_digest("modmix.encoders.mlp:MLP"),
            },
        }
    )


def test_edited_code_has_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before, other = one(BASE), one("", method="early")
    real = code_digest
    edited = {"modmix.methods.mul:Mul"}
    monkeypatch.setattr(
        configurations, "code_digest", lambda path: "edited" if path in edited else real(path)
    )
    assert one(BASE).key != before.key
    assert not {r.key for r in one(BASE).replicates} & {r.key for r in before.replicates}
    assert one(BASE).replicates[0].structure != before.replicates[0].structure
    assert one("", method="early").key == other.key
    edited.add("modmix.encoders.mlp:MLP")
    both = one(BASE)
    edited.remove("modmix.methods.mul:Mul")
    assert len({one(BASE).key, both.key, before.key}) == 3
    assert one("", method="early").key == other.key  # reads raw inputs


SEARCH = """\
  found: {search: {configurations: 4}, methods: {mul: {beta: {low: 0, high: 1}},
    add: {learning_rate: {low: 0.001, high: 0.1}}}}
"""


@pytest.mark.parametrize(
    ("parts", "more"),
    [
        ("  grid: {methods: {mul: {momentum: {grid: [0, 0.9]}}}}\n", ""),
        ("  grid: {methods: {mul: {encoder.hidden: {grid: [[8], [9]]}}}}\n", ""),
        ("  grid: {methods: {mul: {task.split_seed: {grid: [0, 1]}}, add: {depth: 1}}}\n", ""),
        (
            "  other: {search: {configurations: 3}, methods: {mul: {margin: {low: 0, high: 1}}}}\n",
            "",
        ),
        ("  final: {seeds: [7, 8], best_of: found, methods: {mul: }}\n", ""),
        ("", "seeds: [0, 1]"),
        ("", "description: other\nresources: {cpus: 2}"),
    ],
)
def test_what_changes_elsewhere_leaves_a_search_its_history(parts: str, more: str) -> None:
    before, after = make(SEARCH).signatures(), make(SEARCH + parts, more).signatures()
    for method in ("mul", "add"):
        assert after["found", method] == before["found", method]


@pytest.mark.parametrize(
    ("was", "now", "more"),
    [
        ("high: 1", "high: 2", ""),
        ("mul: {", "mul: {momentum: 0.5, ", ""),
        ("mul: {", "mul: {margin: 1, ", ""),
        ("configurations: 4", "configurations: 4, seed: 3", ""),
        ("configurations: 4", "configurations: 4, sampler: random", ""),
        ("", "", "training: {epochs: 3}"),
        ("", "", "encoders: {left: {name: identity}}"),
        ("", "", "objective: val/nll"),
    ],
)
def test_what_changes_a_search_begins_it_anew(was: str, now: str, more: str) -> None:
    before = make(SEARCH).signatures()
    text = SEARCH.replace(was, now) if was else SEARCH
    assert make(text, more).signatures()["found", "mul"] != before["found", "mul"]


def test_seeds_of_its_own_leave_a_search_its_history() -> None:
    """As those of the study do."""
    for seeds in ("[7, 8]", "[7, 8, 9]"):
        own = SEARCH.replace("found: {", f"found: {{seeds: {seeds}, ")
        assert make(own).signatures() == make(SEARCH).signatures()


def test_seeds_elsewhere_do_not_matter_to_a_part_with_its_own() -> None:
    own = SEARCH.replace("found: {", "found: {seeds: [7, 8], ")
    assert make(own, "seeds: [0, 1]").signatures() == make(own, "seeds: 3").signatures()


def test_edited_code_begins_a_search_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make(SEARCH).signatures()
    real = code_digest
    monkeypatch.setattr(
        configurations,
        "code_digest",
        lambda path: "edited" if path == "modmix.methods.mul:Mul" else real(path),
    )
    after = make(SEARCH).signatures()
    assert after["found", "mul"] != before["found", "mul"]
    assert after["found", "add"] == before["found", "add"]


def test_two_parts_that_mean_the_same_model_share_its_configuration() -> None:
    plan = make(
        """\
  one: {methods: {mul: {beta: {grid: [0, 0.5]}}}}
  two: {methods: {mul: {beta: 0.5, learning_rate: 0.001, encoder.hidden: [64], task.split_seed: 0}}}
  three: {methods: {mul: {beta: 0.5, learning_rate: {grid: [0.001, 0.01]}, stack: never}}}
"""
    )
    keys = [
        [plan.configuration("mul", a).key for a in part.assignments("mul")] for part in plan.parts
    ]
    assert keys[0][1] == keys[1][0] == keys[2][0]
    assert len({key for part in keys for key in part}) == 3
    # Each shows what any of them varies, with the value that holds for it.
    configuration = plan.configuration("mul", {"beta": 0.0})
    names = ("learning_rate", "encoder.hidden", "task.split_seed", "stack")
    assert [configuration.params[name] for name in names] == [0.001, [64], 0, "auto"]


def test_what_encoders_do_not_share_is_shown_as_null() -> None:
    plan = make(
        "  p: {methods: {mul: , add: {encoder.activation: tanh}}}\n"
        "  q: {methods: {mul: {encoder.hidden: [8], encoder.batch_norm: true}}}",
        "encoders: {left: {name: mlp, hidden: [3]}, right: {name: mlp, hidden: [4]}}",
    )
    assert plan.configuration("mul", {}).params["encoder.hidden"] is None
    assert plan.configuration("mul", {}).params["encoder.batch_norm"] is False
    assert plan.configuration("mul", {"encoder.hidden": [8]}).params["encoder.hidden"] == [8]


def test_options_of_the_task_may_vary(
    loaded: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "elsewhere")
    plan = make(
        "  p: {methods: {mul: {task.path: {grid: [b.npz, $WHERE/c.npz]}, beta: {grid: [0, 1]}}}}",
        task="task: {name: arrays, path: a.npz}",
    )
    configurations = [plan.configuration("mul", a) for a in plan.parts[0].assignments("mul")]
    paths = ["/studies/b.npz", "/studies/elsewhere/c.npz"]  # beside the study file, as task.path
    assert [p.task.options["path"] for p in configurations] == [paths[0]] * 2 + [paths[1]] * 2
    assert [options["path"] for options in loaded] == ["/studies/a.npz", *paths]  # once each


def test_details_are_what_the_data_is() -> None:
    details = make("  p: {methods: {mul: }}").details()
    assert details["inputs"] == {"left": [4], "right": [3]}
    assert details["rows"] == {"train": 6, "val": 6, "test": 6}
    assert details["classes"] == 3


# ---------------------------------------------------------------- problems


def test_the_outline_and_the_shelves_speak_at_once() -> None:
    found = problems(
        """\
  p:
    x: depth
    sort: 1
    shared: {learning_rat: 1, momentum: 2}
    references: [nul, mul]
    methods:
      mul:
        beta: -1
        bta: 1
      mlu: {}
      add: {depth: {low: 1, high: 2}}
  q:
    search: {configurations: 0}
    methods: {mul: {beta: {grid: [0]}}}
""",
        """\
study: t
training: {epochs: 0, learnin_rate: 1, monitor: test/error, betas: [0.9]}
encoders: {left: {hidden: []}, right: {name: mpl}, default: {name: mlp, hiden: 1}}
objective: test/error
paper: {nul: {test/error: 1}, mul: {tst/error: 1, test/auc: [1, 2, 3]}, mul (q): {val/f1: 1}}""",
        task="task: {name: digits, rows: 1, split_seed: -1}",
    )
    assert found == [
        "line 2: task.rows: is not an option of this task: inputs, train_rows, split_seed",
        "line 2: task.split_seed: must be at least 0, got -1",
        "line 3: study: this key is given twice (first on line 1); keep one",
        "line 4: training.betas: must be two numbers from 0 to below 1, got [0.9]",
        "line 4: training.epochs: must be at least 1, got 0",
        ("line 4: training.learnin_rate: unknown setting 'learnin_rate': did you mean "
        "'learning_rate'?"),
        ("line 4: training.monitor: must be one of val/error, val/auc, val/nll, val/ece, val/f1, "
        "got 'test/error'"),
        "line 5: encoders.default.hiden: unknown setting 'hiden': did you mean 'hidden'?",
        "line 5: encoders.left: must have a name",
        "line 5: encoders.right: unknown encoder 'mpl': did you mean 'mlp'?",
        ("line 6: objective: must be a validation metric (val/error, val/auc, val/nll, val/ece, "
        "val/f1), got 'test/error': the test split is never selected on"),
        "line 7: paper.mul.test/auc: must be a mean or [mean, deviation], got [1, 2, 3]",
        "line 7: paper.mul.tst/error: unknown metric 'tst/error': did you mean 'test/error'?",
        "line 7: paper.nul: unknown method 'nul': did you mean 'mul'?",
        ("line 11: parts.p.sort: unknown key 'sort': it may be best_of, label, methods, "
        "references, search, seeds, shared, tasks, title, x"),
        ("line 12: parts.p.shared.learning_rat: unknown setting of these methods 'learning_rat': "
        "did you mean 'learning_rate'?"),
        "line 12: parts.p.shared.momentum: must be at most 1, got 2",
        "line 13: parts.p.references: unknown method 'nul': did you mean 'mul'?",
        "line 16: parts.p.methods.mul.beta: must be at least 0, got -1",
        ("line 17: parts.p.methods.mul.bta: unknown hyperparameter of mul 'bta': did you mean "
        "'beta'?"),
        "line 18: parts.p.methods.mlu: unknown method 'mlu': did you mean 'mul'?",
        ("line 19: parts.p.methods.add.depth: ranges and choices need a search: add search: "
        "{configurations: 20}"),
        "line 21: parts.q.search.configurations: must be greater than or equal to 1, got 0",
        ("line 22: parts.q.methods.mul.beta: a search takes ranges and choices: write choices for "
        "grid"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("duc", "duc_weight"), ("warm", "warmup"), ("shared_wieght", "shared_weight"),
        ("learnin_rate", "learning_rate"), ("epoch", "epochs"),
    ],
)  # fmt: skip
def test_a_methods_own_hyperparameters_are_suggested_first(given, meant):
    own = [h.name for h in METHODS["dimml"].hyperparameters]
    known = [*TRAINING, "encoder.depth", "task.train_rows", *own]
    assert unknown(given, known, "x", own).endswith(f"did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{low: 1, high: 0}", "low must be below high, got low 1 and high 0"),
        ("{low: 0.5, high: 0.5}", "low must be below high, got low 0.5 and high 0.5"),
        ("{low: -1, high: 1}", ".low: must be at least 0, got -1"),
        ("{low: 0, high: .inf}", ".high: must be a finite number, got inf"),
        ("{low: 0, high: x}", ".high: must be a finite number, got 'x'"),
        ("{low: 0, high: 1, log: true}", "log must be true or false, and needs low above 0"),
        ("{low: 1, high: 2, log: 3}", "log must be true or false"),
        ("{low: 1, high: 2, step: 0}", ".step: must be above 0 and at most high - low (1)"),
        ("{low: 1, high: 2, step: 2}", ".step: must be above 0 and at most high - low (1)"),
        ("{low: 1, high: 2, step: 1, log: true}", ".step: must be above 0 and at most"),
        ("{low: 1, high: 2, step: a}", ".step: must be a finite number, got 'a'"),
        ("{low: 1, high: 2.5, int: true}", ".high: must be a whole number, got 2.5"),
        ("{low: 1, high: 2, int: 3}", ".int: must be true, or left out"),
        ("{low: 1}", "must have exactly one of grid, choices, value, or low with high"),
        ("{low: 1, high: 2, choices: [1]}", "must have exactly one of grid, choices, value"),
        ("{}", "must have exactly one of grid, choices, value, or low with high"),
        ("{lo: 1, high: 2}", ".lo: unknown key of a domain 'lo': did you mean 'low'?"),
        ("{choices: []}", ".choices: must be a list with at least one value, got []"),
        ("{choices: 3}", ".choices: must be a list with at least one value, got 3"),
        ("{choices: [0.1, a]}", ".choices: must be a finite number, got 'a'"),
        ("{choices: [1, 1.0]}", ".choices: names a value twice: [1, 1.0]"),
        ("{value: x}", "must be a finite number, got 'x'"),
        ("{low: 0, high: 1, when: alpha}", ".when: must name one hyperparameter and its values"),
        ("{low: 0, high: 1, when: {gamma: 1}}", ".when: its condition reads 'gamma', which this"),
        ("{low: 0, high: 1, when: {depth: [1, 7]}}", ".when: 'depth' is never 7 here"),
        (
            "{low: 0, high: 1, when: {learning_rate: 0.1}}",
            ".when: 'learning_rate' has a continuous range, which equals a value only by",
        ),
        ("[0, 1]", "must be a finite number, got [0, 1]"),
        (".nan", "must be a finite number, got nan"),
        ("null", "must be a finite number, got null"),
    ],
)
def test_domains_that_are_none(value: str, message: str) -> None:
    rate = "learning_rate: {low: 0.1, high: 1}"
    block = f"{{beta: {value}, depth: {{choices: [0, 1]}}, {rate}}}"
    (found,) = problems(f"  p: {{search: {{configurations: 2}}, methods: {{mul: {block}}}}}")
    start = "line 5: parts.p.methods.mul.beta"
    assert found.startswith(start + (message if message.startswith(".") else f": {message}")), found


@pytest.mark.parametrize(
    ("parts", "more", "expected"),
    [
        (
            (
                "  p: {search: {configurations: 2}, "
                "methods: {mul: {width: {low: 1, high: 9, step: 0.5}}}}"
            ),
            "",
            "p.methods.mul.width.step: must be a whole number, got 0.5",
        ),
        (
            (
                "  p: {search: {configurations: 2}, "
                "methods: {mul: {width: {low: 1, high: 9, int: false}}}}"
            ),
            "",
            "p.methods.mul.width.int: must be true, or left out",
        ),
        (
            "  p: {search: {configurations: 2}, methods: {add: {merge: {low: 1, high: 9}}}}",
            "",
            "p.methods.add.merge: has no range: use choices",
        ),
        (
            "  p: {methods: {mul: {beta: {low: 0, high: 1}}}}",
            "",
            "p.methods.mul.beta: ranges and choices need a search",
        ),
        (
            "  p: {search: , methods: {mul: {beta: {low: 0, high: 1}}}}",
            "",
            "p.methods.mul.beta: ranges and choices need a search",
        ),
        (
            "  p: {search: {configurations: 2}, methods: {mul: {beta: 1}}}",
            "",
            "p.methods.mul: nothing to search: give it a range or choices",
        ),
        (
            (
                "  p: {search: {configurations: 2, sampler: grid}, "
                "methods: {mul: {beta: {low: 0, high: 1}}}}"
            ),
            "",
            "p.methods.mul: the grid sampler needs an end: give beta a step or choices",
        ),
        (
            (
                "  p: {search: {configurations: 2, sampler: cmaes}, "
                "methods: {mul: {beta: {low: 0, high: 1}}}}"
            ),
            "objective: [val/error, val/auc]",
            "p.search.sampler: cmaes takes one objective: use nsga2, tpe or gp for two",
        ),
        (
            "  p: {x: beta, methods: {mul: {beta: 1}}}",
            "",
            "p.x: method mul does not vary 'beta': give it a grid there or in shared",
        ),
        (
            (
                "  p: {methods: {mul: {beta: {grid: [0, 1], when: {alpha: 0}},"
                " alpha: {grid: [0, 1], when: {beta: 0}}}}}"
            ),
            "",
            "p.methods.mul: conditions form a circle: beta, alpha",
        ),
        (
            (
                f"  p: {{methods: {{mul: {{beta: {{grid: {list(range(400))}}},"
                f" alpha: {{grid: {list(range(400))}}}}}}}}}"
            ),
            "",
            "p.methods.mul: its grid has 160000 configurations, more than 100000: use a search",
        ),
        (
            "  p: {methods: {mul: {monitor: val/auc}}}",
            "",
            "p.methods.mul.monitor: give it under training, once for the study",
        ),
        (
            "  p: {methods: {mul: {halving: {value: {eta: 1, min_epochs: 1}}}}}",
            "",
            "p.methods.mul.halving: eta must be a whole number of at least 2, got 1",
        ),
        (
            "  p: {methods: {mul: }}",
            "training: {epochs: 8, halving: {eta: 2, min_epochs: 8}}",
            "training.halving: min_epochs must be below epochs (8), got 8: lower it",
        ),
        (
            "  p: {methods: {mul: {epochs: {grid: [4, 6]}, halving: {eta: 2, min_epochs: 6}}}}",
            "",
            "p.methods.mul.halving: min_epochs must be below epochs (6), got 6: lower it",
        ),
        (
            (
                "  p: {search: {configurations: 9, batch: 2}, "
                "shared: {halving: {eta: 3, min_epochs: 1}},"
                " methods: {mul: {beta: {low: 0, high: 1}}, add: {depth: {low: 0, high: 4}}}}"
            ),
            "",
            (
                "p.search.batch: must be at least halving's eta (3), got 2: the best 1/3 of 2 "
                "configurations"
            ),
        ),
        (
            "  p: {search: {configurations: 9}, methods: {mul: {beta: {low: 0, high: 1}}}}",
            "training: {halving: {eta: 3, min_epochs: 1}}\nresources: {max_models: 12}",
            (
                "resources.max_models: a pack of 12 holds 2 configurations of 5 seeds, fewer "
                "than halving's"
                " eta (3): make it at least 15"
            ),
        ),
        (
            "  p: {methods: {mul: {beta: {grid: [0, 1]}}}}",
            "training: {halving: {eta: 2, min_epochs: 1}}\nobjective: [val/error, val/auc]",
            (
                "training.halving: compares configurations by one value, the study has two "
                "objectives: leave"
            ),
        ),
        (
            "  p: {methods: {mul: {beta: {grid: [0, 1]}}}}",
            "replicates: {start: 2}",
            "replicates: stages the seeds of searches, no part is one: leave it out",
        ),
        (
            "  p: {search: {configurations: 9}, methods: {mul: {beta: {low: 0, high: 1}}}}",
            "replicates: {start: 2}\nobjective: [val/error, val/auc]",
            (
                "replicates: compares configurations by one value, the study has two objectives: "
                "leave it out"
            ),
        ),
        (
            "  p: {search: {configurations: 9}, methods: {mul: {beta: {low: 0, high: 1}}}}",
            "replicates: {start: 2, full: 4}\nseeds: [7, 8, 9]",
            "replicates.full: must be the number of seeds (3), got 4: leave it or seeds out",
        ),
        (
            "  p: {search: {configurations: 9}, methods: {mul: {beta: {low: 0, high: 1}}}}",
            "replicates: {start: 5}",
            "replicates.start: must be below the number of seeds (5), got 5",
        ),
        (
            (
                "  p: {search: {configurations: 9, batch: 1}, "
                "methods: {mul: {beta: {low: 0, high: 1}}}}"
            ),
            "replicates: {start: 2, full: 3}",
            "p.search.batch: keep: 0.5 (of replicates) of a batch of 1 is all of it: give a larger",
        ),
        (
            "  p: {search: {configurations: 9}, methods: {mul: {beta: {low: 0, high: 1}}}}",
            "replicates: {start: 2, keep: 0.9}",
            "p.search.batch: keep: 0.9 (of replicates) of a batch of 5 is all of it: give a larger",
        ),
        (
            "  p: {methods: {mul: }}",
            "objective: [val/error, val/error]",
            "objective: names 'val/error' twice: give it once",
        ),
        (
            "  p: {methods: {mul: }}",
            "encoders: {default: {name: [mlp]}}",
            "encoders.default: unknown encoder \"['mlp']\"",
        ),
        (
            "  p: {methods: {mul: }, references: [[mul]]}",
            "",
            "p.references.0: must be a word, got ['mul']",
        ),
        (
            "  p: {methods: {mul: , add: }, references: [mul, late]}",
            "",
            "p.references: no part trains 'late': add it to a part, or name one of add, mul",
        ),
        (
            "  p: {methods: {mul: }, best_of: q}\n  q: {methods: [mul]}",
            "",
            "parts.q.methods: must be a mapping, got ['mul']: write {add: , mul: }",
        ),
    ],
)
def test_problems_of_the_shelves(parts: str, more: str, expected: str) -> None:
    found = problems(parts, more)
    path = expected if not expected.startswith("p.") else f"parts.{expected}"
    assert any(re.sub(r"^line \d+: ", "", problem).startswith(path) for problem in found), found
    assert len(found) == 1 or "references" in expected


def test_staged_configurations_are_asked_for_with_their_first_seeds() -> None:
    part = "  p: {search: {configurations: 4}, methods: {mul: {beta: {low: 0, high: 1}}}}"
    plan = make(part, "seeds: [4, 9, 2]\nreplicates: {start: 2}")
    configuration = plan.configuration("mul", {"beta": 0.5})
    assert [r.seed for r in configuration.replicates] == [4, 9, 2]
    assert [r.seed for r in plan.first(configuration).replicates] == [4, 9]
    assert plan.first(configuration).key == configuration.key
    whole = make(part, "seeds: [4, 9, 2]")
    assert whole.first(configuration) == configuration
    # Staging asks for nothing else than the study did without it.
    assert whole.signatures() == plan.signatures()


@pytest.mark.parametrize(
    ("search", "more"),
    [
        ("configurations: 9, batch: 3", ""),
        (
            "configurations: 9, batch: 1",
            "",
        ),  # packs of one configuration are compared with each other
        ("configurations: 9, batch: 1", "resources: {max_models: 12}"),
        ("configurations: 9", "resources: {max_models: 9}"),  # a configuration a pack
        ("configurations: 9", "resources: {max_models: 15}"),
        ("configurations: 9", "resources: {max_models: 12}\nreplicates: {start: 4}"),
    ],
)
def test_halving_that_has_enough_to_choose_from(search: str, more: str) -> None:
    block = "beta: {low: 0, high: 1}, halving: {eta: 3, min_epochs: 1}"
    plan = make(f"  p: {{search: {{{search}}}, methods: {{mul: {{{block}}}}}}}", more)
    assert plan.parts[0].domains["mul"]["halving"] == Constant(
        value={"eta": 3.0, "min_epochs": 1.0}
    )


@pytest.mark.parametrize(
    ("parts", "more", "expected"),
    [
        (
            "  p: {methods: {mul: }}",
            "encoders: {lft: {name: mlp}}",
            "line 3: encoders.lft: unknown input 'lft': did you mean 'left'?",
        ),
        (
            "  p: {methods: {base: {modality: middle}}}",
            "",
            (
                "line 5: parts.p.methods.base: modality: unknown modality 'middle': it may be "
                "left, right"
            ),
        ),
        (
            "  p: {methods: {mul: {weights: {middle: 1}}}}",
            "",
            "line 5: parts.p.methods.mul: weights must name sources (left, right), got 'middle'",
        ),
        (
            "  p: {methods: {add: {merge: sum}}}",
            "encoders: {left: {name: mlp, hidden: [4]}, right: {name: mlp, hidden: [3]}}",
            "line 5: parts.p.methods.add: ",
        ),
        (
            (
                "  p: {search: {configurations: 3}, "
                "methods: {add: {merge: {choices: [concat, mean]}}}}"
            ),
            "encoders: {default: {name: identity}}",
            "line 5: parts.p.methods.add: ",
        ),
    ],
)
def test_problems_that_only_the_data_shows(parts: str, more: str, expected: str) -> None:
    (found,) = problems(parts, more)
    assert found.startswith(expected), found


@pytest.mark.parametrize(("high", "ends"), [("8", {1, 7}), ("7", {1, 7}), ("9", {1, 9})])
def test_a_dry_run_goes_to_the_last_step(
    high: str, ends: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1, 3, 5, 7: a model of the width 8 is never trained, nor built."""
    seen: set[int] = set()
    resolve = Plan.configuration

    def configuration(plan: Plan, method: str, assignment: Any, part: str = "") -> Configuration:
        seen.add(assignment["width"])
        return resolve(plan, method, assignment, part)

    monkeypatch.setattr(Plan, "configuration", configuration)
    block = f"{{width: {{low: 1, high: {high}, step: 2}}}}"
    make(f"  p: {{search: {{configurations: 2}}, methods: {{mul: {block}}}}}")
    assert seen == ends


def test_unset_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    found = problems(
        "  p: {methods: {mul: {task.path: {grid: [a.npz, $NOWHERE]}}}}",
        task="task: {name: arrays, path: '${NOWHERE}/a.npz'}",
    )
    message = (
        "the environment variable NOWHERE is not set: export it first, or write $$ for a dollar "
        "sign"
    )
    assert found == [
        f"line 2: task.path: {message}",
        f"line 5: parts.p.methods.mul.task.path.grid: {message}",
    ]


def test_two_dollars_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("HERE", "/x$$HERE")  # what a variable holds is not expanded again
    path = "'${HERE}/a$$NOWHERE/$$$HERE$$'"
    plan = make("  p: {methods: {mul: }}", task=f"task: {{name: arrays, path: {path}}}")
    assert plan.task_options["path"] == "/x$$HERE/a$NOWHERE/$/x$$HERE$"
    (part,) = (
        plan := make(
            "  p: {methods: {mul: {task.path: {grid: [/a$$b, /c]}}}}",
            task="task: {name: arrays, path: /d}",
        )
    ).parts
    chosen = [plan.configuration("mul", a).task.options["path"] for a in part.assignments("mul")]
    assert chosen == ["/a$b", "/c"]
    given = {"path": "/x$$HERE/$a${b}", "rows": 3}
    assert expanded(escaped(given)) == given


def test_paths_in_unknown_home_directories() -> None:
    task, part = "task: {name: arrays, path: ~nobody_here/a.npz}", "~nobody_here/b.npz"
    message = (
        "must be an absolute path, because the home directory in '~nobody_here/{}' is not known"
    )
    assert problems(f"  p: {{methods: {{mul: {{task.path: {part}}}}}}}", task=task) == [
        f"line 2: task.path: {message.format('a.npz')}",
        f"line 5: parts.p.methods.mul.task.path: {message.format('b.npz')}",
    ]
    text = "study: s\ntask: {name: arrays}\nparts: {p: {methods: {mul: }}}"
    with pytest.raises(InputError, match=r"^--data: must be an absolute path, because the home"):
        make_plan.make(files.parse(text, name="x", folder=FOLDER), data_path="~nobody_here/a.npz")


def test_a_flag_may_say_where_the_data_is() -> None:
    text = "study: s\ntask: {name: arrays, path: /no/where.npz}\nparts: {p: {methods: {mul: }}}"
    source = files.parse(text, name="x.yaml", folder=FOLDER)
    plan = make_plan.make(source, data_path="/some/where.npz")
    assert plan.task_options["path"] == "/some/where.npz"
    digits = files.parse(
        text.replace("arrays, path: /no/where.npz", "digits"), name="x", folder=FOLDER
    )
    with pytest.raises(
        ValueError, match=r"^--data: task digits reads no file: leave the flag out$"
    ):
        make_plan.make(digits, data_path="/some/where.npz")
    broken = files.parse(
        text.replace("{name: arrays, path: /no/where.npz}", "5"), name="x", folder=FOLDER
    )
    with pytest.raises(SpecError, match=r"^x: line 2: task: must be a mapping, got 5$"):
        make_plan.make(broken, data_path="/some/where.npz")
