"""Everything modmix raises on purpose, and the exit code each becomes.

    ModmixError                      1  anything else that went wrong
    ├── InputError (ValueError)      2  what the user gave is wrong; nothing was started
    │   ├── SpecError                   the study file: every problem at once, with path and line
    │   ├── DataError                   a data file: missing, truncated, not what was expected
    │   └── LeaseError                  another driver is running this study
    ├── LedgerError (OSError)        3  the ledger could not be written; the study can be continued
    ├── Interrupted                  3  stopped on request; the same command continues
    ├── Incomplete                   3  machines failed too often; the same command continues
    ├── RunnerError (RuntimeError)   1  Ray or the local runner broke
    └── TrackingError (OSError)      1  MLflow could not be reached or refused

A message is one sentence: the rule, the name, what came, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ModmixError(Exception):
    """Base of every error that modmix raises on purpose."""

    exit_code = 1


class InputError(ModmixError, ValueError):
    """What the user gave is wrong. Nothing was started, nothing was written."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong in a study file: where (line, dotted path) and what to do about it."""

    line: int  # 1-based; 0 when no line can be named
    path: str  # dotted, as "parts.beta_curve.methods.mul.beta"
    message: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class SpecError(InputError):
    """A study file is wrong; ``problems`` lists everything that is, in the order of lines."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class DataError(InputError):
    """A data file is missing, damaged or not what was expected."""


class LeaseError(InputError):
    """Another driver holds this study."""


class LedgerError(ModmixError, OSError):
    """The ledger could not be read or written (full disk, lost database)."""

    exit_code = 3


class Interrupted(ModmixError):
    """The study was stopped on request; the same command continues it."""

    exit_code = 3


class Incomplete(ModmixError):
    """The machines failed more often than allowed; the same command tries the rest again."""

    exit_code = 3


class RunnerError(ModmixError, RuntimeError):
    """Ray or the runner in this process broke."""


class TrackingError(ModmixError, OSError):
    """MLflow could not be reached, or refused."""
