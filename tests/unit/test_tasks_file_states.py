"""What counts as a change of the files that a task of one's own reads."""

import os
from pathlib import Path

import pytest

from modmix.base.errors import DataError
from modmix.tasks.file_states import states_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    monkeypatch.setenv("MODMIX_HOME", str(folder / "results"))
    monkeypatch.setenv("MODMIX_DATA", str(folder / "prepared"))
    return folder


def names(folder: Path) -> list[str]:
    return [os.path.relpath(name, folder) for name, _, _ in states_of(folder)]


def test_a_state_has_name_size_and_time(folder: Path) -> None:
    file = folder / "a.txt"
    os.utime(file, ns=(5, 7_000_000_123))
    expected = [[str(file), 3, 7_000_000_123]]
    assert states_of(folder) == expected
    assert states_of(file) == expected
    assert states_of(folder / "nothing") == []


def test_what_changes_while_a_study_runs_does_not_count(folder: Path) -> None:
    for name in (
        *("results/figures/a.svg", "prepared/x/meta.json", "of_another/ledger.db"),
        *("of_another/best/b.yaml", "__pycache__/a.pyc", ".git/index", ".hidden"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("changing")
    assert names(folder) == ["a.txt"]


@pytest.mark.parametrize("variable", ["MODMIX_HOME", "MODMIX_DATA", "MODMIX_ELSEWHERE"])
def test_files_that_lie_in_a_folder_of_modmix_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Though what modmix itself keeps there does not."""
    monkeypatch.setenv(variable, str(folder))
    made = (
        "ledger.db",
        "ledger.db-wal",
        "checkpoints/x",
        "prepared/y",
        "s/report.html",
        "s/figures/f",
    )
    for name in (*made, "sub/b.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("changing")
    assert names(folder) == ["a.txt", "sub/b.txt"]


def test_links_to_folders_are_followed_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "b.txt").write_text("two")
    (folder / "linked").symlink_to(tmp_path / "media")
    (folder / "above").symlink_to(folder)
    (folder / "broken").symlink_to(tmp_path / "gone")
    assert names(folder) == ["a.txt", "linked/b.txt"]
    before = states_of(folder)
    (tmp_path / "media" / "b.txt").write_text("three")
    assert states_of(folder) != before


def test_what_cannot_be_looked_at_is_said(folder: Path) -> None:
    long = folder / ("x" * 300)
    with pytest.raises(DataError, match=r"x: cannot be accessed \(File name too long\); change"):
        states_of(long)
