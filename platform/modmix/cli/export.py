"""`modmix export`: results as files for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from modmix.cli.opening import open_ledger, study_name

export_app = typer.Typer(no_args_is_help=True, help="Export results as files.")


@export_app.callback()
def _common() -> None:
    """Export results as files."""  # a callback: typer would drop the name of a single command


@export_app.command("predictions")
def export_predictions(
    study: Annotated[
        str,
        typer.Argument(
            help="Name of a study, its study file, or OWNER/NAME of somebody else's study.",
            show_default=False,
        ),
    ],
    task: Annotated[
        str | None, typer.Option(help="In a study of several tasks, only this one.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="parquet or csv (default: by --out, else parquet).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write (default: predictions.FORMAT in the study's folder)."),
    ] = None,
) -> None:
    """Write the stored test predictions, one row per model and test example."""
    from modmix.analysis import frames
    from modmix.analysis.predictions import export
    from modmix.base.home import Home

    ledger, name = open_ledger(), study_name(study)
    snapshot = frames.read(ledger, name)
    if task is not None:
        snapshot = snapshot.of_task(task)
    form = format or ("csv" if out is not None and out.suffix == ".csv" else "parquet")
    place = "predictions" if task is None else f"predictions-{task}"
    path = out or Home.from_environment().study(name) / f"{place}.{form}"
    done = export(ledger, snapshot, path, form)
    print(done.path)
    print(f"{done.rows:,} predictions of {done.replicates} models", file=sys.stderr)
    if done.missing:
        print(
            f"without stored test predictions: {done.missing} finished models (see the study-file "
            "key predictions)",
            file=sys.stderr,
        )
