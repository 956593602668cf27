"""Several tasks in one study: the plan, and problems named by the line where they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from faketask import fake_data
from modmix.base.errors import DataError, SpecError
from modmix.base.messages import digest
from modmix.study import files, tasks_plan
from modmix.study.plan import Plan
from modmix.study.tasks_plan import TasksPlan
from modmix.tasks.data import Data

TWO = """\
study: s
tasks:
  one: {task: digits, training: {epochs: 3}}
  two:
    task: {name: weak, share: 0.2}
    encoders: {left: {name: identity}}
training: {epochs: 7, batch_size: 32}
encoders: {left: {name: mlp, hidden: [9]}}
seeds: 2
parts:
  grid: {methods: {mul: {beta: {grid: [0, 1]}}}}
  only: {tasks: [two], methods: {add: null}}
"""


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "modmix.tasks.base.load_task",
        lambda task, options, *_: fake_data(digest([task, dict(options)])),
    )


def make(text: str) -> Plan | TasksPlan:
    return tasks_plan.make(files.parse(text, name="x.yaml", folder=Path("/studies")))


def made(text: str) -> TasksPlan:
    plan = make(text)
    assert isinstance(plan, TasksPlan)
    return plan


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        make(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_file_of_one_task_has_its_plan() -> None:
    assert isinstance(make("study: s\ntask: digits\nparts: {p: {methods: {add: null}}}\n"), Plan)


def test_every_part_runs_on_its_tasks() -> None:
    plan = made(TWO)
    assert [(part.name, part.task) for part in plan.parts] == [
        ("grid@one", "one"), ("grid@two", "two"), ("only@two", "two"),
    ]  # fmt: skip


def test_what_a_task_says_goes_before_what_the_file_says_for_all() -> None:
    plan = made(TWO)
    found = {}
    for part in plan.parts[:2]:
        (replicate, _) = plan.configuration("mul", {"beta": 1.0}, part.name).replicates
        left = replicate.encoders["left"]
        found[part.task] = (
            replicate.training["epochs"], replicate.training["batch_size"], left["name"],
            left.get("hidden"),
        )  # fmt: skip
    assert found == {"one": (3, 32, "mlp", [9]), "two": (7, 32, "identity", None)}


def test_configurations_belong_to_one_task() -> None:
    plan = made(TWO)
    one = plan.configuration("mul", {"beta": 1.0}, "grid@one")
    two = plan.configuration("mul", {"beta": 1.0}, "grid@two")
    assert (one.task_name, two.task_name) == ("one", "two")
    assert one.key != two.key
    assert {r.configuration for r in one.replicates} == {one.key}
    assert plan.data_for(one.task).fingerprint == plan.of["one"].data.fingerprint
    assert plan.fingerprints == {p.data.fingerprint for p in plan.of.values()}


def test_results_of_one_task_alone_are_taken_over() -> None:
    alone = make(
        "study: other\ntask: digits\ntraining: {epochs: 3, batch_size: 32}\nseeds: 2\n"
        "encoders: {left: {name: mlp, hidden: [9]}}\n"
        "parts: {p: {methods: {mul: {beta: {grid: [0, 1]}}}}}\n"
    )
    these = alone.configuration("mul", {"beta": 1.0}, "p").replicates
    those = made(TWO).configuration("mul", {"beta": 1.0}, "grid@one").replicates
    assert [r.key for r in these] == [r.key for r in those]


def test_two_tasks_of_the_same_data_share_no_models() -> None:
    """`early` reads raw inputs: with other encoders alone it would be the same model twice."""
    plan = made(
        "study: s\ntasks:\n  a: {task: digits}\n"
        "  b: {task: digits, encoders: {default: {name: mlp, hidden: [5]}}}\n"
        "parts: {p: {methods: {early: null}}}\n"
    )
    keys = [
        r.key for part in plan.parts for r in plan.configuration("early", {}, part.name).replicates
    ]
    assert len(set(keys)) == len(keys) == 10


def test_an_edited_task_changes_its_parts_alone() -> None:
    before, after = made(TWO).signatures(), made(TWO.replace("epochs: 3", "epochs: 4")).signatures()
    assert {key for key in before if before[key] != after[key]} == {("grid@one", "mul")}


def test_problems_are_said_of_the_line_where_they_stand() -> None:
    text = TWO.replace("epochs: 3", "epochs: many").replace("share: 0.2", "shar: 0.2")
    text = text.replace("batch_size: 32", "batch_sizes: 32").replace("[two]", "[three]")
    found = [problem.partition(" (did")[0] for problem in problems(text)]
    assert found == [
        "line 3: tasks.one.training.epochs: must be a whole number, got 'many'",
        "line 5: tasks.two.task.shar: is not an option of this task",
        "line 7: training.batch_sizes: unknown setting 'batch_sizes': did you mean 'batch_size'?",
        "line 12: parts.only.tasks: unknown task 'three': it may be one, two",
    ]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ("/studies/there.npz: 'x' has NaN", "x.yaml: line 4: tasks.b.task.path: "),
        ("/elsewhere: the disk is full", ""),
    ],
)
def test_errors_in_files_are_said_of_the_line_that_names_them(
    monkeypatch: pytest.MonkeyPatch, told: str, line: str
) -> None:
    text = (
        "study: s\ntasks:\n  a: {task: digits}\n  b: {task: {name: arrays, path: there.npz}}\n"
        "parts: {p: {methods: {add: }}}\n"
    )

    def load(task: str, *_: object) -> Data:
        if task == "arrays":
            raise DataError(told)
        return fake_data("digits")

    monkeypatch.setattr("modmix.tasks.base.load_task", load)
    with pytest.raises(DataError) as caught:
        make(text)
    assert str(caught.value) == line + told


def test_a_flag_names_a_file_without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(_task: str, options: dict[str, str], *_: object) -> Data:
        asked.append(options["path"])
        raise DataError("enough")

    monkeypatch.setattr("modmix.tasks.base.load_task", load)
    text = "study: s\ntask: {name: arrays, path: a.npz}\nparts: {p: {methods: {add: }}}\n"
    source = files.parse(text, name="x.yaml", folder=Path("/studies"))
    with pytest.raises(DataError):
        tasks_plan.make(source, data_path="/a$$b/$HOMEX.npz")
    assert asked == ["/a$$b/$HOMEX.npz"]


def test_a_file_that_a_flag_names_has_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_task: str, options: dict[str, str], *_: object) -> Data:
        raise DataError(f"{options['path']}: there is nothing")

    monkeypatch.setattr("modmix.tasks.base.load_task", load)
    text = "study: s\ntask: {name: arrays, path: a.npz}\nparts: {p: {methods: {add: }}}\n"
    source = files.parse(text, name="x.yaml", folder=Path("/studies"))
    for given, told in ((None, "x.yaml: line 2: task.path: /studies/a.npz"), ("/b.npz", "/b.npz")):
        with pytest.raises(DataError) as caught:
            tasks_plan.make(source, data_path=given)
        assert str(caught.value) == f"{told}: there is nothing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "study: s\ntask: digits\ntasks: {a: {task: digits}}\nparts: {p: {methods: {add: }}}\n",
            "must have task or tasks, not both",
        ),
        (
            (
                "study: s\ntasks: {a: {task: digits}}\npaper: {add: {test/error: 1}}\n"
                "parts: {p: {methods: {add: }}}\n"
            ),
            "paper: give each task its own: tasks: {NAME: {paper: …}}",
        ),
        (
            (
                "study: s\ntasks: {a: {task: digits}, b: {task: weak}}\n"
                "parts: {p: {tasks: [a], methods: {add: }}}\n"
            ),
            "tasks.b: no part runs on this task",
        ),
        (
            "study: s\ntasks: {a: {}}\nparts: {p: {methods: {add: }}}\n",
            "tasks.a.task: is required but missing",
        ),
    ],
)
def test_files_that_cannot_be(text: str, message: str) -> None:
    assert any(found.endswith(message) for found in problems(text)), problems(text)


def test_names_of_parts_and_tasks_fit_into_the_ledger_together() -> None:
    def named(part: int, task: int) -> str:
        return (
            f"study: s\ntasks: {{{'t' * task}: {{task: digits}}}}\n"
            f"parts:\n  {'p' * part}: {{methods: {{add: }}}}\n"
        )

    (part,) = made(named(59, 40)).parts
    assert len(part.name) == 100
    (problem,) = problems(named(60, 40))
    assert problem == (
        f"line 4: parts.{'p' * 60}: the names of a part and of its task have at most 99 characters "
        f"together, got 100 with task '{'t' * 40}': shorten one"
    )


# ---------------------------------------------------------------- seeds of parts, best_of

TUNED = """\
study: s
task: digits
seeds: 2
parts:
  search: {seeds: 3, search: {configurations: 4}, methods: {mul: {beta: {low: 0, high: 1}}}}
  tuned: {best_of: search, methods: {mul: null}}
"""


def test_a_part_has_seeds_of_its_own() -> None:
    plan = make(TUNED)
    searched = plan.configuration("mul", {"beta": 0.5}, "search")
    tuned = plan.configuration("mul", {"beta": 0.5}, "tuned")
    assert [r.seed for r in searched.replicates] == [1000, 1001, 1002]
    assert [r.seed for r in tuned.replicates] == [0, 1]
    assert searched.key != tuned.key
    assert plan.parts[1].assignments("mul") == []


def test_what_is_found_elsewhere_depends_on_that_part() -> None:
    before = make(TUNED).signatures()
    longer = make(TUNED.replace("configurations: 4", "configurations: 5")).signatures()
    other = make(TUNED.replace("high: 1", "high: 0.9")).signatures()
    assert before["search", "mul"] == longer["search", "mul"]  # the same search goes on
    assert before["tuned", "mul"] != longer["tuned", "mul"]
    assert before["tuned", "mul"] != other["tuned", "mul"]
    # With more seeds or time, the choice is made anew.
    seeds = make(TUNED.replace("{seeds: 3, search", "{seeds: 4, search")).signatures()
    time = make(TUNED.replace("parts:", "budget: {device_hours: 2}\nparts:")).signatures()
    for changed in (seeds, time):
        assert before["tuned", "mul"] != changed["tuned", "mul"]
    assert before["search", "mul"] == time["search", "mul"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("best_of: search", "best_of: search_", "unknown part 'search_': did you mean 'search'?"),
        (
            "methods: {mul: null}",
            "methods: {add: null}",
            "unknown method of part search 'add': it may be mul",
        ),
        (
            "methods: {mul: null}",
            "methods: {mul: {beta: 1}}",
            "a part with best_of sets nothing of its own: leave it empty",
        ),
        (
            "{seeds: 3",
            "{seeds: [1, 7]",
            "share 1 with the study: give the same seeds or none of them",
        ),
    ],
)
def test_parts_that_cannot_be(old: str, new: str, message: str) -> None:
    assert any(message in found for found in problems(TUNED.replace(old, new)))


def test_references_are_methods_trained_on_a_task_of_the_part() -> None:
    assert made(TWO.replace("only: {", "only: {references: [mul, add], ")).parts
    late = TWO.replace("only: {", "only: {references: [late], ")
    last = "  last: {tasks: [one], references: [add], methods: {mul: null}}\n"
    for text, message in (
        (late, "only.references: no part trains 'late': add it to a part, or name one of add, mul"),
        (TWO + last, "last.references: no part trains 'add': add it to a part, or name one of mul"),
    ):
        (problem,) = problems(text)
        assert problem.endswith(message)


def test_a_misspelt_method_is_one_problem_though_it_is_referred_to() -> None:
    text = TWO.replace("only: {", "only: {references: [mul, add], ").replace("add: ", "add_: ")
    assert text.count("add_") == 1
    (problem,) = problems(text)
    assert problem.endswith("unknown method 'add_': did you mean 'add'?")


MINE = """\
import modmix
import torch
from torch.nn import functional as F

class Mine(modmix.Method):
    def __init__(self, features, classes):
        super().__init__(features, classes)
        self.head = torch.nn.Linear(sum(features.values()), classes)

    def forward(self, features):
        return self.head(torch.cat([features[m] for m in self.modalities], dim=1))

    def loss(self, outputs, target_B):
        return F.cross_entropy(outputs, target_B, reduction="none")

    def scores(self, outputs):
        return outputs
"""


def test_a_part_of_one_task_is_known_to_the_others(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    text = """\
study: s
tasks: {one: {task: digits}, two: {task: weak}}
parts:
  first: {tasks: [one], methods: {mine: {class: "mine.py:Mine"}}}
  second: {tasks: [two], methods: {mine: , add: }}
resources: {methods: {mine: {gpus: 0.5}, add: {gpus: 0.25}}}
"""
    plan = tasks_plan.make(files.parse(text, name="x.yaml", folder=tmp_path))
    assert [part.name for part in plan.parts] == ["first@one", "second@two"]
    mine = plan.configuration("mine", {}, "second@two").replicates[0].method
    assert mine == plan.configuration("mine", {}, "first@one").replicates[0].method
    assert plan.gpus_of(mine) == 0.5
    assert plan.gpus_of("add") == 0.25
    wrong = text.replace("{mine: {gpus: 0.5}", "{adt: {gpus: 0.5}")
    with pytest.raises(SpecError) as caught:
        tasks_plan.make(files.parse(wrong, name="x.yaml", folder=tmp_path))
    (problem,) = caught.value.problems
    assert str(problem) == (
        "line 6: resources.methods.adt: unknown method 'adt': did you mean 'add'? "
        "(no part trains it)"
    )
