"""Tasks of many files: decoded in processes, resumed after kills, without what cannot be read.

The task is one of a user's own, whose media files are small texts.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from modmix.base import sources
from modmix.base.errors import DataError
from modmix.tasks import media, media_decode
from modmix.tasks.base import check_task, describe_task, load_task, prepare_task
from modmix.tasks.data import Data
from modmix.tasks.media_checks import sample_of
from modmix.tasks.media_decode import Item

TASK = '''
import os, signal
from pathlib import Path
import numpy as np
from modmix.tasks.data import Input
from modmix.tasks.media import Listed, MediaTask
from modmix.tasks.media_decode import Item
from modmix.tasks.media_read import Unreadable

class Numbers(MediaTask):
    """Files NNNN.txt with a number each; every fourth is for testing, the one before validation."""

    def __init__(self, *, path: Path, scaled: bool = True, max_unreadable: float = 0.5) -> None:
        pass

    def listed(self):
        names = (self.root / "list.txt").read_text().split()
        splits = ("train", "train", "val", "test")
        items = tuple(
            Item(files=(name,), label=n % 2, split=splits[n % 4]) for n, name in enumerate(names)
        )
        return Listed(items=items, class_names=("even", "odd"))

    def inputs(self):
        return (
            Input(name="x", shape=(2,)),
            Input(name="frames", shape=(2, 1, 1, 3), kind="video", dtype="uint8"),
        )

    def standardised(self):
        return ("x",) if self.options["scaled"] else ()

    def decode(self, item):
        try:
            text = (self.root / item.files[0]).read_text()
        except OSError as error:
            raise Unreadable(f"is not there ({error.strerror})") from error
        match text:
            case "bad":
                raise Unreadable("is bad")
            case "segv" | "kill":
                os.kill(os.getpid(), getattr(signal, f"SIG{text.upper()}"))
            case "nan" | "1e99":
                x = np.array([float(text), 0])
                return {"x": x, "frames": np.zeros((2, 1, 1, 3))}
            case "bug":
                raise ZeroDivisionError("of the task's own")
            case "print":
                print("words on standard output", flush=True)
                os.write(1, b"and more")
                text = "1"
        number = int(text)
        return {"x": np.array([number, -number], float), "frames": np.full((2, 1, 1, 3), number)}
'''
ROWS = 24


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("MODMIX_DATA_WORKERS", "2")
    monkeypatch.setattr(media_decode, "_MOST_ITEMS", 4)
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    found = tmp_path / "files"
    found.mkdir()
    names = [f"{n:04}.txt" for n in range(ROWS)]
    for n, name in enumerate(names):
        (found / name).write_text(str(n))
    (found / "list.txt").write_text("\n".join(names))
    return found


def task(folder: Path) -> str:
    return sources.find("task.py:Numbers", folder.parent)


def load(folder: Path, progress: Any = None, **options: Any) -> Data:
    given = {"path": str(folder), **options}
    return load_task(task(folder), given, *([progress] if progress else []))


def in_split(split: str) -> list[int]:
    """The numbers of a split, as the task says."""
    places = {"train": (0, 1), "val": (2,), "test": (3,)}[split]
    return [n for n in range(ROWS) if n % 4 in places]


def child(folder: Path, code: str, **variables: str) -> subprocess.Popen[str]:
    """A process that prepares the task, after some code of its own."""
    text = f"""
    from modmix.tasks import media_decode
    from pathlib import Path
    from modmix.base import sources
    from modmix.tasks.base import prepare_task
    name = sources.find("task.py:Numbers", Path({str(folder.parent)!r}))
    media_decode._MOST_ITEMS = 4
    progress = lambda *_: None
    {textwrap.indent(textwrap.dedent(code), "    ").strip()}
    print(prepare_task(name, {{"path": {str(folder)!r}}}, progress))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


# ---------------------------------------------------------------- what is written


@pytest.mark.slow
def test_items_in_order_with_labels_and_scaling(folder: Path, home: Path) -> None:
    stages: dict[str, list[tuple[int, int | None]]] = {}
    data = load(
        folder, lambda stage, done, total: stages.setdefault(stage, []).append((done, total))
    )
    train = np.array(in_split("train"), float)
    for split, given in data.splits.items():
        numbers = in_split(split)
        assert given.labels.tolist() == [n % 2 for n in numbers]
        assert given.inputs["frames"][:, 0, 0, 0, 0].tolist() == numbers
        expected = (np.array(numbers) - train.mean()) / train.std()
        np.testing.assert_allclose(given.inputs["x"][:, 0], expected, atol=1e-6)
        np.testing.assert_allclose(given.inputs["x"][:, 1], -expected, atol=1e-6)
    assert (data.inputs["frames"].kind, data.shapes["frames"]) == ("video", (2, 1, 1, 3))
    assert data.class_names == ("even", "odd")
    assert stages["decode"][0] == (0, ROWS)
    assert stages["decode"][-1] == (ROWS, ROWS)
    assert stages["write"][-1] == (2 * ROWS, 2 * ROWS)
    # 14 bytes an item, once in shards and once in arrays
    assert [needed for needed, _ in stages["space"]] == [2 * ROWS * 14]
    assert list((home / "decoded").iterdir()) == []
    (prepared,) = (home / "prepared").glob("[0-9a-f]*")
    assert check_task(task(folder), {"path": str(folder)}) == prepared
    assert describe_task(task(folder), {"path": str(folder)}).rows == {
        "train": 12, "val": 6, "test": 6
    }  # fmt: skip
    unscaled = load(folder, scaled=False)
    assert unscaled.test.inputs["x"][:, 0].tolist() == in_split("test")
    assert unscaled.fingerprint != data.fingerprint


@pytest.mark.slow
def test_files_are_known_by_name_and_size(folder: Path, home: Path, tmp_path: Path) -> None:
    first = load(folder).fingerprint
    (folder / "unlisted.txt").write_text("1")
    assert load(folder).fingerprint == first
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert load(moved).fingerprint == first
    assert len(list((home / "prepared").glob("[0-9a-f]*"))) == 1
    (moved / "0000.txt").write_text("100")
    changed = load(moved, scaled=True)
    assert changed.fingerprint != first
    assert changed.train.inputs["frames"][0, 0, 0, 0, 0] == 100


def test_a_folder_of_an_item_is_known_by_the_number_of_its_files(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "0001.txt").unlink()
    (folder / "0001.txt").mkdir()
    for name in "abc":
        (folder / "0001.txt" / name).touch()
    (folder / "0002.txt").unlink()
    built = media_task(folder)
    assert built.listing()[:4] == [
        ["0000.txt", 1],
        ["0001.txt", 3],
        ["0002.txt", None],
        ["0003.txt", 1],
    ]


@pytest.mark.slow
def test_other_files_of_the_same_names_and_sizes_are_other_data(
    folder: Path, tmp_path: Path, home: Path
) -> None:
    first = load(folder)
    copy = folder.rename(tmp_path / "moved")
    assert load(copy).fingerprint == first.fingerprint
    for n in range(ROWS):
        (copy / f"{n:04}.txt").write_text(str(n)[::-1])  # 12 becomes 21
    assert load(copy).fingerprint != first.fingerprint
    assert len(list((home / "prepared").glob("[0-9a-f]*"))) == 2


def test_a_file_that_cannot_be_read_is_no_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(files=("a", "missing"), label=0, split="train")]
    (tmp_path / "a").write_text("a")
    assert sample_of(tmp_path, items) == hashlib.sha256(b"a").hexdigest()

    def fails(path: Path, mode: str) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(DataError, match=r"/a cannot be read \(Input/output error\): check its"):
        sample_of(tmp_path, items)


def test_a_sample_reads_files_of_folders(tmp_path: Path) -> None:
    items = [Item(files=(f"{n}",), label=0, split="train") for n in range(40)]
    for item in items:
        (tmp_path / item.files[0]).mkdir()
    empty = sample_of(tmp_path, items)
    (tmp_path / "0" / "b").write_text("frame")
    one = sample_of(tmp_path, items)
    (tmp_path / "0" / "c").write_text("another")
    assert one != empty
    assert sample_of(tmp_path, items) == one
    (tmp_path / "0" / "b").write_text("other")
    assert sample_of(tmp_path, items) != one


def media_task(folder: Path) -> media.MediaTask:
    from modmix.tasks.base import make_task

    built = make_task(task(folder), {"path": str(folder)})
    assert isinstance(built, media.MediaTask)
    return built


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.slow
def test_unreadable_items_are_left_out_and_listed(
    folder: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "0001.txt").write_text("bad")
    (folder / "0003.txt").unlink()
    (folder / "0008.txt").write_text("segv")
    (folder / "0012.txt").write_text("print")
    (folder / "0021.txt").write_text("bad")
    data = load(folder, scaled=False)
    assert data.train.labels.tolist() == [n % 2 for n in in_split("train") if n not in (1, 8, 21)]
    assert data.test.inputs["x"][:, 0].tolist() == in_split("test")[1:]
    assert data.train.inputs["x"][:, 0].tolist() == [0, 4, 5, 9, 1, 13, 16, 17, 20]
    (prepared,) = (home / "prepared").glob("[0-9a-f]*")
    listed = prepared / "unreadable.txt"
    assert listed.read_text().splitlines() == [
        "0001.txt\tis bad",
        "0008.txt\tthe decoder crashed (SIGSEGV)",
        "0021.txt\tis bad",
        "0003.txt\tis not there (No such file or directory)",
    ]
    record, absent = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"warning: 4 of 24 items of task task.py:Numbers cannot be read and are left out: "
        f"0001.txt, 0008.txt, 0021.txt, …; reasons in {listed}"
    )
    assert absent.getMessage() == (
        "warning: task task.py:Numbers: classes without examples in a split: 'even' (11 examples) "
        "in test, 'odd' (9 examples) in val; metrics of that split do not cover them: add "
        "examples, or leave these classes out"
    )
    check_task(task(folder), {"path": str(folder), "scaled": False})


@pytest.mark.slow
def test_values_that_are_not_finite_are_left_out(folder: Path, home: Path) -> None:
    """They would enter the mean and the deviation, and so every item."""
    (folder / "0001.txt").write_text("nan")
    (folder / "0008.txt").write_text("1e99")  # more than float32 has
    data = load(folder)
    numbers = [n for n in in_split("train") if n not in (1, 8)]
    expected = (numbers - np.mean(numbers)) / np.std(numbers)
    np.testing.assert_allclose(data.train.inputs["x"][:, 0], expected, atol=1e-6)
    (listed,) = (home / "prepared").glob("*/unreadable.txt")
    assert listed.read_text().splitlines() == [
        "0001.txt\tits x has values that are not finite numbers of float32",
        "0008.txt\tits x has values that are not finite numbers of float32",
    ]


@pytest.mark.slow
def test_too_many_unreadable_items(folder: Path, home: Path) -> None:
    for n in range(7):
        (folder / f"{n:04}.txt").write_text("bad")
    with pytest.raises(DataError) as caught:
        load(folder, max_unreadable=0.25)
    (listed,) = (home / "decoded").glob("*/unreadable.txt")
    assert str(caught.value) == (
        f"7 of 24 items of task task.py:Numbers cannot be read, such as 0000.txt, 0001.txt, "
        f"0004.txt (0000.txt: is bad); {listed} has all; correct the option `path` or "
        "get the files, or set `max_unreadable` (now 0.25 of the items of any split) higher"
    )
    assert len(listed.read_text().splitlines()) == 7
    assert not list((home / "prepared").glob("[0-9a-f]*"))
    decoded: list[int] = []
    with pytest.raises(DataError, match=r"^7 of 24 items"):
        load(
            folder,
            lambda stage, done, _: decoded.append(done) if stage == "decode" else None,
            max_unreadable=0.25,
        )
    assert decoded == [ROWS]  # what was decoded was kept
    # Files that are mended, at the same size, are read again.
    for n in range(7):
        (folder / f"{n:04}.txt").write_text(f"{n:3}")
    data = load(folder, max_unreadable=0.0)
    assert data.train.inputs["frames"][:, 0, 0, 0, 0].tolist() == in_split("train")


@pytest.mark.slow
def test_the_share_holds_for_every_split(folder: Path, home: Path) -> None:
    """Half of the test split is an eighth of all items."""
    for n in in_split("test")[:3]:
        (folder / f"{n:04}.txt").write_text("bad")
    with pytest.raises(DataError, match=r"3 of 6 items of the test split of task .* such as 0003"):
        load(folder, max_unreadable=0.4)
    assert load(folder, max_unreadable=0.5).test.rows == 3
    for n in in_split("val")[:4]:
        (folder / f"{n:04}.txt").unlink()
    with pytest.raises(DataError, match=r"files of 4 of 6 items of the val split are missing"):
        load(folder, max_unreadable=0.5)


@pytest.mark.slow
def test_a_file_in_two_splits_is_worth_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = (folder / "list.txt").read_text().split()
    names[1] = names[2]
    (folder / "list.txt").write_text("\n".join(names))
    load(folder)
    record, absent = caplog.records
    assert record.getMessage() == (
        "warning: the lists of task task.py:Numbers have 1 file in more than one split "
        "(0002.txt): errors on them may be too low"
    )
    assert "classes without examples in a split" in absent.getMessage()


def test_too_many_missing_files_are_refused_before_decoding(folder: Path, home: Path) -> None:
    for n in range(3, 20):
        (folder / f"{n:04}.txt").unlink()
    with pytest.raises(DataError) as caught:
        load(folder)
    assert str(caught.value).startswith(
        f"{folder}: files of 17 of 24 items are missing, such as 0003.txt, 0004.txt, 0005.txt; "
        "correct the option `path`"
    )
    assert not (home / "decoded").exists()


@pytest.mark.slow
def test_a_split_without_readable_items_is_refused(folder: Path) -> None:
    for n in in_split("val"):
        (folder / f"{n:04}.txt").write_text("bad")
    with pytest.raises(DataError, match="no item of the val split can be read; correct the"):
        load(folder, max_unreadable=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("bug", "ZeroDivisionError: of the task's own"),
        ("kill", r"a decoding process ended with code -9 \(-9: killed, often out of memory"),
    ],
)
def test_other_failures_are_not_blamed_on_an_item(folder: Path, content: str, message: str) -> None:
    (folder / "0005.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        load(folder)
    (folder / "0005.txt").write_text("5")
    assert load(folder, scaled=False).train.rows == 12


def test_too_little_space(folder: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    class Usage:
        free = 600

    monkeypatch.setattr(media.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(DataError) as caught:
        load(folder)
    assert str(caught.value).startswith(f"{home}: 0.0 GB must be free to prepare task ")
    assert "set MODMIX_DATA to a folder on another disk" in str(caught.value)


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_number_of_processes(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_DATA_WORKERS", "3")
    assert media_decode.worker_count() == 3
    monkeypatch.setenv("MODMIX_DATA_WORKERS", "")
    assert media_decode.worker_count() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("MODMIX_DATA_WORKERS", given)
    with pytest.raises(DataError, match=f"MODMIX_DATA_WORKERS must be a whole .* got '{given}'"):
        media_decode.worker_count()


# ---------------------------------------------------------------- kills and company

KILLED = """
import os, signal
from pathlib import Path
import psutil
def progress(stage, done, total):
    home = Path(os.environ["MODMIX_DATA"])
    if {when}:
        print(*[c.pid for c in psutil.Process().children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "least"),
    [
        ('stage == "decode" and len(list(home.glob("decoded/*/0*.npz"))) >= 2', 8),
        ('stage == "write" and done > 24', 24),
    ],
)
def test_a_killed_preparation_is_resumed(
    folder: Path, home: Path, when: str, least: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    process = child(folder, KILLED.format(when=when))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL
    workers = [psutil.Process(int(pid)) for pid in output.split() if psutil.pid_exists(int(pid))]
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []  # they end when their parent has gone
    assert not list((home / "prepared").glob("[0-9a-f]*"))
    decoded: list[int] = []
    data = load(folder, lambda stage, done, _: decoded.append(done) if stage == "decode" else None)
    assert decoded[0] >= least
    assert decoded[-1] == ROWS
    assert list((home / "decoded").iterdir()) == []
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "other"))
    whole = load(folder)
    assert whole.fingerprint == data.fingerprint
    for split in data.splits:
        for name, values in data.splits[split].inputs.items():
            np.testing.assert_array_equal(values, whole.splits[split].inputs[name])


@pytest.mark.slow
def test_a_damaged_shard_is_decoded_again(folder: Path, home: Path) -> None:
    process = child(folder, KILLED.format(when='stage == "write"'))
    process.communicate(timeout=200)
    first, second, *_ = sorted((home / "decoded").glob("*/0*.npz"))
    first.write_bytes(first.read_bytes()[:100])
    content = bytearray(second.read_bytes())
    place = content.index(np.full((2, 1, 1, 3), 8, np.uint8).tobytes())
    content[place] ^= 1
    second.write_bytes(content)
    with pytest.raises(DataError, match=r"was damaged .* and has been removed; run the command"):
        load(folder)
    assert load(folder, scaled=True).train.inputs["frames"][:, 0, 0, 0, 0].tolist() == in_split(
        "train"
    )


@pytest.mark.slow
def test_two_preparations_at_once(folder: Path, home: Path) -> None:
    processes = [child(folder, "") for _ in range(2)]
    outputs = {process.communicate(timeout=200)[0] for process in processes}
    (prepared,) = (home / "prepared").glob("[0-9a-f]*")
    assert outputs == {f"{prepared}\n"}
    assert load(folder).train.rows == 12


@pytest.mark.slow
def test_a_file_that_changes_while_it_is_read(folder: Path, home: Path) -> None:
    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "write":
            (folder / "0000.txt").write_text("1000")

    with pytest.raises(DataError, match=r"were changed while they were read; run the command"):
        load(folder, progress)
    assert not list((home / "prepared").glob("[0-9a-f]*"))


@pytest.mark.slow
def test_scratch_of_complete_folders_is_removed(folder: Path, home: Path) -> None:
    """A kill may fall between the last rename and the removal of the shards."""
    prepared = prepare_task(task(folder), {"path": str(folder)})
    left = home / "decoded" / prepared.name
    left.mkdir()
    other = home / "decoded" / "0123"
    other.mkdir()
    prepare_task("weak", {"train_rows": 20, "val_rows": 8, "test_rows": 8, "dim": 2})
    assert not left.exists()
    assert other.exists()  # of a preparation that can be resumed
    left.mkdir()
    prepare_task(task(folder), {"path": str(folder)})  # as after the kill
    assert not left.exists()
