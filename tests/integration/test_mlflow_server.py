"""`mlflow_server/start.sh` and `modmix ui`: what they refuse, and that they show studies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from mlflow_bench import Bench, free_port
from modmix.base.errors import InputError
from modmix.base.home import Home, sqlite_path
from modmix.tracking.serve import serve

ROOT = Path(__file__).parents[2]
START = ROOT / "mlflow_server" / "start.sh"
SECRETS = {
    "MLFLOW_AUTH": "basic",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "long enough 123",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32,
}


def environment(home: Path, **settings: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PG", "AWS_"))}
    return {**kept, "MODMIX_HOME": str(home), "PYTHON": sys.executable, **settings}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MLFLOW_HOST": "0.0.0.0"}, "lets everybody on the network read and write: set"),
        (
            {"MLFLOW_HOST": "0.0.0.0", "MLFLOW_AUTH": "off"},
            "needs MLFLOW_SERVER_ALLOWED_HOSTS: its host names in URLs",
        ),
        ({"MLFLOW_AUTH": "yes"}, "MLFLOW_AUTH must be basic or off, got 'yes'"),
        (
            {"MLFLOW_AUTH": "basic"},
            "needs MLFLOW_AUTH_ADMIN_PASSWORD (or …_FILE): there is no default",
        ),
        (
            {**SECRETS, "MLFLOW_AUTH_ADMIN_PASSWORD": "short"},
            "MLFLOW_AUTH_ADMIN_PASSWORD must have 12 characters or more",
        ),
        (
            {**SECRETS, "MLFLOW_FLASK_SERVER_SECRET_KEY": ""},
            "needs MLFLOW_FLASK_SERVER_SECRET_KEY (or …_FILE) of 32 characters or more",
        ),
        ({"PGPASSWORD_FILE": "/nowhere/pg"}, "PGPASSWORD_FILE names /nowhere/pg, which cannot be"),
        ({"MLFLOW_BACKEND_STORE_URI": "mlruns"}, "MLflow 3 refuses folders"),
        ({"MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true"}, "is not supported: list the hosts"),
        ({"PYTHON": "/bin/false"}, "/bin/false has no MLflow: install modmix into it"),
    ],
)
def test_the_server_refuses_with_a_sentence(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    done = subprocess.run(
        [START], env=environment(tmp_path, **settings), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlflow_server: ")
    assert message in line


# Stands for a Python with MLflow and its accounts: notes how the server is started, then waits.
FAKE = f"""\
#!/bin/sh
case "$*" in
    *mlflow\\ server*)
        echo "$MLFLOW_BACKEND_STORE_URI" > "$NOTES/store"
        if [ -n "$MLFLOW_AUTH_CONFIG_PATH" ]; then cp "$MLFLOW_AUTH_CONFIG_PATH" "$NOTES/config"; fi
        mv "$NOTES/store" "$NOTES/started"
        trap 'kill $!; exit 7' TERM
        sleep "$SLEEP" &
        wait
        exit 0 ;;
    *flask_wtf*) exit 0 ;;
esac
exec {sys.executable} "$@"
"""


def faked(folder: Path, home: str, *, sleep: str = "0", **settings: str) -> dict[str, str]:
    """The environment of a server by `FAKE`, which ends after some seconds."""
    python = folder / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    (folder / "tmp").mkdir()
    paths = {"PYTHON": str(python), "NOTES": str(folder), "TMPDIR": str(folder / "tmp")}
    port = str(free_port())
    return environment(Path(home), MLFLOW_PORT=port, SLEEP=sleep, **paths, **settings) | {
        "MODMIX_HOME": home
    }


@pytest.mark.parametrize(
    "home", ["", "runs", "./runs/../new", "~", "~/runs", "$BASE/runs", "${BASE}", "a b%/c"]
)
def test_the_server_reads_the_results_folder_as_modmix_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    for variable, value in {"HOME": tmp_path / "home", "BASE": tmp_path / "base"}.items():
        monkeypatch.setenv(variable, str(value))
    settings = faked(tmp_path, home)
    (tmp_path / "work").mkdir()
    subprocess.run([START], env=settings, cwd=tmp_path / "work", check=True, capture_output=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MODMIX_HOME", home)
    ours = sqlite_path(Home.from_environment().tracking_uri)
    store = sqlite_path((tmp_path / "started").read_text().strip())
    assert ours is not None
    assert store is not None
    assert store == ours.resolve()


@pytest.mark.parametrize(
    ("home", "message"),
    [
        ("$NOT_SET/x", "MODMIX_HOME is '$NOT_SET/x', and the environment variable NOT_SET is not"),
        ("~nobody-of-this-name/x", "the home directory in '~nobody-of-this-name/x' is not known"),
    ],
)
def test_a_results_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, home: str, message: str
) -> None:
    settings = faked(tmp_path, home)
    done = subprocess.run([START], env=settings, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"mlflow_server: {message}")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://ann:hidden@db/m",
        "postgresql://ann:hiddentoken=x@db/m",
        "postgresql://db:5432/m?user=ann&password=not@hidden",
        "postgresql://db/m?sslpassword=hidden&PASSWORD=hidden",
    ],
)
def test_no_password_is_printed(tmp_path: Path, uri: str) -> None:
    settings = faked(tmp_path, str(tmp_path / "home"), MLFLOW_BACKEND_STORE_URI=uri)
    done = subprocess.run([START], env=settings, capture_output=True, text=True, check=True)
    assert (tmp_path / "started").read_text().strip() == uri
    printed = done.stdout + done.stderr
    assert "runs in postgresql://" in printed
    assert "hidden" not in printed


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT])
def test_the_configuration_of_accounts_is_deleted(tmp_path: Path, number: int | None) -> None:
    settings = faked(tmp_path, str(tmp_path / "home"), sleep="60" if number else "0", **SECRETS)
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen([START], env=settings, stdout=file, stderr=file)
    for _ in range(300):
        if (tmp_path / "started").exists() or server.poll() is not None:
            break
        time.sleep(0.1)
    assert "database_uri = sqlite:///" in (tmp_path / "config").read_text(), log.read_text()
    if number is not None:
        assert len(list((tmp_path / "tmp").iterdir())) == 1
        server.send_signal(number)
    assert server.wait(20) == (0 if number is None else 7)  # as the server has ended
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
def test_a_busy_port_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = subprocess.run(
            [START],
            env=environment(tmp_path, MLFLOW_PORT=str(port)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, f"port {port} on 127.0.0.1 is in use" in done.stderr) == (2, True)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(InputError, match=f"port {port} on 127.0.0.1 is in use: choose another"):
            serve(Home(tmp_path), port=port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@mlflow.lab:5000")
    with pytest.raises(InputError, match=r"http://\*\*\*@mlflow.lab:5000: open that address"):
        serve(Home(tmp_path), port=port)


@pytest.mark.slow
@pytest.mark.cluster
def test_the_server_shows_the_studies_of_the_results_folder(bench: Bench) -> None:
    bench.start(configurations=1, seeds=1)
    bench.finish()
    bench.writer().update("finished")
    port = free_port()
    settings = environment(bench.home.path, MLFLOW_PORT=str(port), MLFLOW_WORKERS="1")
    with running([str(START)], settings, port) as server:
        body = json.dumps({"max_results": 9}).encode()
        found = call(f"{server}/api/2.0/mlflow/experiments/search", body)["experiments"]
        assert "curves" in [experiment["name"] for experiment in found]
        run = bench.study_run()
        query = f"run_uuid={run.info.run_id}&path=study.yaml"
        with urllib.request.urlopen(f"{server}/get-artifact?{query}", timeout=10) as page:
            assert page.read() == b"study: curves\n"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            call(f"{server}/api/2.0/mlflow/experiments/search", body, host="evil.example")


@pytest.mark.slow
@pytest.mark.cluster
def test_the_pages_open_and_ctrl_c_ends_them(bench: Bench) -> None:
    port = free_port()
    code = (
        "from pathlib import Path; from modmix.base.home import Home;"
        "from modmix.tracking.serve import serve;"
        f"serve(Home(Path({str(bench.home.path)!r})), port={port})"
    )
    settings = environment(bench.home.path)
    with (
        running([sys.executable, "-c", code], settings, port) as server,
        urllib.request.urlopen(server, timeout=10) as page,
    ):
        assert b"<title>MLflow</title>" in page.read()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(server, timeout=1)


def call(url: str, body: bytes, host: str | None = None) -> dict[str, list[dict[str, str]]]:
    headers = {"Content-Type": "application/json"} | ({"Host": host} if host else {})
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, list[dict[str, str]]] = json.load(answer)
    return found


@contextmanager
def running(command: list[str], settings: dict[str, str], port: int) -> Iterator[str]:
    """A server while it answers; then Ctrl-C, to which it must react."""
    log = Path(settings["MODMIX_HOME"]) / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=settings, stdout=file, stderr=file, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(400):
            assert process.poll() is None, log.read_text()
            with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=1):
                break
            time.sleep(0.1)
        yield url
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


# ---------------------------------------------------------------- the compose file


def test_the_compose_file_is_consistent_and_holds_no_secret() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    made = (ROOT / "docker" / "secrets.sh").read_text()
    for name, service in compose["services"].items():
        for kind in ("secrets", "networks"):
            assert set(service.get(kind, [])) <= compose[kind].keys(), name
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"], name
        for port in service.get("ports", []):
            assert ":-127.0.0.1:" in port, f"{name} is published beyond this machine"
        for variable, value in service.get("environment", {}).items():
            secret = any(word in variable for word in ("PASSWORD", "SECRET", "ACCESS_KEY", "_KEY"))
            assert not secret or value.startswith("/run/secrets/"), variable
            if str(value).startswith("/run/secrets/"):
                assert value.removeprefix("/run/secrets/") in service["secrets"], variable
    for name in compose["secrets"]:
        assert f" {name}" in made
