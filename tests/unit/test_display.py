"""What a person sees while a study runs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from modmix.base.messages import Progress
from modmix.cli.display import DataProgress, Display, Speed
from modmix.cli.main import main
from modmix.search.run_state import Status

STATES = ("pending", "running", "done", "pruned", "failed", "interrupted")


def status(
    total: int = 100, done: int = 0, running: dict[str, Progress | None] | None = None, **more: Any
) -> Status:
    configurations = {"done": done // 5, "pruned": 0, "failed": 0, "running": 0, "pending": 0}
    return Status(
        configurations={"total": total // 5, **configurations},
        replicates={"total": total, **dict.fromkeys(STATES, 0), "done": done},
        trained=done,
        reused=0,
        running=running or {},
        failed=(),
        seconds=0.0,
        **{"best": {}, **more},
    )


def pack(epoch: float, epochs: int = 10, active: int = 10, name: str = "p") -> Progress:
    return Progress(pack=name, epoch=epoch, epochs=epochs, active=active, metrics={})  # type: ignore[arg-type]


def shown(width: int, of: Status, objective: str = "val/error") -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(Display(console).table("small", objective, of))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


BEST = {
    "mulmix": (7.25, {"beta": 0.25, "learning_rate": 0.00123, "margin": None, "depth": 2}),
    "add": (3.5, {"merge": "concat"}),
}


def test_the_best_so_far_says_of_what_and_in_which_unit() -> None:
    display = Display(Console(file=io.StringIO(), width=100))
    of = status(done=10, best=BEST)
    assert display.line("val/error", of) == (
        "2/20 configurations, 10/100 models; best validation error (%) so far: add 3.50, "
        "mulmix 7.25"
    )
    whole = " ".join(" ".join(shown(100, of)).split())
    assert "best validation error (%) so far" in whole
    assert whole.index("add") < whole.index("mulmix")
    auc = {"mul": (0.81, {}), "add": (0.9, {})}
    assert display.line("val/auc", status(done=10, best=auc)).endswith(
        "best validation AUC so far: add 0.9000, mul 0.8100"
    )


@pytest.mark.parametrize("width", [20, 40, 60, 79, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    running = {f"p{i}": pack(3, name=f"p{i}") for i in range(30)}
    lines = shown(width, status(done=40, best=BEST, running={**running, "new": None}))
    assert max(map(len, lines)) <= width
    if width >= 40:
        text = " ".join(lines)
        assert "8/20 configurations, 40/100 models" in [line.rstrip() for line in lines]
        assert "and 24 more packs" in text


def test_what_packs_have_done_so_far_counts() -> None:
    """100 models of equal cost at one model a second; none has ended when 30 s have passed."""
    speed = Speed()
    speed.update(0.0, status())
    packs = {f"p{i}": pack(0, name=f"p{i}") for i in range(5)}
    speed.update(0.5, status(running=packs))
    assert speed.models_per_minute == 0
    packs = {f"p{i}": pack(6, name=f"p{i}") for i in range(5)}
    now = status(running=packs)  # 5 packs of 10 models, 6 epochs of 10: worth 30 models
    speed.update(30.0, now)
    assert speed.models_per_minute == pytest.approx(60)
    assert speed.left(now) == pytest.approx(70)


def test_a_slow_last_pack_is_waited_for() -> None:
    """90 models took 90 s; the last ten take 20 s an epoch and have four epochs to go."""
    speed = Speed()
    speed.update(0.0, status())
    slow = {"slow": pack(1, name="slow")}
    speed.update(30.0, status(done=90, running=slow))
    now = status(done=90, running={"slow": pack(6, name="slow")})
    speed.update(130.0, now)
    assert speed.left(now) == pytest.approx(4 * 20)


def test_nothing_is_promised_before_it_can_be_told() -> None:
    speed = Speed()
    speed.update(0.0, status(done=50))  # found in the ledger
    assert speed.left(status(done=50)) is None
    speed.update(10.0, status(done=50))
    assert speed.left(status(done=50)) is None
    speed.update(20.0, status(done=60))
    assert speed.left(status(done=60)) == pytest.approx(80)
    assert speed.left(status(total=60, done=60)) == 0


@pytest.mark.parametrize("quiet", [False, True])
def test_the_space_that_a_preparation_needs(quiet: bool) -> None:
    out = io.StringIO()
    with DataProgress(Console(file=out, width=100), quiet=quiet) as progress:
        progress("space", 34_000_000_000, 70_000_000_000)
        progress("decode", 3, 10)  # shown on a terminal only
    assert out.getvalue() == ("" if quiet else "needs 34.0 GB of disk, 70.0 GB are free\n")


def test_decoding_is_shown_as_such() -> None:
    out = io.StringIO()
    progress = DataProgress(Console(file=out, width=100, force_terminal=True))
    progress._began -= 1  # shown after half a second
    with progress:
        progress("decode", 3, 10)
        progress("decode", 5, 10)
    assert "decoding" in out.getvalue()
    assert "50%" in out.getvalue()


def test_many_methods_are_cut_and_the_best_of_every_task_stays() -> None:
    best = {f"m{i:02} (easy)": (float(i), {"beta": i}) for i in range(20)}
    best |= {f"m{i:02} (hard)": (50.0 + i, {"beta": i}) for i in range(20)}
    display = Display(Console(file=io.StringIO(), width=100))
    of = status(done=10, best=best)
    line = display.line("val/error", of)
    assert "m00 (easy) 0.00, m01 (easy) 1.00" in line
    assert line.endswith("m04 (easy) 4.00, m00 (hard) 50.00, …")
    lines = shown(100, of)
    assert any("m00 (hard)" in line for line in lines)
    assert any("m10 (easy)" in line for line in lines)
    assert not any("m11 (easy)" in line for line in lines)
    assert any("and 28 more" in line for line in lines)


@pytest.mark.parametrize("quiet", [False, True])
def test_warnings_are_shown_even_with_quiet(
    quiet: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class OverError(Exception):
        """Ends the command before its summary."""

    def run_plan(plan: Any, *, log: Callable[[str], None], **_: Any) -> None:
        log("writing figures and tables")
        log("warning: MLflow is not up to date")
        raise OverError

    monkeypatch.setattr("modmix.api.make_plan", lambda *_, **__: None)
    monkeypatch.setattr("modmix.api.run_plan", run_plan)
    command = ["modmix", "run", str(tmp_path / "study.yaml"), *(["--quiet"] if quiet else [])]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(OverError):
        main()
    told = capsys.readouterr().err.splitlines()
    assert told == ["writing figures and tables"] * (not quiet) + [
        "warning: MLflow is not up to date"
    ]
