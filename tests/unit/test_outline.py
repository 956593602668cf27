"""`modmix run FILE --dry-run`: what would be trained, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from modmix import api
from modmix.base.errors import InputError
from modmix.cli.main import app

FILE = """\
study: counted
task: {name: weak, train_rows: 40, val_rows: 20, test_rows: 20}
seeds: 3
parts:
  curve: {x: beta, methods: {mul: {beta: {grid: [0, 0.5, 1]}}, mulmix: {beta: {grid: [0, 1]}}}}
  again: {methods: {mul: {beta: 0.5}, add: }}
  found:
    seeds: 2
    search: {configurations: 4}
    shared: {learning_rate: {low: 0.001, high: 0.1}}
    methods: {mul: , late: }
  tuned: {best_of: found, seeds: [9], methods: {mul: }}
"""
SAID = """\
study counted: 3 seeds
  curve  5 configurations, 15 models
  again  2 configurations, 6 models
  found  up to 8 configurations, 16 models
  tuned  1 configuration, 1 model, the best of part found
in all up to 15 configurations, 35 models
the file is valid; nothing was started
"""

METHODS = "methods: {mul: {beta: {low: 0, high: 1}, pbt: {every: 2}}}"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "data"))


def test_parts_are_counted_and_what_they_share_counts_once(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(FILE)
    ended = CliRunner().invoke(app, ["run", str(tmp_path / "x.yaml"), "--dry-run"])
    assert (ended.exit_code, ended.stdout) == (0, SAID)
    assert not (tmp_path / "home").exists()


def test_a_grid_has_a_definite_number(tmp_path: Path) -> None:
    text = (
        "study: s\ntask: {name: weak, train_rows: 40}\nseeds: 1\nparts: {p: {methods: {add: }}}\n"
    )
    (tmp_path / "x.yaml").write_text(text)
    ended = CliRunner().invoke(app, ["run", str(tmp_path / "x.yaml"), "--dry-run"])
    assert "in all 1 configuration, 1 model\n" in ended.stdout


@pytest.mark.parametrize(
    "seeds", ["seeds: ", "seeds: 2.5", "seeds: [[1]]", "seeds: 1000000000", "seeds: {a: 1}"]
)
def test_wrong_seeds_are_reported(seeds: str, tmp_path: Path) -> None:
    text = f"study: s\ntask: digits\n{seeds}\nparts: {{p: {{methods: {{add: }}}}}}\n"
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match="line 3: seeds"):
        api.make_plan(tmp_path / "x.yaml")


def test_a_population_of_another_size_is_another_training(tmp_path: Path) -> None:
    keys, chosen = set(), {"beta": 0.5, "pbt": {"every": 2, "fraction": 0.25, "perturb": 1.25}}
    for batch, most in ((8, 64), (4, 64), (8, 9)):
        text = (
            f"study: s\ntask: digits\nseeds: 1\nresources: {{max_models: {most}}}\nparts:\n"
            f"  p:\n    search: {{configurations: 8, sampler: random, batch: {batch}}}\n"
            f"    {METHODS}\n"
        )
        (tmp_path / "x.yaml").write_text(text)
        plan = api.make_plan(tmp_path / "x.yaml")
        keys.add(plan.configuration("mul", chosen, "p").replicates[0].key)
    assert len(keys) == 3


def test_no_tasks_are_one_task(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "study: s\ntask: {name: weak, train_rows: 40}\ntasks: {}\nseeds: 1\n"
        "parts: {p: {methods: {add: }}}\n"
    )
    ended = CliRunner().invoke(app, ["run", str(tmp_path / "x.yaml"), "--dry-run"])
    assert "in all 1 configuration, 1 model\n" in ended.stdout
