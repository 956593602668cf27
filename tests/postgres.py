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


@contextmanager
def server() -> Iterator[str]:
    """Start a server that listens on a socket in its folder only; give the URL of a database.

    PostgreSQL refuses to run as root: then another user runs it.
    """
    initdb, postgres = find("initdb"), find("postgres")
    if initdb is None or postgres is None:
        pytest.skip("this machine has no PostgreSQL (initdb and postgres)")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    # The folder's path is that of a socket, which may have about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="modmix-pg-", dir="/tmp"))
    user = _other_user(folder)
    process: subprocess.Popen[bytes] | None = None
    try:
        made = subprocess.run(
            [*user, initdb, "-D", folder / "data", "-U", "modmix", "-A", "trust", "--no-sync"],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        settings = ["listen_addresses=", "fsync=off", f"unix_socket_directories={folder}"]
        process = subprocess.Popen(
            [*user, postgres, "-D", folder / "data", *(w for s in settings for w in ("-c", s))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        url = f"postgresql+psycopg://modmix@/postgres?host={folder}"
        _wait(folder, process)
        yield url
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)  # at once: nobody wants this data again
            process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


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
