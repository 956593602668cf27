"""A pack as people read it: configuration and results of a trial."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from modmix.base.messages import Ended, Finished, PackStarted, Progress
from modmix.execution.description import Summary, config_of, described, varied
from toypack import make_data, make_pack, make_replicates


def test_a_value_that_differs_is_a_list() -> None:
    configurations = [
        {"beta": 0.1, "training": {"learning_rate": 0.01}},
        {"beta": 0.3, "training": {"learning_rate": 0.01}},
        {"beta": 1.0, "training": {"learning_rate": 0.01}},
    ]
    replicates = make_replicates("mul", configurations, (0, 1), data=make_data(), epochs=7)
    found = config_of(make_pack(replicates))
    assert found["method"] == "mul"
    assert found["beta"] == "0.1, 0.3, 1"
    assert found["learning_rate"] == 0.01
    assert found["epochs"] == 7
    assert (found["configurations"], found["models"]) == (3, 6)
    assert found["pack"] == make_pack(replicates).id
    assert "momentum" not in found  # as by default
    assert all(type(v) in (str, int, float, bool, type(None)) for v in found.values())


def test_many_values_are_counted() -> None:
    betas = [{"beta": i / 100} for i in range(20)]
    found = config_of(make_pack(make_replicates("mul", betas, (0,), data=make_data())))
    assert found["beta"] == "0 to 0.19 (20 values)"
    many = [{"merge": name} for name in ("concat", "sum")]
    found = config_of(make_pack(make_replicates("add", many, (0,), data=make_data())))
    assert found["merge"] == "concat, sum"


def test_numbers_are_short_enough_for_a_table() -> None:
    rates = [{"training": {"learning_rate": rate}} for rate in (0.0043088687, 6.4555012, 100.0)]
    several = config_of(make_pack(make_replicates("late", rates, (0,), data=make_data())))
    assert several["learning_rate"] == "0.00431, 6.46, 100"
    one = config_of(make_pack(make_replicates("late", rates[:1], (0,), data=make_data())))
    assert one["learning_rate"] == 0.00430887


def test_what_varies_is_named() -> None:
    def config(method: str, *params: dict[str, Any]) -> dict[str, Any]:
        return config_of(make_pack(make_replicates(method, params, (0, 1), data=make_data())))

    curve = config("mul", {"beta": 0.1}, {"beta": 0.3})
    assert curve["varied"] == "beta"
    shallow, deep = config("add", {"depth": 1}), config("add", {"depth": 2})
    assert shallow["varied"] == ""
    assert varied([shallow]) == []
    assert varied([shallow, curve, deep]) == ["beta", "depth"]
    assert varied([shallow, config("late", {})]) == []  # methods differ, their values do not


def test_a_pack_in_a_line() -> None:
    betas = [{"beta": 0.1}, {"beta": 0.3}]
    pack = make_pack(make_replicates("mul", betas, (0, 1), data=make_data()))
    assert described(pack) == f"mul beta=0.1, 0.3; 4 models, pack {pack.id[:8]}"


def progress(pack: str, epoch: int, active: int, errors: dict[str, float]) -> Progress:
    metrics = {key: {"val/error": e, "val/auc": 1 - e / 100} for key, e in errors.items()}
    return Progress(pack=pack, epoch=epoch, epochs=9, active=active, metrics=metrics)


def test_results_are_mean_and_best() -> None:
    replicates = make_replicates("add", seeds=(0, 1, 2), data=make_data(), monitor="val/auc")
    pack = make_pack(replicates)
    keys = [r.key for r in replicates]
    summary = Summary(pack)
    started = PackStarted(
        pack=pack.id, models=3, device="cpu", stacked=True, why="", resumed_epoch=2
    )
    summary.add(started)
    assert summary.settled
    assert summary.values["epoch"] == 2
    summary.add(progress(pack.id, 3, 3, dict(zip(keys, (10.0, 20.0, math.nan), strict=True))))
    assert summary.values["val/error"] == 15.0
    assert summary.values["val/error/best"] == 10.0
    assert summary.values["val/auc/best"] == 0.9
    summary.add(progress(pack.id, 4, 1, dict.fromkeys(keys, math.nan)))
    assert summary.values["val/error"] == 15.0
    assert not summary.settled  # two have ended, their results follow
    for key in keys[:2]:
        summary.add(Finished(pack=pack.id, replicate=key, state="done"))
    assert summary.settled
    assert (summary.values["active"], summary.values["finished"]) == (1, 2)


def test_models_with_results_are_not_waited_for() -> None:
    replicates = make_replicates("add", seeds=(0, 1), data=make_data())
    ended = {replicates[0].key: Ended(state="done", best=1.0)}
    summary = Summary(replace(make_pack(replicates), ended=ended))
    summary.add(progress("p", 1, 1, {replicates[1].key: 5.0}))
    assert summary.settled
