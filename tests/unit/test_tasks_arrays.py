"""The task ``arrays`` on real and made files, against numpy, pandas and scikit-learn."""

from __future__ import annotations

import csv
import gzip
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.base.errors import DataError
from modmix.tasks import arrays_csv, csv_file
from modmix.tasks.base import load_task
from modmix.tasks.data import Data

REAL = Path(os.environ.get("MODMIX_TEST_DATA", "/nowhere"))
needs_real = pytest.mark.skipif(
    not (REAL / "wikipedia.npz").exists(), reason="MODMIX_TEST_DATA has no wikipedia.npz"
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))


def load(path: Path, **options: Any) -> Data:
    return load_task("arrays", {"path": str(path), **options})


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def example(rows: int = 60, classes: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(rows, 4)),
        "b": rng.normal(size=(rows, 2)),
        "labels": np.arange(rows) % classes,
    }


# ---------------------------------------------------------------- real files


@needs_real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "train", "val", "test"),
    [("wikipedia.npz", 1738, 435, 693), ("handwritten.npz", 1280, 320, 400)],
)
def test_real_files_with_n_train(name: str, train: int, val: int, test: int) -> None:
    data = load(REAL / name)
    assert [split.rows for split in data.splits.values()] == [train, val, test]
    with np.load(REAL / name) as file:
        arrays = dict(file)
    names = [n for n in arrays if n not in ("labels", "n_train")]
    assert list(data.inputs) == names
    count = int(arrays["n_train"])
    np.testing.assert_array_equal(data.test.labels, arrays["labels"][count:])
    # Which training rows are training: found by matching, not by the project's own split.
    raw = np.hstack([arrays[n].astype(np.float64) for n in names])
    mean, scale = affine(raw[count:], np.hstack([data.test.inputs[n] for n in names]))
    back = np.hstack([data.train.inputs[n] for n in names]) * scale + mean
    rows = match(back, raw[:count], scale)
    assert len(set(rows.tolist())) == len(rows) == train
    np.testing.assert_array_equal(data.train.labels, arrays["labels"][:count][rows])
    for n in names:
        raw = arrays[n].astype(np.float64)
        mean, scale = raw[:count][rows].mean(axis=0), raw[:count][rows].std(axis=0)
        scale[scale == 0] = 1
        np.testing.assert_allclose(
            data.test.inputs[n], (raw[count:] - mean) / scale, rtol=1e-4, atol=1e-4
        )
    counts = np.bincount(data.train.labels) / np.bincount(arrays["labels"][:count])
    assert counts.max() - counts.min() < 0.02  # stratified


def affine(raw: Any, standard: Any) -> tuple[Any, Any]:
    """Fit mean and scale per column from raw and standardised rows."""
    standard = np.asarray(standard, dtype=np.float64)
    scale = raw.std(axis=0, dtype=np.float64) / np.maximum(standard.std(axis=0), 1e-12)
    return raw.mean(axis=0, dtype=np.float64) - scale * standard.mean(axis=0), scale


def match(rows: Any, candidates: Any, scale: Any) -> Any:
    """For each row the index of the nearest candidate, none taken twice."""
    scale = np.where(scale > 0, scale, 1)
    squares = np.square(candidates / scale).sum(axis=1)
    found, taken = [], np.zeros(len(candidates), dtype=bool)
    for row in rows:
        distance = squares - 2 * (candidates / scale) @ (row / scale)
        distance[taken] = np.inf
        found.append(int(distance.argmin()))
        taken[found[-1]] = True
    return np.array(found)


# ---------------------------------------------------------------- shapes and scales


def test_shapes_and_kinds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = save(
        tmp_path / "x.npz",
        number=rng.normal(size=60),
        flags=rng.integers(0, 2, size=(60, 3)).astype(bool),
        series=rng.normal(size=(60, 7, 2)),
        grey=rng.integers(0, 256, size=(60, 4, 5), dtype=np.uint8),
        colour=rng.integers(0, 4000, size=(60, 4, 5, 3), dtype=np.uint16),
        heat=rng.random((60, 4, 5, 1)).astype(np.float16),
        labels=np.arange(60) % 2,
    )
    data = load(path)
    assert {n: (m.shape, m.kind) for n, m in data.inputs.items()} == {
        "number": ((1,), "dense"),
        "flags": ((3,), "dense"),
        "series": ((7, 2), "sequence"),
        "grey": ((4, 5, 1), "image"),
        "colour": ((4, 5, 3), "image"),
        "heat": ((4, 5, 1), "image"),
    }
    types = {name: described.dtype for name, described in data.inputs.items()}
    assert types == {**dict.fromkeys(types, "float32"), "grey": "uint8"}
    for name, values in data.train.inputs.items():
        assert values.dtype == types[name]
        if name == "grey":  # tests/unit/test_tasks_inputs.py
            continue
        axes = tuple(range(values.ndim - 1))
        np.testing.assert_allclose(np.mean(values, axis=axes, dtype=float), 0, atol=1e-5)
        np.testing.assert_allclose(np.std(values, axis=axes, dtype=float), 1, atol=1e-4), name
    plain = load(path, standardise=False)
    assert 0.98 < plain.train.inputs["colour"].max() <= 1.0
    assert set(np.unique(plain.train.inputs["flags"])) == {0.0, 1.0}


def test_modalities_subset_and_order(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", **example())
    assert list(load(path).inputs) == ["a", "b"]
    assert list(load(path, inputs=["b", "a"]).inputs) == ["b", "a"]
    assert load(path, inputs=["b", "a"]).fingerprint != load(path).fingerprint
    assert load(path, inputs=["a", "b"]).fingerprint == load(path).fingerprint


def test_wrong_arrays_that_are_not_asked_for_do_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", **example(), other=np.zeros(7), text=np.array(["x", "y"]))
    assert list(load(path, inputs=["a"]).inputs) == ["a"]


def test_arrays_of_other_byte_orders_and_layouts(tmp_path: Path) -> None:
    arrays = example()
    one = load(save(tmp_path / "x.npz", **arrays))
    arrays["a"] = np.asfortranarray(arrays["a"].astype(">f8"))
    two = load(save(tmp_path / "y.npz", **arrays))
    assert one.fingerprint == two.fingerprint
    np.testing.assert_array_equal(one.test.inputs["a"], two.test.inputs["a"])


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "options", "names", "first"),
    [
        (np.arange(60) % 3, {}, ("0", "1", "2"), [0, 1, 2]),
        (np.arange(60) % 3 + 5, {}, ("5", "6", "7"), [0, 1, 2]),
        (np.arange(60) % 3 * 10, {"classes": 40}, tuple(map(str, range(40))), [0, 10, 20]),
        (np.array(["dog", "cat", "ant"] * 20), {}, ("ant", "cat", "dog"), [2, 1, 0]),
        (np.array([b"dog", b"cat", b"ant"] * 20), {}, ("ant", "cat", "dog"), [2, 1, 0]),
        (np.array([True, False, True] * 20), {}, ("0", "1"), [1, 0, 1]),
        ((np.arange(60) % 3).astype(np.uint8), {"classes": 3}, ("0", "1", "2"), [0, 1, 2]),
        (np.arange(60).reshape(60, 1) % 3, {}, ("0", "1", "2"), [0, 1, 2]),
        (np.arange(60) % 3 * 2.0, {}, ("0", "2", "4"), [0, 1, 2]),
        (np.arange(60) % 2 * 2 - 1, {}, ("-1", "1"), [0, 1, 0]),
        (1.0 - np.arange(60).reshape(60, 1) % 2 * 2, {"classes": 2}, ("0", "1"), [1, 0, 1]),
        (np.array(["dog", "cat ", "dog "] * 20), {}, ("cat", "dog"), [1, 0, 1]),
        (np.array(["é".encode(), b"cat ", b"cat"] * 20), {}, ("cat", "é"), [1, 0, 0]),
    ],
)
def test_labels(
    tmp_path: Path, labels: Any, options: dict[str, Any], names: tuple[str, ...], first: list[int]
) -> None:
    arrays = {**example(), "labels": labels, "is_test": np.arange(60) < 3}
    data = load(save(tmp_path / "x.npz", **arrays), **options)
    assert data.class_names == names
    assert data.test.labels.tolist() == first


def test_class_names_of_the_file(tmp_path: Path) -> None:
    names = np.array(["ant", "cat", "dog", "eel"])
    data = load(save(tmp_path / "x.npz", **example(), class_names=names))
    assert data.class_names == ("ant", "cat", "dog", "eel")
    assert set(data.train.labels.tolist()) == {0, 1, 2}


def test_class_names_as_bytes(tmp_path: Path) -> None:
    names = np.array([b"ant", "é".encode(), b"dog "])
    data = load(save(tmp_path / "x.npz", **example(), class_names=names))
    assert data.class_names == ("ant", "é", "dog")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "labels",
            np.array([b"na\xefve", b"dog"] * 30),
            r"'labels' must be UTF-8 text, got b'na\\xefve' in row 0",
        ),
        (
            "class_names",
            np.array([b"a", b"\xe9", b"c"]),
            r"'class_names' must be UTF-8 text, got b'",
        ),
        (
            "class_names",
            np.array(["a", "b", "a "]),
            "'class_names' must be distinct, got 'a' twice",
        ),
    ],
)
def test_text_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, value: Any, message: str
) -> None:
    path = save(tmp_path / "x.npz", **{**example(), name: value})
    with pytest.raises(DataError, match=message):
        load(path)


def test_one_hot_labels_get_a_remedy(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", **{**example(), "labels": np.eye(3)[np.arange(60) % 3]})
    with pytest.raises(
        DataError, match=r"got the shape \(60, 3\); of one-hot rows, save labels.argm"
    ):
        load(path)


def test_huge_numbers_are_standardised(tmp_path: Path) -> None:
    arrays = example()
    plain = load(save(tmp_path / "x.npz", **arrays))
    arrays["a"] = arrays["a"] * 1e100
    huge = load(save(tmp_path / "y.npz", **arrays))
    np.testing.assert_allclose(huge.test.inputs["a"], plain.test.inputs["a"], rtol=1e-6)
    lines = [f"{i % 2},{v!r}" for i, v in enumerate((arrays["a"][:, 0]).tolist())]
    (tmp_path / "x.csv").write_text("\n".join(["label,a", *lines]))
    data = load(tmp_path / "x.csv", columns={"a": ["a"]})
    assert abs(np.mean(data.train.inputs["a"])) < 1e-6


def test_labels_of_another_name(tmp_path: Path) -> None:
    arrays = example()
    arrays["genre"] = arrays.pop("labels")
    data = load(save(tmp_path / "x.npz", **arrays), label="genre")
    assert list(data.inputs) == ["a", "b"]


# ---------------------------------------------------------------- splits


def test_a_file_with_its_splits_apart(tmp_path: Path) -> None:
    arrays, rng = example(), np.random.default_rng(1)
    rows = {"train": slice(0, 30), "val": slice(30, 42), "test": slice(42, 60)}
    apart = {f"{s}_{name}": arrays[name][r] for s, r in rows.items() for name in arrays}
    apart["train_only"] = rng.normal(size=(30, 2))  # no input: test has none of it
    data = load(
        save(tmp_path / "x.npz", **apart, class_names=np.array(["x", "y", "z"])),
        standardise=False,
        inputs=["b", "a"],
    )
    assert list(data.inputs) == ["b", "a"]
    assert data.class_names == ("x", "y", "z")
    for split, r in rows.items():
        np.testing.assert_array_equal(data.splits[split].labels, arrays["labels"][r])
        np.testing.assert_array_equal(
            data.splits[split].inputs["a"], arrays["a"][r].astype(np.float32)
        )
        assert data.splits[split].extras["rows"].tolist() == list(range(r.start, r.stop))
    apart["test_a"] = apart["test_a"][:, :2]
    with pytest.raises(DataError, match=r"'test_a' must have 18 rows of shape \(4,\), got the sh"):
        load(save(tmp_path / "x.npz", **apart), inputs=["a"])


@pytest.mark.parametrize(
    "split",
    [
        np.repeat([0, 1, 2], 20),
        np.repeat(["train", "val", "test"], 20),
        np.repeat(["Training", "validation", "TEST"], 20),
    ],
)
def test_given_splits(tmp_path: Path, split: Any) -> None:
    arrays = example()
    data = load(save(tmp_path / "x.npz", **arrays, split=split), standardise=False)
    for name, rows in zip(("train", "val", "test"), np.split(np.arange(60), 3), strict=True):
        np.testing.assert_array_equal(
            data.splits[name].inputs["a"], arrays["a"][rows].astype(np.float32)
        )
        np.testing.assert_array_equal(data.splits[name].labels, arrays["labels"][rows])


@pytest.mark.parametrize(
    ("key", "value", "options"),
    [
        ("n_train", 45, {}),
        ("is_test", np.arange(60) >= 45, {}),
        ("is_test", (np.arange(60) >= 45).astype(np.uint8), {}),
        ("split", np.arange(60) >= 45, {}),
        ("fold", np.where(np.arange(60) >= 45, 2, 0), {"split": "fold"}),
    ],
)
def test_splits_without_validation_draw_it(
    tmp_path: Path, key: str, value: Any, options: dict[str, Any]
) -> None:
    arrays = example()
    path = save(tmp_path / "x.npz", **arrays, **{key: value})
    data = load(path, standardise=False, **options)
    assert [split.rows for split in data.splits.values()] == [36, 9, 15]
    np.testing.assert_array_equal(data.test.inputs["a"], arrays["a"][45:].astype(np.float32))
    assert np.bincount(data.val.labels).tolist() == [3, 3, 3]
    other = load(path, split_seed=1, standardise=False, **options)
    np.testing.assert_array_equal(other.test.inputs["a"], data.test.inputs["a"])
    assert (other.val.inputs["a"] != data.val.inputs["a"]).any()
    assert load(path, val_fraction=0.4, **options).val.rows == 18


def test_drawn_splits_are_stratified_and_cover_all_rows_once(tmp_path: Path) -> None:
    arrays = example(rows=100, classes=4)
    path = save(tmp_path / "x.npz", **arrays)
    data = load(path, standardise=False)
    assert [split.rows for split in data.splits.values()] == [64, 16, 20]
    rows = np.concatenate([split.inputs["a"] for split in data.splits.values()])
    np.testing.assert_array_equal(
        np.unique(rows, axis=0), np.unique(arrays["a"].astype(np.float32), axis=0)
    )
    for split in data.splits.values():
        assert len(set(np.bincount(split.labels).tolist())) == 1
        of_file = arrays["a"][split.extras["rows"]]
        np.testing.assert_array_equal(split.inputs["a"], of_file.astype(np.float32))
    assert load(path, test_fraction=0.5).test.rows == 50


# ---------------------------------------------------------------- csv


def write_csv(path: Path, rows: int = 60) -> Path:
    arrays = example(rows)
    lines = ["id,a_1,genre,b_x,a_2,part"]
    for i in range(rows):
        a, b = arrays["a"][i].tolist(), arrays["b"][i].tolist()
        part = ["train", "val", "test"][i * 3 // rows]
        lines.append(
            f"r{i},{a[0]!r},g{arrays['labels'][i]},{b[0]!r},{a[1]!r},{part}".replace(
                "np.float64(", ""
            ).replace(")", "")
        )
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_csv_equals_pandas(tmp_path: Path, name: str) -> None:
    import pandas

    path = write_csv(tmp_path / name)
    columns = {"two": ["b_x"], "one": ["a_*"]}
    data = load(path, columns=columns, label="genre", split="part")
    frame = pandas.read_csv(path)
    assert data.shapes == {"two": (1,), "one": (2,)}
    assert data.class_names == ("g0", "g1", "g2")
    train = frame[frame.part == "train"]
    for split_name, split in data.splits.items():
        part = frame[frame.part == split_name]
        assert [data.class_names[k] for k in split.labels] == part.genre.tolist()
        for modality, names in (("two", ["b_x"]), ("one", ["a_1", "a_2"])):
            expected = (part[names] - train[names].mean()) / train[names].std(ddof=0)
            np.testing.assert_allclose(split.inputs[modality], expected, rtol=1e-4, atol=1e-5)
    only = load(path, columns=columns, inputs=["one"], label="genre")
    assert only.shapes == {"one": (2,)}
    assert [split.rows for split in only.splits.values()] == [38, 10, 12]


def test_csv_with_usual_names_star_and_integers(tmp_path: Path) -> None:
    lines = ["\ufefflabel,x,y,is_test"]
    lines += [f"{i % 2 + 7},{i},{i * i},{'true' if i >= 30 else 'False'}" for i in range(40)]
    path = tmp_path / "x.csv"
    path.write_text("\r\n".join(lines), encoding="utf-8")
    data = load(path, columns={"all": ["*"]}, standardise=False)
    assert data.shapes == {"all": (2,)}  # neither the label nor the split
    assert data.class_names == ("7", "8")
    assert data.test.inputs["all"].tolist() == [[i, i * i] for i in range(30, 40)]


def test_csv_labels_with_leading_zeros_are_words(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("label,x\n" + "01,1\n1,2\n" * 20)
    assert load(path, columns={"x": ["x"]}).class_names == ("01", "1")


@pytest.mark.parametrize("block_bytes", [5_000, 1 << 24])
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_csv_cells_may_have_line_breaks_whatever_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block_bytes: int
) -> None:
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", block_bytes)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "a\nbroken name", "note", "label"])
    for i in range(300):
        writer.writerow(
            [i, i * i, f'line one\nline two, "quoted"\n\n{"end" * (i % 50)}', f"g{i % 3}"]
        )
    data = text.getvalue().encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    loaded = load(path, columns={"x": ["a*"]}, standardise=False)
    found = np.concatenate([split.inputs["x"][:, 0] for split in loaded.splits.values()])
    assert sorted(found.tolist()) == [i * i for i in range(300)]
    path.write_bytes(data.replace(b"\r\n250,62500,", b"\r\n250,?,"))
    with pytest.raises(DataError, match=r"line 1,003 must hold a number in column 'a\\nbroken"):
        load(path, columns={"x": ["a*"]})
    assert path.read_bytes().split(b"\n")[1002].startswith(b"250,?,")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_the_one_of_the_header(tmp_path: Path, delimiter: str) -> None:
    rows = [["label", "x", "y, or z"], *([i % 2, i / 4, -i] for i in range(40))]
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    data = load(path, columns={"a": ["x", "y, or z"]}, standardise=False)
    found = np.concatenate([split.inputs["a"] for split in data.splits.values()])
    assert sorted(found.tolist()) == [[i / 4, -i] for i in range(40)]


def test_decimal_commas_get_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("label;x\n" + "0;1,5\n1;2,5\n" * 20)
    message = (
        r"line 2 must hold a number in column 'x', got '1,5'; write a point, not a comma, before"
    )
    with pytest.raises(DataError, match=message):
        load(path, columns={"x": ["x"]})


def test_csv_labels_that_differ_in_blanks_are_one_class(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("label,x,split\n" + "cat,1,train\ncat ,2,test \n dog,3,train\n" * 20)
    data = load(path, columns={"x": ["x"]})
    assert data.class_names == ("cat", "dog")
    assert data.test.rows == 20


def test_a_csv_of_many_columns_is_checked_once_for_all(tmp_path: Path) -> None:
    """Names are looked up, not searched for: the header's names are compared a few times each."""
    names = [Counted(f"c{i}") for i in range(500)]
    Counted.compared = 0
    known = dict.fromkeys(names)
    found = arrays_csv._columns(
        tmp_path / "x.csv",
        {"columns": {"a": [str(n) for n in names]}, "inputs": None, "tokens": None},
        list(known),
        {"label"},
    )
    assert found == {"a": [str(n) for n in names]}
    assert Counted.compared <= 5 * len(names)


class Counted(str):
    """Text that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)  # type: ignore[no-any-return, unused-ignore]


def test_a_class_of_one_row_is_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = example()
    arrays["labels"][0] = 3
    path = save(tmp_path / "x.npz", **arrays)
    data = load(path)
    assert [(split.labels == 3).sum() for split in data.splits.values()] == [1, 0, 0]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"warning: {path}: classes without examples in a split: '3' (1 example) in val and test; "
        "metrics of that split do not cover them: add examples, or leave these classes out"
    )
    load(save(tmp_path / "y.npz", **example()))
    assert caplog.records == [record]
