"""The benchmark suite: what it keeps, what it refuses, and that its peers do the same work."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks import __main__ as suite
from tests.benchmarks import report, workload
from tests.benchmarks.harness import BenchmarkError, Turns
from tests.benchmarks.profiling import DRIVER, WORKER, phase_of
from tests.benchmarks.report import Figure, Section, Table
from tests.benchmarks.workload import Result

from toypack import make_data, make_replicates, train

MACHINE = dict.fromkeys(
    ("date", "cpu", "cores", "memory", "gpu", "versions", "commit", "load"), "x"
)


def figure(value: float, key: str = "curve_vs_ray") -> Figure:
    return Figure(what="rate", value=value, target=10, unit="x", key=key)


def test_a_wrong_name_is_one_sentence_and_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--only", "curve, cruve"])
    assert suite.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("make bench: ONLY must name benchmarks (startup, curve,")
    assert line.endswith("got 'cruve'")


def test_names_run_in_the_suites_order() -> None:
    assert suite._choose("driver,curve") == (["curve", "driver"], "")
    everything, problem = suite._choose("")
    assert (everything, problem) == (list(suite.BENCHMARKS), "")
    asked = {"curve", "search", "higgs", "driver", "halving", "prepare", "startup", "gpu"}
    assert asked <= set(everything)


def test_a_partial_run_replaces_its_own_numbers_only(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    first = Section("curve", "Curve", figures=[figure(3), figure(7, "curve_vs_loop")])
    report.save(first, {**MACHINE, "date": "monday"}, 1.0, path)
    share = Figure("share", 0.3, 0.4, at_least=False, key="halving_epoch_share")
    report.save(Section("halving", "Halving", figures=[share]), MACHINE, 1.0, path)
    report.save(Section("curve", "Curve", figures=[figure(12)]), MACHINE, 1.0, path)
    found = json.loads(path.read_text())
    assert {k: v for k, v in found.items() if k != "details"} == {
        "curve_vs_ray": 12,
        "curve_vs_loop": 7,  # not measured this time
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


def test_ratios_are_of_medians() -> None:
    turns = Turns({"ours": [8.0, 100.0, 12.0], "theirs": [2.0, 4.0, 3.0]})
    assert turns.ratio("ours", "theirs") == 4.0


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


def test_stacks_are_put_down_to_phases() -> None:
    group, trainer = "/x/modmix/training/group.py", "/x/modmix/trainer.py"
    step = f"{trainer}:events|{group}:train|/x/modmix/stacked.py:loss_and_gradient"
    assert phase_of(f"{step}|/t/torch/autograd/__init__.py:grad", WORKER) == "backward"
    assert phase_of(f"{step}|/t/torch/nn/functional.py:relu", WORKER) == "forward"
    assert phase_of(f"{trainer}:events|{group}:evaluate|{step}", WORKER) == "evaluation"
    assert phase_of("/r/ray/_private/worker.py:main_loop", WORKER) == "waiting for work, Ray"
    assert phase_of("/x/modmix/api.py:_end|/x/modmix/analysis/report.py:write_all", DRIVER) == (
        "figures, tables, report"
    )
