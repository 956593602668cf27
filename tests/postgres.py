"""A real PostgreSQL server for tests, where the machine has one; it lives in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def find(program: str) -> str | None:
    """A program of PostgreSQL: on the path, or where Debian's packages put it."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    paths = [os.environ.get("PATH", ""), *map(str, folders)]
    return shutil.which(program, path=os.pathsep.join(paths))


class Server:
    """A server that listens on a socket in its folder only.

    PostgreSQL refuses to run as root: then another user runs it.
    """

    def __init__(self, folder: Path) -> None:
        initdb, postgres = find("initdb"), find("postgres")
        if initdb is None or postgres is None:
            pytest.skip("this machine has no PostgreSQL (initdb and postgres)")
        pytest.importorskip("psycopg", reason="psycopg is not installed")
        self._folder, self._postgres = folder, postgres
        self._user = _other_user(folder)
        self._process: subprocess.Popen[bytes] | None = None
        made = subprocess.run(
            [*self._user, initdb, "-D", folder / "data", "-U", "modmix", "-A", "trust",
             "--no-sync"],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr

    @property
    def url(self) -> str:
        """The URL of a database."""
        return f"postgresql+psycopg://modmix@/postgres?host={self._folder}"

    @property
    def pid(self) -> int:
        """The process id of the server; those of its connections are its children."""
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    def start(self) -> None:
        settings = ["listen_addresses=", "fsync=off", f"unix_socket_directories={self._folder}"]
        options = [w for s in settings for w in ("-c", s)]
        self._process = subprocess.Popen(
            [*self._user, self._postgres, "-D", self._folder / "data", *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        _wait(self._folder, self._process)

    def stop(self) -> None:
        """Stop at once, as a crash would; connections are lost, committed data is kept."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=30)
            self._process = None


@contextmanager
def controlled() -> Iterator[Server]:
    """A running server that can be stopped and started."""
    # The folder's path is that of a socket, which may have about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="modmix-pg-", dir="/tmp"))
    try:
        made = Server(folder)
        try:
            made.start()
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def server() -> Iterator[str]:
    """The URL of a database on a server of its own."""
    with controlled() as made:
        yield made.url


def _other_user(folder: Path) -> list[str]:
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is not here to change that")
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    for _ in range(200):
        assert process.poll() is None, "PostgreSQL ended at once"
        try:
            psycopg.connect(host=str(folder), user="modmix", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError("PostgreSQL did not come up")


def empty(url: str) -> None:
    """Drop everything in the database: quicker than a new database."""
    import psycopg

    folder = url.partition("host=")[2]
    with psycopg.connect(
        host=folder, user="modmix", dbname="postgres", autocommit=True
    ) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
