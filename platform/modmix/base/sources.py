"""Users' own Python files: read, content-addressed, shipped to workers and executed. No torch.

A study file may name a class in a Python file, ``my_fusion.py:Gate``. `find` reads that file and
every file in its folder that it imports, and returns a *reference*, ``my_fusion.py:Gate@4be1…``,
which ends in a digest of these texts. A reference can be used wherever the name of a method,
encoder or task can. It is part of a result's identity, so edited code never reuses old results.

    find        the file on disk -> a reference                    (driver)
    bundles     the texts behind references, as JSON               (driver, in a pack or a model)
    register    takes such texts                                   (worker)
    load        the class behind a reference                       (both)

Every version of a file becomes a separate module, named by its digest, so a process may hold
several versions. The files are executed: running a study or loading a model with references runs
their code.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import importlib
import linecache
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from modmix.base.errors import InputError
from modmix.base.home import user_path
from modmix.base.messages import digest

_PREFIX = "modmix_own_"  # of module names


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The text of a file and of everything it imports from its own folder.

    ``texts`` maps paths relative to ``folder`` to contents. ``folder``, the original location, is
    used only in tracebacks and by `location`.
    """

    entry: str
    folder: str
    texts: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        return digest([self.entry, dict(self.texts)])[:16]

    @cached_property
    def files(self) -> Mapping[str, str | None]:
        """Dotted module name -> its file; None for a folder without ``__init__.py``."""
        found: dict[str, str | None] = {}
        for file in self.texts:
            parts = _dotted(file).split(".")
            for length in range(1, len(parts)):
                found.setdefault(".".join(parts[:length]), None)
            found[".".join(parts)] = file
        return found


_bundles: dict[str, Bundle] = {}  # by digest; every bundle this process has seen
_shown: dict[str, str] = {}  # file name in tracebacks -> text


# ---------------------------------------------------------------- references


def is_reference(name: str) -> bool:
    """Whether a name of a method, encoder or task is a reference to a user's own class."""
    return ".py:" in name and "@" in name


def place(reference: str) -> str:
    """A reference without its digest, for display; other names unchanged."""
    return reference.rpartition("@")[0] if is_reference(reference) else reference


def find(text: str, folder: Path) -> str:
    """The reference for ``my_fusion.py:Gate`` in a study file in ``folder``.

    Raises:
        InputError: not of that form, no such file, or invalid Python.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise InputError(f"must be FILE.py:CLASS, got {text!r}")
    bundle = _read(Path(folder, user_path(file)).absolute())
    _bundles[bundle.digest] = bundle  # with its latest folder
    return f"{bundle.entry}:{name}@{bundle.digest}"


def bundles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Sources of those names that are references, by digest, as JSON values."""
    digests = dict.fromkeys(n.rpartition("@")[2] for n in names if is_reference(n))
    return {digest_: asdict(_bundle(digest_)) for digest_ in digests}


def register(given: Mapping[str, Mapping[str, Any]]) -> None:
    """Register sources that `bundles` returned, possibly in another process.

    Raises:
        InputError: a text does not match its digest.
    """
    for digest_, values in given.items():
        bundle = Bundle(**values)
        if bundle.digest != digest_:
            raise InputError(
                f"the source of {bundle.entry} must have digest {digest_}, got {bundle.digest}: "
                "it was changed on its way; run the command again"
            )
        _bundles.setdefault(digest_, bundle)


def location(reference: str) -> str:
    """A reference as ``/absolute/path/FILE.py:CLASS``, valid in any study file."""
    bundle = _bundle(reference.rpartition("@")[2])
    name = place(reference).rpartition(":")[2]
    return f"{Path(bundle.folder, bundle.entry)}:{name}"


def load(path: str) -> Any:
    """The class behind a reference, or behind ``module:Class``.

    Raises:
        InputError: the file has no such class, or cannot be imported.
    """
    if not is_reference(path):
        module_name, _, name = path.partition(":")
        return getattr(importlib.import_module(module_name), name)
    bundle = _bundle(path.rpartition("@")[2])
    name = place(path).rpartition(":")[2]
    with explained(f"{bundle.entry} cannot be imported"):
        module = _import(bundle, _dotted(bundle.entry))
    found = vars(module).get(name)
    if not isinstance(found, type):
        classes = [n for n, value in vars(module).items() if isinstance(value, type)]
        near = difflib.get_close_matches(name, classes, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check the name"
        raise InputError(f"{bundle.entry} has no class {name!r}: {hint}")
    return found


def load_subclass(path: str, base: type, public_name: str) -> Any:
    """As `load`; the class behind a reference must be a subclass of ``base``.

    Raises:
        InputError: see `load`, or it is not a subclass.
    """
    found = load(path)
    if is_reference(path) and not issubclass(found, base):
        name = place(path).rpartition(":")[2]
        raise InputError(f"{place(path)} must be a subclass of {public_name}: class {name}("
                         f"{public_name})")  # fmt: skip
    return found


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn any exception from a user's code into one sentence with the user's file and line.

    Raises:
        InputError: in place of any other `Exception`.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """An exception, with the innermost line of a user's own file in its traceback, if any."""
    lines = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _shown
    ]
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{lines[-1].filename}:{lines[-1].lineno}: {lines[-1].line}: {said}" if lines else said


def _bundle(digest_: str) -> Bundle:
    if digest_ not in _bundles:
        raise InputError(f"no source with digest {digest_} is known: run the study file again")
    return _bundles[digest_]


# ---------------------------------------------------------------- reading


def _read(file: Path) -> Bundle:
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.py")], n=1)
        hint = f"did you mean {near[0]}?" if near else "check the path"
        raise InputError(f"there is no file {file}: {hint}")
    waiting, texts = [file.name], dict[str, str]()
    while waiting:
        name = waiting.pop()
        if name not in texts:
            texts[name] = _text(file.parent / name)
            tree = _parsed(texts[name], file.parent / name)
            waiting += [f for m in _imports(tree, name) for f in _files(file.parent, m)]
    return Bundle(entry=file.name, folder=str(file.parent), texts=dict(sorted(texts.items())))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _parsed(text: str, file: Path) -> ast.Module:
    try:
        return ast.parse(text, str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        shown = (text.splitlines() or [""])[line - 1 : line]
        raise InputError(
            f"{file}:{line}: {''.join(shown).strip()}: not valid Python: "
            f"{getattr(error, 'msg', error)}"
        ) from error


def _imports(tree: ast.Module, file: str) -> Iterator[str]:
    """Dotted names imported anywhere in a file, with relative imports resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, _package(file))
            if base:
                yield base
            yield from (".".join(filter(None, [base, alias.name])) for alias in node.names)


def _files(folder: Path, module: str) -> Iterator[str]:
    """The files in the folder that importing a dotted name runs; none for libraries."""
    parts = module.split(".")
    if parts[0] == "modmix" or parts[0] in sys.stdlib_module_names:
        return
    for length in range(1, len(parts) + 1):
        path = "/".join(parts[:length])
        for candidate in (f"{path}/__init__.py", f"{path}.py"):
            if (folder / candidate).is_file():
                yield candidate
                break


def _dotted(file: str) -> str:
    path = PurePosixPath(file).with_suffix("")
    return ".".join(path.parts[:-1] if path.name == "__init__" else path.parts)


def _package(file: str) -> str:
    """The package of a file, for its relative imports; "" for files directly in the folder."""
    return ".".join(PurePosixPath(file).parts[:-1])


def _absolute(name: str, level: int, package: str) -> str:
    if not level:
        return name
    parts = package.split(".") if package else []
    return ".".join([*parts[: len(parts) - level + 1], *filter(None, [name])])


# ---------------------------------------------------------------- running


def _import(bundle: Bundle, name: str) -> ModuleType:
    """A module of a bundle, executed once."""
    full = f"{_PREFIX}{bundle.digest}.{name}"
    if full in sys.modules:
        return sys.modules[full]
    if name not in bundle.files:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = ModuleType(full)
    file = bundle.files[name]
    sys.modules[full] = module
    try:
        if file is not None:
            shown = _show(bundle, file)
            module.__file__ = shown
            # Its imports search the bundle first; see the documentation of `exec`.
            own = {**vars(builtins), "__import__": _Importer(bundle, _package(file))}
            vars(module)["__builtins__"] = own
            exec(compile(bundle.texts[file], shown, "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[full]
        raise
    return module


class _Importer:
    """``__import__`` for a module of a bundle: the bundle's files take precedence."""

    def __init__(self, bundle: Bundle, package: str) -> None:
        self._bundle, self._package = bundle, package

    def __call__(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        whole = _absolute(name, level, self._package)
        if not level and name.partition(".")[0] not in self._bundle.files:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        parts = whole.split(".") if whole else []
        modules = [_import(self._bundle, ".".join(parts[: i + 1])) for i in range(len(parts))]
        for parent, child, part in zip(modules, modules[1:], parts[1:], strict=False):
            setattr(parent, part, child)
        if not fromlist:
            return modules[0]
        last = modules[-1] if modules else ModuleType(f"{_PREFIX}{self._bundle.digest}")
        for item in fromlist:
            inner = ".".join([*parts, item])
            if inner in self._bundle.files and not hasattr(last, item):
                setattr(last, item, _import(self._bundle, inner))
        return last


def _show(bundle: Bundle, file: str) -> str:
    """Make tracebacks show the lines of the text that runs; returns the file name they show.

    The file itself may be on another machine or have been edited since. The first version of a
    file that a process runs gets the file's own name.
    """
    text, name = bundle.texts[file], str(Path(bundle.folder, file))
    if _shown.setdefault(name, text) != text:
        name = f"{name} (version {bundle.digest})"
        _shown[name] = text
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return name
