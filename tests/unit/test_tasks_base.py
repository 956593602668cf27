"""Prepared once, mapped ever after: locks, kills, damage, changed sources, full disks."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.base.errors import DataError
from modmix.tasks import base, files, higgs, writer
from modmix.tasks.base import check_task, describe_task, get_task, load_task, prepare_task

WEAK: dict[str, Any] = {"train_rows": 20, "val_rows": 8, "test_rows": 8, "dim": 2}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def save_npz(path: Path, seed: int = 0, rows: int = 40) -> Path:
    rng = np.random.default_rng(seed)
    np.savez(path, a=rng.normal(size=(rows, 3)), labels=np.arange(rows) % 4)
    return path


def age(path: Path, seconds: float = 100.0) -> None:
    """Make a file old enough that its time stamp is trusted."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_loaded_arrays_are_read_only_maps() -> None:
    data = load_task("weak", WEAK)
    for split in data.splits.values():
        for array in (*split.inputs.values(), split.labels):
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable
    assert data.train.inputs["m1"].dtype == np.float32
    assert data.train.rows == 20
    assert data.shapes == {"m1": (2,), "m2": (2,), "m3": (2,)}


def test_prepared_folder_holds_the_named_files_and_nothing_else(home: Path) -> None:
    folder = prepare_task("weak", WEAK)
    assert folder.parent == home / "prepared"
    names = {f"{s}_{m}.npy" for s in ("train", "val", "test") for m in ("m1", "m2", "m3", "labels")}
    names |= {f"{s}__informative.npy" for s in ("train", "val", "test")}
    assert {file.name for file in folder.iterdir()} == names | {"meta.json"}
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["rows"] == {"train": 20, "val": 8, "test": 8}
    assert str(home) not in (folder / "meta.json").read_text()


def test_a_second_start_only_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_npz(tmp_path / "a.npz")
    monkeypatch.setattr(files, "_SETTLED_SECONDS", -1.0)
    first = load_task("arrays", {"path": str(path)})

    def never(*args: object) -> None:
        raise AssertionError("must not be called")

    monkeypatch.setattr(files, "hash_file", never)
    monkeypatch.setattr(base, "_prepare_locked", never)
    second = load_task("arrays", {"path": str(path)})
    assert second.fingerprint == first.fingerprint


def test_a_file_just_written_is_read_again_before_its_stamp_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    first = files.file_sha256(path)
    stamp = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert files.file_sha256(path) != first


def test_changed_content_is_prepared_anew_and_a_touched_file_is_not(
    tmp_path: Path, home: Path
) -> None:
    path = save_npz(tmp_path / "a.npz")
    options = {"path": str(path)}
    first = load_task("arrays", options)
    age(path)
    assert load_task("arrays", options).fingerprint == first.fingerprint
    assert len(list((home / "prepared").glob("[0-9a-f]*"))) == 1
    save_npz(path, seed=1)
    assert load_task("arrays", options).fingerprint != first.fingerprint
    assert len(list((home / "prepared").glob("[0-9a-f]*"))) == 2


def test_fingerprint_is_of_content_not_of_path_time_or_compression(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz")
    moved = tmp_path / "other" / "b.npz"
    moved.parent.mkdir()
    with np.load(path) as arrays:
        np.savez_compressed(moved, **arrays)
    one = load_task("arrays", {"path": str(path)}).fingerprint
    assert load_task("arrays", {"path": str(moved)}).fingerprint == one
    for other in ({"split_seed": 1}, {"standardise": False}, {"val_fraction": 0.3}):
        assert load_task("arrays", {"path": str(path), **other}).fingerprint != one


@pytest.mark.slow  # the first import of scikit-learn
def test_fingerprints_are_pinned() -> None:
    # They enter the keys of stored results: a change here means that old results are not reused.
    assert load_task("weak", WEAK).fingerprint == "268dc5bde3bee55cdd7b06866e541b6d"
    assert load_task("digits", {}).fingerprint == "c589158b66375e848bf6a400d754cd01"


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["truncated", "missing", "no meta", "bad meta", "other version"])
def test_a_damaged_folder_is_prepared_again(damage: str) -> None:
    first = load_task("weak", WEAK)
    before = np.array(first.test.inputs["m1"])
    folder = prepare_task("weak", WEAK)
    meta = folder / "meta.json"
    match damage:
        case "truncated":
            with (folder / "test_m1.npy").open("r+b") as file:
                file.truncate(130)
        case "missing":
            (folder / "test_m1.npy").unlink()
        case "no meta":
            meta.unlink()
        case "bad meta":
            meta.write_text('{"version": 2, "files": {')
        case "other version":
            meta.write_text(meta.read_text().replace('"version": 2', '"version": 1'))
    again = load_task("weak", WEAK)
    np.testing.assert_array_equal(again.test.inputs["m1"], before)
    assert again.fingerprint == first.fingerprint
    check_task("weak", WEAK)


def test_check_finds_a_changed_byte_and_what_is_missing() -> None:
    with pytest.raises(
        DataError, match="task weak is not prepared with these options; run `modmix"
    ):
        check_task("weak", WEAK)
    folder = prepare_task("weak", WEAK)
    assert check_task("weak", WEAK) == folder
    with (folder / "val_m2.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(
        DataError, match=r"val_m2\.npy: sha256 must be .* delete the folder and run"
    ):
        check_task("weak", WEAK)
    (folder / "val_m2.npy").unlink()
    with pytest.raises(DataError, match="prepared arrays are missing or truncated"):
        check_task("weak", WEAK)


def test_a_source_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_npz(tmp_path / "a.npz")
    original = base._write

    def write(task: Any, *args: Any) -> None:
        inner = task.write

        def changing(*inner_args: Any) -> Any:
            contents = inner(*inner_args)
            save_npz(path, seed=5, rows=44)
            return contents

        task.write = changing
        original(task, *args)

    monkeypatch.setattr(base, "_write", write)
    with pytest.raises(DataError, match=r"a\.npz: was changed while it was read; run the command"):
        prepare_task("arrays", {"path": str(path)})
    assert not list((home / "prepared").glob("[0-9a-f]*"))


# ---------------------------------------------------------------- official files


def test_an_official_file_may_be_deleted_once_it_is_prepared(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    text = "".join(
        f"{i % 2}," + ",".join(f"{v:.3f}" for v in rng.normal(size=28)) + "\n" for i in range(60)
    )
    file = home / "downloads" / "higgs" / "HIGGS.csv.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(higgs, "BYTES", file.stat().st_size)
    monkeypatch.setattr(higgs, "SHA256", files.hash_file(file))
    options = {"test_rows": 20, "val_rows": 10}
    first = load_task("higgs", options)
    assert get_task("higgs", options) == [file]
    file.unlink()
    assert load_task("higgs", options).fingerprint == first.fingerprint
    check_task("higgs", options)
    assert describe_task("higgs", options).rows == {"train": 30, "val": 10, "test": 20}
    with pytest.raises(DataError, match="found nothing; run `modmix data get higgs`, or download"):
        load_task("higgs", {"test_rows": 21})
    file.write_bytes(b"x")
    with pytest.raises(DataError, match=r"the official file has [0-9,]+ bytes, this one 1; run"):
        load_task("higgs", {"test_rows": 21})


# ---------------------------------------------------------------- disk


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "home: the disk is full; free some space or set MODMIX_DATA"),
        (errno.EROFS, "modmix must be able to write here, got 'Read-only file system'; change"),
        (errno.EIO, "Input/output error; look at the disk or set MODMIX_DATA"),
    ],
)
def test_errors_of_the_disk_are_clear_and_leave_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(self: writer.ArrayFile, values: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer.ArrayFile, "append", fail)
    with pytest.raises(DataError) as caught:
        prepare_task("weak", WEAK)
    assert message in str(caught.value)
    assert [p.suffix for p in (home / "prepared").iterdir()] in ([".lock"], [])


def test_a_home_that_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match="look at the disk or set MODMIX_DATA to a folder"):
        prepare_task("weak", WEAK)


def test_a_read_only_home_serves_what_is_prepared(tmp_path: Path, home: Path) -> None:
    path = save_npz(tmp_path / "a.npz")
    load_task("arrays", {"path": str(path)})
    folders = [home, *(p for p in home.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        if os.access(home, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert load_task("arrays", {"path": str(path)}).train.rows == 26
        with pytest.raises(DataError, match="must be able to write here"):
            load_task("weak", WEAK)
    finally:
        for folder in folders:
            folder.chmod(0o755)


# ---------------------------------------------------------------- memory

SHARING = """
import sys
from pathlib import Path
from modmix.tasks.base import load_task
def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))
data = load_task("arrays", {"path": sys.argv[1]})
before = private()
total = sum(float(array.sum()) for array in data.train.inputs.values())
print(sum(array.nbytes for array in data.train.inputs.values()), private() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells")
def test_processes_share_the_pages_of_the_data(tmp_path: Path) -> None:
    """Reading every number of the data makes no page of it a process's own."""
    rng = np.random.default_rng(0)
    path = tmp_path / "wide.npz"
    np.savez(path, x=rng.normal(size=(2000, 5000)).astype("f4"), labels=np.arange(2000) % 2)
    told = subprocess.run(
        [sys.executable, "-c", SHARING, str(path)], capture_output=True, text=True, check=True
    )
    size, grown = map(int, told.stdout.split())
    assert size > 20 << 20
    assert grown < size / 10


# ---------------------------------------------------------------- processes

SLOW = """
import sys, time
from pathlib import Path
from modmix.tasks import weak
from modmix.tasks.base import load_task
write = weak.Weak.write
def slowly(self, writer, progress):
    writer.put("half", __import__("numpy").zeros(9), "f4")
    with open(sys.argv[1], "a") as log:
        log.write("written\\n")
    time.sleep(float(sys.argv[2]))
    (writer.folder / "half.npy").unlink(); del writer.files["half.npy"]
    return write(self, writer, progress)
weak.Weak.write = slowly
print(load_task("weak", {"train_rows": 20, "val_rows": 8, "test_rows": 8, "dim": 2}).fingerprint)
"""


def start(log: Path, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SLOW, str(log), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_that_ask_at_once_prepare_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = [start(log, 0.3) for _ in range(3)]
    prints = {process.communicate(timeout=60)[0].strip() for process in running}
    assert log.read_text().splitlines() == ["written"]
    assert prints == {load_task("weak", WEAK).fingerprint}


@pytest.mark.parametrize("same", [True, False])
def test_a_kill_in_the_middle_leaves_nothing_half(tmp_path: Path, home: Path, same: bool) -> None:
    log = tmp_path / "log"
    process = start(log, 60)
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not list((home / "prepared").glob("[0-9a-f]*"))
    assert len(list((home / "prepared").glob(".*.tmp"))) == 1
    if same:
        assert load_task("weak", WEAK).train.rows == 20  # the lock died with its holder
    else:
        load_task("weak", {**WEAK, "seed": 1})
    assert not list((home / "prepared").glob(".*.tmp"))


def test_others_at_work_are_left_alone(tmp_path: Path, home: Path) -> None:
    log = tmp_path / "log"
    process = start(log, 0.5)
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.01)
    load_task("weak", {**WEAK, "seed": 1})
    assert len(list((home / "prepared").glob(".*.tmp"))) == 1
    assert process.communicate(timeout=60)[0].strip() == load_task("weak", WEAK).fingerprint


def test_an_interrupt_cleans_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(stage: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    path = save_npz(home.parent / "a.npz")
    monkeypatch.setattr(files, "_SETTLED_SECONDS", -1.0)
    files.file_sha256(path)
    with pytest.raises(KeyboardInterrupt):
        prepare_task("arrays", {"path": str(path)}, interrupt)
    assert not [p for p in (home / "prepared").iterdir() if p.suffix != ".lock"]


# ---------------------------------------------------------------- describing


def test_description_before_and_after_preparing() -> None:
    before = describe_task("weak", WEAK)
    assert before.folder is None
    assert before.rows == {}
    assert before.options["dim"] == 2
    data = load_task("weak", WEAK)
    after = describe_task("weak", WEAK)
    assert after.fingerprint == data.fingerprint
    assert after.rows == {"train": 20, "val": 8, "test": 8}
    assert dict(after.inputs) == dict(data.inputs)
    assert after.folder is not None
    assert after.bytes == sum(f.stat().st_size for f in after.folder.glob("*.npy"))
    assert describe_task("arrays").entry.doc.startswith("your own")
    assert describe_task("arrays", {"path": "/nowhere.npz"}).folder is None


def test_tasks_without_a_download_get_nothing() -> None:
    assert get_task("digits", {}) == []
    assert get_task("higgs", {"path": "/x.csv"}) == []


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = save_npz(tmp_path / "a.npz")
    prepare_task("arrays", {"path": str(path)}, lambda *news: told.append(news))
    assert ("write", 1, 1) in told
    assert ("check", path.stat().st_size, path.stat().st_size) in told
    shutil.rmtree(tmp_path / "home")
