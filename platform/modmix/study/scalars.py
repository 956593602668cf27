"""Scalar values of a study file, resolved by the core schema of YAML 1.2.

null        null, Null, NULL, ~ or empty
booleans    true, True, TRUE; false, False, FALSE
integers    12, -3, +4, 0x1F (hexadecimal), 0o17 (octal)
floats      0.5, .5, 1., 1e-3, 2.5E+4, .inf, -.inf, .nan
strings     everything else, and everything quoted

Values that YAML 1.1 or Python would read differently (yes, 010, 1_000, 1:01, None) are rejected
with a message that gives the unambiguous spellings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

_CORE = "tag:yaml.org,2002:"
MERGE = f"{_CORE}merge"
_TRAP = "\0trap"  # no file can write this tag


class Loader(yaml.SafeLoader):
    """Composes nodes tagged by the core schema, as `MERGE`, or as a trap (see `trap`)."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as PyYAML resets it)


_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}

# Tag, pattern, and possible first characters, in the order in which they are tried.
_DIGITS = "-+0123456789"
_PATTERNS = (
    (_TRAP, r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF", "yYnNoO"),
    (_TRAP, r"None", "N"),
    (_TRAP, r"[-+]?0[0-9_]+|[-+]?0b[01_]+", _DIGITS),
    (_TRAP, r"[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?", _DIGITS),
    (_TRAP, r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?", _DIGITS),
    (f"{_CORE}null", r"null|Null|NULL|~|", "nN~"),
    (f"{_CORE}bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (f"{_CORE}int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _DIGITS),
    (f"{_CORE}float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", f"{_DIGITS}."),
    (f"{_CORE}float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    (MERGE, r"<<", "<"),
)
for _tag, _pattern, _first in _PATTERNS:
    _starts = [*_first, *([""] if _tag.endswith("null") else [])]
    Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _starts)


def value_of(node: yaml.ScalarNode) -> Any:
    """The value of a scalar; the text itself for a trap (see `trap`).

    Raises:
        ValueError: an explicit tag that the text does not match or that is not in the core schema.
    """
    text = str(node.value)
    if node.tag == _TRAP or (node.tag == MERGE and text == "<<"):
        return text
    convert = _CONVERSIONS.get(node.tag)
    if convert is None:
        raise ValueError(f"the tag {node.tag} is not supported: leave it out")
    try:
        return convert(text)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{text[:60]!r} is no value of {node.tag}") from error


def check_tag(node: yaml.CollectionNode) -> None:
    """Refuse tags on lists and mappings, where they would change nothing.

    Raises:
        ValueError: an explicit tag other than that of a plain list or mapping.
    """
    plain = "map" if isinstance(node, yaml.MappingNode) else "seq"
    if node.tag != f"{_CORE}{plain}":
        raise ValueError(f"the tag {node.tag} is not supported: leave it out")


def trap(node: yaml.ScalarNode) -> str | None:
    """What to write instead of a value that YAML 1.1 or Python would read differently, or None."""
    if node.tag != _TRAP:
        return None
    text = str(node.value)
    if (meant := _BOOLEANS.get(text.lower())) is not None:
        return f"{text} is a word in YAML 1.2: write {meant}, or quote it: '{text}'"
    if text == "None":
        return f"None is a word in YAML: write null, or quote it: '{text}'"
    other = _in_yaml_1_1(text)
    if re.fullmatch(r"[-+]?0[0-9]+", text):
        decimal = int(text)
        octal = "" if other is None else f" and {other} in YAML 1.1"
        also = "" if other is None else f" or {other}"
        return f"{text} is {decimal} in YAML 1.2{octal}: write {decimal}{also}, or quote it"
    if other is None:
        return f"{text} is a word in YAML 1.2: quote it, or write a number without _"
    return f"{text} is a word in YAML 1.2 and {other} in YAML 1.1: write {other}, or quote it"


def _in_yaml_1_1(text: str) -> int | float | None:
    value = yaml.safe_load(text)
    return value if isinstance(value, (int, float)) else None


def _integer(text: str) -> int:
    if text.startswith(("0o", "0x")):
        return int(text, 0)
    return int(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_CONVERSIONS: dict[str, Callable[[str], Any]] = {
    f"{_CORE}null": lambda text: {"": None, "~": None, "null": None}[text.lower()],
    f"{_CORE}bool": lambda text: {"true": True, "false": False}[text.lower()],
    f"{_CORE}int": _integer,
    f"{_CORE}float": _float,
    f"{_CORE}str": str,
}
