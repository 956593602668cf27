"""Study files as text: parsing with line numbers, by the rules of `scalars`. No torch.

`read` parses a file into plain values and the line of every key; `sources_of_tasks` divides a file
of several tasks. What the values must be is checked in `spec` and `validate`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from modmix.base.errors import InputError, Problem, SpecError
from modmix.study.scalars import MERGE, Loader, check_tag, trap, value_of

Path_ = tuple[str | int, ...]

MAX_NODES = 100_000  # in a study file, counting every use of an alias


@dataclass(frozen=True)
class Source:
    """A parsed study file: plain values, the line of every key, and the text."""

    name: str  # for messages
    text: str
    raw: Mapping[str, Any]
    lines: Mapping[Path_, int]
    folder: Path  # relative data paths start here
    problems: tuple[Problem, ...] = ()  # keys given twice (the first was kept), values like 010
    task: str = ""  # of several, the one that this source is for (see `sources_of_tasks`)
    whole: Mapping[str, Any] | None = None  # then what `raw` was made of

    @property
    def all_parts(self) -> Mapping[str, Any]:
        """The parts of the file, also those of other tasks; empty if they are no mapping."""
        parts = (self.raw if self.whole is None else self.whole).get("parts")
        return parts if isinstance(parts, Mapping) else {}

    def line(self, path: Sequence[str | int]) -> int:
        """Line of the longest prefix of ``path`` in the file; 1 if there is none."""
        for length in range(len(path), 0, -1):
            if (found := self.lines.get(tuple(path[:length]))) is not None:
                return found
        return 1

    def problem(self, path: Sequence[str | int], message: str) -> Problem:
        path = self._written_at(path)
        return Problem(self.line(path), ".".join(map(str, path)), message)

    def _written_at(self, path: Sequence[str | int]) -> Sequence[str | int]:
        """Where the whole file says what the file of one of its tasks has at ``path``."""
        if not self.task or not path or path[0] not in _OF_TASK:
            return path
        own = ("tasks", self.task, *path)
        return path if own not in self.lines and tuple(path) in self.lines else own


_OF_TASK = ("task", "encoders", "training", "paper")


def sources_of_tasks(source: Source) -> dict[str, Source]:
    """By task, what the file would be if it were of that task alone; empty without ``tasks``.

    What a task says of encoders and training goes before what the file says for all; parts that
    name other tasks are left out. Tolerant of a file whose outline is wrong.
    """
    tasks = source.raw.get("tasks")
    found = {}
    for name, own in tasks.items() if isinstance(tasks, Mapping) else ():
        if not isinstance(own, Mapping):
            continue
        raw = {key: value for key, value in source.raw.items() if key not in ("tasks", "paper")}
        for key in ("encoders", "training"):
            both = [block for block in (raw.get(key), own.get(key)) if isinstance(block, Mapping)]
            raw[key] = {k: v for block in both for k, v in block.items()}
        parts = raw.get("parts")
        raw |= {
            "task": own.get("task"),
            "paper": own.get("paper") or {},
            "parts": {
                part: _without_tasks(block) for part, block in parts.items() if _has(block, name)
            }
            if isinstance(parts, Mapping)
            else parts,
        }
        found[str(name)] = replace(source, raw=raw, problems=(), task=str(name), whole=source.raw)
    return found


def _has(part: Any, task: str) -> bool:
    named = part.get("tasks") if isinstance(part, Mapping) else None
    return not isinstance(named, list) or task in named


def _without_tasks(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    return {key: value for key, value in part.items() if key != "tasks"}


def read(path: Path) -> Source:
    """Read and parse a study file.

    Raises:
        InputError: it is missing or cannot be read.
        SpecError: it is not valid YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no study file {path}: check the path{_neighbours(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the study file {path} cannot be read: {error}") from error
    return parse(text, name=str(path), folder=path.absolute().parent)


def parse(text: str, *, name: str, folder: Path) -> Source:
    """As `read`, from a string."""
    builder = _Builder()
    try:
        root = yaml.compose(text, Loader=Loader)
        raw = None if root is None else builder.build(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        message = f"not valid YAML: {error.problem or error.context}"
        raise SpecError(name, [Problem(line, "", message)]) from error
    except yaml.YAMLError as error:
        raise SpecError(name, [Problem(0, "", f"not valid YAML: {_one_line(error)}")]) from error
    except RecursionError as error:
        raise SpecError(name, [Problem(0, "", "not valid YAML: nested too deep")]) from error
    if not isinstance(raw, dict):
        message = "a study file must be a mapping that begins with 'study: NAME'"
        raise SpecError(name, [Problem(1, "", message)])
    return Source(
        name=name,
        text=text,
        raw=raw,
        lines=builder.lines,
        folder=folder,
        problems=tuple(builder.problems),
    )


def parse_value(text: str) -> Any:
    """Parse one value by the rules of study files: "1e-3", "[left, right]".

    Raises:
        InputError: it is not valid YAML, or not allowed in a study file.
    """
    builder = _Builder()
    try:
        root = yaml.compose(text, Loader=Loader)
        value = None if root is None else builder.build(root, ())
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"not valid YAML: {_one_line(error)}") from error
    if builder.problems:
        raise InputError(builder.problems[0].message)
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


_Pairs = dict[str, tuple[yaml.Node, yaml.Node]]  # of a mapping, by key: the nodes of key and value


class _Builder:
    """Converts nodes to plain values and records their lines.

    Anchors and merge keys (``<<: *anchor``) are supported, tags outside the core schema are not.
    """

    def __init__(self) -> None:
        self.lines: dict[Path_, int] = {}
        self.problems: list[Problem] = []
        self._nodes = 0
        self._merges: dict[int, _Pairs | None] = {}  # by node; None: in progress

    def build(self, node: yaml.Node, path: Path_) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        self._nodes += 1
        if len(path) > 50:
            raise _wrong(node, "nested deeper than 50 levels")
        if self._nodes > MAX_NODES:  # nested aliases can expand to billions of values
            raise _wrong(node, f"more than {MAX_NODES} values")
        if isinstance(node, yaml.CollectionNode):
            _plain(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _scalar(self, node: yaml.ScalarNode, path: Path_) -> Any:
        if (sentence := trap(node)) is not None:
            line = self.lines.get(path, node.start_mark.line + 1)
            self.problems.append(Problem(line, ".".join(map(str, path)), sentence))
        try:
            return value_of(node)
        except ValueError as error:  # such as `!!int word`, or an integer of 5000 digits
            raise _wrong(node, str(error)) from error

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        own: _Pairs = {}
        merged: _Pairs = {}
        for key_node, value_node in node.value:
            key = _key(key_node)
            line = key_node.start_mark.line + 1
            if key in own or (key_node.tag == MERGE and merged):
                first = self.lines.get((*path, key), line)
                dotted = ".".join(map(str, (*path, key)))
                message = f"this key is given twice (first on line {first}); keep one"
                self.problems.append(Problem(line, dotted, message))
                continue
            self.lines[(*path, key)] = line
            if key_node.tag == MERGE:
                merged = self._merged(value_node)
            else:
                own[key] = (key_node, value_node)
        for key, (key_node, _) in merged.items():
            if key not in own:
                self.lines[(*path, key)] = key_node.start_mark.line + 1
        pairs = {**merged, **own}  # own keys override merged ones, which stay first
        return {key: self.build(value, (*path, key)) for key, (_, value) in pairs.items()}

    def _merged(self, node: yaml.Node) -> _Pairs:
        """The pairs that ``<<: *anchor`` or ``<<: [*one, *other]`` adds; earlier mappings win.

        Raises:
            yaml.MarkedYAMLError: not a mapping or list of mappings, or a mapping merges itself.
        """
        if id(node) in self._merges:
            if (known := self._merges[id(node)]) is None:
                raise _wrong(node, "a mapping merges itself")
            return known
        self._merges[id(node)] = None
        found: _Pairs = {}
        if isinstance(node, yaml.CollectionNode):
            _plain(node)
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                found = {**self._merged(child), **found}
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.tag == MERGE:
                    found = {**self._merged(value), **found}
            own = {_key(key): (key, value) for key, value in node.value if key.tag != MERGE}
            found = {**found, **own}
        else:
            raise _wrong(node, "<< takes a mapping or a list of mappings: <<: *anchor")
        self._merges[id(node)] = found
        return found


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _wrong(node, "a key must be a word, not a list or a mapping")
    try:
        value_of(node)
    except ValueError as error:
        raise _wrong(node, str(error)) from error
    return str(node.value)


def _plain(node: yaml.CollectionNode) -> None:
    try:
        check_tag(node)
    except ValueError as error:
        raise _wrong(node, str(error)) from error


def _wrong(node: yaml.Node, message: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)


def _neighbours(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.y*ml")], n=3)
    return f" (near: {', '.join(near)})" if near else ""
