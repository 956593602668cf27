"""What people type. Thin: each command reads its words, calls one function, prints.

Exit codes: 0 finished; 2 the input is wrong and nothing was started; 3 stopped, the same command
continues; 1 anything else. Imports are inside the commands, so that `modmix --help` is quick.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modmix.base.errors import InputError, ModmixError
from modmix.cli.data import data_app
from modmix.cli.output import Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from modmix.ledger import Ledger

app = typer.Typer(
    name="modmix",
    help="Studies of how to combine modalities: one file in, figures with error bars out.",
    epilog="Results lie in MODMIX_HOME (./modmix_runs when unset), data in MODMIX_DATA "
    "(~/.cache/modmix). Exit codes: 0 finished; 2 the input is wrong, nothing was started; "
    "3 stopped, the same command continues; 1 anything else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")

File = Annotated[Path, typer.Argument(help="The study file (YAML).", show_default=False)]
Name = Annotated[str, typer.Argument(help="A study's name, or its file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster; default: RAY_ADDRESS, else this machine."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processors to use on this machine; default: all.")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="Where the task's file is: replaces its path.")
]
Local = Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")]
NoMlflow = Annotated[bool, typer.Option("--no-mlflow", help="Do not mirror the study to MLflow.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]


_INTERRUPTED = 130  # what typer makes of a Ctrl-C that no command has handled
_study_has_run = False  # then its results are in files, whatever became of the lines about them


def command() -> None:
    """`main`, and then the end of the process, without a second or two of taking Python apart."""
    code: int | str | None = 0
    outputs = Outputs()
    try:
        main()
    except SystemExit as end:
        code = end.code
    code = code or _check_written(outputs)
    busy = [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    if busy or not (code is None or isinstance(code, int)):
        sys.exit(code)
    atexit._run_exitfuncs()
    outputs.finish()
    os._exit(code or 0)


def _check_written(outputs: Outputs) -> int:
    """The exit code of a command that went well, after a look at whether its output did, too."""
    if not (trouble := outputs.finish()):
        return 0
    print(f"modmix: not all output could be written ({trouble})", file=sys.stderr)
    return 0 if _study_has_run else 1


def main() -> None:
    """Run the command line; every error of ours becomes one sentence and its exit code."""
    try:
        app()
    except ModmixError as error:
        for line in str(error).splitlines():
            print(f"modmix: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        # A disk that is full or went away in the middle; what was recorded until then is whole.
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"modmix: {where}{error.strerror or error}: mend that, then type the same command "
            "again; what was recorded is kept",
            file=sys.stderr,
        )
        sys.exit(3)
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        print("modmix: stopped; type the same command again to go on", file=sys.stderr)
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
    # FORCE_COLOR, which build servers set, would draw a live table into a log file.
    is_terminal = stream is not None and stream.isatty()
    return Console(stderr=error, soft_wrap=True, force_terminal=None if is_terminal else False)


def _ledger() -> Ledger:
    from modmix.base.home import Home, sqlite_path
    from modmix.ledger import Ledger

    home = Home.from_environment()
    if not home.has_ledger:
        path = sqlite_path(home.ledger_url)
        where = home.path if path == home.path / "ledger.db" else path
        raise InputError(
            f"there are no studies in {where}: run one first, or set MODMIX_HOME to the folder "
            "where they ran"
        )
    return Ledger(home.ledger_url)


def _study(name: str) -> str:
    """A study's name; a study file may stand for the study in it."""
    if name.endswith((".yaml", ".yml")) and Path(name).exists():
        from modmix.study import spec

        return str(spec.read(Path(name)).raw.get("study"))
    return name


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is undefined (the deviation of one seed) becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


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
        bool, typer.Option("--retry-failed", help="Train failed replicates again.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Start a study, or continue it, or extend it by what its file now asks for."""
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


def _run(file: Path, *, quiet: bool, **how: Any) -> Any:
    global _study_has_run
    from modmix import api
    from modmix.cli.display import DataProgress, Display

    console = _console()

    def say(text: str) -> None:
        if not quiet:
            console.print(text, highlight=False, markup=False)

    path, mlflow = how.pop("data_path"), how.pop("mlflow")
    with api.starting(**how) as start:
        with DataProgress(_console(error=True), quiet=quiet) as data:
            plan = api.make_plan(file, data_path=path, progress=data, checked=start.begin)
        with Display(console, quiet=quiet) as display:
            study = api.run_plan(plan, start, mlflow=mlflow, changed=display.changed, say=say)
    _study_has_run = True
    _print_end(study, console)
    return study


def _print_end(study: Any, console: Console) -> None:
    from modmix.analysis.tables import results_table

    counts = study.status()
    print(results_table(study._ledger, study.name).render("text"))
    say = (
        f"{counts['configurations']['done']} configurations, {counts['replicates']['done']} models"
    )
    pruned = (
        f", {counts['configurations']['pruned']} pruned"
        if counts["configurations"]["pruned"]
        else ""
    )
    console.print(
        f"study {study.name} is finished: {say} ({counts['trained']} trained, "
        f"{counts['reused']} reused; {counts['configurations']['failed']} configurations "
        f"failed{pruned})",
        highlight=False,
    )
    if counts["configurations"]["failed"]:
        console.print(f"  why they failed:  modmix status {study.name}", highlight=False)
    for what, path in (
        ("figures", study.folder / "figures"),
        ("tables", study.folder / "tables"),
        ("report", study.folder / "report.html"),
    ):
        console.print(f"  {what:8s} {path}", highlight=False)
    console.print("  MLflow   type 'modmix ui' (or 'make ui') and open the address it prints")


@app.command()
def status(study: Name, as_json: Json = False) -> None:
    """Say where a study stands."""
    from modmix import api

    ledger, name = _ledger(), _study(study)
    found = api.status(ledger, name)
    if as_json:
        _print_json(found)
        return
    print(f"study {name}: {found['state']}")
    for what in ("configurations", "replicates"):
        counts = ", ".join(f"{n} {state}" for state, n in found[what].items() if n)
        print(f"  {what:15s}{counts or 'none'}")
    print(f"  trained        {found['trained']}, reused {found['reused']}")
    times = f"{found['wall_seconds']:.0f} s here, {found['device_seconds']:.0f} s of devices"
    print(f"  time           {times}")
    reasons: dict[str, int] = {}
    for replicate in ledger.replicates(name):
        if replicate.state == "failed":
            last = (replicate.reason.strip().splitlines() or ["no reason recorded"])[-1]
            reasons[last] = reasons.get(last, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:10]:
        print(f"  failed         {count}x {reason}")


@app.command("list")
def list_studies(as_json: Json = False) -> None:
    """List the studies of the ledger."""
    from modmix import api

    ledger = _ledger()
    found = [api.status(ledger, record.name) for record in ledger.studies()]
    if as_json:
        _print_json(found)
        return
    for one in found:
        print(
            f"{one['study']:32s} {one['state']:9s} {one['configurations']['done']} "
            "configurations done"
        )


# ---------------------------------------------------------------- results


@app.command()
def table(
    study: Name,
    format: Annotated[str, typer.Option(help="text, csv, md, tex or json.")] = "text",
    by: Annotated[
        str,
        typer.Option(
            help="configuration: one row per configuration; method: the best configuration "
            "of each method."
        ),
    ] = "configuration",
) -> None:
    """Print a study's results: one row per configuration, or per method."""
    from modmix.analysis import tables

    _check_format(format)
    if by not in ("configuration", "method"):
        raise InputError(f"--by must be configuration or method, got {by!r}")
    make = tables.configurations_table if by == "configuration" else tables.results_table
    print(make(_ledger(), _study(study)).render(format).rstrip("\n"))


def _check_format(format: str) -> None:
    from modmix.analysis.render import FORMATS

    if format not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")


@app.command()
def compare(
    studies: Annotated[
        list[str], typer.Argument(help="Names of studies, or their files.", show_default=False)
    ],
    format: Annotated[str, typer.Option(help="text, csv, md, tex or json.")] = "text",
    metric: Annotated[
        str | None, typer.Option(help="A test metric; default: each study's objective on test.")
    ] = None,
) -> None:
    """Print several studies side by side: the best configuration of each method, and mean ranks."""
    from modmix.analysis.compare import compare_table

    _check_format(format)
    found = compare_table(_ledger(), [_study(study) for study in studies], metric)
    print(found.render(format).rstrip("\n"))


@app.command()
def figure(
    study: Name,
    errors: Annotated[
        str, typer.Option(help="Error bars of curves: ci (95 % intervals) or std.")
    ] = "ci",
) -> None:
    """Draw a study's figures and print their paths."""
    from modmix.analysis.report import write_all
    from modmix.base.home import Home

    if errors not in ("ci", "std"):
        raise InputError(f"--errors must be ci or std, got {errors!r}")
    outputs = write_all(_ledger(), Home.from_environment(), _study(study), errors=errors)
    for path in outputs.figures:
        print(path)


@app.command()
def report(study: Name) -> None:
    """Write figures, tables and the HTML report; print the report's path."""
    from modmix.analysis.report import write_all
    from modmix.base.home import Home

    print(write_all(_ledger(), Home.from_environment(), _study(study)).report)


@app.command()
def best(study: Name, as_json: Json = False) -> None:
    """Print the best configuration of each method and write a file for `modmix final`."""
    from modmix.analysis.best import best_configurations, left_out, why_none
    from modmix.base.home import Home
    from modmix.registry import registry

    ledger, name = _ledger(), _study(study)
    configurations = best_configurations(ledger, name)
    if not configurations:
        raise InputError(why_none(ledger, name))
    paths: Sequence[Path | None]
    unwritten = ""
    try:
        paths = registry.write_best(ledger, Home.from_environment(), name, configurations)
    except OSError as error:  # the results of others, a disk that is full: they can still be read
        paths = [None] * len(configurations)
        unwritten = f"no files for 'modmix final' were written: {error.filename}: {error.strerror}"
    if as_json:
        _print_json(
            [
                {
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
        values = ", ".join(f"{k}={v}" for k, v in configuration.params.items() if v is not None)
        spread = "" if math.isnan(configuration.std) else f" ± {configuration.std:.3f}"
        print(
            f"{configuration.method}: {configuration.metric} {configuration.mean:.3f}{spread} "
            f"(n={configuration.n})"
        )
        print(f"  {values}" + ("" if path is None else f"\n  modmix final {path}"))
    if unwritten:
        print(unwritten)
    for sentence in left_out(ledger, name):
        print(sentence)


@app.command()
def final(
    file: Annotated[
        Path, typer.Argument(help="A file that `modmix best` wrote.", show_default=False)
    ],
    address: Address = None,
    workers: Workers = None,
    data: Data = None,
    local: Local = False,
    quiet: Quiet = False,
) -> None:
    """Retrain a best configuration on fresh seeds, test it once, register the model in MLflow."""
    from modmix.registry import registry
    from modmix.study import spec

    if spec.read(file).raw.get("final") is None:
        raise InputError(
            f"{file} is not a file that `modmix best STUDY` wrote (it has no final: block): "
            "name one of those"
        )
    study = _run(
        file,
        address=address,
        workers=workers,
        data_path=data,
        runner="local" if local else "ray",
        mlflow=True,
        quiet=quiet,
    )
    done = registry.register(study._ledger, study.home, study.name, study.home.tracking_uri)
    print(f"registered {done.name} version {done.version} as @{done.alias}; load it with")
    print(f'  mlflow.pyfunc.load_model("models:/{done.name}@{done.alias}")')


@app.command()
def sync(study: Name) -> None:
    """Bring MLflow up to the ledger: after the server was away, or its database was lost."""
    from modmix import tracking
    from modmix.base.home import Home

    home, said = Home.from_environment(), time.monotonic()

    def progress(left: int) -> None:
        nonlocal said
        if left and time.monotonic() - said > 5.0:
            said = time.monotonic()
            print(f"{left} runs to go", file=sys.stderr)

    done = tracking.sync(_ledger(), _study(study), home.tracking_uri, home, progress=progress)
    print(f"MLflow experiment {done.experiment!r} holds the study; {done.written} runs written")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 5000,
) -> None:
    """Open MLflow on the results, on this machine's loopback address, until Ctrl-C."""
    from modmix.base.home import Home
    from modmix.tracking import serve

    serve(Home.from_environment(), port=port)


# ---------------------------------------------------------------- what there is


@app.command()
def tasks(as_json: Json = False) -> None:
    """List the tasks: what they are, what they cost, where their data comes from."""
    from modmix.tasks.table import TASKS

    if as_json:
        _print_json(
            {n: {"doc": t.doc, "cost": t.cost, "source": t.source} for n, t in TASKS.items()}
        )
        return
    for name, entry in TASKS.items():
        print(f"{name}: {entry.doc}\n  data: {entry.source}; {entry.cost}")
        for option in entry.options:
            print(f"    {option.name} (default {option.default}): {option.doc}")


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods and their hyperparameters."""
    from modmix.methods.table import METHODS

    if as_json:
        _print_json(
            {
                name: {
                    "doc": entry.doc,
                    "hyperparameters": {h.name: h.default for h in entry.hyperparameters},
                }
                for name, entry in METHODS.items()
            }
        )
        return
    for name, entry in METHODS.items():
        print(f"{name}: {entry.doc}")
        for h in entry.hyperparameters:
            print(f"    {h.name} (default {h.default}): {h.doc}")
