"""The tasks ``mosi`` and ``mosei``: small pickles in the published layout, read and labelled."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.base.errors import DataError
from modmix.tasks.base import check_task, describe_task, load_task, prepare_task
from modmix.tasks.data import Data

ROWS = {"train": 7, "valid": 5, "test": 6}
SPLITS = {"train": "train", "val": "valid", "test": "test"}
FRAMES, WIDTHS = 5, {"text": 4, "audio": 3, "vision": 2}
SCORES = [-3.0, -1.6, -0.5, 0.0, 0.5, 1.5, 2.6]
Whole = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def whole() -> Whole:
    """No frame is empty but the first two of row 1 and the first of row 2 of every split."""
    rng = np.random.default_rng(0)
    made: Whole = {}
    for split, rows in ROWS.items():
        made[split] = {
            name: rng.normal(3, 2, (rows, FRAMES, width)) for name, width in WIDTHS.items()
        }
        for name in WIDTHS:
            made[split][name][1, :2] = 0
            made[split][name][2, :1] = 0
        made[split]["labels"] = np.array(SCORES[:rows]).reshape(rows, 1, 1)
        made[split]["id"] = np.array([[f"video {row}", "0", "1"] for row in range(rows)], object)
    return made


def save(path: Path, whole: Whole, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(whole, protocol=protocol))
    return path


def load(path: Path, task: str = "mosi", **options: Any) -> Data:
    return load_task(task, {"path": str(path), **options})


def shifted(values_NTD: np.ndarray, first_N: list[int]) -> np.ndarray:
    """Each row from its first frame on, then zeros."""
    found = np.zeros_like(values_NTD)
    for row, first in enumerate(first_N):
        found[row, : FRAMES - first] = values_NTD[row, first:]
    return found


FIRST = [0, 2, 1, 0, 0, 0, 0]


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("task", ["mosi", "mosei"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_sequences_begin_with_the_first_word(
    tmp_path: Path, whole: Whole, task: str, protocol: int
) -> None:
    data = load(save(tmp_path / "x.pkl", whole, protocol), task, standardise=False)
    assert data.shapes == {"text": (5, 4), "audio": (5, 3), "vision": (5, 2)}
    assert {(one.kind, one.dtype) for one in data.inputs.values()} == {("sequence", "float32")}
    for split, key in SPLITS.items():
        for name in WIDTHS:
            expected = shifted(whole[key][name], FIRST[: ROWS[key]])
            np.testing.assert_array_equal(
                data.splits[split].inputs[name], expected.astype(np.float32)
            )


def test_features_have_a_root_mean_square_of_1_in_training(tmp_path: Path, whole: Whole) -> None:
    whole["train"]["audio"][3, 2] = 0  # empty frames do not count, and stay empty
    whole["train"]["vision"][:, :, 1] = 0
    data = load(save(tmp_path / "x.pkl", whole))
    for name, width in WIDTHS.items():
        frames = [
            frame
            for row, first in zip(whole["train"][name], FIRST, strict=True)
            for frame in row[first:]
            if frame.any()
        ]
        scale = np.sqrt(np.mean(np.square(frames), axis=0))
        scale[scale == 0] = 1
        assert scale.shape == (width,)
        for split, key in SPLITS.items():
            expected = shifted(whole[key][name], FIRST[: ROWS[key]]) / scale
            found = data.splits[split].inputs[name]
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            np.testing.assert_array_equal(found == 0, expected == 0)


@pytest.mark.parametrize(
    ("classes", "names", "labels"),
    [
        ("non_negative", ["negative", "non-negative"], [0, 0, 0, 1, 1, 1, 1]),
        ("positive", ["negative", "positive"], [0, 0, 0, None, 1, 1, 1]),
        ("three", ["negative", "neutral", "positive"], [0, 0, 0, 1, 2, 2, 2]),
        # Halves are rounded to even: -0.5 and 0.5 to 0, 1.5 to 2.
        ("seven", ["-3", "-2", "-1", "0", "1", "2", "3"], [0, 1, 3, 3, 3, 5, 6]),
    ],
)
def test_classes_of_scores(
    tmp_path: Path, whole: Whole, classes: str, names: list[str], labels: list[int | None]
) -> None:
    data = load(save(tmp_path / "x.pkl", whole), classes=classes, standardise=False)
    assert data.class_names == tuple(names)
    for split, key in SPLITS.items():
        expected = [label for label in labels[: ROWS[key]] if label is not None]
        assert data.splits[split].labels.tolist() == expected
        used = [row for row, label in enumerate(labels[: ROWS[key]]) if label is not None]
        values = shifted(whole[key]["audio"], FIRST[: ROWS[key]])[used]
        np.testing.assert_array_equal(data.splits[split].inputs["audio"], values.astype(np.float32))


@pytest.mark.parametrize("score", [3.2, 4.0])
def test_scores_are_clipped_to_seven(tmp_path: Path, whole: Whole, score: float) -> None:
    whole["test"]["labels"][:2, 0, 0] = score, -score
    data = load(save(tmp_path / "x.pkl", whole), classes="seven")
    assert data.test.labels[:2].tolist() == [6, 0]


def test_rows_with_empty_text_are_dropped(tmp_path: Path, whole: Whole) -> None:
    whole["valid"]["text"][2] = 0
    data = load(save(tmp_path / "x.pkl", whole), standardise=False)
    assert [split.rows for split in data.splits.values()] == [7, 4, 6]
    assert data.val.labels.tolist() == [0, 0, 1, 1]
    expected = whole["valid"]["vision"][[0, 3, 4]].astype(np.float32)
    np.testing.assert_array_equal(data.val.inputs["vision"][[0, 2, 3]], expected)


def test_minus_infinity_in_audio_is_zero(tmp_path: Path, whole: Whole) -> None:
    whole["train"]["audio"][0, 1, 2] = -np.inf
    data = load(save(tmp_path / "x.pkl", whole))
    assert data.train.inputs["audio"][0, 1, 2] == 0
    assert np.isfinite(data.train.inputs["audio"]).all()


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 7)])
def test_the_score_is_the_first_number_of_the_labels(
    tmp_path: Path, whole: Whole, shape: tuple[int, ...]
) -> None:
    """MOSEI's file can have six emotions beside it."""
    for split in whole.values():
        scores = split["labels"]
        split["labels"] = scores.reshape(shape) if shape[-1] != 7 else np.repeat(scores, 7, 2)
        if shape[-1] == 7:
            split["labels"][:, :, 1:] = -1
    data = load(save(tmp_path / "x.pkl", whole))
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_scores_under_their_other_name(tmp_path: Path, whole: Whole) -> None:
    expected = load(save(tmp_path / "x.pkl", whole))
    for split in whole.values():
        split["regression_labels"] = split.pop("labels").reshape(-1)
    assert load(save(tmp_path / "y.pkl", whole)).fingerprint == expected.fingerprint


def test_inputs_that_are_not_aligned_begin_by_themselves(tmp_path: Path, whole: Whole) -> None:
    for split in whole.values():
        split["audio"] = np.concatenate([split["audio"], split["audio"]], axis=1)
        split["audio"][0, :4] = 0
    data = load(save(tmp_path / "x.pkl", whole), standardise=False)
    assert data.shapes["audio"] == (10, 3)
    found = data.train.inputs["audio"]
    np.testing.assert_array_equal(found[0, :6], whole["train"]["audio"][0, 4:].astype("f4"))
    assert not found[0, 6:].any()
    expected = shifted(whole["train"]["text"], FIRST).astype(np.float32)
    np.testing.assert_array_equal(data.train.inputs["text"], expected)


def test_options(tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.pkl", whole)
    data = load(path)
    short = load(path, inputs=["vision", "text"], length=3)
    assert short.shapes == {"vision": (3, 2), "text": (3, 4)}
    assert load(path, length=99).shapes == data.shapes
    raw = load(path, length=3, standardise=False)
    expected = shifted(whole["test"]["text"], FIRST[:6])[:, :3]
    np.testing.assert_array_equal(raw.test.inputs["text"], expected.astype(np.float32))
    # Results are known by the fingerprint: other arrays must have another.
    prints = {
        load(path, standardise=standardise, length=length, classes=classes).fingerprint
        for standardise in (True, False)
        for length in (None, 3)
        for classes in ("non_negative", "positive", "three", "seven")
    }
    assert len(prints) == 16
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "another"))
    assert load(path).fingerprint == data.fingerprint != short.fingerprint
    options = {"path": str(path)}
    assert check_task("mosi", options) == prepare_task("mosi", options)
    assert describe_task("mosi", options).rows == {"train": 7, "val": 5, "test": 6}


def test_blocks_follow_each_other(
    tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.pkl", whole)
    expected = load(path)
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "another"))
    monkeypatch.setattr("modmix.tasks.splits.CHUNK_NUMBERS", 45)
    found = load(path)
    assert found.fingerprint == expected.fingerprint
    for name in WIDTHS:
        np.testing.assert_allclose(found.train.inputs[name], expected.train.inputs[name], rtol=1e-6)


# ---------------------------------------------------------------- what is refused

LAYOUT = (
    "the option `path` must be a pickle {train, valid, test} of {text, audio, vision, labels} with "
    "inputs (rows, frames, features)"
)


def put(split: str, name: str, value: Any) -> Callable[[Whole], Any]:
    def change(whole: Whole) -> None:
        whole[split][name] = value

    return change


def put_number(split: str, name: str, value: float) -> Callable[[Whole], Any]:
    def change(whole: Whole) -> None:
        whole[split][name][1, 0, 1 if name != "labels" else 0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("valid"), f"the pickle must have 'valid', got train, test; {LAYOUT}"),
        (
            lambda w: w["test"].pop("vision"),
            f"'test' must have 'vision', got text, audio, labels, id; {LAYOUT}",
        ),
        (
            lambda w: w["train"].pop("labels"),
            f"'train' must have 'labels', got text, audio, vision, id; {LAYOUT}",
        ),
        (lambda w: w.update(test=[1]), f"'test' must have 'text', got a list; {LAYOUT}"),
        (
            put("train", "audio", np.ones((7, 5))),
            (
                "'audio' of 'train' must be numbers (rows, frames, features), got float64 of shape "
                f"(7, 5); {LAYOUT}"
            ),
        ),
        (
            put("train", "text", np.array([["so much", "fun"]])),
            (
                f"'text' of 'train' must be numbers (rows, frames, features), got <U7 of shape "
                f"(1, 2); {LAYOUT}"
            ),
        ),
        (
            put("valid", "vision", np.ones((4, 5, 2))),
            f"'vision' of 'valid' must have as many rows as 'text', 5, got 4; {LAYOUT}",
        ),
        (
            put("valid", "labels", np.ones(4)),
            f"'labels' of 'valid' must have as many rows as 'text', 5, got 4; {LAYOUT}",
        ),
        (
            put("valid", "labels", np.array(["happy"] * 5)),
            f"'labels' of 'valid' must be numbers (rows, …), got <U5 of shape (5,); {LAYOUT}",
        ),
        (
            put("test", "vision", np.ones((6, 5, 9))),
            (
                "'vision' must have the same frames and features in all splits, got {'train': "
                f"(5, 2), 'valid': (5, 2), 'test': (5, 9)}}; {LAYOUT}"
            ),
        ),
        (
            put_number("test", "labels", np.nan),
            "'labels' of 'test' must be finite scores, got nan in row 1 (from 0); remove such rows",
        ),
        (
            put_number("test", "audio", np.inf),
            (
                "'audio' of 'test' must be finite numbers, got inf in row 1 (from 0), frame 0, "
                "feature 1; correct it"
            ),
        ),
        (
            put_number("train", "vision", -np.inf),
            (
                "'vision' of 'train' must be finite numbers, got -inf in row 1 (from 0), frame 0, "
                "feature 1; correct it"
            ),
        ),
        (
            put_number("train", "text", np.nan),
            (
                "'text' of 'train' must be finite numbers, got nan in row 1 (from 0), frame 0, "
                "feature 1; set replace_nan: true to read NaN as 0"
            ),
        ),
        (
            put("valid", "text", np.zeros((5, 5, 4))),
            f"'valid' must have rows with text and a class, got none of 5; {LAYOUT}",
        ),
    ],
)
def test_wrong_content_is_one_sentence(
    tmp_path: Path, home: Path, whole: Whole, change: Callable[[Whole], Any], message: str
) -> None:
    change(whole)
    path = save(tmp_path / "x.pkl", whole)
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {message}"
    assert [p for p in (home / "prepared").iterdir() if p.suffix != ".lock"] == []


def test_nan_can_be_replaced(tmp_path: Path, whole: Whole) -> None:
    expected = copy.deepcopy(whole)
    expected["train"]["vision"][1, 3, 0] = 0
    whole["train"]["vision"][1, 3, 0] = np.nan
    found = load(save(tmp_path / "x.pkl", whole), replace_nan=True)
    clean = load(save(tmp_path / "y.pkl", expected))
    np.testing.assert_array_equal(found.train.inputs["vision"], clean.train.inputs["vision"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"a data file must be here, found nothing; {LAYOUT}"),
        (b"", f"must be a whole pickle, got Ran out of input; {LAYOUT}"),
        (pickle.dumps([1, 2]), f"the pickle must have 'train', got a list; {LAYOUT}"),
        (
            pickle.dumps({"train": Path("x")}),
            (
                "must hold only NumPy arrays in dicts and lists, as other pickles can run code "
                f"when they are read, got 'pathlib.PosixPath'; {LAYOUT}"
            ),
        ),
    ],
)
def test_wrong_files_are_one_sentence(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.pkl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {message}"


def test_the_path_is_required() -> None:
    with pytest.raises(DataError, match=r"task mosei: option 'path' is required: the pickle \{tra"):
        load_task("mosei", {})


@pytest.mark.slow
def test_a_small_study_of_it(tmp_path: Path, whole: Whole) -> None:
    import modmix

    save(tmp_path / "x.pkl", whole)
    (tmp_path / "small.yaml").write_text(
        "study: small\n"
        "task: {name: mosi, path: x.pkl, classes: seven}\n"
        "seeds: 2\n"
        "encoders: {default: {name: transformer, width: 8, heads: 2, feedforward: 8}}\n"
        "training: {epochs: 2, batch_size: 4}\n"
        "parts: {one: {methods: {add: , mulmix: }}}\n"
    )
    study = modmix.run(
        tmp_path / "small.yaml", runner="local", home=tmp_path / "runs", mlflow=False
    )
    frame = study.replicates()
    assert frame["state"].tolist() == ["done"] * 4
    assert np.isfinite(frame["test/error"]).all()
