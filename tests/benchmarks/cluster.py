"""Studies on a large Ray cluster, simulated on this machine: what the driver does with many slots,
many trials, other studies, and nodes that come, go and fail.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tests.benchmarks.harness import PYTHON, BenchmarkError, Options, command, say, scratch
from tests.benchmarks.report import Figure, Section, Table, number
from tests.benchmarks.simulated.nodes import environment

TEXT = """\
Ray nodes on this machine with simulated CPUs and GPUs, drivers as separate processes, and packs of
one model each, whose training sleeps and returns the value of a known function. Workers log the
start and end of every pack, so slot and node usage is measured independently of the driver. The
benchmark fails if a model is missing from the ledger or was trained to completion twice.
"""
CONFIGURATIONS, STARTUP, IN_FLIGHT = 60, 10, 12  # a fifth of 60 may be in flight
SCENARIOS = ("large", "regret", "together", "scaling", "changing", "bad")
ALONE, CAPPED, AT_ONCE = "one after another", "`parallel: auto`", "all at once"


def run(options: Options) -> Section:
    section = Section(name="cluster", title="A simulated Ray cluster", text=TEXT)
    told = {name: _scenario(name) for name in SCENARIOS}
    _search(section, told["large"], told["regret"])
    _trials(section, told["large"])
    _together(section, told["together"])
    _scaling(section, told["scaling"])
    _changing(section, told["changing"])
    _bad(section, told["bad"])
    return section


def _scenario(name: str) -> dict[str, Any]:
    # Sockets have short names: Ray's files are not below the benchmark's folder.
    rays = tempfile.mkdtemp(prefix="modmix-ray-", dir="/tmp")
    try:
        with scratch("cluster") as folder:
            words = [PYTHON, "-m", "tests.benchmarks.simulated.scenarios", name, str(folder)]
            done = command(words, env={**environment(folder), "RAY_TMPDIR": rays})
            say(f"cluster: {name} in {done.wall:.0f} s")
            told: dict[str, Any] = json.loads((folder / "told.json").read_text())
            return told
    finally:
        shutil.rmtree(rays, ignore_errors=True)


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise BenchmarkError(f"cluster: {sentence}")


def _complete(name: str, told: dict[str, Any]) -> None:
    """Every model of a study has a result, and has it once."""
    states, keys = told["states"], told["keys"]
    done = states.count("done")
    _expect(
        done == len(states) == keys and told["results"] == keys,
        f"{name}: {done} results of {len(states)} models with {keys} keys, {told['results']} told",
    )


def _once(name: str, ended: dict[str, int], models: int) -> None:
    """Every pack was trained to its end on one worker."""
    twice = sum(count > 1 for count in ended.values())
    _expect(len(ended) == models, f"{name}: {len(ended)} of {models} packs were trained")
    _expect(not twice, f"{name}: {twice} packs were trained to their end twice")


def _search(section: Section, real: dict[str, Any], simulated: dict[str, Any]) -> None:
    rows, later = [], {}
    for name, shown in (("alone", ALONE), ("capped", CAPPED)):
        told = real[name]
        _complete(name, told)
        later[name] = max(flying for proposed, flying in told["in_flight"] if proposed > STARTUP)
        rows.append([f"{shown}, on Ray", "1", str(later[name]), number(told["best"]), ""])
    for name, shown in (("alone", ALONE), ("capped", CAPPED), ("all at once", AT_ONCE)):
        best, flying = simulated[name]["best"], max(simulated[name]["in_flight"])
        spread = f"{number(min(best))} to {number(max(best))}"
        rows.append([shown, str(len(best)), str(flying), number(fmean(best)), spread])
    most = max(later["capped"], *simulated["capped"]["in_flight"])
    alone, capped, free = (fmean(simulated[n]["best"]) for n in ("alone", "capped", "all at once"))
    _expect(most <= IN_FLIGHT, f"{most} configurations in flight, more than {IN_FLIGHT}")
    _expect(later["capped"] > 1, "the search on 64 slots had one configuration in flight")
    _expect(later["alone"] == 1, f"parallel: 1 had {later['alone']} configurations in flight")
    _expect(2 * capped < free, f"regret {capped:.3f} with the cap, {free:.3f} without")
    section.figures += [
        Figure(
            what="cluster: most configurations in flight of a search of 60 on 64 slots",
            value=most,
            target=IN_FLIGHT,
            at_least=False,
        ),
        Figure(
            what="cluster: regret of that search, relative to all configurations at once",
            value=capped / free,
            target=0.5,
            at_least=False,
            unit="x",
            spread=f"over one after another: {number(capped / alone, 'x')}",
        ),
    ]
    columns = ["search", "seeds", "most in flight", "regret, mean", "range"]
    caption = (
        f"a TPE search of {CONFIGURATIONS} configurations on 64 slots (8 nodes of 8 processors), "
        "and in this process with results in a random order; in flight after the first "
        f"{STARTUP}; regret is the best value found, the function's least is 0"
    )
    section.tables.append(Table(caption, columns, rows))


def _trials(section: Section, told: dict[str, Any]) -> None:
    one = told["trials"]
    _complete("trials", one)
    _once("trials", told["ended"], one["results"])
    _expect(told["workers"] <= 16, f"{told['workers']} packs at a time on 16 GPUs")
    megabytes = [f"{bytes_ / 2**20:,.0f}" for bytes_ in (*one["resident"], one["peak"])]
    costs = [number(one["cpu_ms"]), number(one["wall_ms"])]
    columns = ["trials", "most at a time", "processor ms a trial, driver", "wall ms a trial"]
    columns += ["driver's MB after a tenth", "half", "all", "peak MB"]
    row = [f"{one['results']:,}", str(told["workers"]), *costs, *megabytes]
    section.figures.append(
        Figure(
            what=f"cluster: driver's CPU time per trial, {one['results']:,} trials",
            value=one["cpu_ms"],
            unit="ms",
        )
    )
    section.tables.append(Table("many trials, a GPU each, on 16 invented GPUs", columns, [row]))


def _together(section: Section, told: dict[str, Any]) -> None:
    names = ("first", "second")
    for name in names:
        _complete(name, told[name])
    held = {name: told["held"][name] for name in names}
    second = next(i for i, count in enumerate(held["second"]) if count)
    # While both have packs waiting; the first one's last packs before that must end.
    end = min(told["last_begins"].values())
    both = [i for i, at in enumerate(told["times"]) if i >= second + 2 and at <= end]
    _expect(len(both) >= 5, f"both studies had packs for {len(both)} s only")
    total = sum(held[name][i] for name in names for i in both)
    share = sum(held["second"][i] for i in both) / total
    _expect(0.35 <= share <= 0.65, f"the second study had {100 * share:.0f} % of the slots")
    section.figures.append(
        Figure(
            what="cluster: the smaller share of two studies, while both have packs waiting",
            value=100 * min(share, 1 - share),
            target=40,
            unit="%",
            spread=f"over {len(both)} s",
        )
    )
    rows = [
        [str(i), *(str(held[name][i]) for name in names), "yes" if i in both else ""]
        for i in _thinned(range(len(told["times"])))
    ]
    columns = ["second", "first study", "second study", "both waiting"]
    section.tables.append(Table("packs of two studies on 8 slots", columns, rows))


def _scaling(section: Section, told: dict[str, Any]) -> None:
    _complete("scaling", told["scaling"])
    counts = [(at - told["begun"], nodes, packs) for at, nodes, packs in told["counts"]]
    most, least = max(nodes for _, nodes, _ in counts), counts[-1][1]
    came = next(at for at, nodes, _ in counts if nodes)
    ended = told["ended"] - told["begun"]
    _expect(counts[0][1] == 0, f"{counts[0][1]} nodes before the study began")
    _expect(most > 1, f"the cluster had {most} nodes at most")
    _expect(least == 0, f"{least} nodes were left after the study")
    changes = [i for i, one in enumerate(counts) if i == 0 or one[1] != counts[i - 1][1]]
    rows = [
        [f"{counts[i][0]:.0f}", str(counts[i][1]), str(max(packs for *_, packs in counts[i:j]))]
        for i, j in zip(changes, [*changes[1:], len(counts)], strict=True)
    ]
    section.figures.append(
        Figure(
            what="cluster: nodes left after a study on a cluster that scales from zero",
            value=least,
            target=0,
            at_least=False,
            spread=f"{most} at most, the first after {came:.0f} s; last pack at {ended:.0f} s, "
            f"no node at {counts[changes[-1]][0]:.0f} s",
        )
    )
    columns = ["seconds since start", "nodes", "maximum packs running until the next change"]
    caption = "Ray's autoscaler with its fake node provider: 60 packs, nodes of 2 processors"
    section.tables.append(Table(caption, columns, rows))


def _changing(section: Section, told: dict[str, Any]) -> None:
    one = told["changing"]
    _complete("changing", one)
    _once("changing", told["ended"], one["results"])
    begun = told["marks"][0][0]
    slots = dict(zip(told["times"], told["held"], strict=True))
    _expect(told["lost"] >= 1, "the killed node had no pack")
    _expect(
        told["again"] >= told["lost"], f"of {told['lost']} lost packs {told['again']} ran again"
    )
    _expect(max(told["held"]) >= 4, "the nodes that joined were not used")
    rows = []
    ends = [*(at for at, _ in told["marks"][1:]), told["times"][-1] + 1]
    for (at, what), end in zip(told["marks"], ends, strict=True):
        held = [count for second, count in slots.items() if at <= second < end]
        seen = [str(max(held)), number(fmean(held))] if held else ["", ""]
        rows.append([what, f"{at - begun:.0f}", *seen])
    by_node = ", ".join(f"{name} {count}" for name, count in sorted(told["by_node"].items()))
    section.notes.append(
        f"nodes that join and leave: {told['lost']} packs were lost with the node, "
        f"{told['again']} handed out again, {one['results']} models finished, each once; packs "
        f"by node: {by_node}"
    )
    columns = ["what happened", "after s", "most slots used until the next", "mean"]
    section.tables.append(Table("nodes of 2 slots that join and leave a study", columns, rows))


def _bad(section: Section, told: dict[str, Any]) -> None:
    rows = []
    for does, one in told.items():
        _complete(does, one)
        _once(does, one["ended"], one["results"])
        named = [(at, text) for at, text in one["said"] if "is avoided from now on" in text]
        _expect(len(named) == 1, f"a node with {does}: {len(named)} nodes were named")
        at, text = named[0]
        _expect(one["id"][:8] in text, f"a node with {does}: another one was named: {text}")
        before = sum(begun < at for begun in one["begun"])
        after = len(one["begun"]) - before
        _expect(len(one["failed"]) <= 8, f"{len(one['failed'])} packs failed on a bad node")
        models = [str(one["results"]), str(one["again"]), str(before), str(after)]
        rows.append([does, *models, text.partition(" from now on: ")[2]])
    columns = [
        "one node of four",
        "models finished",
        "packs rescheduled",
        "packs before it was reported",
    ]
    columns += ["and after", "reported reason"]
    section.tables.append(Table("a bad node among four of 2 slots", columns, rows))


def _thinned(seconds: Sequence[int]) -> Sequence[int]:
    """At most some 15 of them."""
    return seconds[:: max(1, len(seconds) // 15)]
