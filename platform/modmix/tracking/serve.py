"""Serves the MLflow UI on the loopback address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress

from modmix.base.errors import InputError, TrackingError
from modmix.base.home import Home
from modmix.tracking.store import Store, check, is_server, page, redacted

HOST = "127.0.0.1"
_MOST = 10  # pages printed


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
    _check_port(port)
    address = f"http://{HOST}:{port}"
    print(f"MLflow is starting on {address} (stop with Ctrl-C)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    environment = {
        # Not on the command line, where other users would see passwords.
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_ARTIFACTS_DESTINATION": str(home.artifacts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that are not needed
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with suppress(TrackingError):  # the server says it, too
        for study, place in pages(uri, address).items():
            print(f"  {study}: {place}", flush=True)
    server = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        code = server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait(10)
        return
    if code:
        raise TrackingError(f"MLflow's server failed with exit code {code}: see its output above")


def pages(uri: str, address: str) -> dict[str, str]:
    """The pages of the latest studies in the UI at an address, by experiment."""
    found = Store(uri).client.search_experiments(
        max_results=_MOST,
        filter_string="tags.`modmix.study` LIKE '%'",
        order_by=["last_update_time DESC"],
    )
    return {one.name: page(address, one.experiment_id) for one in found}


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {HOST} is in use: choose another one with --port, or open "
                f"http://{HOST}:{port} if MLflow is already running there"
            ) from error
