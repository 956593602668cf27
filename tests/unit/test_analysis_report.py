"""The report: everything is written, it stands alone, and it says what is so."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser

import pytest

from analysis_ledger import Written, beta_study, mul_params, open_ledger
from modmix.analysis.frames import read
from modmix.analysis.report import report_html, write_all
from modmix.analysis.summary import headline, progress, ranks
from modmix.base import sources
from modmix.base.errors import InputError
from modmix.base.home import Home

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that tags close in order; collects ids, links and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def fresh(tmp_path):
    return open_ledger(tmp_path)


def finish(study):
    study.ledger.set_state(study.name, "finished")


@pytest.mark.slow
def test_everything_is_written_where_it_belongs(tmp_path, fresh):
    finish(beta_study(fresh))
    home = Home(tmp_path / "home")
    outputs = write_all(fresh, home, "demo")
    folder = home.study("demo")
    names = ["results", "depth", "beta_curve", "learning", "search_search", "importance"]
    assert {p.name for p in outputs.figures} == {
        f"{n}.{f}" for n in names for f in ("png", "svg", "pdf")
    }
    tables = {f"{n}.{f}" for n in ("results", "configurations") for f in ("csv", "md", "tex")}
    tables |= {f"{n}.csv" for n in [*names[1:], "ranks"]}
    assert {p.name for p in outputs.tables} == tables
    assert outputs.report == folder / "report.html"
    assert all(path.stat().st_size > 0 for path in outputs.paths)
    written = {path for path in folder.rglob("*") if path.is_file()}
    assert written == {*outputs.paths, folder / ".written"}  # and no temporary file is left
    # Nothing in the outputs depends on when they were written.
    before = {path: path.read_bytes() for path in outputs.paths}
    again = write_all(fresh, home, "demo")
    assert {path: path.read_bytes() for path in again.paths} == before


def test_figures_and_tables_that_a_study_has_no_longer_are_removed(tmp_path, fresh):
    finish(beta_study(fresh))
    home = Home(tmp_path / "home")
    outputs = write_all(fresh, home, "demo")
    folder = home.study("demo")
    note = folder / ".written"
    assert set(note.read_text().splitlines()) == {
        path.relative_to(folder).as_posix() for path in (*outputs.figures, *outputs.tables)
    }
    for name in ("figures/gone.png", "tables/gone.csv", "figures/mine.png"):
        (folder / name).write_text("x")
    note.write_text(note.read_text() + "\nfigures/gone.png\ntables/gone.csv\ntables/never.csv")
    again = write_all(fresh, home, "demo")
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert files - set(again.paths) == {note, folder / "figures" / "mine.png"}


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The page of a study with everything in it: also a failed and some missing replicates."""
    ledger = open_ledger(tmp_path_factory.mktemp("ledger"))
    study = beta_study(ledger)
    configuration = study.configuration("table", "early", {"hidden": [64]})
    study.end(
        configuration, 0, {}, state="failed", reason="Traceback …\n  line 1\nDiverged: <NaN> & more"
    )
    finish(study)
    return report_html(ledger, "demo")


@pytest.mark.slow
def test_the_page_stands_alone(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not re.findall(r"https?://(?!www\.w3\.org/)", html)
    assert page.tags.isdisjoint({"link", "iframe", "img", "object"})
    assert "prefers-color-scheme: dark" in html
    assert "#262626" not in html.split("</style>")[1]  # figures take the page's ink


def test_the_page_has_results_setup_and_failures(html):
    text = Page(html).text
    for words in (
        "Its test error is 6.79 %",
        "digits", "1000 train, 300 val, 400 test", "left 8×4", "noise = 0.1",
        "0, 1, 2, 3, 4", "2.14.1", "git checkout 0123456789abcdef", "f" * 32,
        "modmix run demo.yaml", "modmix best demo",
        "# modmix run demo.yaml study: demo",
        "Diverged: <NaN> & more",
        "1 of 210 replicates failed",
        "This study has not finished", "4 pending, 5 pruned, 1 failed",
        "Selected on validation: β = ",
    ):  # fmt: skip
        assert words in text, words


def test_what_comes_from_files_cannot_break_the_page(fresh):
    nasty = "</style><script>alert(1)</script>\"'&"
    study = Written(fresh, description=nasty, parts={"a": {"x": "beta", "title": nasty}})
    study.fill(study.configuration("a", nasty, {"beta": nasty, "merge": nasty}), 9.0)
    fresh.start_study(
        "demo", spec=fresh.study("demo").spec, text=nasty, source=f"/x/{nasty}", details={}
    )
    html = report_html(fresh, "demo")
    assert html.count("<script>") == 1
    assert nasty in Page(html).text


def test_files_of_own_classes_are_named_with_their_digests(tmp_path, fresh):
    folder = tmp_path / "own"
    folder.mkdir()
    code = "from near import *\n\n\nclass Gate:\n    name = 'é'\n"
    for name, text in (("gate.py", code), ("near.py", "WIDTH = 3\n")):
        (folder / name).write_text(text, encoding="utf-8")
    Written(fresh, parts={"a": {}})
    record = fresh.study("demo")
    bundles = sources.bundles([sources.find("gate.py:Gate", folder)])
    details = {**record.details, "sources": bundles}
    fresh.start_study("demo", spec=record.spec, text="", source="demo.yaml", details=details)
    text = Page(report_html(fresh, "demo")).text
    for name in ("gate.py", "near.py"):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert f"{name} (SHA-256 {digest})" in text
    assert "Save the study's own Python files beside it:" in text


def test_an_empty_study_has_a_report(tmp_path, fresh):
    Written(fresh, parts={"a": {"x": "beta"}})
    outputs = write_all(fresh, Home(tmp_path / "home"), "demo")
    text = Page(outputs.report.read_text()).text
    assert "No configuration has finished all its replicates yet. 0 of 0 replicates" in text
    with pytest.raises(InputError, match="no study 'other'"):
        write_all(fresh, Home(tmp_path / "home"), "other")


# ---------------------------------------------------------------- sentences


def put(study, method, errors, *, beta=0.5, **more):
    configuration = study.configuration("a", method, {"beta": beta}, seeds=list(errors))
    for seed, error in errors.items():
        metrics = {"val/error": error, "test/error": error}
        study.end(
            configuration, seed, metrics | {name: values[seed] for name, values in more.items()}
        )


def test_headline_of_a_clear_win(fresh):
    study = Written(fresh, parts={"a": {}})
    put(study, "mul", {0: 8.0, 1: 8.2, 2: 8.4})
    put(study, "add", {0: 9.0, 1: 9.3, 2: 9.4})
    # differences 1.0, 1.1, 1.0: mean 1.0333, standard error 1/30, t = 31, p = 0.001
    assert headline(read(fresh, "demo")) == (
        "mul is best by validation error. Its test error is 8.20 % (95 % CI 7.70 to 8.70, n = 3), "
        "1.03 points lower than that of add, the next method (95 % CI 0.89 to 1.18; paired t test "
        "over 3 common seeds, Holm-corrected p = 0.001, significant at the 5 % level)."
    )


def test_headline_without_significance(fresh):
    study = Written(fresh, parts={"a": {}})
    put(study, "mul", {0: 8.0, 1: 9.2, 2: 8.4})
    put(study, "add", {0: 9.0, 1: 9.0, 2: 8.6})
    assert "not significant at the 5 % level" in headline(read(fresh, "demo"))


def test_headline_of_one_seed_and_of_one_method(fresh):
    study = Written(fresh, parts={"a": {}})
    put(study, "mul", {0: 8.0})
    assert headline(read(fresh, "demo")) == "mul reaches 8.00 % test error (one seed)."
    put(study, "add", {0: 9.0})
    assert headline(read(fresh, "demo")) == (
        "mul is best by validation error. Its test error is 8.00 % (one seed), 1.00 points lower "
        "than that of add, the next method. One common seed does not allow a test."
    )


def test_headline_of_equals_of_strangers_and_of_constant_gaps(fresh):
    for name, first, second, words in (
        ("equal", {0: 8.0, 1: 9.0}, {0: 8.0, 1: 9.0}, "equal to that of add."),
        (
            "strangers",
            {0: 8.0},
            {1: 9.0},
            "that of add, the next method, is 9.00 %; the two have no seed",
        ),
        ("constant", {0: 8.0, 1: 9.0}, {0: 9.0, 1: 10.0}, "the t test is undefined here"),
    ):
        study = Written(fresh, name, parts={"a": {}})
        salt = len(name) / 100  # other configurations than in the other studies
        put(study, "mul", first, beta=salt)
        put(study, "add", second, beta=salt)
        assert words in headline(read(fresh, name))


def test_headline_where_test_disagrees_with_validation(fresh):
    study = Written(fresh, parts={"a": {}})
    put(study, "mul", {0: 8.0, 1: 8.5}, **{"test/error": {0: 12.0, 1: 12.6}})
    put(study, "add", {0: 9.0, 1: 9.5})
    # differences 3.0 and 3.1: mean 3.05, standard error 0.05, t quantile 12.706
    found = headline(read(fresh, "demo"))
    assert found.startswith("mul is best by validation error. Its test error is 12.30 %")
    assert "3.05 points higher than that of add, the next method (95 % CI 2.41 to 3.69;" in found
    assert found.endswith("level). add has the lowest test error: 9.25 %.")


def test_headline_of_an_objective_that_should_be_high(fresh):
    study = Written(fresh, parts={"a": {}}, objective=["val/auc"])
    for method, aucs in (("mul", {0: 0.90, 1: 0.92}), ("add", {0: 0.80, 1: 0.81})):
        put(study, method, {0: 9.0, 1: 9.0}, **{"val/auc": aucs, "test/auc": aucs})
    assert headline(read(fresh, "demo")).startswith(
        "mul is best by validation AUC. Its test AUC is 0.9100 (95 % CI 0.7829 to 1.0000, n = 2), "
        "0.1050 higher than that of add"
    )


def test_progress_counts_states(fresh):
    study = Written(fresh, parts={"a": {}})
    configuration = study.configuration("a", "mul", mul_params(0.0), seeds=range(4))
    study.end(configuration, 0, {"val/error": 1.0})
    study.end(configuration, 1, {}, state="failed")
    assert progress(read(fresh, "demo")) == "1 of 4 replicates are done (2 pending, 1 failed)."


def test_ranks_are_of_the_best_configurations(fresh):
    study = Written(fresh, parts={"a": {}})
    put(study, "mul", {0: 8.0, 1: 9.5})
    put(study, "add", {0: 9.0, 1: 9.0})
    put(study, "add", {0: 1.0, 1: 99.0}, beta=0.9)  # a worse configuration, which does not count
    found = ranks(read(fresh, "demo"))
    assert found.blocks == 2
    assert set(found.frame["rank/mean"]) == {1.5}
