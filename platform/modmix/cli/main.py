"""The commands. Each parses its arguments, calls one function and prints.

Exit codes: 0 success; 1 error; 2 invalid input, nothing was started; 3 interrupted, the same
command resumes. Heavy imports are inside the commands to keep `modmix --help` fast.
"""

from __future__ import annotations

import gc
import json
import math
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from modmix.base.errors import InputError, ModmixError
from modmix.base.wording import counted
from modmix.cli.data import data_app
from modmix.cli.export import export_app
from modmix.cli.opening import open_ledger as _ledger
from modmix.cli.opening import study_name as _study
from modmix.cli.output import Outputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console


Entry = TypeVar("Entry")
app = typer.Typer(
    name="modmix",
    help="Hyperparameter studies of methods that combine modalities.",
    epilog="Results are stored in MODMIX_HOME (default ./modmix_runs), data in MODMIX_DATA "
    "(default ~/.cache/modmix). Exit codes: 0 success; 1 error; 2 invalid input, nothing was "
    "started; 3 interrupted, the same command resumes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")

File = Annotated[Path, typer.Argument(help="Study file (YAML).", show_default=False)]
Name = Annotated[
    str,
    typer.Argument(
        help="Name of a study, its study file, or OWNER/NAME of somebody else's study.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster (default: RAY_ADDRESS, else start Ray here)."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="CPUs to use on this machine (default: all).")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="Path of the data; overrides the task's path.")
]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")]
NoMlflow = Annotated[bool, typer.Option("--no-mlflow", help="Do not log to MLflow.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print results and warnings only, no progress.")
]


_INTERRUPTED = 130  # typer's exit code after an unhandled Ctrl-C
_study_has_run = False  # if so, its results are in files, even if the output was lost


def command() -> None:
    """Entry point: run `main` and exit with its code, or with 1 if its output was lost."""
    code: int | str | None = 0
    outputs = Outputs()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # another Ctrl-C while the first one was being dealt with
        code = 3
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the command is over
    code = code or _check_written(outputs)
    gc.freeze()  # spares the final garbage collections from scanning torch: most of a second
    sys.exit(code)


def _interrupt(_number: int, _frame: object) -> None:
    """Treat SIGTERM as Ctrl-C wherever no other handler is installed."""
    raise KeyboardInterrupt


def _check_written(outputs: Outputs) -> int:
    """Flush the output; the exit code of a successful command, 1 if its output was lost."""
    if not (problem := outputs.finish()):
        return 0
    print(f"modmix: not all output could be written ({problem})", file=sys.stderr)
    return 0 if _study_has_run else 1


def main() -> None:
    """Run the command line; a `ModmixError` becomes a message on stderr and its exit code."""
    try:
        app()
    except ModmixError as error:
        for line in str(error).splitlines():
            print(f"modmix: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        # A full or lost disk; everything recorded before it is intact.
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"modmix: {where}{error.strerror or error}: fix this and run the same command again; "
            "recorded results are kept",
            file=sys.stderr,
        )
        sys.exit(3)
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        print("modmix: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(3)


def _print_version(wanted: bool) -> None:
    if wanted:
        from modmix._version import VERSION

        print(f"modmix {VERSION}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def _console(*, error: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    # With FORCE_COLOR, set on build servers, rich would draw a live table into log files.
    is_terminal = stream is not None and stream.isatty()
    return Console(stderr=error, soft_wrap=True, force_terminal=None if is_terminal else False)


def _print_json(value: Any) -> None:
    print(json.dumps(_jsonable(value), indent=2, allow_nan=False))


def _jsonable(value: Any) -> Any:
    """The value with NaN and infinities as None, since JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    return [_jsonable(v) for v in value] if isinstance(value, (list, tuple)) else value


# ---------------------------------------------------------------- running


@app.command()
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
            help="Check the file and its data, print what would be trained, and start nothing.",
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

    with DataProgress(_console(error=True), quiet=quiet) as data:
        plan = api.make_plan(file, data_path=data_path, progress=data)
    for sentence in plan.warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    for line in outline(plan):
        print(line)
    print("the file is valid; nothing was started")


def _run(file: Path, *, quiet: bool, **how: Any) -> Any:
    global _study_has_run
    from modmix import api
    from modmix.cli.display import DataProgress, Display

    progress = _console(error=True)

    def log(text: str) -> None:
        if not quiet or text.startswith("warning: "):
            progress.print(text, highlight=False, markup=False)

    path = how.pop("data_path")
    with DataProgress(progress, quiet=quiet) as data:
        plan = api.make_plan(file, data_path=path, progress=data)
    with Display(progress, quiet=quiet) as display:
        study = api.run_plan(plan, changed=display.changed, log=log, **how)
    _study_has_run = True
    print_summary(study, _console(), mlflow=how["mlflow"])
    return study


def print_summary(study: Any, console: Console, *, mlflow: bool) -> None:
    from modmix.analysis.over_tasks import results_table

    counts = study.status()
    print(results_table(study._ledger, study.name).render("text"))
    reused = f", {counts['reused']} of them from other studies" if counts["reused"] else ""
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


@app.command()
def status(study: Name, as_json: Json = False) -> None:
    """Show the status of a study."""
    from modmix import api

    ledger, name = _ledger(), _study(study)
    found = api.status(ledger, name)
    if as_json:
        _print_json(found)
        return
    print(f"study {name}: {found['state']}")
    parts = ledger.study(name).spec["parts"].values()
    proposes = found["state"] != "finished" and any(part.get("search") for part in parts)
    names = {"total": "proposed so far" if proposes else "in total"}
    for what in ("configurations", "replicates"):
        counts = ", ".join(
            f"{n} {names.get(state, state)}" for state, n in found[what].items() if n
        )
        print(f"  {what:15s}{counts or 'none'}")
    print(f"  trained        {found['trained']}, reused {found['reused']}")
    times = f"{found['wall_seconds']:.0f} s wall clock, {found['device_seconds']:.0f} s on devices"
    print(f"  time           {times}")
    methods = {one.key: one.method for one in ledger.configurations(name)}
    reasons: dict[str, int] = {}
    for replicate in ledger.replicates(name):
        if replicate.state == "failed":
            last = (replicate.reason.strip().splitlines() or ["no reason recorded"])[-1]
            reason = f"{methods[replicate.configuration]}: {last}"
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:10]:
        print(f"  failed         {count}x {reason}")


@app.command("list")
def list_studies(as_json: Json = False) -> None:
    """List all studies with their owners and progress."""
    from modmix import api

    ledger = _ledger()
    found = [
        {
            "owner": record.owner,
            "task": str(record.details.get("task", "")),
            "updated": record.updated,
            **api.status(ledger, record.name),
        }
        for record in ledger.studies()
    ]
    if as_json:
        _print_json(found)
        return
    rows = [("study", "owner", "state", "configurations", "models", "updated", "task")]
    rows += [
        (
            one["study"], one["owner"], one["state"], _ended(one["configurations"]),
            _ended(one["replicates"]), f"{datetime.fromtimestamp(one['updated']):%Y-%m-%d %H:%M}",
            one["task"],
        )
        for one in found
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _ended(counts: Mapping[str, int]) -> str:
    """ "40", or "24 of 40 (1 failed)" where some have not ended or have failed."""
    ended, total = counts["done"] + counts["pruned"] + counts["failed"], counts["total"]
    text = str(total) if ended == total else f"{ended} of {total}"
    return f"{text} ({counts['failed']} failed)" if counts["failed"] else text


# ---------------------------------------------------------------- results


@app.command()
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
    ledger = _ledger()
    snapshot = frames.read(ledger, _study(study))
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


@app.command()
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
    found = compare_table(_ledger(), [_study(study) for study in studies], metric)
    print(found.render(format).rstrip("\n"))


@app.command()
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
    outputs = write_all(_ledger(), Home.from_environment(), _study(study), errors=errors)
    for path in outputs.figures:
        print(path)


@app.command()
def report(study: Name) -> None:
    """Write figures, tables and the HTML report, and print its path."""
    from modmix.analysis.report import write_all
    from modmix.base.home import Home

    print(write_all(_ledger(), Home.from_environment(), _study(study)).report)


@app.command()
def best(study: Name, as_json: Json = False) -> None:
    """Show the best configuration of each method and write study files for `modmix final`."""
    from modmix.analysis.best import best_configurations, explain_no_best, unranked
    from modmix.base.home import Home
    from modmix.registry.best import write_best

    ledger, name = _ledger(), _study(study)
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
        _print_json(
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


@app.command()
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
    from modmix.study import spec
    from modmix.tracking.store import redacted

    if spec.read(file).raw.get("final") is None:
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


@app.command()
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

    done = mirror.sync(_ledger(), _study(study), home.tracking_uri, home, progress=progress)
    print(
        f"MLflow experiment {done.experiment!r} is up to date; "
        f"{counted(done.written, 'run')} written"
    )
    if done.page:
        print(f"  {done.page}")


@app.command()
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

        serve_optuna(_ledger(), home, port=port or 8080)
        return
    from modmix.tracking.serve import serve

    serve(home, port=port or 5000)


# ---------------------------------------------------------------- tasks and methods


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="One task only.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List tasks with their options, cost and data source."""
    from modmix.tasks.table import TASKS

    shown = _one_of(TASKS, name, "task")
    if as_json:
        _print_json(
            {n: {"doc": t.doc, "cost": t.cost, "source": t.source} for n, t in shown.items()}
        )
        return
    for name, entry in shown.items():
        print(f"{name}: {entry.doc}\n  data: {entry.source}; {entry.cost}")
        for option in entry.options:
            default = "required" if option.required else f"default {_in_yaml(option.default)}"
            print(f"    {option.name} ({default}): {option.doc}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method only.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List methods and their hyperparameters."""
    from modmix.methods.table import METHODS

    shown = _one_of(METHODS, name, "method")
    if as_json:
        _print_json(
            {
                name: {
                    "doc": entry.doc,
                    "hyperparameters": {h.name: h.default for h in entry.hyperparameters},
                }
                for name, entry in shown.items()
            }
        )
        return
    for name, entry in shown.items():
        print(f"{name}: {entry.doc}")
        for h in entry.hyperparameters:
            print(f"    {h.name} (default {_in_yaml(h.default)}): {h.doc}")


def _in_yaml(value: Any) -> str:
    """As a study file has it: null, true, [64, 64]."""
    return value if isinstance(value, str) else json.dumps(value)


def _one_of(table: Mapping[str, Entry], name: str | None, what: str) -> Mapping[str, Entry]:
    """A table, or one of its entries.

    Raises:
        InputError: there is none of this name.
    """
    from modmix.study.spec import unknown

    if name is None:
        return table
    if name not in table:
        raise InputError(unknown(name, table, what))
    return {name: table[name]}
