"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
