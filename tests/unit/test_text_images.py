"""Tasks of images with texts: small sets in the official layouts, which the tests write."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modmix.base.errors import DataError
from modmix.tasks.base import load_task, make_task, prepare_task
from modmix.tasks.data import Augmentation, Data
from modmix.tasks.media import Listed, MediaTask
from modmix.tasks.mvsa import label_of
from modmix.tasks.text_images import plain_path

SMALL: dict[str, Any] = {"size": 8, "vocabulary": 50, "length": 5}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def colour(name: str) -> tuple[int, int, int]:
    """A colour of its own for each file."""
    red, green, blue = np.random.default_rng(list(name.encode())).integers(0, 256, 3)
    return int(red), int(green), int(blue)


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 6), colour(path.stem)).save(path, format="PNG")  # exact, unlike JPEG


def colours(data: Data, split: str) -> list[tuple[int, ...]]:
    """The colour of every image of a split."""
    images = np.asarray(data.splits[split].inputs["image"])
    assert images.dtype == np.uint8
    assert (images == images[:, :1, :1]).all()
    return [tuple(map(int, image[0, 0])) for image in images]


def texts(folder: Path, split: str) -> list[str]:
    """The texts of a split, from ids and the words that meta.json notes."""
    known = json.loads((folder / "meta.json").read_text())["alphabets"]["text"]
    ids_NL = np.load(folder / f"{split}_text.npy")
    return [" ".join("?" if i == 1 else known[i - 2] for i in row if i) for row in ids_NL]


def listed(name: str, root: Path, **options: Any) -> Listed:
    task = make_task(name, {"path": str(root), **options})
    assert isinstance(task, MediaTask)
    return task.listed()


def refusal(name: str, root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        listed(name, root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a.jpg", "a.jpg"),
        (" img/00001.png\r", "img/00001.png"),
        ("img\\\\a b.png", "img/a b.png"),
        ("./img//a.png", "img/a.png"),
        ("a..b", "a..b"),
        ("", None),
        (" ", None),
        (".", None),
        ("/etc/passwd", None),
        ("\\\\server\\x", None),
        ("img/../../x", None),
        ("..", None),
        ("a\0b", None),
    ],
)
def test_paths_of_split_files_stay_in_their_folder(text: str, path: str | None) -> None:
    assert plain_path(text) == path


# ---------------------------------------------------------------- Food-101

FOOD_LAYOUT = (
    "the option `path` must be the folder of UPMC Food-101, with texts/train_titles.csv and "
    "texts/test_titles.csv (rows of image, title and class) and images/{train,test}/CLASS/"
)
CLASSES = ("apple_pie", 'mac, "n" cheese', "sushi")


def food_rows(part: str) -> list[list[str]]:
    """Five rows of each class in training and two for testing; the first title is empty."""
    rows = []
    for label in CLASSES:
        for n in range(5 if part == "train" else 2):
            title = f'Best, "{label}" no {n}' if n else ""
            rows.append([f"{label}_{part}_{n}.jpg", title, label])
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[str]], **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=settings.pop("encoding", "utf-8")) as file:
        csv.writer(file, **settings).writerows(rows)


@pytest.fixture
def food(tmp_path: Path) -> Path:
    root = tmp_path / "food"
    for part in ("train", "test"):
        rows = food_rows(part)
        write_csv(root / "texts" / f"{part}_titles.csv", rows)
        for name, _, label in rows:
            draw(root / "images" / part / label / name)
    return root


def test_food_images_titles_and_classes(food: Path) -> None:
    options = {"path": str(food), "val_fraction": 0.2, **SMALL}
    data = load_task("food101", options)
    folder = prepare_task("food101", options)
    assert data.class_names == CLASSES
    assert data.shapes == {"image": (8, 8, 3), "text": (5,)}
    assert [split.rows for split in data.splits.values()] == [12, 3, 6]
    assert np.bincount(data.train.labels).tolist() == [4, 4, 4]
    assert np.bincount(data.val.labels).tolist() == [1, 1, 1]
    assert data.augmentation == {"image": Augmentation(crop=(0.08, 1.0), flip=True)}
    described = data.inputs["text"]
    assert described.kind == "tokens"
    assert described.dtype == str(data.train.inputs["text"].dtype) == "uint8"
    by_colour = {colour(Path(row[0]).stem): row for p in ("train", "test") for row in food_rows(p)}
    found = Counter()
    for split in ("train", "val", "test"):
        rows = [by_colour[each] for each in colours(data, split)]
        found.update(row[0] for row in rows)
        assert [CLASSES.index(row[2]) for row in rows] == data.splits[split].labels.tolist()
        for (_, title, _), text in zip(rows, texts(folder, split), strict=True):
            words = title.lower().replace(",", "").replace('"', "").split()[:5]
            assert [w for w in text.split() if w != "?"] == words or split != "train"
            assert len(text.split()) == len(words)
    assert set(found.values()) == {1}
    assert len(found) == 21
    assert "best" in json.loads((folder / "meta.json").read_text())["alphabets"]["text"]


def test_the_vocabulary_is_that_of_the_training_rows(food: Path) -> None:
    rows = food_rows("test")
    rows[1][1] = "Best unheard-of pie"
    write_csv(food / "texts" / "test_titles.csv", rows)
    options = {"path": str(food), **SMALL}
    folder = prepare_task("food101", options)
    assert texts(folder, "test")[1] == "best ? ? ?"
    few = {**options, "vocabulary": 1, "length": 2}
    assert texts(prepare_task("food101", few), "test")[1] == "best ?"
    assert load_task("food101", few).inputs["text"].vocabulary == 3
    assert load_task("food101", few).fingerprint != load_task("food101", options).fingerprint
    rows[1][1] = "Best pie"
    write_csv(food / "texts" / "test_titles.csv", rows)
    assert texts(prepare_task("food101", few), "test")[1] == "best ?"


@pytest.mark.parametrize(
    "settings",
    [
        {"encoding": "utf-8-sig"},
        {"lineterminator": "\r\n"},
        {"lineterminator": "\n", "quoting": csv.QUOTE_ALL},
    ],
)
@pytest.mark.parametrize("header", [None, ["Image_path", "text", "label"]])
def test_food_files_as_people_save_them(
    food: Path, settings: dict[str, Any], header: list[str] | None
) -> None:
    expected = listed("food101", food)
    for part in ("train", "test"):
        rows = ([header] if header else []) + food_rows(part)
        write_csv(food / "texts" / f"{part}_titles.csv", rows, **settings)
    assert listed("food101", food) == expected


def test_food_columns_in_another_order_and_paths(food: Path) -> None:
    expected = listed("food101", food)
    for part in ("train", "test"):
        header = ["", "label", "Image_path", "text"]
        rows = [
            [str(n), label, f"images\\{part}\\{name}", title]
            for n, (name, title, label) in enumerate(food_rows(part))
        ]
        write_csv(food / "texts" / f"{part}_titles.csv", [header, *rows])
    assert listed("food101", food) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [["Image_path", "label"], ["a.jpg", "pie"]],
            "a header must name the columns Image_path, text and label, got Image_path, label; "
            + FOOD_LAYOUT,
        ),
        (
            [["a.jpg", "A pie", "pie"], ["b.jpg", "pie"]],
            "line 2 must have 3 columns, got 2; put titles with commas into quotation marks",
        ),
        (
            [["a.jpg", "A pie", " with cherries", "pie"]],
            "line 1 must have 3 columns, got 4; put titles with commas into quotation marks",
        ),
        (
            [["../../a.jpg", "A pie", "pie"]],
            (
                "line 1 must have the name of an image and a class, got '../../a.jpg'; correct or "
                "remove it"
            ),
        ),
        (
            [["a.jpg", "A pie", "pies/apple"]],
            (
                "line 1 must have the name of an image and a class, got 'pies/apple'; correct or "
                "remove it"
            ),
        ),
        ([], f"must have rows of two classes or more, got no rows; {FOOD_LAYOUT}"),
        (
            [["a.jpg", "A pie", "pie"]],
            f"must have rows of two classes or more, got pie; {FOOD_LAYOUT}",
        ),
    ],
)
def test_wrong_food_rows(food: Path, rows: list[list[str]], message: str) -> None:
    path = food / "texts" / "train_titles.csv"
    write_csv(path, rows)
    assert refusal("food101", food) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'a.jpg,"Best pie,pie\nb.jpg,Cake,cake\n',
            "line 1 must have 3 columns, got 2; put titles with commas into quotation marks",
        ),
        (
            'a.jpg,"' + 200_000 * "x",
            f"must be a CSV, got field larger than field limit (131072); {FOOD_LAYOUT}",
        ),
        ("\n\n", f"must have rows of two classes or more, got no rows; {FOOD_LAYOUT}"),
    ],
)
def test_a_quotation_mark_that_is_not_closed(food: Path, content: str, message: str) -> None:
    path = food / "texts" / "train_titles.csv"
    path.write_text(content)
    assert refusal("food101", food) == f"{path}: {message}"


def test_an_unknown_class_in_the_test_rows(food: Path) -> None:
    path = food / "texts" / "test_titles.csv"
    write_csv(path, [*food_rows("test"), ["x.jpg", "Ramen", "ramen"]])
    assert refusal("food101", food) == (
        f"{path}: line 7 must have a class of the training rows, got 'ramen'; correct or remove it"
    )


def test_a_folder_without_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare_task("food101", {"path": str(tmp_path)})
    path = tmp_path / "texts" / "train_titles.csv"
    assert str(caught.value) == f"{path}: a data file must be here, found nothing; {FOOD_LAYOUT}"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:45])


@pytest.mark.parametrize("spoil", [Path.unlink, damage], ids=["missing", "truncated"])
def test_images_that_cannot_be_read_are_left_out(
    food: Path, spoil: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(food / "images" / "test" / "sushi" / "sushi_test_1.jpg")
    data = load_task("food101", {"path": str(food), **SMALL, "max_unreadable": 0.2})
    assert data.test.rows == 5
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2]
    assert len(data.test.inputs["text"]) == 5
    assert "1 of 21 items of task food101 cannot be read and are left out" in caplog.text
    assert "sushi_test_1.jpg" in caplog.text
    with pytest.raises(DataError, match=r"sushi_test_1\.jpg"):
        load_task("food101", {"path": str(food), **SMALL, "max_unreadable": 0.0, "size": 9})


def test_titles_without_any_word(food: Path) -> None:
    for part in ("train", "test"):
        rows = [[name, "…!", label] for name, _, label in food_rows(part)]
        write_csv(food / "texts" / f"{part}_titles.csv", rows)
    with pytest.raises(DataError) as caught:
        load_task("food101", {"path": str(food), **SMALL})
    assert str(caught.value) == (
        f"{food}: the training texts must have words, got none in 21 items; correct the option "
        "`path`"
    )


# ---------------------------------------------------------------- MVSA

MVSA_LAYOUT = (
    "the option `path` must be the folder of MVSA-Single or MVSA-Multiple, with "
    "labelResultAll.txt (a header and rows of ID<tab>text,image) and data/ID.txt, data/ID.jpg"
)
LABELS = ("negative", "neutral", "positive")
LATIN_1 = (1, 5, 9)  # tweets, at least one of which is a training row


def write_mvsa(root: Path, rows: Sequence[str], *, annotators: int = 1, end: str = "\n") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    lines = ["ID" + "\ttext,image" * annotators, *rows]
    path = root / "labelResultAll.txt"
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


@pytest.fixture
def tweets(tmp_path: Path) -> Path:
    """Ten tweets of each label, and one with opposite labels; three texts are Latin-1."""
    root = tmp_path / "MVSA_Single"
    rows = [f"{n}\t{LABELS[n % 3]},{LABELS[n % 3]}" for n in range(1, 31)]
    write_mvsa(root, [*rows, "31\tpositive,negative"])
    for n in range(1, 32):
        draw(root / "data" / f"{n}.jpg")
        (root / "data" / f"{n}.txt").write_text(f"RT @you: tweet {LABELS[n % 3]} #{n}\n")
    for n in LATIN_1:
        (root / "data" / f"{n}.txt").write_bytes("touch\xe9 tweet".encode("latin-1"))
    return root


def test_tweets_and_their_labels(tweets: Path) -> None:
    options = {"path": str(tweets), **SMALL, "length": 9}
    data = load_task("mvsa", options)
    folder = prepare_task("mvsa", options)
    assert data.class_names == LABELS
    assert [split.rows for split in data.splits.values()] == [24, 3, 3]
    by_colour = {colour(str(n)): n for n in range(1, 31)}
    seen = []
    for split in ("train", "val", "test"):
        numbers = [by_colour[each] for each in colours(data, split)]
        seen += numbers
        assert [n % 3 for n in numbers] == data.splits[split].labels.tolist()
        for n, text in zip(numbers, texts(folder, split), strict=True):
            if n not in LATIN_1:
                assert text.split()[:4] == ["rt", "you", "tweet", LABELS[n % 3]]
            else:
                assert text == "touché tweet"
    assert sorted(seen) == list(range(1, 31))
    other = load_task("mvsa", {**options, "split_seed": 1})
    assert colours(other, "test") != colours(data, "test")


@pytest.mark.parametrize(
    ("pairs", "merged", "agreed"),
    [
        ("positive,positive", "positive", "positive"),
        ("neutral,neutral", "neutral", "neutral"),
        ("neutral,positive", "positive", None),
        ("negative,neutral", "negative", None),
        ("negative,positive", None, None),
        ("positive,negative", None, None),
        # The majority of three annotators, apart for text and image.
        ("positive,positive positive,negative neutral,positive", "positive", "positive"),
        ("positive,neutral neutral,neutral positive,negative", "positive", None),
        ("positive,negative positive,negative negative,positive", None, None),
        ("positive,positive neutral,positive negative,positive", None, None),
        ("neutral,positive neutral,negative neutral,neutral", None, None),
        ("neutral,positive neutral,negative neutral,negative", "negative", None),
    ],
)
def test_labels_of_text_and_image_become_one(
    pairs: str, merged: str | None, agreed: str | None
) -> None:
    given = tuple((p.split(",")[0], p.split(",")[1]) for p in pairs.split())
    assert label_of(given, "merge") == merged
    assert label_of(given, "agree") == agreed


def test_mvsa_multiple_with_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    root = tmp_path / "MVSA"
    rows = []
    for n in range(12):
        one, other = LABELS[n % 3], LABELS[(n + 1) % 3]
        rows += [f"{n}\t{one},{one}\t{other},{one}\t{one.upper()}, {one}", ""]
    path = write_mvsa(
        root,
        [*rows, "99\tpositive,neutral\tneutral,neutral\tnegative,neutral\t"],
        annotators=3,
        end="\r\n",
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = listed("mvsa", root)
    assert sorted(item.files[0] for item in found.items) == sorted(
        f"data/{n}.jpg" for n in range(12)
    )
    assert all(item.label == int(Path(item.files[0]).stem) % 3 for item in found.items)
    assert Counter(item.split for item in found.items) == {"train": 10, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["1\tpositive,positive", "2\tpositive"],
            (
                "line 3 must have an ID and 1 pairs text,image, got '2\\tpositive'; correct or "
                "remove it"
            ),
        ),
        (
            ["1\tpositive,positive\tneutral,neutral"],
            (
                "line 2 must have an ID and 1 pairs text,image, got "
                "'1\\tpositive,positive\\tneutral,neutral'; correct or remove it"
            ),
        ),
        (
            ["1\thappy,positive"],
            (
                "line 2 must have the labels negative, neutral, positive, got 'happy'; correct or "
                "remove it"
            ),
        ),
        (
            ["../1\tpositive,positive"],
            "line 2 must begin with an ID, got '../1'; correct or remove it",
        ),
        (
            ["1\tpositive,positive", "1\tneutral,neutral"],
            "IDs must be distinct, got '1' twice; remove one",
        ),
        (
            ["1\tpositive,positive", "2\tneutral,neutral"],
            f"must have 3 rows or more of every class, got 0 of 'negative' in 2; {MVSA_LAYOUT}",
        ),
    ],
)
def test_wrong_mvsa_rows(tmp_path: Path, rows: list[str], message: str) -> None:
    path = write_mvsa(tmp_path / "x", rows)
    assert refusal("mvsa", tmp_path / "x") == f"{path}: {message}"


@pytest.mark.parametrize("content", ["", "1\tpositive,positive\n", "ID\n", "ID,text,image\n"])
def test_a_label_file_without_its_header(tmp_path: Path, content: str) -> None:
    path = tmp_path / "labelResultAll.txt"
    path.write_text(content)
    assert refusal("mvsa", tmp_path) == (
        f"{path}: must begin with a header, ID<tab>text,image, got {content.strip()!r}; "
        f"{MVSA_LAYOUT}"
    )


def test_tweets_without_text_or_image_are_left_out(
    tweets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tweets / "data" / "2.txt").unlink()
    damage(tweets / "data" / "3.jpg")
    (tweets / "data" / "4.txt").write_text("")  # empty: no words, but used
    data = load_task("mvsa", {"path": str(tweets), **SMALL})
    assert sum(split.rows for split in data.splits.values()) == 28
    assert "2 of 30 items of task mvsa cannot be read" in caplog.text


# ---------------------------------------------------------------- Hateful Memes

MEMES_LAYOUT = (
    "the option `path` must be the folder of Hateful Memes, with img/ and train.jsonl, "
    "dev_seen.jsonl, test_seen.jsonl (or those that `val` and `test` name), rows of {id, img, "
    "label, text}"
)
MEMES = {"train": range(8), "dev_seen": range(8, 12), "test_seen": range(12, 17)}


def meme(n: int) -> dict[str, Any]:
    return {"id": n, "img": f"img/{n:05}.png", "label": n % 2, "text": f'when, "you" ☕ {n}'}


@pytest.fixture
def memes(tmp_path: Path) -> Path:
    root = tmp_path / "memes"
    root.mkdir()
    for name, numbers in MEMES.items():
        lines = [json.dumps(meme(n)).replace("img/", "img\\/") for n in numbers]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
        for n in numbers:
            draw(root / meme(n)["img"])
    return root


def test_memes(memes: Path) -> None:
    options = {"path": str(memes), **SMALL}
    data = load_task("hateful_memes", options)
    assert data.class_names == ("not hateful", "hateful")
    assert data.augmentation == {"image": Augmentation(crop=(0.5, 1.0))}  # texts are not mirrored
    for split, numbers in zip(("train", "val", "test"), MEMES.values(), strict=True):
        assert colours(data, split) == [colour(f"{n:05}") for n in numbers]
        assert data.splits[split].labels.tolist() == [n % 2 for n in numbers]
    assert texts(prepare_task("hateful_memes", options), "train") == [
        f"when you {n}" for n in range(8)
    ]
    plain = load_task("hateful_memes", {**options, "augment": False})
    assert plain.augmentation == {}
    assert plain.fingerprint != data.fingerprint


def test_memes_as_people_save_them_and_other_rows(memes: Path) -> None:
    expected = listed("hateful_memes", memes)
    for name in MEMES:
        path = memes / f"{name}.jsonl"
        lines = path.read_text().replace('"label": 1', '"label": "1"').splitlines()
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join([*lines, ""]).encode())
    assert listed("hateful_memes", memes) == expected
    for name in ("dev_seen", "test_seen"):
        shutil.move(memes / f"{name}.jsonl", memes / f"{name.replace('_seen', '_unseen')}.jsonl")
    assert listed("hateful_memes", memes, val="dev_unseen", test="test_unseen") == expected
    assert refusal("hateful_memes", memes, val="dev_unseen", test="dev_unseen") == (
        "task hateful_memes: `val` and `test` must be different rows, got dev_unseen for both; "
        "change one of them"
    )


def test_rows_that_have_memes_in_common(memes: Path) -> None:
    """As dev_seen.jsonl and dev_unseen.jsonl of the release have."""
    rows = [json.dumps(meme(n)) for n in (20, 9, 10)]
    (memes / "dev_unseen.jsonl").write_text("\n".join(rows))
    assert refusal("hateful_memes", memes, test="dev_unseen") == (
        "task hateful_memes: no image may be in two of train.jsonl, dev_seen.jsonl, "
        "dev_unseen.jsonl, got 2, such as img/00009.png; choose other rows as `val` or `test`"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"id": 1, "img": "img/1.png", "text": "x',
            (
                'must be JSON, {id, img, label, text}, got \'{"id": 1, "img": "img/1.png", '
                '"text": "x\'…; is the file truncated?'
            ),
        ),
        (b"\xff\xfe{", "must be JSON, {id, img, label, text}, got '��{'…; is the file truncated?"),
        ("[1]", f"must have 'img', got a list; {MEMES_LAYOUT}"),
        ('{"id": 1, "label": 1}', f"must have 'img', got id, label; {MEMES_LAYOUT}"),
        (
            '{"id": 1, "img": "img/1.png", "text": "x"}',
            "must have 'label', got id, img, text; the first release's test.jsonl has no labels; "
            + MEMES_LAYOUT,
        ),
        (
            '{"id": 1, "img": "/etc/x.png", "label": 1, "text": "x"}',
            (
                "must have the path of an image below the folder and a text, got '/etc/x.png'; "
                "correct or remove it"
            ),
        ),
        (
            '{"id": 1, "img": "img/1.png", "label": 1, "text": null}',
            (
                "must have the path of an image below the folder and a text, got 'None'; correct "
                "or remove it"
            ),
        ),
        (
            '{"id": 1, "img": "img/1.png", "label": 2, "text": "x"}',
            "must have a label of 0 or 1, got '2'; correct or remove it",
        ),
        (
            '{"id": 1, "img": "img/1.png", "label": NaN, "text": "x"}',
            "must have a label of 0 or 1, got 'nan'; correct or remove it",
        ),
        (
            '{"id": 1, "img": "img/1.png", "label": [], "text": "x"}',
            "must have a label of 0 or 1, got '[]'; correct or remove it",
        ),
    ],
)
def test_wrong_memes(memes: Path, line: str | bytes, message: str) -> None:
    path = memes / "test_seen.jsonl"
    content = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(path.read_bytes() + b"\n" + content)
    assert refusal("hateful_memes", memes) == f"{path}: line 6 {message}"


@pytest.mark.parametrize("task", ["food101", "mvsa", "hateful_memes"])
def test_the_path_is_required(task: str) -> None:
    with pytest.raises(DataError, match=f"task {task}: option 'path' is required: the folder that"):
        load_task(task, {})


@pytest.mark.slow
def test_a_small_study_of_it(food: Path, tmp_path: Path) -> None:
    import modmix

    (tmp_path / "small.yaml").write_text(
        "study: small\n"
        f"task: {{name: food101, path: '{food}', size: 16, length: 4}}\n"
        "seeds: 2\n"
        "encoders:\n"
        "  image: {name: resnet18, width: 2}\n"
        "  text: {name: transformer, width: 8, heads: 2, feedforward: 8}\n"
        "training: {epochs: 2, batch_size: 6}\n"
        "parts: {one: {methods: {add: , base: {modality: text}}}}\n"
    )
    study = modmix.run(
        tmp_path / "small.yaml", runner="local", home=tmp_path / "runs", mlflow=False
    )
    frame = study.replicates()
    assert frame["state"].tolist() == ["done"] * 4
    assert np.isfinite(frame["test/error"]).all()
