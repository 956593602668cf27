"""A file of HIGGS's official layout and size, invented: for tests of speed without the download.

    python -m tests.benchmarks.higgs_synthetic --rows 11000000 PATH        (.csv or .csv.gz)

Each row is a collision of massless particles: a lepton, missing energy and four jets, some tagged
as bottom quarks. The 21 low-level columns are their momenta, the 7 high-level ones invariant masses
of some of them, as in the real file; in signal rows two jets come from one heavy particle, so that
their mass has a peak. Numbers are written as the real file writes them, float32 values with 18
decimals. The bytes of a plain file depend on the number of rows and the seed alone.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modmix.tasks.higgs import COLUMNS

BLOCK_ROWS = 20_000  # made at a time, from a random stream of their own
SIGNAL_SHARE = 0.53  # as in the official file
_LEVELS = 1 << 14  # different values of a column; each is turned into text once
_WIDTH = 26  # a sign, 24 characters, a separator
_HIGHEST = 1.7427  # of an angle, which the official file divides by its deviation
_PROGRESS_SECONDS = 5.0

Array = npt.NDArray[np.float64]

# Lowest and highest value of each column after the label.
_MOMENTUM, _DIRECTION, _ANGLE = (0.1, 8.0), (-2.97, 2.97), (-_HIGHEST, _HIGHEST)
_TAGS = ((0.0, 2.1731), (0.0, 2.2149), (0.0, 2.5482), (0.0, 3.1020))  # two of three values
_RANGES: tuple[tuple[float, float], ...] = (
    *(_MOMENTUM, _DIRECTION, _ANGLE, _MOMENTUM, _ANGLE),
    *(limit for tag in _TAGS for limit in (_MOMENTUM, _DIRECTION, _ANGLE, tag)),
    *[(0.05, 12.0)] * 7,
)
_MASS_SCALES = (1.75, 3.5, 1.6, 3.1, 1.8, 5.1, 7.9)  # about the mean of each mass


def write_file(path: Path, rows: int, *, seed: int = 0, processes: int | None = None) -> None:
    """Write a file with all cores; whoever sees it sees all of it.

    Args:
        path: ends in .csv or .csv.gz. A file that is there is replaced.
        rows: how many.
        seed: of the random numbers.
        processes: that make rows; None: one per core.
    """
    compress = path.suffix == ".gz"
    counts = [BLOCK_ROWS] * (rows // BLOCK_ROWS) + [rows % BLOCK_ROWS] * (rows % BLOCK_ROWS > 0)
    work = [(seed, number, count, compress) for number, count in enumerate(counts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # one that a kill has left is written over
    begun = said = time.monotonic()
    done = 0
    try:
        with temporary.open("wb") as file:
            for (_, _, count, _), text in zip(work, _made(work, processes), strict=True):
                file.write(text)
                done += count
                if time.monotonic() - said > _PROGRESS_SECONDS:
                    said = time.monotonic()
                    left = (said - begun) * (rows - done) / done
                    print(f"{done:,} of {rows:,} rows, about {left:.0f} s left", flush=True)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _made(work: Sequence[tuple[int, int, int, bool]], processes: int | None) -> Iterator[bytes]:
    """The blocks in order, a few ahead of the one that is written."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = min(processes or cores or 1, len(work))
    if processes <= 1:
        yield from (make_block(*block) for block in work)
        return
    texts()  # processes that are forked have it already
    with multiprocessing.Pool(processes) as pool:
        waiting: deque[Any] = deque()
        for block in work:
            waiting.append(pool.apply_async(make_block, block))
            if len(waiting) > processes + 2:
                yield waiting.popleft().get()
        while waiting:
            yield waiting.popleft().get()


def make_block(seed: int, number: int, rows: int, compress: bool) -> bytes:
    """The text of one block of rows, or a gzip member that holds it."""
    columns = make_rows(np.random.default_rng([seed, number]), rows)
    cells = np.empty((rows, COLUMNS, _WIDTH), dtype=np.uint8)
    for i, (levels, table) in enumerate(zip(columns, texts(), strict=True)):
        cells[:, i] = table[levels]
    text = cells.tobytes().translate(None, b"\0")
    if not compress:
        return text
    stream = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return stream.compress(text) + stream.flush()


@cache
def texts() -> list[npt.NDArray[np.uint8]]:
    """Per column, the text of each of its levels with the separator, (levels, 26) bytes."""
    tables = []
    for i, values in enumerate([np.array([0.0, 1.0]), *map(_levels, _RANGES)]):
        end = "\n" if i == COLUMNS - 1 else ","
        words = [f"{value:.18e}{end}".encode() for value in values.astype(np.float32).tolist()]
        table = np.frombuffer(b"".join(w.ljust(_WIDTH, b"\0") for w in words), dtype=np.uint8)
        tables.append(table.reshape(len(words), _WIDTH))
    return tables


def _levels(limits: tuple[float, float]) -> Array:
    return np.linspace(*limits, _LEVELS)


def make_rows(rng: np.random.Generator, rows: int) -> list[npt.NDArray[np.intp]]:
    """Collisions: per column of the file (label first), the level of each row's value."""
    is_signal_N = rng.random(rows) < SIGNAL_SHARE
    # Particles: lepton, missing energy, jets 1 to 4.
    momentum_NP = np.exp(rng.normal(-0.12, 0.5, (rows, 6)))
    direction_NP = np.clip(rng.normal(0.0, 1.0, (rows, 6)), -2.9, 2.9)
    direction_NP[:, 1] = 0.0  # nobody measures it along the beam
    angle_NP = rng.uniform(-math.pi, math.pi, (rows, 6))
    _decay(rng, is_signal_N, momentum_NP, direction_NP, angle_NP, (2, 3), mass=1.0, width=0.12)
    # A W boson in nine rows of ten, whatever they are.
    has_w_N = rng.random(rows) < 0.9
    _decay(rng, has_w_N, momentum_NP, direction_NP, angle_NP, (4, 5), mass=0.8, width=0.06)
    tagged_N4 = rng.random((rows, 4)) < np.where(
        is_signal_N[:, None], (0.60, 0.58, 0.25, 0.2), (0.5, 0.45, 0.33, 0.3)
    )
    columns = [
        momentum_NP[:, 0],
        direction_NP[:, 0],
        angle_NP[:, 0] * (_HIGHEST / math.pi),
        momentum_NP[:, 1],
        angle_NP[:, 1] * (_HIGHEST / math.pi),
    ]
    for jet in range(4):
        highest = _TAGS[jet][1] * np.where(rng.random(rows) < 0.5, 0.5, 1.0)
        columns += [
            momentum_NP[:, 2 + jet],
            direction_NP[:, 2 + jet],
            angle_NP[:, 2 + jet] * (_HIGHEST / math.pi),
            tagged_N4[:, jet] * highest,
        ]
    columns += _masses(momentum_NP, direction_NP, angle_NP)
    found = [is_signal_N.astype(np.intp)]
    for values, (low, high) in zip(columns, _RANGES, strict=True):
        place = np.rint((values - low) * ((_LEVELS - 1) / (high - low)))
        found.append(np.clip(place, 0, _LEVELS - 1).astype(np.intp))
    return found


def _decay(
    rng: np.random.Generator,
    happens_N: npt.NDArray[np.bool_],
    momentum_NP: Array,
    direction_NP: Array,
    angle_NP: Array,
    pair: tuple[int, int],
    *,
    mass: float,
    width: float,
) -> None:
    """Turn the second of two particles so that the pair has about this mass, where it can have."""
    a, b = pair
    wanted_N = rng.normal(mass, width, len(happens_N)) ** 2
    product_N = 2 * momentum_NP[:, a] * momentum_NP[:, b]
    cosine_N = np.cosh(direction_NP[:, a] - direction_NP[:, b]) - wanted_N / product_N
    can_N = happens_N & (np.abs(cosine_N) <= 1)
    turn_N = np.arccos(np.clip(cosine_N, -1, 1)) * np.where(rng.random(len(can_N)) < 0.5, -1, 1)
    turned_N = angle_NP[:, a] + turn_N
    turned_N = (turned_N + math.pi) % (2 * math.pi) - math.pi
    angle_NP[:, b] = np.where(can_N, turned_N, angle_NP[:, b])


def _masses(momentum_NP: Array, direction_NP: Array, angle_NP: Array) -> list[Array]:
    """m_jj, m_jjj, m_lv, m_jlv, m_bb, m_wbb and m_wwbb, each divided by about its mean."""

    def square(a: int, b: int) -> Array:
        rapidity = np.cosh(direction_NP[:, a] - direction_NP[:, b])
        separation = rapidity - np.cos(angle_NP[:, a] - angle_NP[:, b])
        found: Array = 2 * momentum_NP[:, a] * momentum_NP[:, b] * separation
        return found

    squares = {(a, b): square(a, b) for a in range(6) for b in range(a + 1, 6)}
    groups = ((4, 5), (2, 4, 5), (0, 1), (0, 1, 3), (2, 3), (2, 3, 4, 5), (0, 1, 2, 3, 4, 5))
    found = []
    for group, scale in zip(groups, _MASS_SCALES, strict=True):
        total = sum(squares[a, b] for a in group for b in group if a < b)
        found.append(np.sqrt(np.maximum(total, 0.0)) / scale)
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.higgs_synthetic",
        description="Write a file of HIGGS's official layout with invented rows.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="ends in .csv or .csv.gz")
    parser.add_argument("--rows", type=int, default=11_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=None, help="default: one per core")
    asked = parser.parse_args(words)
    if not asked.path.name.endswith((".csv", ".csv.gz")):
        parser.error(f"PATH must end in .csv or .csv.gz, got {asked.path.name!r}")
    if asked.rows < 1:
        parser.error(f"--rows must be at least 1, got {asked.rows}")
    begun = time.monotonic()
    try:
        write_file(asked.path, asked.rows, seed=asked.seed, processes=asked.processes)
    except OSError as error:
        sys.exit(f"{asked.path}: {error.strerror or error}: free some space or name another folder")
    size, seconds = asked.path.stat().st_size, time.monotonic() - begun
    print(f"{asked.path}: {asked.rows:,} rows, {size / 1e9:.2f} GB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
