"""Users' own files: references, versions side by side, imports, and what messages say."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modmix.base import sources
from modmix.base.errors import InputError
from modmix.base.signature import arguments, hyperparameters


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_an_unknown_home_directory_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^must be an absolute path, .* '~nobody_here/x.py' is not "
    ):
        sources.find("~nobody_here/x.py:A", tmp_path)


def loaded(folder: Path, text: str, name: str = "A") -> Any:
    write(folder, {"own.py": text})
    return sources.load(sources.find(f"own.py:{name}", folder))


# ---------------------------------------------------------------- references


def test_a_reference_names_the_texts_and_not_the_place(tmp_path: Path) -> None:
    files = {
        "own.py": "import near\nclass A: pass\n",
        "near.py": "import far\n",
        "far.py": "x = 1\n",
    }
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, {**files, "unrelated.py": "1"})
    write(other, files)
    first = sources.find("own.py:A", one)
    assert sources.find("own.py:A", other) == first
    assert sources.find(f"{one}/own.py:A", other) == first
    assert sources.place(first) == "own.py:A"
    assert sources.is_reference(first)
    assert not sources.is_reference("mulmix")
    write(one, {"unrelated.py": "2"})
    assert sources.find("own.py:A", one) == first
    write(one, {"far.py": "x = 2\n"})  # two imports away
    assert sources.find("own.py:A", one) != first


def test_versions_of_a_file_do_not_mix(tmp_path: Path) -> None:
    def version(x: int) -> str:
        write(
            tmp_path,
            {"own.py": f"import near\nclass A:\n  def f(self):\n    return {x} / near.x\n"},
        )
        write(tmp_path, {"near.py": f"x = {x}\n"})
        return sources.find("own.py:A", tmp_path)

    first, second, zero = version(1), version(2), version(0)
    a, b, c = (sources.load(reference)() for reference in (first, second, zero))
    assert sources.load(first) is type(a)
    assert type(a) is not type(b)
    assert (a.f(), b.f()) == (1, 1)
    assert "own" not in sys.modules
    with pytest.raises(ZeroDivisionError) as caught:
        c.f()
    assert "    return 0 / near.x" in "".join(traceback.format_exception(caught.value))
    assert sources.explain(caught.value).endswith(": return 0 / near.x: ZeroDivisionError: "
                                                  "division by zero")  # fmt: skip


WORKER = """
import json, sys, traceback
from modmix.base import sources
given = json.load(sys.stdin)
sources.register(given["bundles"])
try:
    sources.load(given["reference"])().f()
except ZeroDivisionError as error:
    print(sources.explain(error))
    print(traceback.format_exc())
"""


def test_sources_run_where_the_files_are_not(tmp_path: Path) -> None:
    write(tmp_path, {"own.py": "from near import g\n\nclass A:\n    def f(self):\n        g(0)\n"})
    write(tmp_path, {"near.py": "def g(x):\n    return 1 / x  # here\n"})
    reference = sources.find("own.py:A", tmp_path)
    given = json.dumps({"reference": reference, "bundles": sources.bundles(["mul", reference])})
    for file in tmp_path.iterdir():
        file.unlink()
    told = subprocess.run(
        [sys.executable, "-c", WORKER], input=given, capture_output=True, text=True, check=False
    )
    assert told.stdout.splitlines()[0] == (
        f"{tmp_path}/near.py:2: return 1 / x  # here: ZeroDivisionError: division by zero"
    )
    assert f'File "{tmp_path}/own.py", line 5, in f\n    g(0)' in told.stdout


def test_a_changed_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"own.py": "class A: pass\n"})
    bundles = sources.bundles([sources.find("own.py:A", tmp_path)])
    sources.register(json.loads(json.dumps(bundles)))
    (bundle,) = bundles.values()
    bundle["texts"]["own.py"] = "class A: evil = True\n"
    with pytest.raises(InputError, match=r"the source of own\.py must have digest"):
        sources.register(bundles)


# ---------------------------------------------------------------- imports


def test_imports_look_beside_the_file_first(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "flat.py": "value = 1\n",
            "pack/__init__.py": "from .inner import value\n",
            "pack/inner.py": "from . import other\nfrom ..flat import value as one\n"
            "value = other.value + one\n",
            "pack/other.py": "value = 10\n",
            "plain/deep.py": "from pack.other import value\n",  # a folder without __init__
            "colorsys.py": "raise ImportError('the standard library goes first')\n",
        },
    )
    text = """\
import colorsys
import json as j
import pack.other
import pack.other as other
import plain.deep
from dataclasses import dataclass
from flat import value as flat
from pack import inner, value

import numpy.linalg

@dataclass
class A:
    x: "int" = 1
    values = (flat, value, inner.value, pack.other.value, other.value, plain.deep.value)

    def late(self):
        import flat
        return flat.value
"""
    found = loaded(tmp_path, text)
    assert found.values == (1, 11, 11, 10, 10, 10)
    assert found().late() == 1
    (bundle,) = sources.bundles([sources.find("own.py:A", tmp_path)]).values()
    assert sorted(bundle["texts"]) == [
        "flat.py", "own.py", "pack/__init__.py", "pack/inner.py", "pack/other.py", "plain/deep.py",
    ]  # fmt: skip


def test_modules_that_import_each_other(tmp_path: Path) -> None:
    write(tmp_path, {"near.py": "import own\ndef f(): return own.A.x\n"})
    found = loaded(tmp_path, "import near\nclass A:\n  x = 3\n  f = staticmethod(near.f)\n")
    assert found.f() == 3


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("class B: pass", "A", "own.py has no class 'A': check the name"),
        ("class Gate: pass", "Gaet", "own.py has no class 'Gaet': did you mean 'Gate'?"),
        ("A = 3", "A", "own.py has no class 'A': check the name"),
        ("x = 1\nclass A(:\n", "A", "FOLDER/own.py:2: class A(:: not valid Python: invalid syntax"),
        (
            "x = 1\ny = x.shape\nclass A: pass",
            "A",
            (
                "own.py cannot be imported: FOLDER/own.py:2: y = x.shape: AttributeError: "
                "'int' object has no attribute 'shape'"
            ),
        ),
        (
            "import nothing_of_this_name",
            "A",
            (
                "own.py cannot be imported: FOLDER/own.py:1: import nothing_of_this_name: "
                "ModuleNotFoundError: No module named 'nothing_of_this_name'"
            ),
        ),
        ("class A: pass", "1A", "must be FILE.py:CLASS, got 'own.py:1A'"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, text, name)
    assert str(caught.value) == message.replace("FOLDER", str(tmp_path))


def test_a_missing_file_is_named_with_a_near_one(tmp_path: Path) -> None:
    write(tmp_path, {"my_fusion.py": ""})
    with pytest.raises(InputError) as caught:
        sources.find("my_fuson.py:Gate", tmp_path)
    assert str(caught.value) == (
        f"there is no file {tmp_path}/my_fuson.py: did you mean my_fusion.py?"
    )


def test_a_class_must_derive_from_ours(tmp_path: Path) -> None:
    write(tmp_path, {"own.py": "class A: pass\n"})
    with pytest.raises(InputError) as caught:
        sources.load_subclass(sources.find("own.py:A", tmp_path), Path, "modmix.Method")
    assert str(caught.value) == (
        "own.py:A must be a subclass of modmix.Method: class A(modmix.Method)"
    )


# ---------------------------------------------------------------- constructors

HEAD = """\
from __future__ import annotations
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Optional
if TYPE_CHECKING:
    from nowhere import Shape
"""


@pytest.mark.parametrize(
    ("written", "kind", "default", "optional", "choices"),
    [
        ("int = 3", "int", 3, False, ()),
        ("float = 3", "float", 3, False, ()),
        ("bool = True", "bool", True, False, ()),
        ("str = 'a'", "str", "a", False, ()),
        ("Literal['a', 'b'] = 'b'", "str", "b", False, ("a", "b")),
        ("list[int] = [1]", "ints", [1], False, ()),
        ("Sequence[float] = (0.5, 1)", "floats", [0.5, 1], False, ()),
        ("tuple[int, ...] = ()", "ints", [], False, ()),
        ("dict[str, float] | None = None", "mapping", None, True, ()),
        ("Mapping[str, float] | None = None", "mapping", None, True, ()),
        ("int | None = None", "int", None, True, ()),
        ("Optional[Literal['a']] = 'a'", "str", "a", True, ("a",)),
    ],
)
def test_arguments_declare_hyperparameters(
    tmp_path: Path, written: str, kind: str, default: Any, optional: bool, choices: tuple[str, ...]
) -> None:
    text = f"{HEAD}class A:\n  def __init__(self, shape: Shape, *, it: {written}): pass\n"
    (found,) = hyperparameters(loaded(tmp_path, text), "own.py:A", reserved=())
    assert (found.name, found.kind, found.default) == ("it", kind, default)
    assert (found.optional, found.choices, found.stackable) == (optional, choices, False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def __init__(self, *, it=3): pass", "must have an annotation (int, float, bool"),
        ("def __init__(self, *, it: Shape = 3): pass", "that we can read (READABLE), got Shape"),
        ("def __init__(self, *, it: int | str = 3): pass", "(READABLE), got int | str"),
        ("def __init__(self, *, it: Literal[1, 2] = 1): pass", "(READABLE), got Literal[1, 2]"),
        ("def __init__(self, *, it: list[str] = []): pass", "(READABLE), got list[str]"),
        ("def __init__(self, *, it: int): pass", "must have a default"),
        ("def __init__(self, it: int = 3): pass", "must be keyword-only: put a * before it"),
        (
            "def __init__(self, *, it: int = None): pass",
            "would refuse: must be a whole number, got",
        ),
        (
            "def __init__(self, *, taken: int = 1): pass",
            "has the name of something else in a study",
        ),
        ("stackable = {'x'}", "stackable names 'x', which is no hyperparameter"),
    ],
)
def test_arguments_that_say_nothing_we_know(tmp_path: Path, body: str, message: str) -> None:
    readable = "int, float, bool, str, Literal[...] of words, list[int], list[float], X | None"
    found = loaded(tmp_path, f"{HEAD}class A:\n  {body}\n")
    with pytest.raises(InputError) as caught:
        hyperparameters(found, "own.py:A", reserved={"taken"})
    expected = message.replace("READABLE", readable).replace("that we can read", "we can read")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("own.py:A: ")


def test_arguments_of_a_base_class_count_where_they_are_passed_on(tmp_path: Path) -> None:
    text = f"""{HEAD}
class Base:
    def __init__(self, features, *, beta: float = 1.0, depth: int = 2): pass

class Closed(Base):
    def __init__(self, features, *, width: int = 8): pass

class A(Base):
    stackable: ClassVar = frozenset({{"beta"}})
    def __init__(self, features, *, depth: int = 3, **others): super().__init__(features, **others)
"""
    found = hyperparameters(loaded(tmp_path, text), "own.py:A", reserved=())
    assert [(h.name, h.default, h.stackable) for h in found] == [
        ("depth", 3, False),
        ("beta", 1.0, True),
    ]
    (closed,) = hyperparameters(loaded(tmp_path, text, "Closed"), "own.py:Closed", reserved=())
    assert closed.name == "width"


def test_tasks_may_have_paths_and_words(tmp_path: Path) -> None:
    text = """\
from pathlib import Path
class A:
    def __init__(self, *, a: Path, b: Path | None = None, c: Path = Path("x"), d: list[str]): ...
"""
    found = arguments(loaded(tmp_path, text), "own.py:A", admitted={"path", "strs"})
    assert [(a.kind, a.required, a.default) for a in found] == [
        ("path", True, None), ("path", False, None), ("path", False, "x"), ("strs", True, None),
    ]  # fmt: skip
