"""The task ``gender``: synthetic users by their own rules, and a CSV against numpy."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from modmix.base.errors import DataError
from modmix.tasks import csv_file, gender_csv, gender_generator
from modmix.tasks.base import load_task, prepare_task
from modmix.tasks.data import Data, Split
from modmix.tasks.files import silent
from modmix.tasks.gender_generator import FEATURES, FIRST_LETTERS
from modmix.tasks.gender_names import Names, made_up_names, read_names

REAL = Path(os.environ.get("MODMIX_TEST_DATA", "/nowhere")) / "us_first_names_1960_2010.csv.gz"
needs_real = pytest.mark.skipif(
    not REAL.exists(), reason="MODMIX_TEST_DATA has no us_first_names_1960_2010.csv.gz"
)
SMALL: dict[str, Any] = {"train_rows": 2000, "val_rows": 50, "test_rows": 300}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def texts(options: dict[str, Any], name: str, split: str = "train") -> list[str]:
    """The texts of an input: token ids decoded by the alphabet that meta.json notes."""
    folder = prepare_task("gender", options)
    characters = json.loads((folder / "meta.json").read_text())["alphabets"][name]
    ids_NL = np.load(folder / f"{split}_{name}.npy")
    return ["".join("?" if i == 1 else characters[i - 2] for i in row if i) for row in ids_NL]


def informative(data: Data, name: str) -> np.ndarray:
    return np.asarray(data.train.extras["informative"])[:, list(data.inputs).index(name)]


def assert_share(found: np.ndarray, expected: float) -> None:
    """Within four standard deviations of a binomial share."""
    deviation = math.sqrt(expected * (1 - expected) / len(found))
    assert abs(found.mean() - expected) <= 4 * deviation, (found.mean(), expected)


# ---------------------------------------------------------------- synthetic users


def test_inputs_are_two_texts_and_standardised_counts() -> None:
    data = load_task("gender", {**SMALL, "features": 22})
    assert data.shapes == {"name": (15,), "user_id": (15,), "activity": (22,)}
    assert [one.kind for one in data.inputs.values()] == ["tokens", "tokens", "dense"]
    assert data.class_names == ("male", "female")
    assert [split.rows for split in data.splits.values()] == [2000, 50, 300]
    for name in ("name", "user_id"):
        described, ids_NL = data.inputs[name], data.train.inputs[name]
        assert described.dtype == str(ids_NL.dtype) == "uint8"
        assert described.vocabulary is not None
        assert ids_NL.max() < described.vocabulary
        assert not ((ids_NL[:, :-1] == 0) & (ids_NL[:, 1:] != 0)).any()  # padding is at the end
    activity = np.asarray(data.train.inputs["activity"])
    np.testing.assert_allclose(activity.mean(axis=0), 0, atol=0.12)
    np.testing.assert_allclose(activity.std(axis=0), 1, atol=0.1)


def test_users_are_deterministic_and_splits_do_not_depend_on_each_others_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = load_task("gender", SMALL)
    more = load_task("gender", {**SMALL, "train_rows": 2100})
    other = load_task("gender", {**SMALL, "seed": 1})
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "another"))
    again = load_task("gender", SMALL)
    assert one.fingerprint == again.fingerprint
    assert len({one.fingerprint, more.fingerprint, other.fingerprint}) == 3
    for name, values in one.test.inputs.items():
        np.testing.assert_array_equal(values, again.test.inputs[name])
        np.testing.assert_array_equal(values, more.test.inputs[name])
        assert (values != other.test.inputs[name]).any()
        assert (values[:50] != one.val.inputs[name]).any()


def test_options_change_only_what_they_are_about() -> None:
    one = load_task("gender", SMALL)
    wide = load_task("gender", {**SMALL, "features": 22})
    fewer = load_task("gender", {**SMALL, "missing": 0.7})
    np.testing.assert_array_equal(
        wide.train.inputs["activity"][:, :6], one.train.inputs["activity"]
    )
    for name in ("user_id", "activity"):
        np.testing.assert_array_equal(fewer.train.inputs[name], one.train.inputs[name])
    kept = (fewer.train.inputs["name"] != 0).any(axis=1)
    np.testing.assert_array_equal(fewer.train.inputs["name"][kept], one.train.inputs["name"][kept])


def test_blocks_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modmix.tasks.gender.BLOCK_ROWS", 700)
    data = load_task("gender", SMALL)
    names = data.train.inputs["name"]
    assert data.train.rows == 2000
    assert not np.array_equal(names[:600], names[700:1300])
    assert (names != 0).any(axis=1)[-100:].any()


@pytest.mark.parametrize(
    "odds",
    [
        {},
        {"missing": 0.5, "wrong": 0.3, "hidden": 0.1, "idle": 0.6, "female": 0.3},
        {"missing": 0.0, "wrong": 0.0, "hidden": 0.0, "idle": 0.0},
        {"missing": 1.0, "hidden": 1.0},
    ],
)
def test_rates_are_those_of_the_options(odds: dict[str, float]) -> None:
    options = {**SMALL, **odds}
    defaults = {"missing": 0.25, "wrong": 0.1, "hidden": 0.5, "idle": 0.1, "female": 0.5}
    expected = {**defaults, **odds}
    data = load_task("gender", options)
    is_there = (data.train.inputs["name"] != 0).any(axis=1)
    is_own = informative(data, "name")
    assert_share(data.train.labels, expected["female"])
    assert_share(~is_there, expected["missing"])
    assert not is_own[~is_there].any()
    if is_there.any():
        assert_share(~is_own[is_there], expected["wrong"])
    assert_share(~informative(data, "user_id"), expected["hidden"])
    assert_share(~informative(data, "activity"), expected["idle"])
    assert (data.train.inputs["user_id"] != 0).any(axis=1).all()


def test_user_ids_show_the_name_where_they_are_said_to() -> None:
    """At least its first letters, unless words before it push it off the end."""
    options = {**SMALL, "missing": 0.0, "wrong": 0.0, "length": 30}
    data = load_task("gender", options)
    names, ids = texts(options, "name"), texts(options, "user_id")
    shown = informative(data, "user_id")
    found = np.array([n[: min(FIRST_LETTERS)] in i for n, i in zip(names, ids, strict=True)])
    whole = np.array([n in i for n, i in zip(names, ids, strict=True)])
    assert found[shown].all()
    assert found[~shown].mean() < 0.03
    assert 0.6 <= whole[shown].mean() < 0.8  # 0.6, and short names cut to all their letters
    assert set(names) <= set(made_up_names().texts)


def test_a_wrong_name_is_anybodys() -> None:
    """It says nothing of gender: as many of either gender have a female one."""
    options = {**SMALL, "train_rows": 20_000, "missing": 0.0, "wrong": 1.0}
    data = load_task("gender", options)
    known = made_up_names()
    odds = known.counts_VG[:, 1] / known.counts_VG.sum(axis=1)
    female_of = dict(zip(known.texts, odds, strict=True))
    female = np.array([female_of[name] for name in texts(options, "name")])
    labels = np.asarray(data.train.labels)
    by_gender = [female[labels == k] for k in (0, 1)]
    error = math.sqrt(sum(values.var() / len(values) for values in by_gender))
    assert abs(by_gender[0].mean() - by_gender[1].mean()) < 4 * error


def test_activity_is_normal_with_a_shift_by_gender_and_without_where_idle() -> None:
    data = load_task("gender", {**SMALL, "train_rows": 20_000, "features": 22, "idle": 0.5})
    activity, labels = np.asarray(data.train.inputs["activity"], float), data.train.labels
    active = informative(data, "activity")
    shifts = np.array([shift for _, shift in FEATURES.values()])
    scale = np.sqrt(0.7**2 + 0.8**2 + 0.5 * shifts**2 / 4)

    def differences(rows: np.ndarray) -> np.ndarray:
        female, male = (activity[rows & (labels == k)].mean(axis=0) for k in (1, 0))
        return np.asarray((female - male) * scale)

    tolerance = 4 * math.sqrt(2 * (0.7**2 + 0.8**2) / 5000)
    np.testing.assert_allclose(differences(active), shifts, atol=tolerance + 0.04)  # whole counts
    np.testing.assert_allclose(differences(~active), 0, atol=tolerance)
    within = np.corrcoef(activity[~active], rowvar=False)[~np.eye(22, dtype=bool)]
    np.testing.assert_allclose(within, 0.7**2 / (0.7**2 + 0.8**2), atol=0.05)


def test_inputs_depend_on_each_other_only_through_gender() -> None:
    """Within a gender, activity is the same whether a name is right, and an ID shows it or not."""
    data = load_task("gender", {**SMALL, "train_rows": 20_000})
    activity, labels = np.asarray(data.train.inputs["activity"], float), data.train.labels
    for name in ("name", "user_id"):
        split = informative(data, name)
        for k in (0, 1):
            groups = [activity[(labels == k) & (split == told)] for told in (True, False)]
            error = np.sqrt(sum(values.var(axis=0) / len(values) for values in groups))
            assert (abs(groups[0].mean(axis=0) - groups[1].mean(axis=0)) < 4.5 * error).all()


def test_no_more_than_a_block_is_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = gender_generator.UserGenerator.draw

    def counted(self: Any, split: str, block: int, rows: int) -> Any:
        drawn.append(rows)
        return draw(self, split, block, rows)

    monkeypatch.setattr("modmix.tasks.gender.BLOCK_ROWS", 1000)
    monkeypatch.setattr(gender_generator.UserGenerator, "draw", counted)
    load_task("gender", {**SMALL, "train_rows": 4500})
    assert drawn == [1000, 1000, 1000, 1000, 500, 50, 300]


# ---------------------------------------------------------------- names


def test_made_up_names_are_short_and_mostly_of_one_gender() -> None:
    names = made_up_names()
    assert len(set(names.texts)) == len(names.texts) > 3000
    assert max(map(len, names.texts)) <= 15
    assert min(map(len, names.texts)) >= 2
    totals = names.counts_VG.sum(axis=0)
    assert 0.45 < totals[1] / totals.sum() < 0.55
    assert 0.02 < names.counts_VG.min(axis=1).sum() / totals.sum() < 0.04


def names_file(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("name,female,male\n" + "".join(line + "\n" for line in lines))
    return path


def test_names_of_a_file_are_drawn_by_their_counts(tmp_path: Path) -> None:
    path = names_file(tmp_path / "n.csv", ["Zoë,300,0", "Kim,100,100", "kim,50,50", "Bob,0,250"])
    names = read_names(path, silent)
    assert names.texts == ("bob", "kim", "zoë")
    assert names.counts_VG.tolist() == [[250, 0], [150, 150], [0, 300]]
    options = {**SMALL, "names": str(path), "missing": 0.0, "wrong": 0.0, "hidden": 0.0}
    found = np.array(texts(options, "name"))
    labels = np.asarray(load_task("gender", options).train.labels)
    assert set(found) == {"bob", "kim", "zoë"}
    assert_share(found[labels == 1] == "kim", 150 / 450)
    assert_share(found[labels == 0] == "kim", 150 / 400)
    assert not (found[labels == 0] == "zoë").any()
    assert not (found[labels == 1] == "bob").any()


@needs_real
def test_the_real_names_equal_the_file() -> None:
    with gzip.open(REAL, "rt") as file:
        rows = {row["name"].lower(): row for row in csv.DictReader(file)}
    names = read_names(REAL, silent)
    assert len(names.texts) == len(rows)
    for text, (male, female) in zip(names.texts, names.counts_VG.tolist(), strict=True):
        assert (float(rows[text]["male"]), float(rows[text]["female"])) == (male, female)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Ann,3,0", "Bob,x,3"], "line 3 must hold a number in column 'female', got 'x'; fill it"),
        (["Ann,3,0", "Bob,-1,3"], "line 3 must hold a name and two counts from 0, got 'bob', male"),
        (["Ann,3,0", " ,1,3"], "line 3 must hold a name and two counts from 0, got '', male 3"),
        (["Ann,3,0", "Bob,1"], "line 3 must have 3 columns, got 2; correct or remove it"),
        (["Ann,3,0"], "must have names of both genders, got 0 males and 3 females in all; correct"),
        ([], "must have names of both genders, got 0 males and 0 females in all; correct"),
    ],
)
def test_wrong_names_are_one_sentence(tmp_path: Path, lines: list[str], message: str) -> None:
    path = names_file(tmp_path / "n.csv", lines)
    assert refused({**SMALL, "names": str(path)}, path).startswith(message)


# ---------------------------------------------------------------- difficulty


def errors(options: dict[str, Any]) -> dict[str, float]:
    """Test error in percent of logistic regression on each input, and on all of them.

    Texts become counts of their 1- to 4-grams with marks at both ends.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import (  # type: ignore[import-untyped, unused-ignore]
        CountVectorizer,
    )
    from sklearn.linear_model import (  # type: ignore[import-untyped, unused-ignore]
        LogisticRegression,
    )

    data = load_task("gender", options)
    columns: dict[str, list[Any]] = {}
    for name in ("name", "user_id"):
        grams = CountVectorizer(analyzer="char", ngram_range=(1, 4), min_df=3, binary=True)
        both = [[f"^{text}$" for text in texts(options, name, s)] for s in ("train", "test")]
        columns[name] = [grams.fit_transform(both[0]), grams.transform(both[1])]
    columns["activity"] = [
        csr_matrix(np.asarray(s.inputs["activity"])) for s in (data.train, data.test)
    ]
    columns["all"] = [hstack([columns[n][i] for n in data.inputs], "csr") for i in (0, 1)]
    found = {}
    for name, (train, test) in columns.items():
        model = LogisticRegression(C=0.3, max_iter=300).fit(train, data.train.labels)
        found[name] = 100 * float((model.predict(test) != data.test.labels).mean())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "features", "documented"),
    [
        (None, 6, {"name": 18.4, "user_id": 34.7, "activity": 15.4, "all": 6.7}),
        (None, 22, {"name": 18.4, "user_id": 34.7, "activity": 10.0, "all": 4.7}),
        pytest.param(
            REAL,
            6,
            {"name": 18.6, "user_id": 30.5, "activity": 15.4, "all": 6.9},
            marks=needs_real,
        ),
    ],
)
def test_errors_of_logistic_regression_are_those_documented(
    names: Path | None, features: int, documented: dict[str, float]
) -> None:
    """10,000 test users: one standard deviation of an error of 18 % is 0.4 points."""
    found = errors({"names": names and str(names), "features": features})
    for name, error in documented.items():
        assert abs(found[name] - error) < 1.0, (name, found)
    assert found["all"] < min(found[n] for n in ("name", "user_id", "activity")) - 4


def bayes(names: Names, features: int, rows: int) -> dict[str, float]:
    """Error in percent of the most probable gender, simulated from the documented rules.

    The letters of a user ID that are of the name are known, and logarithms of counts are normal.
    """
    missing, wrong, hidden, idle = 0.25, 0.1, 0.5, 0.1
    rng = np.random.default_rng(0)
    odds_VG = names.counts_VG / names.counts_VG.sum(axis=0)
    any_V = odds_VG.mean(axis=1)
    gender = rng.integers(0, 2, size=rows)
    first = np.empty(rows, dtype=int)
    for g in (0, 1):
        first[gender == g] = rng.choice(len(any_V), size=(gender == g).sum(), p=odds_VG[:, g])
    # A name's forms in user IDs: all of it, or its first 3, 4 or 5 letters.
    numbers: dict[str, int] = {}
    forms_V4 = np.array(
        [
            [numbers.setdefault(text[:k], len(numbers)) for k in (None, 3, 4, 5)]
            for text in names.texts
        ]
    )
    of_form = np.array([0.6, *[0.4 / 3] * 3])
    odds_SG = np.zeros((len(numbers), 2))
    for form, share in enumerate(of_form):
        np.add.at(odds_SG, forms_V4[:, form], share * odds_VG)
    form = forms_V4[first, rng.choice(4, size=rows, p=of_form)]
    shown = (rng.random(rows) >= hidden)[:, None]
    there = (rng.random(rows) >= missing)[:, None]
    others = rng.choice(len(any_V), size=rows, p=any_V)
    name = np.where(rng.random(rows) < wrong, others, first)
    own, anybodys = (1 - wrong) * odds_VG[name], wrong * any_V[name][:, None]
    by_id = np.where(shown, odds_SG[form], 1.0)
    same = np.where(shown, ((forms_V4[name] == form[:, None]) @ of_form)[:, None], 1.0)
    likelihood = {
        "name": np.where(there, own + anybodys, 1.0),
        "user_id": by_id,
        "activity": _activity_likelihood(rng, gender, features, idle),
    }
    texts_N2 = np.where(there, own * same + anybodys * by_id, by_id)
    likelihood["all"] = texts_N2 * likelihood["activity"]
    found = {}
    for each, (male, female) in ((n, values.T) for n, values in likelihood.items()):
        right = np.where(male == female, 0.5, (female > male) == gender)
        found[each] = 100 * float(1 - right.mean())
    return found


def _activity_likelihood(
    rng: np.random.Generator, gender: np.ndarray, features: int, idle: float
) -> np.ndarray:
    shifts = np.array([shift for _, shift in FEATURES.values()][:features])
    covariance = 0.8**2 * np.eye(features) + 0.7**2
    sides = np.where(rng.random(len(gender)) < idle, 0.0, gender - 0.5)
    logs = sides[:, None] * shifts
    logs += rng.multivariate_normal(np.zeros(features), covariance, size=len(gender))
    density = {
        side: multivariate_normal(side * shifts, covariance).pdf(logs) for side in (-0.5, 0.0, 0.5)
    }
    return np.stack([idle * density[0.0] + (1 - idle) * density[s] for s in (-0.5, 0.5)], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "features", "documented"),
    [
        (None, 6, {"name": 18.7, "user_id": 33.8, "activity": 15.1, "all": 5.6}),
        (None, 22, {"name": 18.7, "user_id": 33.8, "activity": 9.8, "all": 3.9}),
        pytest.param(
            REAL,
            6,
            {"name": 17.7, "user_id": 28.0, "activity": 15.1, "all": 4.7},
            marks=needs_real,
        ),
        pytest.param(
            REAL,
            22,
            {"name": 17.7, "user_id": 28.0, "activity": 9.8, "all": 3.3},
            marks=needs_real,
        ),
    ],
)
def test_bayes_errors_are_those_documented(
    names: Path | None, features: int, documented: dict[str, float]
) -> None:
    known = made_up_names() if names is None else read_names(names, silent)
    found = bayes(known, features, 400_000)
    for name, error in documented.items():
        assert abs(found[name] - error) < 0.4, (name, found)


# ---------------------------------------------------------------- CSV


def table(split: Split, names: list[str], ids: list[str], counts: np.ndarray) -> list[list[str]]:
    genders = [("male", "female")[label] for label in split.labels]
    numbers = [[str(int(c)) for c in row] for row in counts]
    return [
        [name, user, gender, *row]
        for name, user, gender, row in zip(names, ids, genders, numbers, strict=True)
    ]


HEADER = ["name", "user_id", "gender", *(f"f{i + 1}" for i in range(6))]


def users_csv(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def users(rows: int = 600) -> tuple[list[list[str]], np.ndarray]:
    """Made-up users as rows of a CSV, and their counts."""
    options = {"train_rows": rows, "val_rows": 1, "test_rows": 1}
    data = load_task("gender", options)
    counts = np.random.default_rng(0).integers(0, 500, size=(rows, 6))
    listed = table(data.train, texts(options, "name"), texts(options, "user_id"), counts)
    return listed, counts


@pytest.mark.parametrize(("suffix", "block_bytes"), [(".csv", 1 << 20), (".csv.gz", 3000)])
def test_a_csv_comes_back_split_and_standardised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, block_bytes: int
) -> None:
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(gender_csv, "_CHUNK_ROWS", 128)
    rows, counts = users()
    options = {"source": "csv", "path": str(users_csv(tmp_path / f"u{suffix}", rows))}
    data = load_task("gender", options)
    assert {name: split.rows for name, split in data.splits.items()} == {
        "train": 480,
        "val": 40,
        "test": 80,
    }
    # Names are not unique, user IDs with counts are: each row is found again by all it holds.
    logs = np.log1p(counts)
    folder = prepare_task("gender", options)
    scaling = json.loads((folder / "meta.json").read_text())["scaling"]["activity"]
    standard = (logs - np.array(scaling["mean"])) / np.array(scaling["scale"])
    known = {row[1] + str(np.round(z, 3) + 0.0): row for row, z in zip(rows, standard, strict=True)}
    assert len(known) == 600
    seen = []
    for split, part in data.splits.items():
        found = zip(
            texts(options, "name", split),
            texts(options, "user_id", split),
            np.asarray(part.inputs["activity"], float),
            part.labels,
            strict=True,
        )
        for name, user, activity, label in found:
            if "?" not in user + name:  # a character that no training row has
                row = known[user + str(np.round(activity, 3) + 0.0)]
                assert (name, ("male", "female")[label]) == (row[0], row[2])
                seen.append(id(row))
    assert len(set(seen)) == len(seen) > 590
    for part in data.splits.values():
        of_file = [("male", "female").index(rows[i][2]) for i in part.extras["rows"]]
        assert of_file == part.labels.tolist()
        np.testing.assert_allclose(
            standard[part.extras["rows"]], part.inputs["activity"], atol=1e-5
        )
    np.testing.assert_allclose(data.train.inputs["activity"].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.inputs["activity"].std(axis=0), 1, atol=1e-5)


def test_options_of_a_csv(tmp_path: Path) -> None:
    rows, _ = users(300)
    path = users_csv(tmp_path / "u.csv", rows)
    base = {"source": "csv", "path": str(path)}
    sizes = [
        ({"test_rows": 50, "val_rows": 30}, [220, 30, 50]),
        ({"test_rows": 50, "val_rows": 30, "train_rows": 100}, [100, 30, 50]),
        ({"features": 2, "length": 4}, [240, 20, 40]),
    ]
    prints = set()
    for options, expected in sizes:
        data = load_task("gender", {**base, **options})
        assert [split.rows for split in data.splits.values()] == expected
        prints.add(data.fingerprint)
    assert data.shapes == {"name": (4,), "user_id": (4,), "activity": (2,)}
    one, other = (load_task("gender", {**base, "seed": seed}) for seed in (0, 1))
    assert len({*prints, one.fingerprint, other.fingerprint}) == 5
    packed = users_csv(tmp_path / "u.csv.gz", rows)
    assert load_task("gender", {**base, "path": str(packed)}).fingerprint == one.fingerprint


def test_texts_of_a_csv_are_lower_cased_and_cut(tmp_path: Path) -> None:
    rows = [["  ÉMILE ", "A\0b" + "x" * 40, ("M", "female")[i % 2], *"123456"] for i in range(90)]
    options = {"source": "csv", "path": str(users_csv(tmp_path / "u.csv", rows))}
    assert set(texts(options, "name")) == {"émile"}
    assert set(texts(options, "user_id")) == {"a\ufffdb" + "x" * 12}


def refused(options: dict[str, Any], path: Path) -> str:
    """The message without the file's name, which it must begin with."""
    with pytest.raises(DataError) as caught:
        prepare_task("gender", options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    folders = [p for p in path.parent.glob("home/prepared/*") if p.suffix != ".lock"]
    assert not folders
    return message.removeprefix(f"{path}: ")


GOOD = [["ann", "ann7", ("male", "female")[i % 2], *"123456"] for i in range(60)]


def changed(row: int, column: int, cell: str) -> list[list[str]]:
    """The good rows with another cell."""
    rows = [list(cells) for cells in GOOD]
    rows[row][column] = cell
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(0, 3, "x"), "line 2 must hold a number in column 'f1', got 'x'; fill it in or"),
        (changed(4, 8, ""), "line 6 must hold a number in column 'f6', got ''; fill it in or"),
        (changed(4, 7, "-2"), "line 6 must hold finite counts from 0, got -2 in column 'f5'; corr"),
        (changed(9, 3, "inf"), "line 11 must hold finite counts from 0, got inf in column 'f1'; c"),
        (changed(59, 2, "fem"), "line 61 must have female or male in column 'gender', got 'fem';"),
        (changed(1, 2, ""), "line 3 must have female or male in column 'gender', got ''; correct"),
        ([*GOOD, GOOD[0][:-1]], "line 62 must have 9 columns, got 8; correct or remove it"),
        (
            GOOD[:2],
            "must have rows for training (1), validation (1) and test (1), got 2 in all; se",
        ),
        ([], "must have rows for training (1), validation (1) and test (1), got 0 in all; set"),
        (
            GOOD[::2],
            "the train rows must have users of both genders, got only male; set train_rows higher",
        ),
        (
            [["", *row[1:]] for row in GOOD],
            "column 'name' must have text in the training rows, got none",
        ),
    ],
)
def test_wrong_rows_are_one_sentence(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    path = users_csv(tmp_path / "u.csv", rows)
    assert refused({"source": "csv", "path": str(path)}, path).startswith(message)


@pytest.mark.parametrize("column", ["name", "user_id", "gender", "f3"])
def test_missing_columns_are_one_sentence(tmp_path: Path, column: str) -> None:
    header = ["other" if name == column else name for name in HEADER]
    path = users_csv(tmp_path / "u.csv", GOOD, header)
    message = refused({"source": "csv", "path": str(path)}, path)
    assert message.startswith(f"has no {column!r}")
    assert message.endswith(f"; it has {', '.join(header)}")


def test_missing_and_truncated_files_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "u.csv.gz"
    options = {"source": "csv", "path": str(path)}
    assert refused(options, path) == (
        "a data file must be here, found nothing; correct the option `path`"
    )
    users_csv(path, users(2000)[0])
    for made in (tmp_path / "home" / "prepared").iterdir():
        if made.is_dir():
            for file in made.iterdir():
                file.unlink()
            made.rmdir()
    path.write_bytes(path.read_bytes()[:-2000])
    assert refused(options, path).startswith("is damaged or truncated (")
    path.write_bytes(b"\xff\xfe\x00PNG\n" * 20)
    assert refused(options, path).startswith("must be UTF-8 text, its first line is not; convert")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"source": "csv"},
            "and only then, got source: csv and no path; correct one of the two",
        ),
        ({"path": "/x.csv"}, "got source: generated and path /x.csv; correct one of the two"),
        (
            {"source": "csv", "path": "/x.csv", "names": "/n.csv"},
            "`names` must not be given with source: csv, got /n.csv; it is for synthetic users",
        ),
        (
            {"features": 23},
            "`features` must be at most 22 for synthetic users, got 23; set it lower",
        ),
        ({"missing": 1.2}, "option 'missing' must be at most 1, got 1.2"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare_task("gender", options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
