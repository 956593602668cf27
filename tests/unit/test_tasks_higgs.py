"""The task ``higgs``: read in blocks, split, standardised; against numpy and pandas."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.tasks import csv_file
from modmix.tasks.base import load_task, prepare_task
from modmix.tasks.csv_file import read_blocks
from modmix.tasks.higgs import COLUMNS
from modmix.tasks.splits import permutation

REAL = Path(os.environ.get("MODMIX_TEST_DATA", "/nowhere")) / "HIGGS.csv.gz"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="MODMIX_TEST_DATA has no HIGGS.csv.gz")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def lines(rows: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 28)).astype(np.float32)
    labels = rng.integers(0, 2, size=rows)
    return [
        ",".join([f"{float(y):.18e}", *(f"{v:.18e}" for v in x)])
        for y, x in zip(labels, values, strict=True)
    ]


def write(path: Path, text: list[str], end: str = "\n") -> Path:
    data = (end.join(text) + end).encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


# ---------------------------------------------------------------- reading


def read(path: Path) -> list[Any]:
    names = [f"f{i}" for i in range(COLUMNS)]
    blocks = read_blocks(path, dict.fromkeys(names, "float32"), names=names)
    return [np.stack([column.to_numpy() for column in block.columns], axis=1) for block in blocks]


@pytest.mark.parametrize("block_bytes", [2_000, 50_000, 1 << 20])
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_rows_come_in_order_and_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, name: str
) -> None:
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", block_bytes)
    path = write(tmp_path / name, lines(300))
    blocks = read(path)
    assert max(map(len, blocks)) <= block_bytes / 200
    expected = np.loadtxt(path, delimiter=",", dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_blank_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    text = lines(20)
    path = tmp_path / "x.csv"
    path.write_bytes((end.join([*text[:7], "", *text[7:]])).encode())  # no line end at the end
    assert sum(map(len, read(path))) == 20
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", 1000)
    assert sum(map(len, read(path))) == 20


def test_gzip_of_several_members_with_padding(tmp_path: Path) -> None:
    text = [(line + "\n").encode() for line in lines(40)]
    path = tmp_path / "x.csv.gz"
    half = gzip.compress(b"".join(text[:20]))
    path.write_bytes(half + gzip.compress(b"".join(text[20:])) + b"\0" * 512)
    assert sum(map(len, read(path))) == 40


# ---------------------------------------------------------------- splits and standardisation


def expected(path: Path, val_rows: int, test_rows: int, small: bool = False) -> dict[str, Any]:
    """Compute the splits with pandas; only the random order is the project's."""
    import pandas

    frame = pandas.read_csv(path, header=None, dtype=np.float64)
    kept = len(frame) - test_rows
    order = permutation(kept, 0, "higgs", "small")
    order = order[: kept // 3] if small else order
    parts = {
        "train": frame.iloc[np.sort(order[val_rows:])],
        "val": frame.iloc[np.sort(order[:val_rows])],
        "test": frame.iloc[kept:],
    }
    features = parts["train"].iloc[:, 1:].astype(np.float32).astype(np.float64)
    mean, scale = features.mean(), features.std(ddof=0)
    return {
        name: (((part.iloc[:, 1:] - mean) / scale).to_numpy(), part[0].to_numpy().astype(int))
        for name, part in parts.items()
    }


@needs_real
@pytest.mark.parametrize("variant", ["full", "small"])
def test_the_real_file_equals_pandas(variant: str) -> None:
    options = {"path": str(REAL), "test_rows": 5000, "val_rows": 2000, "variant": variant}
    data = load_task("higgs", options)
    assert data.shapes == {"low": (21,), "high": (7,)}
    assert data.class_names == ("background", "signal")
    assert data.train.rows == {"full": 25_970 - 7000, "small": 20_970 // 3 - 2000}[variant]
    for name, (features, labels) in expected(REAL, 2000, 5000, variant == "small").items():
        split = data.splits[name]
        np.testing.assert_array_equal(split.labels, labels)
        np.testing.assert_allclose(split.inputs["low"], features[:, :21], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(split.inputs["high"], features[:, 21:], rtol=1e-5, atol=1e-5)


def test_choices_of_the_papers_code(tmp_path: Path) -> None:
    """Every third row, and moments of training and test rows, against numpy."""
    path = write(tmp_path / "x.csv", lines(400))
    table = np.loadtxt(path, delimiter=",", dtype=np.float64)
    given = {"path": str(path), "test_rows": 100, "val_rows": 40, "variant": "small"}
    data = load_task("higgs", {**given, "third": "every", "standardise": "train_and_test"})
    rows = np.arange(0, 300, 3)
    order = permutation(300, 0, "higgs", "small")
    order = order[order % 3 == 0]
    assert sorted(order) == list(rows)
    train, test = table[np.sort(order[40:]), 1:], table[300:, 1:]
    both = np.concatenate([train, test])
    expected = (train - both.mean(0)) / both.std(0)
    np.testing.assert_allclose(data.train.inputs["low"], expected[:, :21], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(data.train.inputs["high"], expected[:, 21:], rtol=1e-4, atol=1e-4)
    plain = load_task("higgs", {**given, "third": "every"})
    assert plain.fingerprint != data.fingerprint


@needs_real
def test_the_real_file_can_be_learned_and_high_helps() -> None:
    """Columns are where they should be: least squares reaches the known order of AUC."""
    data = load_task("higgs", {"path": str(REAL), "test_rows": 5000})
    errors = {}
    for name in ("low", "high"):
        inputs = {
            s: np.hstack([split.inputs[name], np.square(split.inputs[name])])
            for s, split in data.splits.items()
        }
        weights = np.linalg.lstsq(inputs["train"], data.train.labels - 0.53, rcond=None)[0]
        errors[name] = ((inputs["test"] @ weights > -0.03) != data.test.labels).mean()
    assert errors["high"] < errors["low"] - 0.02 < 0.47


def test_options_of_the_split(tmp_path: Path) -> None:
    path = str(write(tmp_path / "x.csv", lines(400)))
    base = {"path": path, "test_rows": 100}
    sizes: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (285, 15)),
        ({"val_fraction": 0.5}, (150, 150)),
        ({"val_rows": 40, "val_fraction": 0.5}, (260, 40)),
        ({"variant": "small", "val_rows": 40}, (60, 40)),
    ]
    prints = set()
    for options, (train, val) in sizes:
        data = load_task("higgs", {**base, **options})
        assert (data.train.rows, data.val.rows, data.test.rows) == (train, val, 100)
        prints.add(data.fingerprint)
    every = load_task("higgs", {**base, "variant": "small", "val_rows": 40, "third": "every"})
    assert (every.train.rows, every.val.rows) == (60, 40)
    other = load_task("higgs", {**base, "split_seed": 1})
    assert len(prints | {other.fingerprint}) == 5


def test_plain_and_gzip_files_of_the_same_rows_have_one_fingerprint(tmp_path: Path) -> None:
    text = lines(300)
    paths = [str(write(tmp_path / name, text)) for name in ("x.csv", "y.csv.gz")]
    prints = {load_task("higgs", {"path": p, "test_rows": 100}).fingerprint for p in paths}
    assert len(prints) == 1


MEMORY = """
import resource, sys
from modmix.tasks.base import prepare_task
import modmix.tasks.higgs, modmix.tasks.download, filelock, pyarrow.csv
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_task("higgs", {"path": sys.argv[1], "test_rows": 1000})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_blocks_not_by_the_file(tmp_path: Path) -> None:
    text = ("\n".join(lines(2_000)) + "\n").encode()
    path = tmp_path / "x.csv.gz"
    grown_mb = []
    for copies in (60, 180):  # 120,000 and 360,000 rows, 89 and 266 MB of text
        path.write_bytes(gzip.compress(text, 1) * copies)
        run = subprocess.run(
            [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
        )
        grown_mb.append(int(run.stdout) / 1024)
    assert grown_mb[1] < grown_mb[0] + 60, grown_mb
    assert grown_mb[1] < 500, grown_mb


def test_nothing_but_prepared_arrays_is_left(tmp_path: Path, home: Path) -> None:
    path = write(tmp_path / "x.csv.gz", lines(300))
    folder = prepare_task("higgs", {"path": str(path), "test_rows": 100})
    files = {f"{s}_{m}.npy" for s in ("train", "val", "test") for m in ("low", "high", "labels")}
    assert {file.name for file in folder.iterdir()} == files | {"meta.json"}
    assert [p for p in (home / "prepared").iterdir() if p.suffix != ".lock"] == [folder]
