"""The commands that show results: tables, figures, the report and best configurations."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from modmix.base.errors import InputError
from modmix.cli.opening import open_ledger, study_name
from modmix.cli.options import Json, Name
from modmix.cli.printing import print_json


def table(
    study: Name,
    format: Annotated[str, typer.Option(help="text, csv, md, tex or json.")] = "text",
    by: Annotated[
        str,
        typer.Option(
            help="configuration: one row per configuration; method: best configuration of each "
            "method; task: the same, with a row per task; overlearning: errors where a single "
            "modality is right."
        ),
    ] = "configuration",
    task: Annotated[
        str | None, typer.Option(help="In a study of several tasks, the results of this one.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="A recorded metric to show, such as test/auc or test/audio/error; may be repeated "
            "(default: the objectives and the error)."
        ),
    ] = None,
) -> None:
    """Print the results of a study, per configuration, per method, or per task."""
    from modmix.analysis import frames, over_tasks, tables

    _check_format(format)
    if by not in ("configuration", "method", "task", "overlearning"):
        raise InputError(f"--by must be configuration, method, task or overlearning, got {by!r}")
    if by == "overlearning" and metric:
        raise InputError("--by overlearning shows metrics of its own: leave --metric out")
    ledger = open_ledger()
    snapshot = frames.read(ledger, study_name(study))
    if task is not None:
        snapshot = snapshot.of_task(task)
    if by == "configuration":
        found = tables.configurations_of(snapshot, metric)
    elif by == "overlearning":
        from modmix.analysis.overlearning import overlearning_table

        found = overlearning_table(ledger, snapshot)
    else:
        rows = "tasks" if by == "task" else "methods"
        found = over_tasks.results_of(snapshot, metric, rows=rows)
    print(found.render(format).rstrip("\n"))


def _check_format(format: str) -> None:
    from modmix.analysis.render import FORMATS

    if format not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")


def compare(
    studies: Annotated[
        list[str],
        typer.Argument(
            help="Names of studies, their study files, or OWNER/NAME of somebody else's studies.",
            show_default=False,
        ),
    ],
    format: Annotated[str, typer.Option(help="text, csv, md, tex or json.")] = "text",
    metric: Annotated[
        str | None, typer.Option(help="Test metric (default: each study's objective).")
    ] = None,
) -> None:
    """Compare studies: best configuration of each method, and mean ranks."""
    from modmix.analysis.compare import compare_table

    _check_format(format)
    found = compare_table(open_ledger(), [study_name(study) for study in studies], metric)
    print(found.render(format).rstrip("\n"))


def figure(
    study: Name,
    errors: Annotated[
        str, typer.Option(help="Error bars: ci (95 % confidence interval) or std.")
    ] = "ci",
) -> None:
    """Draw all figures of a study and print their paths."""
    from modmix.analysis.report import write_all
    from modmix.base.home import Home

    if errors not in ("ci", "std"):
        raise InputError(f"--errors must be ci or std, got {errors!r}")
    outputs = write_all(open_ledger(), Home.from_environment(), study_name(study), errors=errors)
    for path in outputs.figures:
        print(path)


def report(study: Name) -> None:
    """Write figures, tables and the HTML report, and print its path."""
    from modmix.analysis.report import write_all
    from modmix.base.home import Home

    print(write_all(open_ledger(), Home.from_environment(), study_name(study)).report)


def best(study: Name, as_json: Json = False) -> None:
    """Show the best configuration of each method and write study files for `modmix final`."""
    from modmix.analysis.best import best_configurations, explain_no_best, unranked
    from modmix.base.home import Home
    from modmix.registry.best import write_best

    ledger, name = open_ledger(), study_name(study)
    configurations = best_configurations(ledger, name)
    if not configurations:
        raise InputError(explain_no_best(ledger, name))
    paths: Sequence[Path | None]
    unwritten = ""
    try:
        paths = write_best(ledger, Home.from_environment(), name, configurations)
    except OSError as error:  # a read-only results folder or full disk: still print the results
        paths = [None] * len(configurations)
        unwritten = f"no files for 'modmix final' were written: {error.filename}: {error.strerror}"
    if as_json:
        print_json(
            [
                {
                    **({"task": configuration.task} if configuration.task else {}),
                    "method": configuration.method,
                    "hyperparameters": dict(configuration.params),
                    "metric": configuration.metric,
                    "n": configuration.n,
                    "mean": configuration.mean,
                    "std": configuration.std,
                    "ci_low": configuration.ci_low,
                    "ci_high": configuration.ci_high,
                    "test": dict(configuration.test),
                    "file": None if path is None else str(path),
                }
                for configuration, path in zip(configurations, paths, strict=True)
            ]
        )
        if unwritten:
            print(f"modmix: {unwritten}", file=sys.stderr)
        return
    for configuration, path in zip(configurations, paths, strict=True):
        shown = {k: v for k, v in configuration.params.items() if v is not None}
        values = (
            ", ".join(
                f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items()
            )
            or "no hyperparameters"
        )
        spread = "" if math.isnan(configuration.std) else f" ± {configuration.std:.3f}"
        print(
            f"{configuration.task}{': ' if configuration.task else ''}{configuration.method}: "
            f"{configuration.metric} {configuration.mean:.3f}{spread} "
            f"(n={configuration.n})"
        )
        print(f"  {values}")
        if path is not None:
            print(f"  modmix final {path}")
        elif configuration.by_pbt:
            print("  pbt changed them during training, so 'modmix final' cannot retrain it")
    if unwritten:
        print(unwritten)
    for note in unranked(ledger, name):
        print(note)
