"""Study files: values, lines, and everything that is wrong at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from modmix.base.errors import InputError, SpecError
from modmix.study import files, spec
from modmix.study.files import Source
from modmix.study.spec import StudySpec

SMALL = """\
study: small
task: digits
parts:
  one:
    methods:
      mul:
"""


def parse(text: str) -> Source:
    return files.parse(text, name="x.yaml", folder=Path("/"))


def checked(text: str) -> StudySpec:
    found, problems = spec.check(parse(text))
    assert not problems, problems
    assert found is not None
    return found


def problems(text: str) -> list[str]:
    """Everything wrong with a file, as a user reads it, in the order of lines."""
    source = parse(text)
    found = [*source.problems, *spec.check(source)[1]]
    return str(SpecError("x.yaml", found)).splitlines()


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse(text)
    return str(caught.value)


# ---------------------------------------------------------------- what a file may leave out


def test_defaults() -> None:
    found = checked(SMALL)
    assert found.task == {"name": "digits"}
    assert found.seeds == [0, 1, 2, 3, 4]
    assert found.objective == ["val/error"]
    assert found.reuse is True
    assert (found.resources.cpus, found.resources.gpus, found.resources.max_models) == (
        1,
        0,
        "auto",
    )
    assert found.parts["one"].search is None
    assert list(found.parts["one"].methods) == ["mul"]


def test_short_forms() -> None:
    found = checked(SMALL + "seeds: 3\nobjective: val/auc\n")
    assert found.seeds == [0, 1, 2]
    assert found.objective == ["val/auc"]


def test_staged_replicates_name_the_seeds() -> None:
    found = checked(SMALL + "replicates: {start: 2, full: 4}\n")
    assert found.seeds == [0, 1, 2, 3]
    assert found.replicates is not None
    assert (found.replicates.start, found.replicates.full, found.replicates.keep) == (2, 4, 0.5)
    both = checked(SMALL + "seeds: [5, 6, 7]\nreplicates: {start: 1, keep: 0.2}\n")
    assert both.seeds == [5, 6, 7]
    again = StudySpec.model_validate(both.model_dump(mode="json"))
    assert again == both


def test_the_order_of_parts_and_methods_is_the_file_s() -> None:
    text = "study: s\ntask: digits\nparts:\n" + "".join(
        f"  {name}: {{methods: {{mul: , add: , early: }}}}\n" for name in ("z", "a", "m")
    )
    found = checked(text)
    assert list(found.parts) == ["z", "a", "m"]
    assert list(found.parts["a"].methods) == ["mul", "add", "early"]
    assert list(found.model_dump(mode="json")["parts"]) == ["z", "a", "m"]


# ---------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("0.1", 0.1),
        ("7", 7),
        ("~", None),
        ("Null", None),
        ("", None),
        ("TRUE", True),
        ("0x1F", 31),
        ("0o17", 15),
        ("+12", 12),
        ("1.", 1.0),
        ("12e03", 12000.0),
        ("-.INF", -math.inf),
        ("!!str 12", "12"),
        ("'010'", "010"),
        ('"yes"', "yes"),
        ("y", "y"),
        ("1.2.3", "1.2.3"),
        ("12:30:45:61", "12:30:45:61"),
        ("0o8", "0o8"),
        ("+0x1F", "+0x1F"),
        ("1,000", "1,000"),
        ("nan", "nan"),
        ("2020-01-02", "2020-01-02"),  # a date stays a word
        ("e5", "e5"),
        ("1e", "1e"),
        ("'1e-3'", "1e-3"),
        ("[1, [2e0]]", [1, [2.0]]),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = parse(f"study: s\nx: {text}\n").raw["x"]
    assert found == value
    assert type(found) is type(value)


def test_anchors() -> None:
    source = parse("a: &grid {grid: [0, 1]}\nb: *grid\n")
    assert source.raw == {"a": {"grid": [0, 1]}, "b": {"grid": [0, 1]}}
    assert source.line(("b",)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yes", "yes is a word in YAML 1.2: write true, or quote it: 'yes'"),
        ("Off", "Off is a word in YAML 1.2: write false, or quote it: 'Off'"),
        ("None", "None is a word in YAML: write null, or quote it: 'None'"),
        ("010", "010 is 10 in YAML 1.2 and 8 in YAML 1.1: write 10 or 8, or quote it"),
        ("089", "089 is 89 in YAML 1.2: write 89, or quote it"),
        ("1_000", "1_000 is a word in YAML 1.2 and 1000 in YAML 1.1: write 1000, or quote it"),
        ("1:01", "1:01 is a word in YAML 1.2 and 61 in YAML 1.1: write 61, or quote it"),
        ("0b11", "0b11 is a word in YAML 1.2 and 3 in YAML 1.1: write 3, or quote it"),
    ],
)
@pytest.mark.parametrize("place", ["epochs: {}", "epochs: [1, {}]", "other: 1\nepochs: {{a: {}}}"])
def test_values_that_versions_of_yaml_read_differently(text: str, message: str, place: str) -> None:
    source = parse("study: s\n" + place.format(text))
    assert [problem.message for problem in source.problems] == [message]
    assert source.problems[0].line == 1 + place.count("\n") + 1
    assert source.problems[0].path.startswith("epochs")


def test_a_value_that_is_refused_has_one_problem() -> None:
    assert problems(SMALL + "reuse: no\n") == [
        "x.yaml: line 7: reuse: no is a word in YAML 1.2: write false, or quote it: 'no'"
    ]


def test_merge_keys_give_what_pyyaml_makes_of_them() -> None:
    text = """\
a: &a {x: 1, y: {deep: 1}, z: 3}
b: &b {<<: *a, y: 2}
c: {w: 0, <<: *b, z: 4}
d: {<<: [*b, {x: 9, new: 5}], z: 6}
e: {<<: {p: 1, <<: *a}}
"""
    source = parse(text)
    assert source.raw == yaml.safe_load(text)
    assert [list(source.raw[name]) for name in "bc"] == [["x", "y", "z"], ["x", "y", "z", "w"]]
    assert source.problems == ()
    assert source.line(("b", "y")) == 2
    assert source.line(("b", "x")) == 1
    assert source.line(("d", "new")) == 4
    assert parse("a: {'<<': 1}\n").raw == {"a": {"<<": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {<<: 5}\n", "<< takes a mapping or a list of mappings"),
        ("a: {<<: [1]}\n", "<< takes a mapping or a list of mappings"),
        ("a: &a {<<: *a}\n", "a mapping merges itself"),
        ("a: &a {<<: [*a]}\n", "a mapping merges itself"),
    ],
)
def test_merge_keys_of_something_else(text: str, message: str) -> None:
    assert message in refusal(text)


def test_merges_of_merges_are_not_gone_through_again() -> None:
    text = "a0: &a0 {x: 1}\n"
    for i in range(40):
        text += f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 10)}]}}\n"
    assert parse(text).raw["a40"] == {"x": 1}


def test_anchors_have_a_place_at_the_top() -> None:
    text = f"x-common: &common {{epochs: 1}}\n{SMALL}training: {{<<: *common, batch_size: 16}}\n"
    assert checked(text).training == {"epochs": 1, "batch_size": 16}


def test_a_value_alone() -> None:
    assert files.parse_value("[left, 1e-3]") == ["left", 0.001]
    assert files.parse_value("") is None
    with pytest.raises(InputError, match="yes is a word"):
        files.parse_value("yes")
    with pytest.raises(InputError, match="not valid YAML"):
        files.parse_value("[1")


def test_lines() -> None:
    source = parse("# a comment\nstudy: s\n\nparts:\n  p:\n    methods: {mul:\n      {beta: 1}}\n")
    assert source.line(("study",)) == 2
    assert source.line(("parts", "p")) == 5
    assert source.line(("parts", "p", "methods", "mul", "beta")) == 7
    assert source.line(("parts", "p", "absent", "deeper")) == 5  # the nearest there is
    assert source.line(("absent",)) == 1
    listed = parse("seeds:\n- 1\n- 2\n")
    assert listed.line(("seeds", 1)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: a study file must be a mapping that begins with 'study: NAME'"),
        ("# nothing\n", "line 1: a study file must be a mapping that begins with 'study: NAME'"),
        ("- study\n", "line 1: a study file must be a mapping that begins with 'study: NAME'"),
        ("word", "line 1: a study file must be a mapping that begins with 'study: NAME'"),
        ("study: s\nparts: [\n", "line 3: not valid YAML: expected the node content"),
        ("study: s\n\tparts: 1\n", "line 2: not valid YAML: found character '\\t'"),
        ("study: 'x\n", "line 2: not valid YAML: found unexpected end of stream"),
        ("a: 1\n---\nb: 2\n", "line 2: not valid YAML: but found another document"),
        ("a: *b\n", "line 1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n? [1, 2]\n: 3\n", "line 2: not valid YAML: a key must be a word"),
        ("a: !!int x\n", "line 1: not valid YAML: 'x' is no value"),
        (f"a: {'9' * 5000}\n", "line 1: not valid YAML: '9999"),
        ("a: !!python/object:os.system x\n", "line 1: not valid YAML: the tag "),
        ("a: \0\n", "not valid YAML: unacceptable character #x0000"),
        ("a: &a [*a]\n", "line 1: not valid YAML: nested deeper than 50 levels"),
        ("a: " + "[" * 5000, "not valid YAML: nested too deep"),
    ],
)
def test_what_is_not_a_study_file(text: str, message: str) -> None:
    found = refusal(text)
    assert found.startswith(f"x.yaml: {message}")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("study: !foo 5", "!foo"),
        ("study: !foo", "!foo"),
        ("study: !foo {b: 1}", "!foo"),
        ("study: !foo [1]", "!foo"),
        ("!foo study: 1", "!foo"),
        ("study: {<<: !foo {b: 1}}", "!foo"),
        ("study: !trap 5", "!trap"),
        ("study: !!set {b}", "tag:yaml.org,2002:set"),
        ("study: !!str {b: 1}", "tag:yaml.org,2002:str"),
        ("study: !<tag:yaml.org,2002:merge> x", "tag:yaml.org,2002:merge"),
    ],
)
def test_tags_are_refused(text: str, tag: str) -> None:
    with pytest.raises(SpecError) as caught:
        files.parse(f"x: 1\n{text}\n", name="x.yaml", folder=Path("/"))
    message = f"x.yaml: line 2: not valid YAML: the tag {tag} is not supported: leave it out"
    assert str(caught.value) == message


def test_tags_of_the_core_schema() -> None:
    text = "a: !!str 5\nb: !!map {c: !!seq [1]}\nd: !!null ~\n"
    raw = files.parse(text, name="x.yaml", folder=Path("/")).raw
    assert raw == {"a": "5", "b": {"c": [1]}, "d": None}
    with pytest.raises(SpecError, match="'x' is no value of tag:yaml"):
        files.parse("a: !!null x", name="x.yaml", folder=Path("/"))


def test_aliases_of_aliases_are_counted() -> None:
    text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for i in range(9):
        text += f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n"
    assert "more than 100000 values" in refusal(text)


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    source = files.read(path)
    assert source.folder == tmp_path
    assert source.name == str(path)
    with pytest.raises(InputError, match=r"no study file .*smal\.yaml: .* \(near: small\.yaml\)$"):
        files.read(tmp_path / "smal.yaml")
    with pytest.raises(InputError, match=r"cannot be read: .*Is a directory"):
        files.read(tmp_path)
    path.write_bytes(b"study: \xff\n")
    with pytest.raises(InputError, match=r"cannot be read: .*utf-8"):
        files.read(path)


# ---------------------------------------------------------------- the outline


def test_everything_at_once_in_the_order_of_lines() -> None:
    text = """\
study: a/b
study: c
task: 7
encoders:
training: 3
seeds: [0, 0]
objective: [val/error, val/auc, val/nll]
parts:
  ../up: {methods: {mul: }}
  none: {methods: {}}
  five: 5
  odd:
    x: 5
    title: [t]
    search: {configurations: 0, sampler: best, extra: 1}
    shared: 4
    references: mul
    methods: [mul]
  two:
    search: {}
    methods: {mul: 4}
resources:
  cpus: 0
  gpus: "1"
  max_models: 0.5
  cpu: 1
budget: {wall_minutes: .inf, target: yes}
reuse: maybe
paper: {mul: 5, add: {test/error: x}}
final: {of: 1}
sead: 4
"""
    name = "letters, digits, '_', '-' and '.', at most 100, beginning with a letter or digit"
    assert problems(text) == [
        f"x.yaml: line {problem}"
        for problem in [
            f"1: study: a name must be {name}, got 'a/b'",
            "2: study: this key is given twice (first on line 1); keep one",
            "3: task: must be a mapping, got 7",
            "4: encoders: must be a mapping, got null",
            "5: training: must be a mapping, got 3",
            "6: seeds: must differ from each other, got [0, 0]",
            "7: objective: must have at most 2 entries, got ['val/error', 'val/auc', 'val/nll']",
            f"9: parts.../up: a name must be {name}, got '../up'",
            "10: parts.none.methods: must have at least 1 entry, got {}",
            "11: parts.five: must be a mapping, got 5",
            "13: parts.odd.x: must be a word, got 5",
            "14: parts.odd.title: must be a word, got ['t']",
            "15: parts.odd.search.configurations: must be greater than or equal to 1, got 0",
            (
                "15: parts.odd.search.extra: unknown key 'extra': it may be batch, "
                "configurations, parallel, sampler, seed, start_from, startup"
            ),
            (
                "15: parts.odd.search.sampler: must be 'tpe', 'gp', 'cmaes', 'random', 'qmc', "
                "'grid' or 'nsga2', got 'best'"
            ),
            "16: parts.odd.shared: must be a mapping, got 4",
            "17: parts.odd.references: must be a list, got 'mul'",
            "18: parts.odd.methods: must be a mapping, got ['mul']: write {add: , mul: }",
            "20: parts.two.search.configurations: is required but missing",
            "21: parts.two.methods.mul: must be a mapping, got 4",
            "23: resources.cpus: must be greater than 0, got 0",
            "24: resources.gpus: must be a number, got '1'",
            "25: resources.max_models: must be a whole number, got 0.5",
            "26: resources.cpu: unknown key 'cpu': did you mean 'cpus'?",
            "27: budget.target: yes is a word in YAML 1.2: write true, or quote it: 'yes'",
            "27: budget.wall_minutes: must be a finite number, got inf",
            "28: reuse: must be true or false, got 'maybe'",
            "29: paper.add.test/error: must be a number, got 'x'",
            "29: paper.mul: must be a mapping, got 5",
            "30: final.configuration: is required but missing",
            "30: final.method: is required but missing",
            "30: final.of: must be a word, got 1",
            "31: sead: unknown key 'sead': did you mean 'seeds'?",
        ]
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seeds: 0", "seeds: the number of seeds must be between 1 and 10000, got 0"),
        ("seeds: true", "seeds: must be a number of seeds or a list of them, got True"),
        ("seeds: []", "seeds: must have at least 1 entry, got []"),
        ("seeds: [1, -1]", "seeds.1: must be greater than or equal to 0, got -1"),
        ("seeds: [2147483648]", "seeds.0: must be less than 2147483648, got 2147483648"),
        ("seeds: [1.5]", "seeds.0: must be a whole number, got 1.5"),
        ("objective: []", "objective: must have at least 1 entry, got []"),
        ("budget: {device_hours: -1}", "budget.device_hours: must be greater than 0, got -1"),
        ("predictions: 1", "predictions: must be true, false or auto, got 1"),
        ("predictions: best", "predictions: must be true, false or auto, got 'best'"),
        ("replicates: 2", "replicates: must be a mapping, got 2"),
        ("replicates: {}", "replicates.start: is required but missing"),
        ("replicates: {start: 0}", "replicates.start: must be greater than or equal to 1, got 0"),
        (
            "replicates: {start: 1, full: 1}",
            "replicates.full: must be greater than or equal to 2, got 1",
        ),
        ("replicates: {start: 1, keep: 1}", "replicates.keep: must be less than 1, got 1"),
        ("replicates: {start: 1, keep: .inf}", "replicates.keep: must be a finite number, got inf"),
        (
            "replicates: {start: 1, share: 1}",
            "replicates.share: unknown key 'share': did you mean 'start'?",
        ),
    ],
)
def test_single_problems(line: str, message: str) -> None:
    assert problems(SMALL + line) == [f"x.yaml: line 7: {message}"]


@pytest.mark.parametrize(
    "name", ["weights", "artifacts", "Checkpoints", "ledger.db", "mlflow.db-wal"]
)
def test_studies_do_not_take_our_folders(name: str) -> None:
    expected = f"line 1: study: '{name}' is the name of something else in the results folder"
    assert problems(SMALL.replace("small", name)) == [f"x.yaml: {expected}"]


def test_without_a_study() -> None:
    assert problems("title: t\n") == [
        "x.yaml: line 1: parts: is required but missing",
        "x.yaml: line 1: study: is required but missing",
        "x.yaml: line 1: task: is required but missing",
        (
            "x.yaml: line 1: title: unknown key 'title': it may be budget, description, encoders, "
            "final, objective, paper, parts, predictions, replicates, resources, reuse, seeds, "
            "study, task, tasks, training"
        ),
    ]


def test_suggestions() -> None:
    assert spec.unknown("mulmx", ["mul", "mulmix"], "method") == (
        "unknown method 'mulmx': did you mean 'mulmix'?"
    )
    assert spec.unknown("x", ["b", "a"], "key") == "unknown key 'x': it may be a, b"
    assert spec.unknown("x", [], "key") == "unknown key 'x': it may be nothing here"
