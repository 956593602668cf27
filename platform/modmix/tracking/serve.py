"""MLflow's own pages on the results of one person, on the loopback address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from modmix.base.errors import InputError, TrackingError
from modmix.base.home import Home
from modmix.tracking.store import check, shown

HOST = "127.0.0.1"


def serve(home: Home, port: int = 5000) -> None:
    """Serve MLflow's pages until Ctrl-C.

    Raises:
        InputError: the port is in use, or the studies are mirrored to a server that has its own.
        TrackingError: the server ended by itself.
    """
    uri = home.tracking_uri
    if uri.startswith(("http://", "https://")):
        raise InputError(f"the studies are shown by the server {shown(uri)}: open that address")
    home.make()
    check(uri)
    _check_port(port)
    print(f"MLflow is starting on http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    environment = {
        # Not on the command line, where every user of the machine would see a password.
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_ARTIFACTS_DESTINATION": str(home.artifacts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for evaluating agents
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    server = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        code = server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait(10)
        return
    if code:
        raise TrackingError(
            f"MLflow's server ended with exit code {code}: read what it wrote above"
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {HOST} is in use: give another one with --port, or open "
                f"http://{HOST}:{port} if MLflow runs there already"
            ) from error
