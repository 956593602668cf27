"""Digests of the code of methods and encoders, so that edited code is never answered with results
of what it was before. Reads files only: nothing is imported or run.

A class's code is its module and every module of ``modmix.methods`` and ``modmix.encoders`` that it
imports, without comments, docstrings and blank lines; for a user's own class, also the modules of
the public base classes, however it imports them. The trainer and everything else that decides
numbers is covered by `messages.NUMERICS_VERSION`.
"""

from __future__ import annotations

import ast
import io
import itertools
import tokenize
from functools import cache
from pathlib import Path

from modmix.base import sources
from modmix.base.messages import digest

_PACKAGE = Path(__file__).parents[1]
_CODE = ("modmix.methods.", "modmix.encoders.")
# Tables say which methods and hyperparameters there are: a new one changes no other's results.
_TABLES = ("table", "entry", "entries_")
# What ``from modmix import …`` gives.
_PUBLIC = ("modmix.methods.base", "modmix.encoders.base")

_BEFORE_STATEMENT = (
    tokenize.ENCODING,
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.COMMENT,
    tokenize.INDENT,
    tokenize.DEDENT,
)


@cache
def code_digest(path: str) -> str:
    """The digest of the code of a class.

    Args:
        path: ``module:Class`` in modmix, or the reference of a user's own class.
    """
    found: dict[str, str] = {}  # by module or file
    if sources.is_reference(path):
        for bundle in sources.bundles([path]).values():
            found |= bundle["texts"]
        waiting = [*_PUBLIC, *(module for text in found.values() for module in _modules(text))]
    else:
        waiting = [path.partition(":")[0]]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = _file(module).read_text(encoding="utf-8")
            waiting += _modules(found[module])
    return digest({name: essence(text) for name, text in found.items()})[:16]


def essence(text: str) -> str:
    """Source text without comments, docstrings and blank lines.

    >>> essence('def f(x):  # squares\\n    "Its square."\\n\\n    return x * x\\n')
    'def f(x):\\n    return x * x'
    """
    lines = text.splitlines()
    for token in _without_effect(text):
        (first, begin), (last, end) = token.start, token.end
        rest = lines[last - 1][end:]
        for number in range(first, last):
            lines[number] = ""
        lines[first - 1] = lines[first - 1][:begin] + rest
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _without_effect(text: str) -> list[tokenize.TokenInfo]:
    """Comments, and strings that are statements; from the last to the first."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    found, brackets, before = [], 0, tokenize.NEWLINE
    for token, after in itertools.pairwise(tokens):
        if token.type == tokenize.OP:
            brackets += (token.string in "([{") - (token.string in ")]}")
        ends = after.type in (tokenize.NEWLINE, tokenize.COMMENT)
        alone = not brackets and before in _BEFORE_STATEMENT and ends
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and alone):
            found.append(token)
        before = token.type
    return found[::-1]


def _modules(text: str) -> list[str]:
    """The modules of methods and encoders that a source text imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [one for one in dict.fromkeys(names) if one.startswith(_CODE) and _has_code(one)]


def _has_code(module: str) -> bool:
    name = module.rpartition(".")[2]
    return not name.startswith(_TABLES) and _file(module).is_file()


def _file(module: str) -> Path:
    return _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
