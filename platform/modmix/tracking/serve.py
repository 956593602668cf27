"""Serves MLflow's UI, or optuna-dashboard over copies of all searches, on the loopback address."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress

from modmix.base.errors import InputError, LedgerError, TrackingError
from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.tracking.store import Store, check, is_server, page, redacted

HOST = "127.0.0.1"
SECONDS = 5.0  # between two updates of the copies
_MOST = 10  # pages printed

_DASHBOARD = (
    "import sys, optuna_dashboard as d; d.run_server(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
)


def serve(home: Home, port: int = 5000) -> None:
    """Serve the MLflow UI until Ctrl-C.

    Raises:
        InputError: the port is in use, or studies are logged to a server with its own UI.
        TrackingError: the server failed.
    """
    uri = home.tracking_uri
    if is_server(uri):
        raise InputError(f"studies are logged to the server {redacted(uri)}: open that address")
    home.make()
    check(uri)
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    environment = {
        # Not on the command line, where other users would see passwords.
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_ARTIFACTS_DESTINATION": str(home.artifacts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that are not needed
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }

    def print_pages() -> None:
        with suppress(TrackingError):  # the server says it, too
            for study, place in pages(uri, f"http://{HOST}:{port}").items():
                print(f"  {study}: {place}", flush=True)

    _serve("MLflow", port, command, environment, begin=print_pages)


def pages(uri: str, address: str) -> dict[str, str]:
    """The pages of the latest studies in the UI at an address, by experiment."""
    found = Store(uri).client.search_experiments(
        max_results=_MOST,
        filter_string="tags.`modmix.study` LIKE '%'",
        order_by=["last_update_time DESC"],
    )
    return {one.name: page(address, one.experiment_id) for one in found}


def serve_optuna(ledger: Ledger, home: Home, port: int = 8080) -> None:
    """Copy all searches, and serve optuna-dashboard until Ctrl-C; searches go on appearing.

    Raises:
        InputError: optuna-dashboard is not installed, or the port is in use.
        TrackingError: the server failed.
    """
    from modmix.tracking.optuna_mirror import OptunaMirror

    home.make()
    with closing(OptunaMirror(ledger, home.optuna_url)) as mirror:
        added = mirror.update()
        print(f"{added} configurations added to {home.optuna_url}", flush=True)
        if importlib.util.find_spec("optuna_dashboard") is None:
            raise InputError(
                "optuna-dashboard is not installed: run pip install 'modmix[optuna]', or open "
                f"{home.optuna_url} with an installation elsewhere"
            )

        def update() -> None:
            try:
                mirror.update()
            except (LedgerError, TrackingError) as error:  # tried again
                print(f"warning: searches are not up to date, retrying: {error}", file=sys.stderr)

        command = [sys.executable, "-c", _DASHBOARD, home.optuna_url, HOST, str(port)]
        _serve("optuna-dashboard", port, command, {}, update=update)


def _serve(
    name: str,
    port: int,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    begin: Callable[[], None] = lambda: None,
    update: Callable[[], None] = lambda: None,
) -> None:
    """Run a server until it ends or Ctrl-C; ``update`` is called every few seconds."""
    address = f"http://{HOST}:{port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {HOST} is in use: choose another one with --port, or open "
                f"{address} if {name} is already running there"
            ) from error
    print(f"{name} is starting on {address} (stop with Ctrl-C)", flush=True)
    begin()
    server = subprocess.Popen(command, env={**os.environ, **environment})
    code: int | None = None
    try:
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = server.wait(SECONDS)
            if code is None:
                update()
    except KeyboardInterrupt:
        return
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    if code:
        raise TrackingError(f"the {name} server failed with exit code {code}: see its output above")
