"""The benchmark suite: what it keeps, what it refuses, and that its peers do the same work."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks import __main__ as suite
from tests.benchmarks import report, workload
from tests.benchmarks.competitors import OURS, paired, ranking
from tests.benchmarks.harness import BenchmarkError, Turns
from tests.benchmarks.profiling import DRIVER, WORKER, Process, phase_of
from tests.benchmarks.report import Figure, Section, Table
from tests.benchmarks.workload import Result

from toypack import make_data, make_replicates, train

MACHINE = dict.fromkeys(
    ("date", "cpu", "cores", "memory", "gpu", "versions", "commit", "load"), "x"
)


def figure(value: float, key: str = "curve_vs_best_ray") -> Figure:
    return Figure(what="rate", value=value, target=10, unit="x", key=key)


def test_a_wrong_name_is_one_sentence_and_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--only", "curve, cruve"])
    assert suite.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("make bench: ONLY must name benchmarks (curve, curve1100,")
    assert line.endswith("got 'cruve'")


def test_names_run_in_the_suites_order() -> None:
    assert suite._choose("driver,curve") == (["curve", "driver"], "")
    everything, problem = suite._choose("")
    assert (everything, problem) == (list(suite.BENCHMARKS), "")
    asked = {"curve", "curve1100", "search", "higgs", "driver", "overhead", "halving", "prepare"}
    assert asked | {"startup", "gpu", "profile"} <= set(everything)


def test_a_partial_run_replaces_its_own_numbers_only(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    first = Section("curve", "Curve", figures=[figure(3), figure(7, "curve_vs_loop")])
    report.save(first, {**MACHINE, "date": "monday"}, 1.0, path)
    share = Figure("share", 0.3, 0.4, at_least=False, key="halving_epoch_share")
    report.save(Section("halving", "Halving", figures=[share]), MACHINE, 1.0, path)
    report.save(Section("curve", "Curve", figures=[figure(12)]), MACHINE, 1.0, path)
    found = json.loads(path.read_text())
    assert {k: v for k, v in found.items() if k != "details"} == {
        "curve_vs_loop": 7,  # not measured this time
        "curve_vs_best_ray": 12,
        "halving_epoch_share": 0.3,
    }
    assert found["details"]["curve"]["machine"]["date"] == "x"
    text = report.render(report.read(path), list(suite.BENCHMARKS))
    assert "| [rate](#curve) | 12.0x | ≥ 10.0x | met |" in text
    assert "| [share](#halving) | 0.3 | ≤ 0.4 | met |" in text


def test_a_missed_target_is_said_and_a_number_without_one_is_no_target() -> None:
    section = Section(
        "curve",
        "Curve",
        figures=[figure(9.99), Figure("beside", 5.0)],
        tables=[Table("rates", ["who", "rate"], [["ours", "3"]])],
    )
    details = {"curve": {**asdict(section), "machine": MACHINE, "seconds": 1.0}}
    text = report.render({"details": details}, ["curve"])
    assert text.count("| ≥ 10.0x | **missed** |") == 2  # at the top and in its section
    assert text.count("| beside | 5.00 |  |  |") == 1
    assert "| who | rate |\n|---|---:|\n| ours | 3 |" in text


def test_the_page_leads_with_the_hardest_competitors() -> None:
    first = Figure("first step", 9.0, 10.0, at_least=False, unit="s")
    loop, ray = figure(1, "curve_vs_loop"), figure(2, "search_vs_best_ray")
    sections = [
        Section("startup", "Start-up", figures=[first]),
        Section("search", "Search", figures=[replace(ray, what="search")]),
        Section("curve", "Curve", figures=[figure(3), replace(loop, what="loop")]),
    ]
    details = {s.name: {**asdict(s), "machine": MACHINE, "seconds": 1.0} for s in sections}
    text = report.render({"details": details}, list(details))
    top = [line for line in text.splitlines() if line.startswith("| [")]
    assert [line.partition("]")[0] for line in top] == [
        "| [loop",
        "| [rate",
        "| [search",
        "| [first step",
    ]


def test_what_was_measured_elsewhere_stays_on_the_page() -> None:
    page = (report.ROOT / "BENCHMARKS.md").read_text()
    new = Section("halving", "Successive halving", figures=[Figure("new", 0.7, 1.0, unit="x")])
    details = {"halving": {**asdict(new), "machine": MACHINE, "seconds": 1.0}}
    merged = report.render({"details": details}, list(suite.BENCHMARKS), page)
    before, after = page.split('<a id="'), merged.split('<a id="')
    names = [piece.partition('"')[0] for piece in before]
    assert [piece.partition('"')[0] for piece in after[1:]] == names[1:]
    for name, old, now in zip(names[1:], before[1:], after[1:], strict=True):
        assert (now.strip() == old.strip()) == (name != "halving"), name
    top = [row for row in before[0].splitlines() if "](#halving)" not in row]
    added = "| [new](#halving) | 0.7x | ≥ 1.00x | **missed** |"
    assert after[0].split("\n") == [*top[:-1], added, "", ""]
    nothing = report.render({"details": {}}, list(suite.BENCHMARKS), page)
    assert nothing == page


def test_a_benchmark_that_cannot_run_here_leaves_its_section(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page, saved = tmp_path / "BENCHMARKS.md", []
    page.write_text('# Benchmarks\n\n<a id="gpu"></a>\n\n## On a GPU\n')
    monkeypatch.setattr(report, "MARKDOWN_FILE", page)
    monkeypatch.setattr(report, "read", lambda: {"details": {}})
    monkeypatch.setattr(report, "save", lambda section, *_: saved.append(section.name))
    for name in ("gpu", "cluster"):
        suite._note_skipped(name, "no GPU", MACHINE)
    assert saved == ["cluster"]


def test_ratios_are_of_medians() -> None:
    turns = Turns({"ours": [8.0, 100.0, 12.0], "theirs": [2.0, 4.0, 3.0]})
    assert turns.ratio("ours", "theirs") == 4.0


def test_competitors_are_listed_from_the_fastest_to_the_slowest() -> None:
    rates = Turns({OURS: [20.0, 30.0, 25.0], "slow": [5.0], "fast": [50.0, 40.0, 60.0]})
    assert [(row[0], row[1], row[3]) for row in ranking(rates, "models").rows] == [
        ("fast", "50.0", "0.5x"),
        (OURS, "25.0", ""),
        ("slow", "5.00", "5.00x"),
    ]
    assert paired(rates, "fast") == "0.4 to 0.75x (3 runs)"


# ---------------------------------------------------------------- the same work


def spec_of(replicate: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(replicate)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "weight_decay": 0.01},
        {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 0.5, "schedule": "exponential"},
    ],
)
def test_the_peers_train_what_modmix_trains(settings: dict[str, Any]) -> None:
    from tests.benchmarks.peers import plain

    data = make_data()
    configurations = ({"beta": 0.3}, {"beta": 0.9})
    replicates = make_replicates(
        "mul", configurations, data=data, epochs=3, batch_size=32, select="last", **settings
    )
    ours = {
        key: Result(
            end.history["train/loss"][-1], end.metrics["val/error"], end.metrics["test/error"]
        )
        for key, end in train(replicates, data).items()
    }
    examples, lines = plain.Examples(data), []
    for replicate in replicates:
        for implementation in plain.IMPLEMENTATIONS:
            found = plain.train(spec_of(replicate), examples, implementation=implementation)
            assert found["train/loss"] == pytest.approx(ours[replicate.key].loss, rel=1e-4)
        lines.append(json.dumps({"key": replicate.key, **found}))
    same = workload.compare(ours, workload.read_results(lines), "the loop")
    assert same.models == 4
    assert (same.val, same.test) == pytest.approx((0, 0), abs=1e-5)  # ours are float32


def test_peers_that_learn_something_else_are_refused() -> None:
    ours = {f"{i}": Result(0.5, 10.0, 11.0, (0.9, 0.5)) for i in range(20)}
    slower = {key: Result(0.51, 10.0, 11.0) for key in ours}
    with pytest.raises(BenchmarkError, match="the loop did not learn what ours did: 20 models"):
        workload.compare(ours, slower, "the loop")
    worse = {key: Result(0.5, 10.3, 11.0) for key in ours}
    with pytest.raises(BenchmarkError, match=r"mean validation error by \+0.30"):
        workload.compare(ours, worse, "the loop")
    most = {key: ours[key] for key in list(ours)[:19]}
    assert workload.compare(ours, most, "the loop").models == 19
    with pytest.raises(BenchmarkError, match="the loop trained 19 models of 20"):
        workload.compare(ours, most, "the loop", whole=True)
    with pytest.raises(BenchmarkError, match="trained 1 models, of which ours has 0"):
        workload.compare(ours, {"other": Result(0.5, 10.0, 11.0)}, "the loop")
    begun = ['{"partial": "3", "epoch": 1, "train/loss": 0.9}']
    assert "1 models compared" in workload.compare_partial(ours, begun, "Ray Tune")
    begun = ['{"partial": "3", "epoch": 2, "train/loss": 0.9}']
    with pytest.raises(BenchmarkError, match=r"losses differ by 0\.8"):
        workload.compare_partial(ours, begun, "Ray Tune")


def test_the_operations_of_a_step_are_those_counted_by_hand() -> None:
    from tests.benchmarks.step import moved, operations

    data = make_data(widths=(6, 5), classes=3)
    (replicate,) = make_replicates("mul", seeds=(0,), data=data, batch_size=50)
    # Forward and the weights' gradient of the first layers (6 or 5 to 8), which have no gradient
    # to their input; all three products of the heads (8 to 3).
    first, head = 2 * 50 * (6 + 5) * 8, 2 * 50 * 2 * (8 * 3)
    assert operations(replicate, data) == 2 * first + 3 * head
    # Adam: parameters and two moments read and written, the gradient written and read.
    assert moved(replicate, 100) == 4 * 100 * (2 + 4 + 2)
    (plain_sgd,) = make_replicates("mul", seeds=(0,), data=data, optimizer="sgd", momentum=0.0)
    assert moved(plain_sgd, 100) == 4 * 100 * (2 + 0 + 2)


def where_is(function: Any, name: str = "") -> str:
    """A frame as the sampler writes it, of the file that defines a function."""
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{name or code.co_name}"


def test_stacks_are_put_down_to_phases() -> None:
    from modmix.execution.tune_trial import PackTrial
    from modmix.training.batches import Examples
    from modmix.training.group import Group
    from modmix.training.optimizers import Optimizer
    from modmix.training.stack import Stack
    from modmix.training.trainer import train_pack

    idle = "/r/ray/_private/worker.py:main_loop"
    trial = f"{idle}|/r/ray/tune/trainable/trainable.py:train|{where_is(PackTrial.step)}"
    trainer = f"{trial}|{where_is(train_pack)}|{where_is(train_pack, 'events')}"
    step = f"{trainer}|{where_is(Group.train)}|{where_is(Group._step)}"
    gradient = f"{step}|{where_is(Stack.loss_and_gradient)}"
    assert phase_of(f"{gradient}|/t/torch/autograd/__init__.py:grad", WORKER) == "backward"
    assert phase_of(f"{gradient}|/t/torch/nn/functional.py:relu", WORKER) == "forward"
    assert phase_of(f"{step}|{where_is(Optimizer.step)}", WORKER) == "optimizer"
    assert phase_of(f"{step}|{where_is(Examples.prepare)}", WORKER) == "gathering batches"
    assert phase_of(step, WORKER) == "rest of a step"
    assert phase_of(f"{trainer}|{where_is(Group.evaluate)}", WORKER) == "evaluation"
    assert phase_of(trainer, WORKER) == "records, events, rest of the trainer"
    assert phase_of(trial, WORKER) == "rest of a trial"
    assert phase_of(idle, WORKER) == "waiting for work, Ray"
    worker = Process("ray::PackTrial", 0.0, 1.0, {"MainThread": {step: 0.5}, "other": {idle: 1.0}})
    assert worker.training() == ["MainThread"]
    assert phase_of("/x/modmix/api.py:_end|/x/modmix/analysis/report.py:write_all", DRIVER) == (
        "figures, tables, report"
    )
