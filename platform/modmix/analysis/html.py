"""Building blocks of the HTML report: a self-contained page, light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

import pandas as pd

from modmix.analysis.render import Cell, Table
from modmix.analysis.style import INK, PALETTE, PAPER

# Colours in figures that are replaced by CSS variables for light and dark mode.
_PAGE_COLOURS = {INK: "ink", PAPER: "paper", PALETTE[0]: "blue", PALETTE[6]: "violet"}

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #262626; --soft: #5c6066;
  --line: #d8dade; --tint: #f4f5f7; --accent: #0067a3; --blue: #0072b2;
  --violet: #7a5fb5; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e6e7e9; --soft: #a3a8b0;
  --line: #3a3e45; --tint: #1f2228; --accent: #6db8ea; --blue: #3d9fe0;
  --violet: #a48bdc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
a { color: var(--accent); }
nav { font-size: .9rem; margin: .6rem 0; display: flex; flex-wrap: wrap; gap: .2rem .9rem; }
.lead { font-size: 1.12rem; background: var(--tint); border-left: 4px solid var(--accent);
  padding: .7rem 1rem; margin: 1rem 0; }
.warn { border-left-color: #d55e00; font-size: 1rem; }
.note, figcaption, .soft { color: var(--soft); font-size: .88rem; }
.state { display: inline-block; border: 1px solid var(--line); border-radius: 1rem;
  padding: 0 .7rem; font-size: .82rem; vertical-align: middle; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); vertical-align: top; }
td.wrap, .results td:last-child { white-space: normal; min-width: 16rem; }
thead th { border-bottom: 2px solid var(--ink); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B4"; }
th[aria-sort=descending] button::after { content: " \\25BE"; }
.number { text-align: right; }
tbody tr:hover { background: var(--tint); }
.best { font-weight: 700; } .second { font-style: italic; }
figure { margin: 1.2rem 0; } figure svg { width: 100%; max-width: 44rem; height: auto; }
pre { background: var(--tint); padding: .8rem 1rem; overflow-x: auto; font-size: .84rem;
  line-height: 1.4; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
@media print { body { max-width: none; } nav, summary { display: none; } }
"""

# Sorts a table by the clicked column; empty cells last.
SCRIPT = """
document.querySelectorAll('table.sortable th button').forEach(function (button) {
  button.addEventListener('click', function () {
    var th = button.parentNode, body = th.closest('table').tBodies[0];
    var column = Array.prototype.indexOf.call(th.parentNode.children, th);
    var up = th.getAttribute('aria-sort') !== 'ascending';
    th.parentNode.querySelectorAll('th').forEach(function (o) { o.removeAttribute('aria-sort'); });
    th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    var key = function (row) {
      var cell = row.cells[column], sort = cell.getAttribute('data-sort');
      return sort === null ? cell.textContent.trim() : parseFloat(sort);
    };
    var last = function (k) { return k === '' || k === '\\u2013' || k !== k; };
    Array.from(body.rows).map(function (row) { return [key(row), row]; })
      .sort(function (a, b) {
        var x = a[0], y = b[0];
        if (last(x) || last(y)) { return last(x) - last(y); }
        var numbers = typeof x === 'number' && typeof y === 'number';
        var order = numbers ? x - y : String(x).localeCompare(String(y));
        return up ? order : -order;
      }).forEach(function (pair) { body.appendChild(pair[1]); });
  });
});
"""


def page(title: str, body: str) -> str:
    """A complete HTML document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def table_html(table: Table, limit: int | None = None) -> str:
    """A table, sortable by clicks on its header, with its notes."""
    head = "".join(
        f'<th scope="col"{_align(is_number)}><button type="button">{escape(text)}</button></th>'
        for text, is_number in zip(table.header, table.numeric, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(_cell(c, is_number) for c, is_number in zip(row, table.numeric, strict=True))
        + "</tr>"
        for row in table.cells[:limit]
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>\n{notes}"
    )


def _align(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _cell(cell: Cell, is_number: bool) -> str:
    classes = " ".join(filter(None, ("number" if is_number else "", cell.mark)))
    shown = f' class="{classes}"' if classes else ""
    is_sorted = cell.sort is not None and cell.sort == cell.sort
    sort = f' data-sort="{cell.sort!r}"' if is_sorted else ""
    return f"<td{shown}{sort}>{escape(cell.text)}</td>"


def frame_html(frame: pd.DataFrame) -> str:
    """A frame as a table: five significant digits, NaN as a dash."""
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]
    cells = [
        tuple(_frame_cell(value) for value in row)
        for row in frame.astype(object).itertuples(index=False)
    ]
    return table_html(
        Table(
            title="",
            header=tuple(str(column) for column in frame.columns),
            cells=tuple(cells),
            numeric=tuple(numeric),
            frame=frame,
        )
    )


def _frame_cell(value: object) -> Cell:
    if value is None or value is pd.NA or value != value:
        return Cell(text="–")
    if isinstance(value, bool):
        return Cell(text="yes" if value else "")
    if isinstance(value, (int, float)):
        return Cell(text=f"{value:.5g}", sort=float(value))
    return Cell(text=str(value))


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A definition list; pairs without a value are omitted."""
    rows = "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in pairs if v)
    return f"<dl>{rows}</dl>"


def figure_html(svg: str, number: int, caption: str, numbers: pd.DataFrame) -> str:
    """A figure with its caption and a collapsed table of its numbers."""
    unfold = ""
    if 0 < len(numbers) <= 400:
        unfold = f"<details><summary>numbers</summary>{frame_html(numbers)}</details>"
    return (
        f"<figure>{inline_svg(svg, f'f{number}', caption)}"
        f"<figcaption>{escape(caption)}</figcaption>{unfold}</figure>"
    )


def inline_svg(svg: str, prefix: str, label: str) -> str:
    """An SVG image for embedding into a page.

    Ids get a prefix to keep them unique; text and background use the page's colours.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    head, rest = body.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view.group(0) if view else ""} role="img" aria-label="{escape(label)}"'
    )
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', rest)
    rest = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", rest)
    for colour, name in _PAGE_COLOURS.items():
        rest = rest.replace(colour, f"var(--{name})")
    return f"{head}>{rest}"
