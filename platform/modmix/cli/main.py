"""The entry point: collects the commands, and turns errors into messages and exit codes.

Each command parses its arguments, calls one function and prints. Exit codes: 0 success; 1 error;
2 invalid input, nothing was started; 3 interrupted, the same command resumes. Heavy imports are
inside the commands to keep `modmix --help` fast.
"""

from __future__ import annotations

import gc
import signal
import sys
from typing import Annotated

import typer

from modmix.base.errors import ModmixError
from modmix.cli import catalogue, results, run, studies, tracking
from modmix.cli.data import data_app
from modmix.cli.export import export_app
from modmix.cli.output import Outputs

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

# In the order of `modmix --help`.
app.command()(run.run)
app.command()(studies.status)
app.command("list")(studies.list_studies)
for show in (results.table, results.compare, results.figure, results.report, results.best):
    app.command()(show)
app.command()(run.final)
app.command()(tracking.sync)
app.command()(tracking.ui)
app.command()(catalogue.tasks)
app.command()(catalogue.methods)
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")

_INTERRUPTED = 130  # typer's exit code after an unhandled Ctrl-C


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
    return 0 if run.study_has_run else 1


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
