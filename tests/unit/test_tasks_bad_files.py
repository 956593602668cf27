"""Files that are wrong: each is one clear sentence, and nothing half-prepared is left."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.base.errors import DataError
from modmix.tasks import csv_file
from modmix.tasks.base import prepare_task


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def refused(task: str, path: Path, options: dict[str, Any], home: Path) -> str:
    """Prepare, and return the message without the file's name, which it must begin with."""
    with pytest.raises(DataError) as caught:
        prepare_task(task, {"path": str(path), **options})
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    left = list((home / "prepared").iterdir()) if (home / "prepared").exists() else []
    assert [p for p in left if p.suffix != ".lock"] == []
    return message.removeprefix(f"{path}: ")


# ---------------------------------------------------------------- higgs

GOOD = ["1.0," + ",".join(["0.5"] * 28), "0.0," + ",".join(["-1.5e0"] * 28)] * 100


def with_line(number: int, line: str) -> list[str]:
    return [*GOOD[: number - 1], line, *GOOD[number:]]


def field(column: int, text: str) -> str:
    fields = GOOD[0].split(",")
    fields[column - 1] = text
    return ",".join(fields)


HIGGS: list[tuple[str, list[str], str]] = [
    (
        "text",
        with_line(150, field(7, "abc")),
        "line 150 must hold a number in column 7, got 'abc'; fill it in or remove",
    ),
    (
        "empty field",
        with_line(1, field(29, "")),
        "line 1 must hold a number in column 29, got ''; fill it in",
    ),
    (
        "nan",
        with_line(3, field(2, "nan")),
        "line 3 must be a label of 0 or 1 and finite numbers that float32 can hold, got 'nan' in",
    ),
    (
        "inf",
        with_line(200, field(2, "-inf")),
        "line 200 must be a label of 0 or 1 and finite numbers that float32 can hold, got '-inf'",
    ),
    (
        "too big",
        with_line(9, field(4, "1e39")),
        "line 9 must be a label of 0 or 1 and finite numbers that float32 can hold, got '1e39'",
    ),
    (
        "label 2",
        with_line(42, field(1, "2.0")),
        "line 42 must be a label of 0 or 1 and finite numbers that float32 can hold, got '2.0'",
    ),
    (
        "label .5",
        with_line(42, field(1, "0.5")),
        "line 42 must be a label of 0 or 1 and finite numbers that float32 can hold, got '0.5'",
    ),
    (
        "label -1",
        with_line(42, field(1, "-1")),
        "line 42 must be a label of 0 or 1 and finite numbers that float32 can hold, got '-1'",
    ),
    (
        "28 columns",
        with_line(17, GOOD[0][:-4]),
        "line 17 must have 29 columns, got 28; correct or remove it",
    ),
    ("30 columns", with_line(17, GOOD[0] + ",1"), "line 17 must have 29 columns, got 30"),
    (
        "all 28",
        [line[:-4] for line in GOOD],
        "line 1 must have 29 columns, got 28",
    ),
    (
        "header",
        [",".join(f"f{i}" for i in range(29)), *GOOD],
        "line 1 must hold a number in column 1, got 'f0'; the file must have no header",
    ),
    ("after blanks", ["", "", *with_line(2, "x")], "line 4 must have 29 columns, got 1"),
    (
        "too few",
        GOOD[:60],
        (
            "must have more rows than test_rows (50) and validation (20) take, got 60 (10 to train "
            "and validate with, variant full); set test_rows and val_rows lower"
        ),
    ),
    (
        "nothing",
        [],
        "must have more rows than test_rows (50) and validation (20) take, got 0 (0 to",
    ),
    (
        "one class",
        GOOD[::2],
        "the train rows must have both labels, 0 and 1, got only 1; shuffle the file's rows or set",
    ),
    (
        "sorted",
        [*GOOD, *GOOD[::2]],
        "the test rows must have both labels, 0 and 1, got only 1; shuffle the file's rows or set",
    ),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("lines", "message"), [c[1:] for c in HIGGS], ids=[c[0] for c in HIGGS])
def test_bad_higgs(
    tmp_path: Path, home: Path, lines: list[str], message: str, packed: bool
) -> None:
    text = "".join(line + "\n" for line in lines).encode()
    path = tmp_path / ("x.csv.gz" if packed else "x.csv")
    path.write_bytes(gzip.compress(text) if packed else text)
    assert refused("higgs", path, {"test_rows": 50, "val_rows": 20}, home).startswith(message)


def packed(lines: list[str] = GOOD) -> bytes:
    return gzip.compress("".join(line + "\n" for line in lines).encode())


HIGGS_BYTES: list[tuple[str, Callable[[], bytes], str]] = [
    (
        "cut",
        lambda: packed()[:-40],
        "is damaged or truncated (Compressed file ended before the end-of-stream",
    ),
    (
        "cut checksum",
        lambda: packed()[:-4],
        "is damaged or truncated (Compressed file ended before",
    ),
    (
        "cut member",
        lambda: packed() + packed()[:30],
        "is damaged or truncated (Compressed file ended",
    ),
    (
        "flipped",
        lambda: packed()[:-8] + b"\0" * 8,
        "is damaged or truncated (CRC check failed",
    ),
    (
        "garbage after",
        lambda: packed() + b"garbage",
        "is damaged or truncated (Not a gzipped file (b'ga'))",
    ),
    (
        "binary",
        lambda: bytes(range(1, 9)) * 400_000,
        "after row 0: CSV parse error: Row #1: Expected 29 columns, got 1: ??",
    ),
    (
        "page",
        lambda: b"<html>\n<p>Not found</p>\n",
        "line 1 must have 29 columns, got 1",
    ),
]


@pytest.mark.parametrize(
    ("content", "message"), [c[1:] for c in HIGGS_BYTES], ids=[c[0] for c in HIGGS_BYTES]
)
def test_bad_higgs_bytes(
    tmp_path: Path, home: Path, content: Callable[[], bytes], message: str
) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(content())
    assert refused("higgs", path, {"test_rows": 50, "val_rows": 20}, home).startswith(message)


@pytest.mark.parametrize("task", ["higgs", "arrays"])
def test_the_line_is_right_in_a_later_block(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", 500)
    path = tmp_path / "x.csv"
    lines = with_line(177, field(3, "?"))
    columns = {"a": [f"c{i}" for i in range(1, 29)]}
    options: dict[str, Any] = {"test_rows": 50}
    if task == "arrays":
        lines[0] = "label," + ",".join(columns["a"])
        options = {"columns": columns}
    lines[5:7] = ["", ""]
    path.write_text("\n".join(lines))
    message = refused(task, path, options, home)
    place = {"higgs": "column 3", "arrays": "column 'c2'"}[task]
    expected = f"line 177 must hold a number in {place}, got '?'; fill it in or remove the line"
    assert message == expected


@pytest.mark.parametrize("task", ["higgs", "arrays"])
def test_missing_files_and_folders(tmp_path: Path, home: Path, task: str) -> None:
    message = refused(task, tmp_path / "no.csv", {}, home)
    assert message == "a data file must be here, found nothing; correct the option `path`"
    message = refused(task, tmp_path, {}, home)
    assert message == "a data file must be here, found a folder; correct the option `path`"


# ---------------------------------------------------------------- npz


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    base = {"text": rng.normal(size=(40, 3)), "labels": np.arange(40) % 4}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def spoiled(value: float, row: int = 7) -> Any:
    values = np.ones((40, 3), dtype=np.float64)
    values[row, 1] = value
    return values


def at(row: int, value: Any, dtype: Any = np.int64) -> Any:
    labels = (np.arange(40) % 4).astype(dtype)
    labels[row] = value
    return labels


NPZ: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (
        "lengths",
        {"image": np.zeros((39, 2))},
        {},
        "'image' must have one row per label (40), got 39 rows; correct it or leave it out by the",
    ),
    (
        "nan",
        {"text": spoiled(np.nan)},
        {},
        "'text' must hold finite numbers, got nan in row 7 (from 0); fill in or leave out such ro",
    ),
    (
        "inf",
        {"text": spoiled(np.inf, 39)},
        {},
        "'text' must hold finite numbers, got inf in row 39",
    ),
    (
        "too big to standardise",
        {"text": spoiled(1e200)},
        {},
        "'text' must hold numbers up to 1e+150, got 1e+200 in row 7 (from 0); rescale or leave out",
    ),
    (
        "too big for float32",
        {"text": spoiled(1e39)},
        {"standardise": False},
        "'text' must hold numbers up to 3.4e+38, got 1e+39 in row 7 (from 0); standardise, rescale",
    ),
    (
        "too big in test",
        {"text": np.r_[np.arange(117.0), 1e50, 1, 2].reshape(40, 3), "n_train": 38},
        {},
        "'text' has values in validation or test that are over 1e38 training deviations from the",
    ),
    (
        "one class",
        {"labels": np.full(40, 3)},
        {},
        "'labels' must have at least two classes, got only '3'",
    ),
    (
        "one class known",
        {"labels": np.full(40, 3)},
        {"classes": 5},
        "'labels' must have at least two classes, got only '3'",
    ),
    (
        "negative",
        {"labels": at(5, -1)},
        {},
        "'labels' must be 0 or more (or -1 and 1), got -1 in row 5 (from 0); leave out rows",
    ),
    (
        "out of range",
        {"labels": at(6, 9)},
        {"classes": 4},
        "'labels' must be from 0 to 3 (4 classes), got 9 in row 6 (from 0)",
    ),
    (
        "beyond class_names",
        {"class_names": np.array(["a", "b", "c"])},
        {},
        "'labels' must be from 0 to 2 (3 classes), got 3 in row 3 (from 0)",
    ),
    (
        "class_names and classes",
        {"class_names": np.array(["a", "b", "c", "d"])},
        {"classes": 5},
        "'class_names' must have as many names as the option `classes` says, got 4 and 5",
    ),
    (
        "floats",
        {"labels": np.arange(40) / 2},
        {},
        "'labels' must be whole numbers or words, got 0.5 in row 1 (from 0); convert them, or is",
    ),
    (
        "one-hot",
        {"labels": np.eye(4, dtype=int)[np.arange(40) % 4]},
        {},
        "'labels' must have one label per example, got the shape (40, 4)",
    ),
    (
        "identifiers",
        {"labels": np.arange(40)},
        {},
        "'labels' must name classes, got 40 different ones in 40 rows; is it another column?",
    ),
    (
        "empty word",
        {"labels": at(4, "", "U3")},
        {},
        "'labels' must not be empty, got nothing in row 4 (from 0)",
    ),
    (
        "words and classes",
        {"labels": np.array(["a", "b"] * 20)},
        {"classes": 2},
        "'labels' must be whole numbers for the option `classes`, got words; remove it",
    ),
    (
        "no labels",
        {"labels": None, "labelz": np.arange(40) % 4},
        {},
        "must have labels, named by the option `label` or called 'labels', got text, labelz (did ",
    ),
    (
        "label name",
        {},
        {"label": "labls"},
        "has no 'labls' (did you mean 'labels'?); it has text, la",
    ),
    (
        "modality name",
        {},
        {"inputs": ["txt"]},
        "has no 'txt' (did you mean 'text'?); it has text, labels",
    ),
    ("split name", {}, {"split": "fold"}, "has no 'fold'; it has text, labels"),
    (
        "the answer",
        {},
        {"inputs": ["labels"]},
        "'labels' cannot be an input, it holds the labels",
    ),
    (
        "no modality",
        {"text": None, "speaker": np.array(["x"] * 40)},
        {},
        "must have at least one numeric array beside 'labels', got labels, speaker",
    ),
    (
        "words asked for",
        {"speaker": np.array(["x"] * 40)},
        {"inputs": ["text", "speaker"]},
        "'speaker' must hold real numbers, got text; name it in the option `tokens` to use its",
    ),
    (
        "complex",
        {"text": np.ones(40, dtype=complex)},
        {},
        "'text' must hold real numbers, got complex",
    ),
    (
        "objects",
        {"text": np.array([{}] * 40)},
        {},
        "'text' is an object array, which only pickle could load and modmix never does; save it as",
    ),
    (
        "object labels",
        {"labels": np.array(["a", 1] * 20, dtype=object)},
        {},
        "'labels' is an object array, which only pickle could load and modmix never does; save it",
    ),
    (
        "scalar",
        {"text": np.float64(3)},
        {"inputs": ["text"]},
        "'text' must have one row per label (40), got a single number; correct it or leave it out",
    ),
    (
        "five dimensions",
        {"text": np.zeros((40, 1, 2, 3, 4))},
        {},
        "'text' must have rows of shape (D,), (T, D) or (H, W, C), got (1, 2, 3, 4)",
    ),
    (
        "empty rows",
        {"text": np.zeros((40, 0))},
        {},
        "'text' must have rows of shape (D,), (T, D) or",
    ),
    (
        "bad name",
        {"../text": np.zeros((40, 2))},
        {},
        "an input's name must be 1 to 64 letters, digits, '_', '-' or '.', begin with a letter ",
    ),
    ("n_train 0", {"n_train": 0}, {}, "'n_train' must be from 1 to 39 (40 rows), got 0"),
    ("n_train all", {"n_train": 40}, {}, "'n_train' must be from 1 to 39 (40 rows), got 40"),
    (
        "n_train shape",
        {"n_train": np.arange(3)},
        {},
        "'n_train' must have one entry per row (40), got",
    ),
    (
        "split word",
        {"split": np.array(["train"] * 39 + ["tset"])},
        {},
        "'split' must be train, val, test or 0, 1, 2, got 'tset' in row 39 (from 0)",
    ),
    (
        "split number",
        {"split": at(3, 3)},
        {},
        "'split' must be train, val, test or 0, 1, 2, got '3' in",
    ),
    (
        "is_test value",
        {"is_test": at(1, 1)},
        {},
        "'is_test' must be true or false, got '2' in row 2 (from 0)",
    ),
    (
        "split length",
        {"is_test": np.zeros(39, dtype=bool)},
        {},
        "'is_test' must have one entry per row (40), got shape (39,)",
    ),
    (
        "two splits",
        {"is_test": np.zeros(40, dtype=bool), "n_train": 3},
        {},
        "defines the split more than once (is_test, n_train); set the option `split`",
    ),
    (
        "no test",
        {"is_test": np.zeros(40, dtype=bool)},
        {},
        "must have rows for train, val and test, got none for test of 40 rows; correct the split ",
    ),
    (
        "no train",
        {"is_test": np.ones(40, dtype=bool)},
        {},
        "must have rows for train, val and test, got none for train of 40 rows; correct the split",
    ),
    (
        "class only in test",
        {"labels": at(39, 8), "n_train": 30},
        {},
        "every class must have a training row, class '8' has none; correct the split or leave the",
    ),
    ("columns", {}, {"columns": {"a": ["b"]}}, "the option `columns` is for CSV files; remove it"),
    (
        "tiny",
        {"text": np.ones((2, 1)), "labels": np.array([0, 1])},
        {},
        "must have rows for train, val and test, got none for val of 2 rows; correct the split or",
    ),
]


@pytest.mark.parametrize(
    ("changes", "options", "message"), [c[1:] for c in NPZ], ids=[c[0] for c in NPZ]
)
def test_bad_npz(
    tmp_path: Path, home: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **arrays(**changes))
    assert refused("arrays", path, options, home).startswith(message)


def npz_bytes(path: Path) -> bytes:
    np.savez_compressed(path, **arrays())
    return path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-30], "is not a whole .npz file (truncated, or of another kind); write it"),
        (lambda b: b[: len(b) // 2], "is not a whole .npz file (truncated, or of another kind)"),
        (lambda b: b"", "is not a whole .npz file (truncated, or of another kind); write it again"),
        (lambda b: b"\x80\x04K\x01.", "is not a whole .npz file (truncated, or of another kind)"),
        (lambda b: b[:90] + bytes(20) + b[110:], "is damaged or truncated ("),
        (lambda b: b"\x93NUMPY" + b, "is not a whole .npz file (truncated, or of another kind)"),
        (lambda b: b"\x80\x04" + b, "is not a whole .npz file (truncated, or of another kind)"),
    ],
)
def test_damaged_npz(
    tmp_path: Path, home: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(change(npz_bytes(path)))
    assert refused("arrays", path, {}, home).startswith(message)


def test_other_kinds_of_files(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "x.mat"
    path.write_bytes(b"MATLAB")
    message = refused("arrays", path, {}, home)
    assert message == "must be an .npz, .csv, .tsv, .csv.gz or .tsv.gz file; convert it to one"


# ---------------------------------------------------------------- csv

HEADER = "label,a_1,a_2,b,split"
ROWS = [f"{i % 2},{i},{i}.5,{-i},{'train' if i < 20 else 'test'}" for i in range(30)]
COLUMNS = {"columns": {"a": ["a_*"], "b": ["b"]}}

CSV: list[tuple[str, list[str], dict[str, Any], str]] = [
    (
        "no columns",
        [HEADER, *ROWS],
        {},
        (
            'a CSV needs the option `columns`, as {audio: ["audio_*"], age: ["age"]}; its columns '
            "are label, a_1, a_2, b, split"
        ),
    ),
    (
        "unknown column",
        [HEADER, *ROWS],
        {"columns": {"a": ["a_3"]}},
        "has no 'a_3' (did you mean 'a_2'?); it has label, a_1, a_2, b, split",
    ),
    (
        "no match",
        [HEADER, *ROWS],
        {"columns": {"c": ["c_*"]}},
        "has no 'c_*'; it has label, a_1, a_2",
    ),
    (
        "label as input",
        [HEADER, *ROWS],
        {"columns": {"a": ["label"]}},
        "'label' cannot be an input, it holds the labels or the split",
    ),
    (
        "unknown modality",
        [HEADER, *ROWS],
        {**COLUMNS, "inputs": ["bb"]},
        "`columns` has no input 'bb' (did you mean 'b'?); it has a, b",
    ),
    (
        "no label",
        [HEADER.replace("label", "kind"), *ROWS],
        COLUMNS,
        "must have labels, named by the option `label` or called 'labels', got kind, a_1, a_2, b,",
    ),
    (
        "label name",
        [HEADER, *ROWS],
        {**COLUMNS, "label": "labl"},
        "has no 'labl' (did you mean 'la",
    ),
    (
        "text",
        [HEADER, *ROWS[:9], "1,x,2,3,train", *ROWS],
        COLUMNS,
        "line 11 must hold a number in column 'a_1', got 'x'",
    ),
    (
        "empty value",
        [HEADER, *ROWS[:9], "1,1,2,,train", *ROWS],
        COLUMNS,
        "line 11 must hold a number in column 'b', got ''",
    ),
    (
        "nan",
        [HEADER, *ROWS[:9], "1,1,nan,4,train", *ROWS],
        COLUMNS,
        "'a' must hold finite numbers, got nan in line 11; fill in or leave out such rows",
    ),
    (
        "short line",
        [HEADER, *ROWS, "1,2"],
        COLUMNS,
        "line 32 must have 5 columns, got 2; correct or remove it",
    ),
    (
        "float label",
        [HEADER, *ROWS, "0.5,1,2,3,train"],
        COLUMNS,
        "'label' must be whole numbers or words, got 0.5 in line 32; convert them, or is it",
    ),
    (
        "negative label",
        [HEADER, *ROWS, "-1,1,2,3,train"],
        COLUMNS,
        "'label' must be 0 or more (or -1 and 1), got -1 in line 32",
    ),
    (
        "empty label",
        [HEADER, *ROWS, ",1,2,3,train"],
        COLUMNS,
        "'label' must not be empty, got nothing in line 32; fill it in or leave the row out",
    ),
    (
        "one class",
        [HEADER, *ROWS[::2]],
        COLUMNS,
        "'label' must have at least two classes, got only '0'",
    ),
    (
        "split word",
        [HEADER, *ROWS, "1,1,2,3,dev"],
        COLUMNS,
        "'split' must be train, val, test or 0, 1, 2, got 'dev' in line 32",
    ),
    ("no rows", [HEADER], COLUMNS, "must have rows below its header, got none"),
    (
        "repeated column",
        [HEADER + ",b", *ROWS],
        COLUMNS,
        "must begin with a line of distinct column names, got 'b' more than once",
    ),
    ("nothing", [], COLUMNS, "must begin with a line of distinct column names, got an empty file"),
]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize(
    ("lines", "options", "message"), [c[1:] for c in CSV], ids=[c[0] for c in CSV]
)
def test_bad_csv(
    tmp_path: Path, home: Path, name: str, lines: list[str], options: dict[str, Any], message: str
) -> None:
    text = "".join(line + "\n" for line in lines).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert refused("arrays", path, options, home).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress("\n".join([HEADER, *ROWS]).encode())[:-20], "is damaged or truncated ("),
        (b"\x1f\x8bnot gzip at all", "is damaged or truncated ("),
        (b"plain text", "must have labels, named by the option `label` or called 'labels', got pl"),
        (gzip.compress(b"l\xe4bel,a\n1,2\n"), "must be UTF-8 text, its first line is not; conve"),
        (
            gzip.compress(b"label,a_1,b\n\xe4,2,3\n"),
            "after row 0: In CSV column #0: Row #2: CSV con",
        ),
        (
            gzip.compress(b'label,a_1,b\n"1,2,3\n' + b"1,2,3\n" * 30_000),
            "after row 0: CSV parse err",
        ),
    ],
    ids=["cut", "no gzip", "plain", "latin-1", "latin-1 label", "open quote"],
)
def test_damaged_csv(tmp_path: Path, home: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(content)
    found = refused("arrays", path, COLUMNS, home)
    assert re.match(re.escape(message), found), found


def test_an_open_quotation_mark_is_suspected(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.csv"
    path.write_text('label,a_1,b\n"1,2,3\n' + "1,2,3\n" * 30_000)
    assert refused("arrays", path, COLUMNS, home).endswith("; is a quotation mark missing?")
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", 1000)
    assert refused("arrays", path, COLUMNS, home).endswith("; is a quotation mark missing?")
