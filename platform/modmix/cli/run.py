"""The commands that train: ``modmix run`` and ``modmix final``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modmix.base.errors import InputError
from modmix.base.wording import counted
from modmix.cli.options import Address, Data, File, Local, NoMlflow, Quiet, Workers
from modmix.cli.printing import console

if TYPE_CHECKING:
    from rich.console import Console


study_has_run = False  # if so, its results are in files, even if the output was lost


def run(
    file: File,
    address: Address = None,
    workers: Workers = None,
    data: Data = None,
    local: Local = False,
    no_mlflow: NoMlflow = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Retrain failed models, including those abandoned after repeated "
            "machine failures.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the study and its data, print what it consists of, and start nothing.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Start a study; resume it, or extend it if its file has changed."""
    if dry_run:
        _check(file, data, quiet=quiet)
        return
    _run(
        file,
        address=address,
        workers=workers,
        data_path=data,
        runner="local" if local else "ray",
        mlflow=not no_mlflow,
        retry_failed=retry_failed,
        quiet=quiet,
    )


def _check(file: Path, data_path: Path | None, *, quiet: bool) -> None:
    from modmix import api
    from modmix.cli.display import DataProgress
    from modmix.study.outline import outline

    with DataProgress(console(error=True), quiet=quiet) as data:
        plan = api.make_plan(file, data_path=data_path, progress=data)
    for sentence in plan.warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    for line in outline(plan):
        print(line)
    print("the file is valid; nothing was started")


def _run(file: Path, *, quiet: bool, **how: Any) -> Any:
    global study_has_run
    from modmix import api
    from modmix.cli.display import DataProgress, Display

    progress = console(error=True)

    def log(text: str) -> None:
        if not quiet or text.startswith("warning: "):
            progress.print(text, highlight=False, markup=False)

    path = how.pop("data_path")
    with DataProgress(progress, quiet=quiet) as data:
        plan = api.make_plan(file, data_path=path, progress=data)
    with Display(progress, quiet=quiet) as display:
        study = api.run_plan(plan, changed=display.changed, log=log, **how)
    study_has_run = True
    print_summary(study, console(), mlflow=how["mlflow"])
    return study


def print_summary(study: Any, console: Console, *, mlflow: bool) -> None:
    from modmix.analysis.over_tasks import results_table

    counts = study.status()
    print(results_table(study._ledger, study.name).render("text"))
    reused = f", {counts['reused']} of them reused" if counts["reused"] else ""
    console.print(
        f"study {study.name} is finished: {_by_state(counts['configurations'], 'configuration')}, "
        f"{_by_state(counts['replicates'], 'model')}{reused}",
        highlight=False,
    )
    if counts["configurations"]["failed"]:
        console.print(f"  see the reasons: modmix status {study.name}", highlight=False)
    for what, path in (
        ("figures", study.folder / "figures"),
        ("tables", study.folder / "tables"),
        ("report", study.folder / "report.html"),
    ):
        console.print(f"  {what:8s} {path}", highlight=False)
    if mlflow:
        console.print("  MLflow   modmix ui")
    else:
        console.print(f"  MLflow   not logged: modmix sync {study.name}", highlight=False)


def _by_state(counts: Mapping[str, int], noun: str) -> str:
    """ "40 configurations (24 done, 16 pruned)"; without the states if all are done."""
    text = counted(counts["total"], noun)
    if counts["done"] == counts["total"]:
        return text
    states = (f"{n} {state}" for state, n in counts.items() if n and state != "total")
    return f"{text} ({', '.join(states)})"


def final(
    file: Annotated[
        Path, typer.Argument(help="Study file written by `modmix best`.", show_default=False)
    ],
    address: Address = None,
    workers: Workers = None,
    data: Data = None,
    local: Local = False,
    quiet: Quiet = False,
) -> None:
    """Retrain a best configuration on new seeds, test it, register the model in MLflow."""
    from modmix.registry.final import register
    from modmix.study import files
    from modmix.tracking.store import redacted

    if files.read(file).raw.get("final") is None:
        raise InputError(f"{file} has no final: block: give a file written by 'modmix best STUDY'")
    study = _run(
        file,
        address=address,
        workers=workers,
        data_path=data,
        runner="local" if local else "ray",
        mlflow=True,
        quiet=quiet,
    )
    done = register(study._ledger, study.home, study.name, study.home.tracking_uri)
    print(f"registered {done.name} version {done.version} as @{done.alias}; load it with:")
    print(f'  mlflow.set_tracking_uri("{redacted(study.home.tracking_uri)}")')
    print(f'  mlflow.pyfunc.load_model("models:/{done.name}@{done.alias}")')
