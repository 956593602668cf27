"""`make bench`: run benchmarks, keep their numbers, write BENCHMARKS.md.

python -m tests.benchmarks [--only curve,driver]
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
import traceback

from modmix.base.home import write_text
from tests.benchmarks import machine, report
from tests.benchmarks.harness import BenchmarkError, Options, Skipped, say

# In this order; each is a module here with `run(options) -> Section`.
BENCHMARKS = {
    "curve": "curve",
    "curve1100": "curve1100",
    "search": "search",
    "higgs": "higgs",
    "startup": "startup",
    "overhead": "tune_overhead",
    "driver": "driver",
    "cluster": "cluster",
    "halving": "halving",
    "prepare": "prepare",
    "gpu": "gpu",
    "profile": "profiling",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--only", default="")
    chosen, problem = _choose(parser.parse_args().only)
    if problem:
        print(f"make bench: {problem}", file=sys.stderr)
        return 2
    # Libraries choose by themselves what suits the processor, for every competitor.
    for name in [name for name in os.environ if name.startswith("OPENBLAS_")]:
        del os.environ[name]
    # Killed, it still ends the commands it started, and leaves no files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options, failed = Options.from_environment(), []
    for name in chosen:
        about, begun = machine.describe(), time.perf_counter()
        say(f"{name}: begins (load {about['load']})")
        try:
            section = importlib.import_module(f"tests.benchmarks.{BENCHMARKS[name]}").run(options)
        except Skipped as reason:
            say(f"{name}: not run: {reason}")
            _note_skipped(name, str(reason), about)
            continue
        except BenchmarkError as error:
            say(f"{name}: FAILED: {error}")
            failed.append(name)
            continue
        except Exception:
            say(f"{name}: FAILED:\n{traceback.format_exc()}")
            failed.append(name)
            continue
        report.save(section, about, time.perf_counter() - begun)
        print(report.shown(section), flush=True)
    page = report.render(report.read(), list(BENCHMARKS), _page())
    write_text(report.MARKDOWN_FILE, page)
    say(f"numbers in {report.JSON_FILE}, tables in {report.MARKDOWN_FILE}")
    if failed:
        print(f"make bench: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _choose(only: str) -> tuple[list[str], str]:
    """The benchmarks to run, or what is wrong with the names."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in BENCHMARKS:
            return [], f"ONLY must name benchmarks ({', '.join(BENCHMARKS)}), got {name!r}"
    return [name for name in BENCHMARKS if not names or name in names], ""


def _page() -> str:
    """The present page, "" without one."""
    file = report.MARKDOWN_FILE
    return file.read_text() if file.exists() else ""


def _note_skipped(name: str, reason: str, about: dict[str, str]) -> None:
    """Say in the report that there is no number; an older one stays."""
    if name not in report.read()["details"] and name not in report.sections_of(_page()):
        section = report.Section(name=name, title=name, text=f"Not measured: {reason}")
        report.save(section, about, 0.0)


if __name__ == "__main__":
    sys.exit(main())
