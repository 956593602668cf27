"""The faults and the counts per victim, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.random_faults.checks import Verdict
from tests.faults.random_faults.ordeal import Blow
from tests.faults.random_faults.plan import SIGNALS
from tests.faults.random_faults.watch import PHASES

WIDTH = 88  # of what a command said


@dataclass(kw_only=True)
class Outcome:
    """One study: its faults and what was found afterwards."""

    number: int
    victim: str
    runner: str
    database: str
    seconds: float
    blows: Sequence[Blow]
    verdict: Verdict
    folder: str = ""  # of a study with problems
    problems: list[str] = field(default_factory=list)


def faults(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row a fault."""
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        for blow in outcome.blows:
            rows.append(
                {
                    "number": len(rows) + 1,
                    "study": outcome.number,
                    "runner": outcome.runner,
                    "victim": blow.fault.victim,
                    "signal": blow.fault.signal,
                    "phase": blow.phase,
                    "exit_code": blow.code,
                    "said": blow.said,
                    "note": blow.note,
                    "seconds_until_it_went_on": blow.went_on,
                }
            )
    return rows


def counts(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per victim, and one over all."""
    rows = [_count(v, [o for o in outcomes if o.victim == v]) for v in SIGNALS]
    return [row for row in [*rows, _count("all", outcomes)] if row["studies"]]


def _count(victim: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    def total(name: str) -> int:
        return sum(getattr(outcome.verdict, name) for outcome in outcomes)

    return {
        "victim": victim,
        "faults": sum(len(outcome.blows) for outcome in outcomes),
        "studies": len(outcomes),
        "expected": total("expected"),
        "once": total("once"),
        "twice": total("twice"),
        "continued": total("by_continued"),
        "at once": total("at_once"),
        "runs finished": total("runs_finished"),
        "left running": total("runs_running"),
        "differing": total("differing"),
        "rounded": total("rounded"),
        "problems": sum(len(outcome.problems) for outcome in outcomes),
    }


def as_text(outcomes: Sequence[Outcome]) -> str:
    """Everything for people."""
    lines = ["  no study victim   signal   phase      code  went on  what the command said"]
    for row in faults(outcomes):
        after = row["seconds_until_it_went_on"]
        said = "; ".join(filter(None, (row["note"], row["said"])))
        lines.append(
            f"{row['number']:4} {row['study']:5} {row['victim']:8} {row['signal']:8} "
            f"{row['phase']:10} {_shown(row['exit_code']):>4} "
            f"{'' if after is None else f'{after:.1f} s':>8}  {_cut(said)}"
        )
    lines += ["", *_grid(counts(outcomes)), "", *_phases(outcomes), ""]
    lines += _legend()
    for outcome in outcomes:
        for problem in outcome.problems:
            lines.append(
                f"PROBLEM in study {outcome.number} ({outcome.victim}, {outcome.runner}, "
                f"{outcome.database}): {problem}"
            )
        if outcome.problems and outcome.folder:
            lines.append(f"  its files: {outcome.folder}")
    return "\n".join(lines)


def _shown(code: int | None) -> str:
    return "" if code is None else str(code)


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _grid(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(rows[0]) if rows else []
    widths = [max(len(str(value)) for value in (name, *(r[name] for r in rows))) for name in names]
    texts = [names, *([str(row[name]) for name in names] for row in rows)]
    return ["  ".join(t.rjust(w) for t, w in zip(text, widths, strict=True)) for text in texts]


def _phases(outcomes: Sequence[Outcome]) -> list[str]:
    found = Counter(blow.phase for outcome in outcomes for blow in outcome.blows)
    return ["faults by phase: " + ", ".join(f"{phase} {found[phase]}" for phase in PHASES)]


def _legend() -> list[str]:
    return [
        "expected: replicates; once: in the ledger with one result; twice: evaluations after the",
        "replicate had a result; continued: the same by processes that had been stopped meanwhile,",
        "whose results are refused; at once: replicates trained by two processes at a time;",
        "differing: results unlike the undisturbed study's; rounded: equal to it up to 1e-6, in",
        "packs with other members.",
    ]


def as_json(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "faults": faults(outcomes),
        "counts": counts(outcomes),
        "studies": [
            {
                "number": outcome.number,
                "victim": outcome.victim,
                "runner": outcome.runner,
                "database": outcome.database,
                "seconds": outcome.seconds,
                "largest_difference": outcome.verdict.largest,
                "problems": outcome.problems,
            }
            for outcome in outcomes
        ],
    }
