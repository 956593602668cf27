"""Names that become paths, and files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import make_url

from modmix.base.errors import InputError
from modmix.base.home import (
    Home,
    is_name,
    is_taken,
    sqlite_path,
    sqlite_url,
    write_bytes,
    write_text,
)
from modmix.ledger.ledger import Ledger
from modmix.tasks.files import data_home


@pytest.mark.parametrize("name", ["a", "7", "beta-curve_2.final", "A" * 100])
def test_names(name: str, tmp_path: Path) -> None:
    assert is_name(name)
    assert Home(tmp_path).study(name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b/c",
        "/etc",
        "-x",
        ".x",
        "a b",
        "a\n",
        "é",
        "A" * 101,
        "a\\b",
        "~",
        "$x",
    ],
)
def test_what_is_no_name(name: str, tmp_path: Path) -> None:
    assert not is_name(name)
    with pytest.raises(InputError, match="a study's name must be letters, digits"):
        Home(tmp_path).study(name)


@pytest.mark.parametrize(
    "name", ["weights", "Artifacts", "checkpoints", "ledger.db", "mlflow.db-wal"]
)
def test_names_that_lie_elsewhere(name: str, tmp_path: Path) -> None:
    assert is_taken(name)
    with pytest.raises(InputError, match="none of artifacts, checkpoints, weights"):
        Home(tmp_path).study(name)


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODMIX_LEDGER", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path / "runs"))
    home = Home.from_environment()
    assert home.path == tmp_path / "runs"
    assert home.ledger_url == f"sqlite:///{tmp_path}/runs/ledger.db"
    assert home.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MODMIX_LEDGER", "postgresql+psycopg://host/db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert home.ledger_url == "postgresql+psycopg://host/db"
    assert home.tracking_uri == "http://127.0.0.1:5000"
    monkeypatch.setenv("MODMIX_HOME", "")
    monkeypatch.chdir(tmp_path)
    assert Home.from_environment().path == tmp_path / "modmix_runs"


def test_making_leaves_nothing_but_the_folder(tmp_path: Path) -> None:
    Home(tmp_path / "a" / "b").make()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    for path in (tmp_path / "runs", tmp_path / "runs" / "below"):
        with pytest.raises(
            InputError, match=r"the results folder .* cannot be written \(.+\): free"
        ):
            Home(path).make()
    assert (tmp_path / "runs").read_text() == "mine"


def test_writing_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "one")
    write_text(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert list(path.parent.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- paths from the environment


def test_paths_of_the_environment_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "deep")
    monkeypatch.setenv("MODMIX_HOME", "~/${PLACE}/runs")
    monkeypatch.setenv("MODMIX_DATA", "$HOME/data")
    monkeypatch.setenv("MODMIX_LEDGER", "sqlite:///~/$PLACE/l.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///$HOME/m.db")
    home = Home.from_environment()
    assert home.path == tmp_path / "deep" / "runs"
    assert data_home() == tmp_path / "data"
    assert home.ledger_url == f"sqlite:///{tmp_path}/deep/l.db"
    assert home.tracking_uri == f"sqlite:///{tmp_path}/m.db"


def test_a_dollar_in_a_password_is_a_dollar(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql+psycopg://me:a$HOME~@host/db"
    monkeypatch.setenv("MODMIX_LEDGER", url)
    assert Home(Path("/x")).ledger_url == url


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("$NOT_SET/runs", "the environment variable NOT_SET is not set: export it"),
        ("~no-such-user/runs", "the home directory in '~no-such-user/runs' is not known: set"),
    ],
)
def test_what_cannot_be_expanded(text: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_HOME", text)
    with pytest.raises(InputError, match=why):
        Home.from_environment()


def test_an_unknown_user_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MODMIX_DATA", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(
        InputError, match="set MODMIX_DATA to an absolute path, or HOME to a folder"
    ):
        data_home()
    monkeypatch.setenv("MODMIX_DATA", "/data")
    assert data_home() == Path("/data")


@pytest.mark.parametrize(
    "name", ["plain", "a?b", "a#b", "100%", "a b", "ü", "p%20q", "a@b:c", "x?y=%3F&#z"]
)
def test_sqlalchemy_finds_the_file_of_any_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "ledger.db"
    path.parent.mkdir()
    url = sqlite_url(path)
    assert make_url(url).database == str(path)
    assert not make_url(url).query
    assert sqlite_path(url) == path
    Ledger(url).close()
    assert path.is_file()
    assert [found.name for found in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "url", ["postgresql://host/db", "http://host:5000", "sqlite://", "sqlite:///:memory:", ""]
)
def test_what_is_no_sqlite_file(url: str) -> None:
    assert sqlite_path(url) is None


def test_a_question_mark_in_a_url_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_LEDGER", "sqlite:////tmp/a?b/ledger.db")
    with pytest.raises(InputError, match=r"write %3F for one in the path \(and %25"):
        _ = Home(Path("/x")).ledger_url


def test_a_path_that_mlflow_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p%20q has a % and two digits in its path, which MLflow"):
        Home(tmp_path / "p%20q").make()
    assert not any(tmp_path.iterdir())
    Home(tmp_path / "100%").make()
