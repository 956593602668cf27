"""The mirrors of studies: ``modmix sync`` and ``modmix ui``."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from modmix.base.wording import counted
from modmix.cli.opening import open_ledger, study_name
from modmix.cli.options import Name


def sync(study: Name) -> None:
    """Log a study to MLflow again, after an outage or a lost database."""
    from modmix.base.home import Home
    from modmix.tracking import mirror

    home, reported = Home.from_environment(), time.monotonic()

    def progress(left: int) -> None:
        nonlocal reported
        if left and time.monotonic() - reported > 5.0:
            reported = time.monotonic()
            print(f"{counted(left, 'run')} left", file=sys.stderr)

    done = mirror.sync(open_ledger(), study_name(study), home.tracking_uri, home, progress=progress)
    print(
        f"MLflow experiment {done.experiment!r} is up to date; "
        f"{counted(done.written, 'run')} written"
    )
    if done.page:
        print(f"  {done.page}")


def ui(
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port; default 5000, with --optuna 8080."),
    ] = None,
    optuna: Annotated[
        bool, typer.Option("--optuna", help="Show searches in optuna-dashboard.")
    ] = False,
) -> None:
    """Serve the MLflow UI, or optuna-dashboard, on localhost until Ctrl-C."""
    from modmix.base.home import Home

    home = Home.from_environment()
    if optuna:
        from modmix.tracking.serve import serve_optuna

        serve_optuna(open_ledger(), home, port=port or 8080)
        return
    from modmix.tracking.serve import serve

    serve(home, port=port or 5000)
