"""The exceptions modmix raises on purpose, with their exit codes.

    ModmixError                      1  any other failure
    ├── InputError (ValueError)      2  invalid input; nothing was started
    │   ├── SpecError                   invalid study file: every problem, with path and line
    │   ├── DataError                   data file missing, damaged or unexpected
    │   └── LeaseError                  another driver is running this study
    ├── LedgerError (OSError)        3  the ledger could not be used; the study can be resumed
    │   └── LeaseLostError              another driver has taken the study over
    ├── Interrupted                  3  stopped on request; the same command resumes
    ├── Incomplete                   3  no cluster or worker is left; the same command resumes
    │   └── GivenUp                  1  packs were abandoned; --retry-failed resumes
    ├── RunnerError (RuntimeError)   1  Ray or the local runner failed
    └── TrackingError (OSError)      1  MLflow is unreachable or rejected a request

Each message is one sentence: what is required, what was given, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ModmixError(Exception):
    """Base class of every exception that modmix raises on purpose."""

    exit_code = 1


class InputError(ModmixError, ValueError):
    """Invalid input. Nothing was started, nothing was written."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class Problem:
    """One problem in a study file: its location and how to fix it."""

    line: int  # 1-based; 0 if unknown
    path: str  # dotted: "parts.beta_curve.methods.mul.beta"
    message: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class SpecError(InputError):
    """Invalid study file; ``problems`` holds every problem, sorted by line."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class DataError(InputError):
    """A data file is missing, damaged or unexpected."""


class LeaseError(InputError):
    """Another driver is running this study."""


class LedgerError(ModmixError, OSError):
    """The ledger could not be read or written (full disk, lost database)."""

    exit_code = 3


class LeaseLostError(LedgerError):
    """Another driver has taken the study over; nothing was written."""


class Interrupted(ModmixError):
    """The study was stopped on request; the same command resumes it."""

    exit_code = 3


class Incomplete(ModmixError):
    """The cluster was lost or starts no worker; the same command resumes."""

    exit_code = 3


class GivenUp(Incomplete):
    """Packs were abandoned after repeated machine failures; ``--retry-failed`` retries them."""

    exit_code = 1


class RunnerError(ModmixError, RuntimeError):
    """Ray or the local runner failed."""


class TrackingError(ModmixError, OSError):
    """MLflow is unreachable or rejected a request."""
