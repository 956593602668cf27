"""The token of a cluster of this machine, where the user has no home directory to keep it in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modmix.execution import tune_cluster


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))


def cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))


def test_ray_keeps_its_token_where_it_can() -> None:
    tune_cluster._provide_token()
    assert os.environ["RAY_AUTH_TOKEN"] == ""


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    cannot_write(monkeypatch)
    tune_cluster._provide_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_home_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    cannot_write(monkeypatch)
    monkeypatch.setenv("HOME", "/nowhere/at/all")
    tune_cluster._provide_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_an_unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    cannot_write(monkeypatch)
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(Path, "home", unknown)
    tune_cluster._provide_token()
    assert os.environ["HOME"] == "/"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_token_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cannot_write(monkeypatch)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("mine")
    tune_cluster._provide_token()
    assert os.environ["RAY_AUTH_TOKEN"] == ""


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN_PATH", "/my/token"), ("RAY_AUTH_MODE", "disabled")]
)
def test_what_is_set_is_respected(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cannot_write(monkeypatch)
    monkeypatch.setenv(name, value)
    tune_cluster._provide_token()
    assert os.environ["RAY_AUTH_TOKEN"] == ""
