"""Tables as Markdown, LaTeX, CSV, JSON and aligned text.

A `Table` holds full numbers in ``frame`` (for CSV and JSON), and rounded text with best and second
best marked in ``cells`` (for Markdown, LaTeX, text, HTML).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from modmix.base.errors import InputError

FORMATS = ("text", "md", "tex", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One printed cell. ``mark``: "best", "second" or "". ``sort``: its sort key."""

    text: str
    mark: str = ""
    sort: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its numbers in ``frame``, its printed form in ``header`` and ``cells``."""

    title: str
    header: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    numeric: tuple[bool, ...]  # which columns are right-aligned
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()

    def render(self, form: str) -> str:
        """The table as text.

        Args:
            form: "text", "md", "tex", "csv" or "json".

        Raises:
            InputError: unknown format.
        """
        if form not in FORMATS:
            raise InputError(f"a table's format must be one of {', '.join(FORMATS)}, got {form!r}")
        return _RENDERERS[form](self)


def _text(table: Table) -> str:
    marks = {"best": " *", "second": " +", "": "  "}
    plain = [
        [
            c.text + (marks[c.mark] if any(r[i].mark for r in table.cells) else "")
            for i, c in enumerate(row)
        ]
        for row in table.cells
    ]
    widths = [
        max(len(line[i]) for line in [list(table.header), *plain]) for i in range(len(table.header))
    ]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(texts, widths, table.numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    notes = list(table.notes)
    if any(cell.mark for row in table.cells for cell in row):
        notes.append("* best, + second best.")
    return "\n".join([line(table.header), rule, *map(line, plain), "", *notes]) + "\n"


def _markdown(table: Table) -> str:
    wraps = {"best": "**{}**", "second": "*{}*", "": "{}"}

    def clean(text: str) -> str:
        for character in "\\`*_|<>[]":
            text = text.replace(character, f"\\{character}")
        return text.replace("\n", " ")

    def line(texts: Sequence[str]) -> str:
        return f"| {' | '.join(texts)} |"

    rows = [
        line([wraps[cell.mark].format(clean(cell.text)) for cell in row]) for row in table.cells
    ]
    rule = line(["---:" if number else "---" for number in table.numeric])
    notes = [clean(note) for note in table.notes]
    return "\n".join([line([*map(clean, table.header)]), rule, *rows, "", *notes]) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "±": r"$\pm$", "–": "--", "−": "$-$", "∞": r"$\infty$",
    "α": r"$\alpha$", "β": r"$\beta$", "δ": r"$\delta$", "λ": r"$\lambda$", "τ": r"$\tau$",
    "\n": " ",
}  # fmt: skip


def tex_escape(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_TEX.get(character, character) for character in text)


def _tex(table: Table) -> str:
    wraps = {"best": r"\textbf{%s}", "second": r"\textit{%s}", "": "%s"}

    def line(texts: Sequence[str]) -> str:
        return "  " + " & ".join(texts) + r" \\"

    align = "".join("r" if number else "l" for number in table.numeric)
    rows = [line([wraps[c.mark] % tex_escape(c.text) for c in row]) for row in table.cells]
    notes = [f"% {tex_escape(note)}" for note in (table.title, *table.notes)]
    head = [rf"\begin{{tabular}}{{{align}}}", r"  \toprule"]
    head += [line([tex_escape(h) for h in table.header]), r"  \midrule"]
    tail = [r"  \bottomrule", r"\end{tabular}"]
    return "\n".join([*notes, r"% \usepackage{booktabs}", *head, *rows, *tail]) + "\n"


def _csv(table: Table) -> str:
    return str(table.frame.to_csv(index=False, lineterminator="\n"))


def _json(table: Table) -> str:
    rows = [
        {str(name): _json_value(value) for name, value in record.items()}
        for record in table.frame.astype(object).to_dict("records")
    ]
    value = {"title": table.title, "notes": list(table.notes), "rows": rows}
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_value(value: Any) -> Any:
    if value is None or value is pd.NA:
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


_RENDERERS: Mapping[str, Callable[[Table], str]] = {
    "text": _text,
    "md": _markdown,
    "tex": _tex,
    "csv": _csv,
    "json": _json,
}
