"""Writes all figures and tables of a study, and an HTML report that contains them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from modmix.analysis import html, over_tasks, summary
from modmix.analysis.comparisons import conditions_table
from modmix.analysis.figures import FigureOf, figures_of
from modmix.analysis.frames import Snapshot, read, short
from modmix.analysis.labels import metric_name, p_clause, value_text
from modmix.analysis.render import Table
from modmix.analysis.statistics import Ranks
from modmix.analysis.style import to_bytes
from modmix.analysis.tables import configurations_of
from modmix.base.home import Home, write_bytes, write_text
from modmix.base.wording import counted
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ReplicateRecord

_VERSIONS = ("modmix", "torch", "numpy", "ray", "optuna", "mlflow")
_MAX_ROWS = 300  # larger tables are written as CSV only, and cut in the report


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The written files."""

    figures: tuple[Path, ...]
    tables: tuple[Path, ...]
    report: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return (*self.figures, *self.tables, self.report)


def write_all(ledger: Ledger, home: Home, study: str, *, errors: str = "ci") -> Outputs:
    """Write all figures, tables and the report into the study's folder.

    Unfinished studies are allowed; their report says so. Files are replaced atomically. Figures and
    tables of an earlier state of the study, such as those of a removed part, are removed.

    Files: ``figures/<name>.png``, ``.svg`` and ``.pdf``; ``tables/results``, ``configurations``
    and, if some configurations change the task, ``conditions`` as ``.csv``, ``.md`` and ``.tex``;
    ``tables/ranks.csv``; ``tables/<figure>.csv`` with the data of each figure; ``report.html``.

    Args:
        errors: error bars of curves: "ci" (95 % confidence intervals) or "std".

    Raises:
        InputError: there is no such study, or ``errors`` is invalid.
    """
    snapshot = read(ledger, study)
    folder = home.study(study)
    drawn = figures_of(ledger, snapshot, errors=errors)
    svgs: dict[str, str] = {}
    figures: list[Path] = []
    for name, found in drawn.items():
        picture = found.draw()
        svg = to_bytes(picture, "svg")
        svgs[name] = svg.decode()
        pdf = to_bytes(picture, "pdf")
        for form, data in (("png", to_bytes(picture, "png")), ("svg", svg), ("pdf", pdf)):
            figures.append(folder / "figures" / f"{name}.{form}")
            write_bytes(figures[-1], data)
    tables, ranks = _tables(snapshot), _rank_frame(snapshot)
    written = _write_tables(folder / "tables", drawn, tables, ranks)
    path = folder / "report.html"
    write_text(path, _report(snapshot, tables, ranks, drawn, svgs))
    _remove_stale(folder, [*figures, *written])
    return Outputs(figures=tuple(figures), tables=tuple(written), report=path)


def _remove_stale(folder: Path, written: Sequence[Path]) -> None:
    """Remove what an earlier report has written, such as figures of a part that was removed.

    Which files these are is noted beside them: others in these folders are the user's own.
    """
    note, now = folder / ".written", {str(path.relative_to(folder)) for path in written}
    with suppress(FileNotFoundError):
        for name in set(note.read_text().splitlines()) - now:
            (folder / name).unlink(missing_ok=True)
    write_text(note, "\n".join(sorted(now)))


def report_html(ledger: Ledger, study: str) -> str:
    """The report as HTML; nothing is written."""
    snapshot = read(ledger, study)
    drawn = figures_of(ledger, snapshot)
    svgs = {name: to_bytes(found.draw(), "svg").decode() for name, found in drawn.items()}
    return _report(snapshot, _tables(snapshot), _rank_frame(snapshot), drawn, svgs)


def _tables(snapshot: Snapshot) -> dict[str, Table]:
    """Tables by file name: results, configurations, and conditions if there are several.

    (If every configuration changes the task, the results are a table of conditions.)
    """
    tables = {
        "results": over_tasks.results_of(snapshot),
        "configurations": configurations_of(snapshot),
    }
    if snapshot.tasks:
        for task in snapshot.tasks:
            found = _tables(snapshot.of_task(task))
            tables |= {f"{task}.{name}": one for name, one in found.items()}
        return tables
    if len(snapshot.conditions.all) > 1 and not snapshot.conditions.is_split:
        tables["conditions"] = conditions_table(snapshot)
    return tables


def _rank_frame(snapshot: Snapshot) -> Ranks:
    """Over seeds or conditions (see `summary.ranks`), or over the tasks of a study of several."""
    if snapshot.tasks:
        return over_tasks.over_tasks(snapshot).ranks
    return summary.ranks(snapshot)


def _write_tables(
    folder: Path, drawn: Mapping[str, FigureOf], tables: Mapping[str, Table], ranks: Ranks
) -> list[Path]:
    written: dict[str, str] = {}
    for name, table in tables.items():
        is_small = len(table.cells) <= _MAX_ROWS
        for form in ("csv", "md", "tex") if is_small else ("csv",):
            written[f"{name}.{form}"] = table.render(form)
    written["ranks.csv"] = ranks.frame.to_csv(index=False, lineterminator="\n")
    for name, found in drawn.items():
        if name not in tables:  # which has the same numbers
            written[f"{name}.csv"] = found.numbers().to_csv(index=False, lineterminator="\n")
    for name, text in written.items():
        write_text(folder / name, text)
    return [folder / name for name in written]


# ---------------------------------------------------------------- HTML


def _report(
    snapshot: Snapshot,
    tables: Mapping[str, Table],
    ranks: Ranks,
    drawn: Mapping[str, FigureOf],
    svgs: Mapping[str, str],
) -> str:
    pictures = {
        name: html.figure_html(svgs[name], i, found.caption, found.numbers())
        for i, (name, found) in enumerate(drawn.items())
    }
    sections = {
        "Results": _results(snapshot, tables["results"], ranks) + pictures.pop("results"),
        **_sections_of_tasks(snapshot, tables, pictures),
        "Conditions": _conditions(tables.get("conditions")) + pictures.pop("conditions", ""),
        "Figures": "\n".join(pictures.values()),
        "Configurations": _configurations(tables["configurations"]),
        "Failures": _failures(snapshot),
        "Set-up": html.facts(_setup(snapshot)),
        "How to reproduce": _reproduce(snapshot),
        "Study file": f"<pre>{escape(snapshot.record.text)}</pre>",
    }
    sections = {name: html for name, html in sections.items() if html}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "\n".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>\n{html}</section>'
        for name, html in sections.items()
    )
    return html.page(f"{snapshot.name} · modmix", f"{_top(snapshot)}<nav>{links}</nav>\n{body}")


def _sections_of_tasks(
    snapshot: Snapshot, tables: Mapping[str, Table], pictures: dict[str, str]
) -> dict[str, str]:
    """A section per task, with what is its own; takes its figures out of ``pictures``."""
    found = {}
    for task in snapshot.tasks:
        one = snapshot.of_task(task)
        names = [name for name in pictures if name.startswith(f"{task}.")]
        found[f"Task {task}"] = "\n".join(
            [
                f'<p class="lead">{escape(summary.headline(one))}</p>',
                _results(one, tables[f"{task}.results"], summary.ranks(one)),
                _conditions(tables.get(f"{task}.conditions")),
                *(pictures.pop(name) for name in names),
                html.facts(_setup(one)),
            ]
        )
    return found


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _top(snapshot: Snapshot) -> str:
    record = snapshot.record
    text = escape(str(record.spec.get("description") or ""))
    parts = [
        f'<h1>{escape(record.name)} <span class="state">{escape(record.state)}</span></h1>',
        f'<p class="soft">{text}</p>' if text else "",
        f'<p class="lead">{escape(over_tasks.headline(snapshot))}</p>',
    ]
    if not summary.is_finished(snapshot):
        parts.append(
            '<p class="lead warn">This study has not finished; numbers may change. '
            f"{escape(summary.progress(snapshot))}</p>"
        )
    if record.spec.get("final"):
        of = record.spec["final"]
        parts.append(
            f"<p>Final run: the best configuration of {escape(str(of.get('method')))} in study "
            f"{escape(str(of.get('of')))}, retrained on new seeds.</p>"
        )
    return "\n".join(filter(None, parts))


def _results(snapshot: Snapshot, results: Table, ranks: Ranks) -> str:
    if snapshot.tasks:
        return f'<div class="results">{html.table_html(results)}</div>'
    if snapshot.conditions.is_split:
        return _conditions(results)
    return f'<div class="results">{html.table_html(results)}</div>{_ranks(ranks)}'


def _conditions(table: Table | None) -> str:
    if table is None:
        return ""
    more = len(table.cells) - _MAX_ROWS
    note = f'<p class="note">… and {more} more in the CSV file.</p>' if more > 0 else ""
    return html.table_html(table, _MAX_ROWS) + note


def _ranks(ranks: Ranks) -> str:
    if ranks.blocks < 2 or len(ranks.frame) < 2:
        return ""
    friedman = (
        "" if math.isnan(ranks.friedman_p) else f" Friedman test: {p_clause(ranks.friedman_p)}."
    )
    note = (
        "Rank of each method's best configuration per seed (1 is best), averaged over "
        f"{ranks.blocks} common seeds.{friedman}"
    )
    return (
        f"<details><summary>ranks over seeds</summary>{html.frame_html(ranks.frame)}"
        f'<p class="note">{escape(note)}</p></details>'
    )


def _configurations(configurations: Table) -> str:
    total = len(configurations.cells)
    more = (
        ""
        if total <= _MAX_ROWS
        else f", the first {_MAX_ROWS} here, all in tables/configurations.csv"
    )
    is_open = " open" if total <= 30 else ""
    return (
        f"<details{is_open}><summary>{counted(total, 'configuration')}{more}</summary>"
        f"{html.table_html(configurations, _MAX_ROWS)}</details>"
    )


def _failures(snapshot: Snapshot) -> str:
    failed = [
        r for r in snapshot.replicates if r.state == "failed" and r.configuration in snapshot.by_key
    ]
    if not failed:
        return ""
    rows = "\n".join(_failure(snapshot, replicate) for replicate in failed[:_MAX_ROWS])
    more = f"<p>… and {len(failed) - _MAX_ROWS} more.</p>" if len(failed) > _MAX_ROWS else ""
    return (
        f"<p>{len(failed)} of {len(snapshot.replicates)} replicates failed. Their configurations "
        "show the mean of the other replicates and are never selected as best.</p>"
        '<div class="scroll"><table><thead>'
        '<tr><th>method</th><th>configuration</th><th class="number">seed</th><th>reason</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _failure(snapshot: Snapshot, replicate: ReplicateRecord) -> str:
    lines = [line for line in replicate.reason.strip().splitlines() if line.strip()]
    # The last line of a traceback is the error.
    reason = escape(lines[-1].strip()) if lines else "no reason recorded"
    if len(lines) > 1:
        reason += f"<details><summary>details</summary><pre>{escape(replicate.reason)}</pre>"
        reason += "</details>"
    configuration = snapshot.by_key[replicate.configuration]
    return (
        f"<tr><td>{escape(configuration.method)}</td><td>{escape(short(configuration.key))}</td>"
        f'<td class="number">{replicate.seed}</td><td class="wrap">{reason}</td></tr>'
    )


def _setup(snapshot: Snapshot) -> list[tuple[str, str]]:
    record, details = snapshot.record, snapshot.record.details
    rows = details.get("rows") or {}
    inputs = details.get("inputs") or {}
    modalities = list(details.get("modalities") or ())
    reused = sum(replicate.origin == "reused" for replicate in snapshot.replicates)
    training = record.spec.get("training") or {}
    return [
        ("task", str(details.get("task") or record.spec.get("task", {}).get("name", ""))),
        ("task options", _pairs(_fixed_options(snapshot))),
        ("conditions", _varied_options(snapshot)),
        ("rows", ", ".join(f"{rows[s]} {s}" for s in ("train", "val", "test") if s in rows)),
        ("classes", str(details.get("classes") or "")),
        ("inputs", ", ".join(f"{name} {_shape(s)}" for name, s in inputs.items())),
        ("modalities", ", ".join(modalities) if modalities != list(inputs) else ""),
        ("data fingerprint", _fingerprint(snapshot)),
        ("objective", ", ".join(metric_name(name) for name in snapshot.objectives)),
        ("seeds", ", ".join(map(str, record.spec.get("seeds") or ()))),
        ("seeds of searches", _staged(record.spec.get("replicates"))),
        ("training", _pairs(training)),
        ("configurations", str(len(snapshot.configurations))),
        ("replicates", summary.progress(snapshot)),
        ("reused from the ledger", str(reused) if reused else ""),
        ("device time", _duration(record.device_seconds)),
        ("wall-clock time", _duration(record.wall_seconds)),
        ("first started", _moment(record.created)),
        ("last updated", _moment(record.updated)),
        ("versions", ", ".join(f"{n} {details[n]}" for n in _VERSIONS if details.get(n))),
        ("code", str(details.get("git") or "")),
    ]


def _fixed_options(snapshot: Snapshot) -> dict[str, Any]:
    """The task options shared by all configurations; all of them if some have the task as given."""
    options = dict(snapshot.record.details.get("task_options") or {})
    if snapshot.conditions.is_split:
        return {n: v for n, v in options.items() if n not in snapshot.conditions.varied}
    return options


def _varied_options(snapshot: Snapshot) -> str:
    """ "18: weakness = noise, conflict, missing; share = 0, 0.2, …" """
    found = snapshot.conditions
    if len(found.all) < 2:
        return ""
    texts = []
    for name in found.varied:
        values = dict.fromkeys(value_text(c.options[name]) for c in found.all if name in c.options)
        shown = [*values][:12]
        texts.append(f"{name} = {', '.join(shown)}{', …' if len(values) > len(shown) else ''}")
    return f"{len(found.all)}: {'; '.join(texts)}"


def _staged(replicates: Mapping[str, Any] | None) -> str:
    """How seeds were staged."""
    if not replicates:
        return ""
    first, kept = replicates["start"], 100 * replicates["keep"]
    return f"{first} for every configuration, all for the best {kept:g} % of each batch"


def _fingerprint(snapshot: Snapshot) -> str:
    """Fingerprint of the data with the task as given; "" if no configuration used it."""
    if snapshot.conditions.is_split:
        return ""
    return str(snapshot.record.details.get("fingerprint") or "")


def _reproduce(snapshot: Snapshot) -> str:
    record = snapshot.record
    name = Path(record.source).name or f"{record.name}.yaml"
    commit = record.details.get("git")
    lines = [f"git checkout {commit}"] if commit else []
    lines += [
        f"modmix run {name}",
        f"modmix report {record.name}",
    ]
    if not snapshot.conditions.is_split:
        lines.append(f"modmix best {record.name}")
    fingerprint = _fingerprint(snapshot)
    own = _own_files(record.details.get("sources") or {})
    files = f"<p>Save the study's own Python files beside it:</p><ul>{own}</ul>" if own else ""
    data = f" Data fingerprint: {escape(fingerprint)}." if fingerprint else ""
    return (
        f"<p>Save the study file below as <code>{escape(name)}</code> and run the commands. Seeds "
        f"determine initial weights and batches.{data}</p>{files}"
        f"<pre>{escape(chr(10).join(lines))}</pre>"
    )


def _own_files(sources: Mapping[str, Mapping[str, Any]]) -> str:
    """The files of users' own classes with their digests; ``sources`` as in `base.sources`."""
    texts = {each for bundle in sources.values() for each in bundle["texts"].items()}
    return "\n".join(
        f"<li><code>{escape(name)}</code> (SHA-256 {sha256(text.encode()).hexdigest()})</li>"
        for name, text in sorted(texts)
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value_text(value)}" for name, value in values.items())


def _shape(shape: Any) -> str:
    return "×".join(map(str, shape)) if isinstance(shape, (list, tuple)) else str(shape)


def _duration(seconds: float) -> str:
    if seconds <= 0:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
