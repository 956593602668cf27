"""Digests of code: what changes what a class computes changes them, what does not does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modmix.base import code, sources
from modmix.base.code import code_digest, essence
from modmix.encoders.table import ENCODERS
from modmix.methods.table import METHODS

PLAIN = '''\
class A:
    def f(self, x):
        return {"a": "# no comment", "b": """
text"""}[x]
'''

DECORATED = '''\
"""A module.

Of several lines; µ.
"""  # and a comment

# A comment.
class A:
    "What it is."  # its docstring

    # Another comment.
    def f(self, x):
        """Docstring of
        two lines."""
        return {"a": "# no comment", "b": """
text"""}[x]  # the end
'''


def test_comments_and_docstrings_do_not_count() -> None:
    assert essence(DECORATED) == essence(PLAIN) == PLAIN.rstrip("\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = (\n    'a'  # why\n)\n", "x = (\n    'a'\n)"),
        ("x = [\n    # one\n    'a'\n    # two\n    'b'\n]\n", "x = [\n    'a'\n    'b'\n]"),
        ("f(\n    'a'  # b\n    )['c']  # d\n", "f(\n    'a'\n    )['c']"),
        ("x = 1; 'nothing'\n", "x = 1; 'nothing'"),
        ("", ""),
    ],
)
def test_strings_within_brackets_are_code(text: str, expected: str) -> None:
    assert essence(text) == expected


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("return {", "return  {"),
        ("# no comment", "# comment"),
        ("\ntext", "\n text"),
        ("[x]", "[x + 1]"),
        ("class A", "class B"),
    ],
)
def test_everything_else_does(was: str, now: str) -> None:
    assert essence(PLAIN.replace(was, now)) != essence(PLAIN)


# ---------------------------------------------------------------- a package of its own


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In place of modmix: a method that imports a base and a helper, and one that does not."""
    for name, text in {
        "methods/base.py": "import torch\nfrom modmix.base.errors import InputError\nX = 1\n",
        "methods/helper.py": "Y = 1\n",
        "methods/one.py": "from modmix.methods.base import X\nfrom modmix.methods import helper\n"
        "from modmix.methods.table import METHODS\n",
        "methods/two.py": "from modmix.methods.base import X\n",
        "methods/table.py": "from modmix.methods.two import Two\n",
        "base/errors.py": "E = 1\n",
        "encoders/base.py": "W = 1\n",
        "encoders/mlp.py": "from modmix.methods.helper import Y\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(code, "_PACKAGE", tmp_path)
    code_digest.cache_clear()
    yield tmp_path
    code_digest.cache_clear()


PATHS = ("modmix.methods.one:One", "modmix.methods.two:Two", "modmix.encoders.mlp:MLP")


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("methods/one.py", [True, False, False]),
        ("methods/two.py", [False, True, False]),
        ("methods/helper.py", [True, False, True]),
        ("methods/base.py", [True, True, False]),
        ("encoders/mlp.py", [False, False, True]),
        ("methods/table.py", [False, False, False]),
        ("base/errors.py", [False, False, False]),
    ],
)
def test_what_a_class_imports_counts(package: Path, file: str, changed: list[bool]) -> None:
    before = [code_digest(path) for path in PATHS]
    path = package / file
    path.write_text("# a comment\n" + path.read_text())
    code_digest.cache_clear()
    assert [code_digest(p) for p in PATHS] == before
    path.write_text(path.read_text() + "Z = 1\n")
    code_digest.cache_clear()
    assert [now != was for now, was in zip(map(code_digest, PATHS), before, strict=True)] == changed


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("from modmix.methods.one import One", "methods/helper.py"),
        ("import modmix.methods.two", "methods/base.py"),
        ("from modmix import Method", "methods/base.py"),
        ("import modmix\nclass Other(modmix.Method): ...", "methods/base.py"),
        ("import modmix as mm\nclass Other(mm.Method): ...", "methods/base.py"),
        ("from modmix import *\nclass Other(Encoder): ...", "encoders/base.py"),
    ],
)
def test_own_classes_depend_on_what_they_import_of_modmix(
    package: Path, tmp_path: Path, line: str, file: str
) -> None:
    (tmp_path / "mine.py").write_text(f"{line}\nclass Mine: ...\n")
    reference = sources.find("mine.py:Mine", tmp_path)
    before = code_digest(reference)
    path = package / file
    path.write_text(path.read_text() + "Z = 1\n")
    code_digest.cache_clear()
    assert code_digest(reference) != before


# ---------------------------------------------------------------- the real one


def test_every_class_of_the_tables_has_its_own() -> None:
    paths = {entry.path for entry in (*METHODS.values(), *ENCODERS.values())}
    modules = {path.partition(":")[0] for path in paths}
    assert len({code_digest(path) for path in paths}) == len(modules)


def test_torch_is_not_imported() -> None:
    program = (
        "import sys\nfrom modmix.base.code import code_digest\n"
        "code_digest('modmix.methods.mul:Mul')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
