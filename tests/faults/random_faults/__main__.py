"""Inject random faults into real studies.

    python -m tests.faults.random_faults --count 100 --seed 0

Exit code 1 if any check fails; 2 if this machine lacks something; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from modmix.tracking.store import Store
from tests.faults.random_faults import table
from tests.faults.random_faults.checks import Ending, Verdict, check, ending
from tests.faults.random_faults.ordeal import Ordeal
from tests.faults.random_faults.plan import SIGNALS, Fault, Plan, Runner, draw
from tests.faults.random_faults.processes import LateError, Patience
from tests.faults.random_faults.scene import Scene

FURTHER = 5  # studies for the faults that one study was too short for


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all studies have in common."""

    folder: Path
    database: str
    lease: float  # seconds
    limit: float  # seconds a study
    over: threading.Event  # the program is to end

    def scene(self, name: str, runner: Runner, victim: str, chance: random.Random) -> Scene:
        return Scene(
            self.folder / name,
            runner=runner,
            lease=self.lease,
            ray_folder=self.folder,
            server=victim == "mlflow",
            database=self.database_of(victim),
            empty_mlflow=self.folder / "mlflow.db",
            chance=chance,
        )

    def database_of(self, victim: str) -> str:
        return "postgresql" if victim == "database" else self.database


def undisturbed(setting: Setting) -> Ending:
    """The study without faults."""
    problems: list[str] = []
    with setting.scene("undisturbed", "local", "", random.Random(0)) as scene:
        command = scene.start()
        Patience(setting.limit, setting.over).until(lambda: command.code is not None)
        if command.code != 0:
            raise SystemExit(f"the undisturbed study ended with {command.code}: {command.said}")
        found = ending(scene, problems)
    if problems:
        raise SystemExit(f"the undisturbed study is wrong: {'; '.join(problems)}")
    return found


def one_study(
    setting: Setting, number: int, plan: Plan, seed: int, reference: Ending
) -> tuple[table.Outcome, list[Fault]]:
    """Run one study with its faults; give back those that it was too short for."""
    chance = random.Random(f"{seed} {number}")
    begun, problems, verdict = time.monotonic(), list[str](), Verdict()
    scene = setting.scene(f"{number:03}", plan.runner, plan.victim, chance)
    patience = Patience(setting.limit, setting.over)
    ordeal = Ordeal(scene, plan.faults, patience, partial(_say, number))
    try:
        with scene:
            ordeal.run()
            verdict = check(scene, reference)
    except Exception as error:  # the others go on
        if not isinstance(error, LateError):
            traceback.print_exception(error)
        last = scene.commands[-1].said if scene.commands else "nothing"
        problems.append(f"{type(error).__name__}: {error}; the last command said: {last}")
    problems += [*ordeal.problems, *verdict.problems]
    if not problems:
        scene.remove()
    outcome = table.Outcome(
        number=number,
        victim=plan.victim,
        runner=plan.runner,
        database=setting.database_of(plan.victim),
        seconds=time.monotonic() - begun,
        blows=ordeal.blows,
        verdict=verdict,
        folder=str(scene.folder),
        problems=problems,
    )
    return outcome, ordeal.left


def all_studies(
    setting: Setting, plans: list[Plan], seed: int, at_once: int
) -> list[table.Outcome]:
    """Run the studies, some at a time; faults that were left get further studies."""
    reference = undisturbed(setting)
    outcomes: list[table.Outcome] = []
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for _ in range(1 + FURTHER):
                first = len(outcomes) + 1
                futures = {
                    pool.submit(one_study, setting, number, plan, seed, reference): plan
                    for number, plan in enumerate(plans, first)
                }
                plans = []
                for future in as_completed(futures):
                    outcome, left = future.result()
                    outcomes.append(outcome)
                    how = "PROBLEMS" if outcome.problems else "well"
                    _say(outcome.number, f"ended {how} after {outcome.seconds:.0f} s")
                    if left and not setting.over.is_set():
                        plans.append(replace(futures[future], faults=tuple(left)))
                if not plans:
                    break
        except BaseException:
            setting.over.set()
            pool.shutdown(cancel_futures=True)
            raise
    return sorted(outcomes, key=lambda outcome: outcome.number)


def _say(study: int, what: str) -> None:
    print(f"study {study}: {what}", file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.random_faults", description=__doc__
    )
    parser.add_argument("--count", type=int, default=100, help="faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(SIGNALS), help="one kind of victim")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite",
                        help="of studies whose victim is something else")  # fmt: skip
    parser.add_argument("--at-once", type=int, default=2, help="studies")
    parser.add_argument("--lease", type=float, default=6.0, help="seconds")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds for one study")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))  # sockets have short names
    setting = Setting(
        folder=folder,
        database=chosen.database,
        lease=chosen.lease,
        limit=chosen.limit,
        over=threading.Event(),
    )
    try:
        Store(f"sqlite:///{folder / 'mlflow.db'}")
        plans = draw(chosen.count, chosen.seed, chosen.only)
        outcomes = all_studies(setting, plans, chosen.seed, chosen.at_once)
    except pytest.skip.Exception as error:
        print(f"random_faults: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    finally:
        shutil.rmtree(folder / "ray", ignore_errors=True)
        shutil.rmtree(folder / "undisturbed", ignore_errors=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(table.as_json(outcomes, chosen.seed), indent=1) + "\n")
    print(table.as_text(outcomes))
    done = sum(len(outcome.blows) for outcome in outcomes)
    wrong = sum(bool(outcome.problems) for outcome in outcomes) + (done < chosen.count)
    print(f"{done} faults in {time.monotonic() - begun:.0f} s, seed {chosen.seed}: ", end="")
    print("all is well" if not wrong else f"{wrong} studies have problems")
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
