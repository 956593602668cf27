"""Serves optuna-dashboard on the loopback address, over copies of all searches."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from contextlib import closing

from modmix.base.errors import InputError, LedgerError, TrackingError
from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.tracking.optuna_mirror import OptunaMirror
from modmix.tracking.serve import HOST

SECONDS = 5.0  # between two updates

_SERVER = (
    "import sys, optuna_dashboard as d; d.run_server(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
)


def serve_optuna(ledger: Ledger, home: Home, port: int = 8080) -> None:
    """Copy all searches, and serve optuna-dashboard until Ctrl-C; searches go on appearing.

    Raises:
        InputError: optuna-dashboard is not installed, or the port is in use.
        TrackingError: the server failed.
    """
    home.make()
    with closing(OptunaMirror(ledger, home.optuna_url)) as mirror:
        added = mirror.update()
        print(f"{added} configurations added to {home.optuna_url}", flush=True)
        if importlib.util.find_spec("optuna_dashboard") is None:
            raise InputError(
                "optuna-dashboard is not installed: run pip install 'modmix[optuna]', or open "
                f"{home.optuna_url} with one that is"
            )
        _check_port(port)
        print(
            f"optuna-dashboard is starting on http://{HOST}:{port} (stop with Ctrl-C)", flush=True
        )
        command = [sys.executable, "-c", _SERVER, home.optuna_url, HOST, str(port)]
        server = subprocess.Popen(command, env=os.environ)
        try:
            code = _follow(server, mirror)
        except KeyboardInterrupt:
            return
        finally:
            server.terminate()
            server.wait(10)
    if code:
        raise TrackingError(f"optuna-dashboard failed with exit code {code}: see its output above")


def _follow(server: subprocess.Popen[bytes], mirror: OptunaMirror) -> int:
    """Update the copies until the server ends; return its exit code."""
    while True:
        try:
            return server.wait(SECONDS)
        except subprocess.TimeoutExpired:
            pass
        try:
            mirror.update()
        except LedgerError as error:  # tried again
            print(f"the searches could not be read: {error}", file=sys.stderr)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {HOST} is in use: choose another one with --port, or open "
                f"http://{HOST}:{port} if optuna-dashboard is already running there"
            ) from error
