"""Which replicates share a pack and which pack goes first, counted by hand and by trying all."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pytest

from modmix.base.messages import Replicate
from modmix.execution.packing import TOLERANCE, Cost, group, makespan
from modmix.execution.queue import Members, PackQueue

PLAIN = Cost(fixed=0.0, each=1.0)
# As measured for stacks of small networks: milliseconds an epoch.
MUL, MULMIX, ADD = Cost(fixed=28, each=1.5), Cost(fixed=60, each=12), Cost(fixed=15, each=2.1)


def replicate(
    key: str, structure: str = "s", configuration: str = "p", **training: Any
) -> Replicate:
    return Replicate(
        key=key, configuration=configuration, seed=0, method="mul", params={}, training=training,
        encoders={},
        structure=structure,
    )  # fmt: skip


def of(structure: str, count: int, seeds: int = 1, **training: Any) -> list[Replicate]:
    return [
        replicate(f"{structure}{i}", structure, f"{structure}p{i // seeds}", **training)
        for i in range(count)
    ]


def packs(
    counts: Mapping[str, int],
    *,
    slots: int,
    max_models: int = 256,
    costs: Mapping[str, Cost] | None = None,
    busy: Sequence[float] = (),
) -> list[tuple[str, int]]:
    """Structure and size of each pack, in the order they go."""
    replicates = [r for name, count in counts.items() for r in of(name, count)]
    costs = costs or dict.fromkeys(counts, PLAIN)
    found = group(
        replicates, slots=slots, max_models=max_models, cost=lambda r: costs[r.structure], busy=busy
    )
    # Nobody is lost or doubled, nobody meets another structure, and the order holds inside.
    assert sorted(r.key for p in found for r in p) == sorted(r.key for r in replicates)
    for pack in found:
        assert len({r.structure for r in pack}) == 1
        assert [*pack] == [r for r in replicates if r in pack]
        assert len(pack) <= max_models
    works = [costs[p[0].structure].of(len(p)) for p in found]
    assert works == sorted(works, reverse=True)  # the costliest first
    return [(pack[0].structure, len(pack)) for pack in found]


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("counts", "slots", "max_models", "expected"),
    [
        ([], 4, 64, []),
        ([1], 4, 64, [1]),  # one model is not divided
        ([10], 1, 64, [10]),
        ([10], 2, 64, [5, 5]),
        ([10], 3, 64, [4, 3, 3]),
        ([10], 1, 4, [4, 3, 3]),
        ([64], 1, 64, [64]),
        ([65], 1, 64, [33, 32]),
        ([10, 2], 2, 64, [4, 3, 3, 2]),  # 4 + 2 and 3 + 3; in halves it were 5 + 2 and 5
        ([2], 8, 64, [1, 1]),
        ([5], 1, 1, [1, 1, 1, 1, 1]),
        ([4, 4], 2, 64, [4, 4]),  # a slot each
        ([4, 4, 4, 4], 2, 64, [4, 4, 4, 4]),
    ],
)
def test_without_fixed_costs(
    counts: list[int], slots: int, max_models: int, expected: list[int]
) -> None:
    named = {"abcd"[i]: count for i, count in enumerate(counts)}
    assert [n for _, n in packs(named, slots=slots, max_models=max_models)] == expected


def test_the_costly_structure_is_cut_so_that_both_slots_end_together() -> None:
    """The quickstart's curve: 55 models of mul and 55 of mulmix on two slots."""
    costs = {"mul": MUL, "mix": MULMIX}
    # Uncut: 60 + 55 * 12 = 720 against 28 + 55 * 1.5 = 110.5. Both in two: 396 + 68.5, 384 + 70.
    expected = [("mix", 28), ("mix", 27), ("mul", 28), ("mul", 27)]
    assert packs({"mul": 55, "mix": 55}, slots=2, costs=costs) == expected
    assert makespan([396, 384, 70, 68.5], 2) == 464.5
    # With one slot nothing is gained by cutting.
    assert packs({"mul": 55, "mix": 55}, slots=1, costs=costs) == [("mix", 55), ("mul", 55)]
    # A third structure fills the gap, so that mul may stay whole: 396 + 84, 384 + 110.5.
    three = packs({"mul": 55, "mix": 55, "add": 33}, slots=2, costs={**costs, "add": ADD})
    assert three == [("mix", 28), ("mix", 27), ("mul", 55), ("add", 33)]


def test_a_pack_is_not_cut_below_its_fixed_cost() -> None:
    # 60 / 12 = 5 models are worth what a pack of them costs before the first.
    assert packs({"mix": 25}, slots=64, costs={"mix": MULMIX}) == [("mix", 5)] * 5
    assert packs({"mix": 9}, slots=64, costs={"mix": MULMIX}) == [("mix", 9)]
    assert packs({"mul": 25}, slots=64, costs={"mul": MUL}) == [("mul", 25)]
    # Where a model is work enough by itself, each gets a slot.
    large = Cost(fixed=1.0, each=100.0)
    assert packs({"net": 6}, slots=8, costs={"net": large}) == [("net", 1)] * 6
    # Where all that counts is how many packs there are (a GPU and small models), none is cut.
    small = Cost(fixed=1000.0, each=0.1)
    assert packs({"net": 900}, slots=4, costs={"net": small}, max_models=1024) == [("net", 900)]


def test_what_slots_are_busy_with_counts() -> None:
    assert packs({"a": 10}, slots=2, busy=[10.0]) == [("a", 10)]  # the other slot ends with it
    assert packs({"a": 10}, slots=2, busy=[9.0]) == [
        ("a", 10)
    ]  # 9.5 would gain nothing to speak of
    # 3 + 3 + 2 on the free slot, 6 + 2 on the other.
    assert [n for _, n in packs({"a": 10}, slots=2, busy=[6.0])] == [3, 3, 2, 2]
    assert [n for _, n in packs({"a": 10}, slots=2, busy=[50.0, 50.0])] == [5, 5]
    # A pack that waits beside them may begin first: 8 on one slot, 4 + 4 on the other.
    replicates = of("a", 8)
    assert [len(p) for p in group(replicates, slots=2, max_models=64, others=[8.0])] == [8]
    assert makespan([8.0, 8.0], 2) == makespan([8.0], 2, [8.0]) == 8.0
    assert makespan([3.0, 5.0], 2, [4.0]) == 7.0  # 5 on the free slot, 3 after the busy one's 4


def test_structures_that_come_mixed_are_sorted_out() -> None:
    mixed = [replicate(f"{'ab'[i % 2]}{i}", "ab"[i % 2]) for i in range(6)]
    found = group(mixed, slots=1, max_models=64)
    assert [[r.key for r in p] for p in found] == [["a0", "a2", "a4"], ["b1", "b3", "b5"]]


# ---------------------------------------------------------------- halving


@pytest.mark.parametrize(
    ("models", "seeds", "max_models", "expected"),
    [
        (20, 5, 64, [20]),  # however many slots there are
        (20, 5, 12, [10, 10]),
        (35, 5, 12, [10, 10, 10, 5]),
        (35, 5, 15, [15, 10, 10]),  # 3, 2 and 2 configurations, not 3, 3 and 1
        (20, 5, 3, [5, 5, 5, 5]),  # whole configurations, although they are larger
        (7, 1, 4, [4, 3]),
    ],
)
def test_packs_that_halve_hold_whole_configurations(
    models: int, seeds: int, max_models: int, expected: list[int]
) -> None:
    members = of("a", models, seeds, halving={"eta": 2.0, "min_epochs": 1.0})
    found = group(members, slots=8, max_models=max_models)
    assert sorted((len(p) for p in found), reverse=True) == expected
    assert [r for p in sorted(found, key=lambda p: int(p[0].key[1:])) for r in p] == members
    configurations = [
        r.configuration for p in found for r in {r.configuration: r for r in p}.values()
    ]
    assert len(configurations) == len(set(configurations))


def test_packs_that_halve_are_work_for_the_others() -> None:
    racing = of("a", 10, halving={"eta": 2.0, "min_epochs": 1.0})
    found = group([*racing, *of("b", 10)], slots=2, max_models=64)
    assert [(p[0].structure, len(p)) for p in found] == [("a", 10), ("b", 10)]


# ---------------------------------------------------------------- by trying all


def all_divisions(
    counts: Sequence[int], costs: Sequence[Cost], slots: int, busy: Sequence[float]
) -> float:
    """The earliest end over all ways to cut each structure into equal parts as small as may be."""

    def works(count: int, cost: Cost, parts: int) -> list[float]:
        return [cost.of((i + 1) * count // parts - i * count // parts) for i in range(parts)]

    most = [max(1, int(n / max(1.0, c.fixed / c.each))) for n, c in zip(counts, costs, strict=True)]
    return min(
        makespan(
            [w for n, c, p in zip(counts, costs, parts, strict=True) for w in works(n, c, p)],
            slots,
            busy,
        )
        for parts in product(*(range(1, m + 1) for m in most))
    )


def test_the_end_is_near_the_earliest_possible() -> None:
    chance = random.Random(0)
    ratios = []
    for _ in range(300):
        slots = chance.randint(1, 4)
        counts = [chance.randint(1, 12) for _ in range(chance.randint(1, 3))]
        costs = [
            Cost(fixed=chance.choice([0, 1, 5]), each=chance.choice([0.5, 1, 4])) for _ in counts
        ]
        busy = [chance.uniform(0, 20) for _ in range(chance.randint(0, slots - 1))]
        names = "abc"[: len(counts)]
        known = dict(zip(names, costs, strict=True))
        named = dict(zip(names, counts, strict=True))
        found = packs(named, slots=slots, costs=known, busy=busy)
        assert packs(named, slots=slots, costs=known, busy=busy) == found
        end = makespan([known[s].of(n) for s, n in found], slots, busy)
        ratios.append(end / all_divisions(counts, costs, slots, busy))
    assert sum(ratio <= 1 / (1 - TOLERANCE) + 1e-9 for ratio in ratios) > 0.9 * len(ratios)
    assert max(ratios) < 1.25


def test_many_structures_and_slots_take_no_time() -> None:
    """Sizes of a large cluster: an end that ideal packing could not beat by much."""
    replicates = [r for i in range(120) for r in of(f"s{i}", 20 + i)]
    found = group(replicates, slots=64, max_models=256, cost=lambda _: Cost(fixed=2.0, each=1.0))
    end = makespan([2.0 + len(pack) for pack in found], 64)
    assert end < 1.1 * sum(2.0 + 20 + i for i in range(120)) / 64


# ---------------------------------------------------------------- what waits


def waiting(slots: int = 1, max_models: int = 8) -> PackQueue:
    return PackQueue(slots=slots, max_models=max_models, cost=lambda _: PLAIN)


def names(pack: Members | None) -> str:
    assert pack is not None
    return " ".join(r.key for r in pack)


def test_what_is_asked_for_later_joins_what_waits() -> None:
    queue = waiting()
    queue.add([*of("a", 2), *of("b", 4)])
    queue.add([replicate("a7", "a"), replicate("a1", "a"), replicate("c0", "c")])
    assert queue.count() == 3
    assert names(queue.take()) == "b0 b1 b2 b3"
    queue.add([replicate("b9", "b"), replicate("a8", "a")])  # the pack of b is gone
    assert [names(queue.take()) for _ in range(3)] == ["a0 a1 a7 a8", "c0", "b9"]
    assert queue.take() is None
    assert not queue


def test_room_is_what_a_pack_may_hold() -> None:
    queue = waiting(max_models=4)
    queue.add(of("a", 3))
    queue.add([replicate(f"x{i}", "a") for i in range(3)])
    assert [names(queue.take()) for _ in range(2)] == ["a0 a1 a2", "x0 x1 x2"]


def test_packs_that_were_out_stay_as_they_were_and_go_first() -> None:
    queue = waiting()
    queue.add(of("a", 5))
    queue.put_back(tuple(of("b", 2)))
    queue.put_back(tuple(of("c", 1)))
    queue.put_back(tuple(of("d", 1)), first=True)
    queue.add([replicate("b5", "b"), replicate("b1", "b")])  # b1 waits already
    assert queue.count() == 5
    assert [names(queue.take()) for _ in range(5)] == [
        "d0", "b0 b1", "c0", "a0 a1 a2 a3 a4", "b5"
    ]  # fmt: skip


def test_what_stands_apart_is_not_joined() -> None:
    queue = waiting(slots=4)
    queue.add(of("a", 4), apart=True)
    queue.add([replicate(f"x{i}", "a") for i in range(2)])
    assert [names(queue.take()) for _ in range(2)] == ["a0 a1 a2 a3", "x0 x1"]


def test_the_longest_way_to_the_end_goes_first() -> None:
    queue = waiting()
    queue.add(of("a", 6))
    queue.add(of("b", 2), after=5.0)  # 2 now, and 5 that wait for it
    queue.add(of("c", 3), after=3.0)
    assert [names(queue.take()).partition(" ")[0] for _ in range(3)] == ["b0", "a0", "c0"]


def test_forgotten_models_are_gone() -> None:
    queue = waiting()
    queue.add(of("a", 3))
    queue.add(of("b", 2), apart=True)
    queue.add(of("c", 1), apart=True)
    queue.remove({"a1", "b0", "c0", "elsewhere"})
    assert [names(queue.take()) for _ in range(2)] == ["a0 a2", "b1"]
    assert not queue
