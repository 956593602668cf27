"""Results and points as tables: Markdown, LaTeX, CSV, JSON and aligned text.

A `Table` has two faces: ``frame`` holds full numbers for machines (CSV, JSON), ``cells`` what
people read (Markdown, LaTeX, text, HTML): rounded, with best and second best marked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from modmix.analysis import statistics
from modmix.analysis.best import BestPoint, best_of
from modmix.analysis.frames import STATISTICS, Snapshot, read, short
from modmix.analysis.words import (
    higher_is_better,
    interval_text,
    metric_label,
    metric_text,
    on_test,
    p_text,
    parameter_label,
    plus_minus,
    split_of,
    value_text,
)
from modmix.errors import InputError
from modmix.ledger import Ledger

FORMATS = ("text", "md", "tex", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is read in one cell. ``mark``: "best", "second" or "". ``sort``: what it sorts by."""

    text: str
    mark: str = ""
    sort: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its numbers in ``frame``, its printed form in ``header`` and ``cells``."""

    title: str
    header: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    numeric: tuple[bool, ...]  # which columns align to the right
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()

    def render(self, form: str) -> str:
        """The table as text.

        Args:
            form: "text", "md", "tex", "csv" or "json".

        Raises:
            InputError: another format.
        """
        if form not in FORMATS:
            raise InputError(f"a table's format must be one of {', '.join(FORMATS)}, got {form!r}")
        return _RENDERERS[form](self)


# ---------------------------------------------------------------- the table of results


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the results: a method's best point, over the study or within one part."""

    label: str  # "mulmix", or "mulmix (beta_curve)"
    part: str  # "" over the whole study
    best: BestPoint
    paired: statistics.Paired | None = None  # this row minus the best row; None for the best row
    p_holm: float = math.nan


def results_table(
    ledger: Ledger, study: str, metrics: Sequence[str] | None = None, by: str | None = None
) -> Table:
    """The study's main table, made to be read like Table 2 of the paper.

    One row per method: its best point over the whole study, chosen by the first objective on
    validation, and that point's *test* metrics as mean ± standard deviation over the seeds. A
    method that several parts asked for gets a further row per part where that part's best point
    is another one, as "mulmix (defaults)": so the row of a method is what tuning reached
    (MulMix* in Table 2) and a part with fixed settings stands beside it (MulMix).

    Best is bold, second best italic, by test mean within each column. For the first metric a
    paired t test over common seeds compares every row with the best one, Holm-corrected over the
    rows. The paper's number stands beside ours where the study file states it.

    Args:
        metrics: test metrics to show; by default the objectives' on test, the error, and for two
            classes the AUC.
        by: the validation metric that chooses; the first objective when None.
    """
    return results_of(read(ledger, study), metrics, by)


def results_of(
    snapshot: Snapshot, metrics: Sequence[str] | None = None, by: str | None = None
) -> Table:
    """`results_table` of what was read."""
    shown = tuple(metrics) if metrics else default_metrics(snapshot)
    for metric in shown:
        if metric not in snapshot.metrics or split_of(metric) != "test":
            known = ", ".join(m for m in snapshot.metrics if split_of(m) == "test")
            raise InputError(f"results show test metrics ({known}), got {metric!r}")
    rows = result_rows(snapshot, shown[0], by)
    varied = varied_parameters(snapshot)
    marks = {metric: _marks(rows, metric) for metric in shown}
    papers = {metric: [paper_number(snapshot, row, metric) for row in rows] for metric in shown}
    header = ["method", "n"]
    numeric = [False, True]
    columns: list[list[Cell]] = [
        [Cell(text=row.label) for row in rows],
        [Cell(text=str(row.best.n), sort=row.best.n) for row in rows],
    ]
    for metric in shown:
        header.append(metric_label(metric))
        columns.append([_mean_cell(row, metric, marks[metric][i]) for i, row in enumerate(rows)])
        if any(number is not None for number in papers[metric]):
            header.append("paper")
            columns.append([_paper_cell(number, metric) for number in papers[metric]])
    header += ["95 % CI", "behind the best (95 % CI)", "p (Holm)", "chosen"]
    columns += [
        [_interval_cell(row, shown[0]) for row in rows],
        [_behind_cell(row, shown[0]) for row in rows],
        [_p_cell(row) for row in rows],
        [Cell(text=chosen_text(row.best, varied)) for row in rows],
    ]
    numeric += [True] * (len(header) - 3) + [False]
    return Table(
        title=f"Results of {snapshot.name}",
        header=tuple(header),
        cells=tuple(zip(*columns, strict=True)),
        numeric=tuple(numeric),
        frame=_results_frame(snapshot, rows, papers),
        notes=_results_notes(snapshot, rows, shown, by),
    )


def default_metrics(snapshot: Snapshot) -> tuple[str, ...]:
    """The test metrics that a reader expects, the first objective's first."""
    wanted = [on_test(objective) for objective in snapshot.objectives] + ["test/error"]
    if snapshot.record.details.get("classes") == 2:
        wanted.append("test/auc")
    return tuple(dict.fromkeys(m for m in wanted if m in snapshot.metrics)) or ("test/error",)


def result_rows(snapshot: Snapshot, metric: str, by: str | None = None) -> list[Row]:
    """The rows of the results, best validation first, each compared with the best on ``metric``."""
    rows: list[Row] = []
    by_part = {part: best_of(snapshot, by, part) for part in snapshot.parts}
    for best in best_of(snapshot, by):
        rows.append(Row(label=best.method, part="", best=best))
        seen = {best.point}
        for part, others in by_part.items():
            for other in others:
                if other.method == best.method and other.point not in seen:
                    seen.add(other.point)
                    rows.append(Row(label=f"{best.method} ({part})", part=part, best=other))
    return _compared(snapshot, rows, metric)


def _compared(snapshot: Snapshot, rows: list[Row], metric: str) -> list[Row]:
    winner = winner_of(rows, metric)
    if winner is None:
        return rows
    reference = snapshot.by_seed(winner.best.point, metric)
    tests = [
        None
        if row is winner
        else statistics.paired(snapshot.by_seed(row.best.point, metric), reference)
        for row in rows
    ]
    corrected = statistics.holm([math.nan if test is None else test.t_p for test in tests])
    return [
        replace(row, paired=test, p_holm=p)
        for row, test, p in zip(rows, tests, corrected, strict=True)
    ]


def winner_of(rows: Sequence[Row], metric: str) -> Row | None:
    """The row with the best mean on ``metric``; None when no row has one."""
    sign = -1.0 if higher_is_better(metric) else 1.0
    ranked = [row for row in rows if not math.isnan(row.best.estimates[metric].mean)]
    return min(ranked, key=lambda row: sign * row.best.estimates[metric].mean, default=None)


def behind(test: statistics.Paired, metric: str) -> tuple[float, float, float]:
    """How much worse the first is than the second, with its interval; positive means worse."""
    if higher_is_better(metric):
        return -test.difference, -test.ci_high, -test.ci_low
    return test.difference, test.ci_low, test.ci_high


def varied_parameters(snapshot: Snapshot) -> dict[str, list[str]]:
    """Per method the hyperparameters that take more than one value in the study."""
    values: dict[str, dict[str, set[str]]] = {}
    for point in snapshot.points:
        mine = values.setdefault(point.method, {})
        for name, value in point.params.items():
            mine.setdefault(name, set()).add(json.dumps(value, sort_keys=True))
    return {
        method: [name for name, seen in mine.items() if len(seen) > 1]
        for method, mine in values.items()
    }


def chosen_text(best: BestPoint, varied: Mapping[str, Sequence[str]]) -> str:
    """The hyperparameters that were chosen between: "β = 0.3, depth (hidden layers) = 1"."""
    names = [name for name in varied.get(best.method, ()) if name in best.params]
    return ", ".join(f"{parameter_label(n)} = {value_text(best.params[n])}" for n in names)


def paper_number(snapshot: Snapshot, row: Row, metric: str) -> tuple[float, float] | None:
    """The paper's mean and deviation (NaN when not given) for a row, or None.

    The study file names a row's label ("mulmix (defaults)") or, for the row over the whole study,
    the method.
    """
    papers = snapshot.record.spec.get("paper") or {}
    stated = papers.get(row.label) or (papers.get(row.best.method) if not row.part else None)
    value = (stated or {}).get(metric)
    if value is None:
        return None
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return float(numbers[0]), float(numbers[1]) if len(numbers) > 1 else math.nan


def _marks(rows: Sequence[Row], metric: str) -> list[str]:
    """Best and second best mean; equal means share a mark."""
    sign = -1.0 if higher_is_better(metric) else 1.0
    means = [sign * row.best.estimates[metric].mean for row in rows]
    ladder = sorted({mean for mean in means if not math.isnan(mean)})
    names = dict(zip(ladder, ("best", "second"), strict=False))
    return [names.get(mean, "") if len(rows) > 1 else "" for mean in means]


def _mean_cell(row: Row, metric: str, mark: str) -> Cell:
    found = row.best.estimates[metric]
    return Cell(text=plus_minus(found.mean, found.std, metric), mark=mark, sort=found.mean)


def _paper_cell(number: tuple[float, float] | None, metric: str) -> Cell:
    if number is None:
        return Cell(text="–")
    # As many decimals as the file gives: the paper's precision is part of its number.
    mean, std = (f"{value:.12g}" for value in number)
    return Cell(text=mean if math.isnan(number[1]) else f"{mean} ± {std}", sort=number[0])


def _interval_cell(row: Row, metric: str) -> Cell:
    found = row.best.estimates[metric]
    return Cell(text=interval_text(found.ci_low, found.ci_high, metric), sort=found.ci_low)


def _behind_cell(row: Row, metric: str) -> Cell:
    if row.paired is None:
        return Cell(text="–")
    gap, low, high = behind(row.paired, metric)
    if math.isnan(row.paired.std):
        return Cell(text=metric_text(gap, metric), sort=gap)
    text = f"{metric_text(gap, metric)} ({interval_text(low, high, metric)})"
    return Cell(text=text, sort=gap)


def _p_cell(row: Row) -> Cell:
    return Cell(text=p_text(row.p_holm), sort=row.p_holm)


def _results_frame(
    snapshot: Snapshot,
    rows: Sequence[Row],
    papers: Mapping[str, Sequence[tuple[float, float] | None]],
) -> pd.DataFrame:
    records = []
    for i, row in enumerate(rows):
        best = row.best
        record: dict[str, Any] = {"label": row.label, "method": best.method, "part": row.part}
        record["n"] = best.n
        chooser = {name: getattr(best, name) for name in STATISTICS}
        for metric, found in {best.metric: chooser, **best.estimates}.items():
            for name in STATISTICS:
                value = found[name] if isinstance(found, dict) else getattr(found, name)
                record[f"{metric}/{name}"] = value
        for metric, numbers in papers.items():
            number = numbers[i]
            if any(n is not None for n in numbers):
                record[f"paper/{metric}/mean"] = number[0] if number else math.nan
                record[f"paper/{metric}/std"] = number[1] if number else math.nan
        test = row.paired
        record["seeds_in_common"] = test.n if test else best.n
        record["difference"] = test.difference if test else 0.0
        record["difference_ci_low"] = test.ci_low if test else math.nan
        record["difference_ci_high"] = test.ci_high if test else math.nan
        record["p_paired_t"] = test.t_p if test else math.nan
        record["p_holm"] = row.p_holm
        record["p_wilcoxon"] = test.wilcoxon_p if test else math.nan
        record["point"] = short(best.point)
        record["hyperparameters"] = json.dumps(dict(best.params), sort_keys=True)
        records.append(record)
    return pd.DataFrame(records)


def _results_notes(
    snapshot: Snapshot, rows: Sequence[Row], shown: Sequence[str], by: str | None
) -> tuple[str, ...]:
    if not rows:
        return ("no point has all its replicates done yet",)
    notes = [
        f"Points are chosen by {metric_label(by or snapshot.objectives[0])}; test is only "
        "reported. Mean ± standard deviation over n seeds."
    ]
    if len(rows) > 1:
        notes.append(
            f"95 % CI, distance and p value are for {metric_label(shown[0])}: paired t test "
            "against the best row over common seeds, Holm-corrected."
        )
    return tuple(notes)


# ---------------------------------------------------------------- the table of points


def points_table(ledger: Ledger, study: str) -> Table:
    """Every point of the study, one row each, in order of asking. CSV is `points_frame` itself."""
    return points_of(read(ledger, study))


def points_of(snapshot: Snapshot) -> Table:
    """`points_table` of what was read."""
    frame = snapshot.points_table.reset_index(drop=True)
    varied = varied_parameters(snapshot)
    names = list(dict.fromkeys(n for mine in varied.values() for n in mine))
    metrics = list(dict.fromkeys([*snapshot.objectives, *default_metrics(snapshot)]))
    header = ["method", *(parameter_label(n) for n in names), "n"]
    header += [*(metric_label(m) for m in metrics), "state", "parts", "point"]
    cells = []
    for i, point in enumerate(snapshot.points):
        row = [Cell(text=point.method)]
        row += [_parameter_cell(point.params, name) for name in names]
        row.append(Cell(text=str(frame["n"][i]), sort=float(frame["n"][i])))
        for metric in metrics:
            mean, std = (_at(frame, f"{metric}/{name}", i) for name in ("mean", "std"))
            row.append(Cell(text=plus_minus(mean, std, metric), sort=mean))
        row += [Cell(text=str(frame[name][i])) for name in ("state", "parts", "point")]
        cells.append(tuple(row))
    numeric = [False, *[True] * (len(names) + 1 + len(metrics)), False, False, False]
    return Table(
        title=f"Points of {snapshot.name}",
        header=tuple(header),
        cells=tuple(cells),
        numeric=tuple(numeric),
        frame=frame,
        notes=("Mean ± standard deviation over the n finished replicates.",),
    )


def _at(frame: pd.DataFrame, column: str, i: int) -> float:
    return float(frame[column].iloc[i]) if column in frame else math.nan


def _parameter_cell(params: Mapping[str, Any], name: str) -> Cell:
    if name not in params:
        return Cell(text="")
    value = params[name]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(text=value_text(value), sort=float(value) if is_number else None)


# ---------------------------------------------------------------- formats


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

    def line(words: Sequence[str]) -> str:
        padded = [
            word.rjust(width) if number else word.ljust(width)
            for word, width, number in zip(words, widths, table.numeric, strict=True)
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

    def line(words: Sequence[str]) -> str:
        return f"| {' | '.join(words)} |"

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
    """Text that LaTeX prints as it is."""
    return "".join(_TEX.get(character, character) for character in text)


def _tex(table: Table) -> str:
    wraps = {"best": r"\textbf{%s}", "second": r"\textit{%s}", "": "%s"}

    def line(words: Sequence[str]) -> str:
        return "  " + " & ".join(words) + r" \\"

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
