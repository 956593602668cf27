"""Preparing 11,000,000 rows of HIGGS, against reading them with pyarrow."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from tests.benchmarks.harness import (
    MODMIX,
    PYTHON,
    BenchmarkError,
    Options,
    Run,
    Skipped,
    Turns,
    command,
    environment,
    say,
    scratch,
)
from tests.benchmarks.report import Figure, Section, Table, between, number

# Bytes of disk a row takes: as text, as float32 once while it is read, and as prepared arrays.
ROW_BYTES = 800 + 2 * 120
GENERATOR = "tests.benchmarks.higgs_synthetic"
LOAD = """\
import sys, time
from modmix.tasks.base import load_task
begun = time.perf_counter()
data = load_task("higgs", {"path": sys.argv[1]})
print(data.train.rows + data.val.rows + data.test.rows, time.perf_counter() - begun)
"""
TEXT = """\
A file of the official layout{origin}: {rows:,} rows, {size:.1f} GB. `modmix data prepare` as a
whole command (checksum, parsing on one core, splits, standardised arrays on disk) against a
process that does nothing but `pyarrow.csv.read_csv` to float32 on all cores, in turns. Memory is
the largest sum over the processes of the command, pages of mapped files included."""
ARROW, OURS = "pyarrow.csv.read_csv", "modmix data prepare"


def run(options: Options) -> Section:
    given = os.environ.get("BENCH_HIGGS")
    with scratch("prepare") as folder:
        if given:
            return _run(options, Path(given).absolute(), " (BENCH_HIGGS)", folder, [])
        rows, notes = _rows(options.rows, folder)
        path = folder / "HIGGS.csv"
        say(f"prepare: writing {rows:,} rows")
        try:
            done = command([PYTHON, "-m", GENERATOR, "--rows", str(rows), str(path)])
        except BenchmarkError as error:
            if "No module named" in str(error):
                raise Skipped(f"there is no {GENERATOR} to make a file with") from None
            raise
        say(f"prepare: written in {done.wall:.0f} s")
        return _run(options, path, " with invented rows", folder, notes)


def _rows(wanted: int, folder: Path) -> tuple[int, list[str]]:
    """As many rows as wanted, or as the disk has room for."""
    room = int(0.8 * shutil.disk_usage(folder).free / ROW_BYTES)
    if room >= wanted:
        return wanted, []
    rows = room // 100_000 * 100_000
    if rows < 1_000_000:
        raise Skipped(f"{folder} has room for {room:,} rows only: set TMPDIR to a larger disk")
    return rows, [f"{wanted:,} rows were asked for; the disk has room for {rows:,}"]


def _run(options: Options, path: Path, origin: str, folder: Path, notes: list[str]) -> Section:
    times, peaks = Turns(), Turns()
    # As people type it: no limit on threads (pyarrow reads this variable, too).
    env = environment(OMP_NUM_THREADS=None, MODMIX_DATA=folder / "data")
    arrow = [PYTHON, "-m", "tests.benchmarks.peers.arrow", str(path)]
    prepare = [MODMIX, "data", "prepare", "higgs", "--option", f"path={path}"]
    if options.quick:
        prepare += ["--option", "test_rows=10000"]
    rows = 0
    for _ in range(2):
        read = command(arrow, env=env, watch_memory=True)
        rows = int(read.output.split()[0])
        _note(times, peaks, ARROW, read)
        shutil.rmtree(folder / "data", ignore_errors=True)
        _note(times, peaks, OURS, command(prepare, env=env, watch_memory=True))
    mapped = _map_again(options, path, env)
    ratio = times.median(ARROW) / times.median(OURS)
    size = path.stat().st_size
    table = [
        [name, number(times.median(name), "s"), number(peaks.median(name) / 1e9, "GB")]
        for name in (OURS, ARROW)
    ]
    return Section(
        name="prepare",
        title="Preparing HIGGS",
        text=TEXT.format(origin=origin, rows=rows, size=size / 1e9),
        figures=[
            Figure(
                what="prepare: time of pyarrow's reading alone, over ours",
                key="prepare_vs_pyarrow",
                value=ratio,
                unit="x",
                spread=f"ours: {between(times.values[OURS], 's')}; "
                f"pyarrow: {between(times.values[ARROW], 's')}",
            ),
            Figure(
                what="prepare: peak memory",
                value=peaks.median(OURS) / 1e9,
                target=3,
                at_least=False,
                unit="GB",
            ),
        ],
        tables=[Table("", ["", "seconds", "peak memory"], table)],
        notes=[*notes, f"mapping the prepared arrays again: {1000 * mapped:.0f} ms"],
    )


def _note(times: Turns, peaks: Turns, name: str, run: Run) -> None:
    times.add(name, run.wall)
    peaks.add(name, float(run.peak))
    say(f"prepare: {name}: {run.wall:.1f} s, {run.peak / 1e9:.2f} GB")


def _map_again(options: Options, path: Path, env: dict[str, str]) -> float:
    code = LOAD
    if options.quick:
        code = code.replace('"path": sys.argv[1]', '"path": sys.argv[1], "test_rows": 10000')
    seconds = []
    for _ in range(3):
        time.sleep(0.1)
        seconds.append(float(command([PYTHON, "-c", code, str(path)], env=env).output.split()[1]))
    return sorted(seconds)[1]
