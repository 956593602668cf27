"""Numbers in modmix_runs/bench.json, and BENCHMARKS.md made of them.

bench.json has the key figures at the top, and under "details" a section per benchmark with its
tables and the date and machine of its last run. A benchmark that did not run keeps what is there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modmix.base.home import write_text
from tests.benchmarks.harness import ROOT, Options

# Small runs, for working on the benchmarks, must not replace real numbers.
QUICK = Options.from_environment().quick
JSON_FILE = ROOT / "modmix_runs" / ("bench-quick.json" if QUICK else "bench.json")
MARKDOWN_FILE = ROOT / "modmix_runs" / "bench-quick.md" if QUICK else ROOT / "BENCHMARKS.md"

# The key figures, also the order of BENCHMARKS.md's first table: the hardest competitors first.
KEYS = (
    "curve_vs_loop",
    "curve1100_vs_loop",
    "curve_vs_best_ray",
    "search_vs_best_ray",
    "higgs_vs_loop",
    "higgs_step_over_floor",
    "driver_ms_per_configuration_1000",
    "driver_growth_10000",
    "mirror_ms_per_configuration",
    "halving_epoch_share",
    "prepare_vs_pyarrow",
)


@dataclass(frozen=True)
class Figure:
    """One measured number, beside its target where it has one (None: for information).

    ``key`` is its name in bench.json, "" for none.
    """

    what: str
    value: float
    target: float | None = None
    at_least: bool = True  # else: at most
    unit: str = ""
    key: str = ""
    spread: str = ""

    @property
    def bound(self) -> str:
        """The target in words, "" without one."""
        if self.target is None:
            return ""
        return f"{'≥' if self.at_least else '≤'} {number(self.target, self.unit)}"

    @property
    def verdict(self) -> str:
        """met or missed, "" without a target."""
        if self.target is None:
            return ""
        good = self.value >= self.target if self.at_least else self.value <= self.target
        return "met" if good else "missed"


@dataclass(frozen=True)
class Table:
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """What one benchmark has to say."""

    name: str
    title: str
    text: str = ""  # what was measured, and how
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def number(value: float, unit: str = "") -> str:
    """Three digits that matter, with the unit."""
    if not math.isfinite(value):
        return "no number"
    size = abs(value)
    if size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 100:
        text = f"{value:.0f}"
    elif size >= 10:
        text = f"{value:.1f}"
    else:
        text = f"{value:.2f}" if size >= 1 or size == 0 else f"{value:.3g}"
    return f"{text} {unit}" if unit and unit not in ("x", "%") else f"{text}{unit}"


def between(values: Sequence[float], unit: str = "") -> str:
    """The range of repeated values."""
    if len(values) < 2:
        return "1 run"
    return f"{number(min(values))} to {number(max(values), unit)} ({len(values)} runs)"


# ---------------------------------------------------------------- the numbers


def read(path: Path = JSON_FILE) -> dict[str, Any]:
    """What earlier runs have measured; empty when there is none."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {"details": {}}
    return {**found, "details": dict(found.get("details") or {})}


def save(
    section: Section, machine: Mapping[str, str], seconds: float, path: Path = JSON_FILE
) -> None:
    """Put one benchmark's numbers in place of its former ones."""
    found = read(path)
    for figure in section.figures:
        if figure.key:
            assert figure.key in KEYS, figure.key
            found[figure.key] = round(figure.value, 4)
    found["details"][section.name] = {
        **asdict(section),
        "machine": dict(machine),
        "seconds": round(seconds, 1),
    }
    ordered = {key: found[key] for key in KEYS if key in found}
    write_text(path, json.dumps({**ordered, "details": found["details"]}, indent=1) + "\n")


# ---------------------------------------------------------------- the page


def sections_of(page: str) -> dict[str, str]:
    """The sections of BENCHMARKS.md by name, each without its anchor."""
    _, *pieces = re.split(r'^<a id="([^"]+)"></a>$', page, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(pieces[::2], pieces[1::2], strict=True)}


def render(found: Mapping[str, Any], order: Sequence[str], former: str = "") -> str:
    """BENCHMARKS.md from what bench.json holds.

    Args:
        former: the present page, perhaps of another machine: what bench.json does not hold, as in
            a new clone, is kept from it.
    """
    kept = {n: body for n, body in sections_of(former).items() if n not in found["details"]}
    details = {name: found["details"][name] for name in order if name in found["details"]}
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; how each number is measured is described in",
        "[tests/benchmarks/README.md](tests/benchmarks/README.md). Numbers are medians; the peers",
        "of a comparison took turns with modmix in the same run. A ratio above 1 means that modmix",
        "is faster.",
        "",
        "| measured | value | target | |",
        "|---|---:|---:|---|",
    ]
    aimed = [
        (figure, name)
        for name, section in details.items()
        for figure in _figures(section)
        if figure.target is not None
    ]
    aimed.sort(key=lambda one: _rank(one[0]))
    rows = [_figure_row(figure, link=f"[{figure.what}](#{name})") for figure, name in aimed]
    before = re.findall(r"^\| \[.*$", former, flags=re.MULTILINE)
    old = [row for row in before if any(f"](#{name}) |" in row for name in order if name in kept)]
    lines += _in_former_order([*rows, *old], before) if old else rows
    for name in order:
        body = "\n".join(_section(details[name])) if name in details else kept.get(name)
        if body is not None:
            lines += ["", f'<a id="{name}"></a>', "", body]
    return "\n".join(lines) + "\n"


def _in_former_order(rows: Sequence[str], before: Sequence[str]) -> list[str]:
    """Rows of the first table in the order of a former one; those that are new come last."""
    places = {row.partition(" | ")[0]: place for place, row in enumerate(before)}
    return sorted(rows, key=lambda row: places.get(row.partition(" | ")[0], len(places)))


def _rank(figure: Figure) -> int:
    """The place among the key figures; after them for others."""
    return KEYS.index(figure.key) if figure.key in KEYS else len(KEYS)


def _figures(section: Mapping[str, Any]) -> list[Figure]:
    return [Figure(**figure) for figure in section["figures"]]


def _figure_row(figure: Figure, link: str) -> str:
    verdict = "**missed**" if figure.verdict == "missed" else figure.verdict
    return f"| {link} | {number(figure.value, figure.unit)} | {figure.bound} | {verdict} |"


def _section(section: Mapping[str, Any]) -> list[str]:
    lines = [f"## {section['title']}"]
    if section["text"]:
        lines += ["", section["text"]]
    if section["figures"]:
        lines += ["", "| measured | value | target | | range |", "|---|---:|---:|---|---|"]
        lines += [
            f"{_figure_row(figure, figure.what)} {figure.spread} |" for figure in _figures(section)
        ]
    for table in section["tables"]:
        lines += ["", *_table(table)]
    if section["notes"]:
        lines += ["", *(f"- {note}" for note in section["notes"])]
    machine = section["machine"]
    measured = (
        f"Measured {machine['date']} in {section['seconds']:.0f} s on {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory']}, GPU: {machine['gpu']}; "
        f"{machine['versions']} ({machine['commit']}); load before: {machine['load']}."
    )
    return [*lines, "", measured]


def _table(table: Mapping[str, Any]) -> list[str]:
    lines = [f"{table['caption']}:", ""] if table["caption"] else []
    lines.append("| " + " | ".join(table["columns"]) + " |")
    lines.append("|---" + "|---:" * (len(table["columns"]) - 1) + "|")
    return lines + ["| " + " | ".join(row) + " |" for row in table["rows"]]


def shown(section: Section) -> str:
    """A section for the terminal."""
    lines = [f"== {section.title}"]
    for figure in section.figures:
        words = [figure.spread, f"{figure.bound}: {figure.verdict.upper()}" if figure.bound else ""]
        beside = "; ".join(word for word in words if word)
        line = f"   {figure.what}: {number(figure.value, figure.unit)}"
        lines.append(f"{line} ({beside})" if beside else line)
    for table in section.tables:
        cells = [list(table.columns), *(list(row) for row in table.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
        if table.caption:
            lines.append(f"   {table.caption}:")
        for row in cells:
            padded = [row[0].ljust(widths[0])]
            padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
            lines.append("     " + "  ".join(padded))
    lines += [f"   - {note}" for note in section.notes]
    return "\n".join(lines)
