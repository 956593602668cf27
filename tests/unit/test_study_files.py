"""The study files of the repository name what there is; their data is not needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modmix.study import files, spec
from modmix.study.validate import Checker

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize(
    "path", sorted(STUDIES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(STUDIES))
)
def test_a_study_file_has_no_problems(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files.read(path)
    for name in re.findall(r"\$\{(\w+)\}", source.text):
        monkeypatch.setenv(name, "/data")
    checked, problems = spec.check(source)
    assert not [*source.problems, *problems]
    for one in files.sources_of_tasks(source).values() or [source]:
        checker = Checker(one)
        checker.run()
        assert not checker.problems
    assert checked is not None
    assert source.text.startswith("# "), "a file begins with the command that runs it"


def test_names_of_studies_differ() -> None:
    """They share one results folder."""
    names = [files.read(path).raw["study"] for path in STUDIES.rglob("*.yaml")]
    assert len(set(names)) == len(names)
