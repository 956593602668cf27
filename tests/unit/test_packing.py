"""Packs: which replicates share one, counted by hand."""

from __future__ import annotations

import hashlib
import math

import pytest

from modmix.packing import Pack, Replicate, TaskRef, digest, group, pack_id


def replicate(key: str, structure: str = "s", point: str = "p", seed: int = 0) -> Replicate:
    return Replicate(
        key=key,
        point=point,
        seed=seed,
        method="mul",
        params={"beta": 0.1, "weights": None, "hidden": [64]},
        training={"epochs": 3, "clip_norm": None},
        encoders={"left": {"name": "mlp", "hidden": [64]}},
        structure=structure,
    )


def of(structure: str, count: int) -> list[Replicate]:
    return [replicate(f"{structure}{i}", structure) for i in range(count)]


def sizes(replicates: list[Replicate], *, slots: int, max_models: int) -> list[int]:
    packs = group(replicates, slots=slots, max_models=max_models)
    # Nobody is lost or doubled, nobody meets another structure, and the order holds inside.
    assert sorted(r.key for p in packs for r in p) == sorted(r.key for r in replicates)
    for pack in packs:
        assert len({r.structure for r in pack}) == 1
        assert [*pack] == [r for r in replicates if r in pack]
    return [len(pack) for pack in packs]


@pytest.mark.parametrize(
    ("counts", "slots", "max_models", "expected"),
    [
        ([], 4, 64, []),
        ([1], 4, 64, [1]),  # one model is not divided
        ([10], 1, 64, [10]),
        ([10], 2, 64, [5, 5]),
        ([10], 3, 64, [3, 4, 3]),
        ([10], 1, 4, [3, 4, 3]),
        ([64], 1, 64, [64]),
        ([65], 1, 64, [32, 33]),
        ([10, 2], 2, 64, [10, 2]),  # a slot each
        ([10, 2], 4, 64, [5, 5, 1, 1]),
        ([3, 3, 3], 2, 64, [3, 3, 3]),  # more structures than slots: nothing is split
        ([2], 8, 64, [1, 1]),
        ([5], 1, 1, [1, 1, 1, 1, 1]),
    ],
)
def test_sizes(counts: list[int], slots: int, max_models: int, expected: list[int]) -> None:
    replicates = [r for i, count in enumerate(counts) for r in of("abc"[i], count)]
    assert sizes(replicates, slots=slots, max_models=max_models) == expected


def test_structures_that_come_mixed_are_sorted_out() -> None:
    mixed = [replicate(f"{'ab'[i % 2]}{i}", "ab"[i % 2]) for i in range(6)]
    packs = group(mixed, slots=1, max_models=64)
    assert [[r.key for r in p] for p in packs] == [["a0", "a2", "a4"], ["b1", "b3", "b5"]]


def test_a_pack_survives_its_journey() -> None:
    pack = Pack(
        id="i",
        study="s",
        task=TaskRef(name="digits", options={"train_rows": None}, fingerprint="f"),
        replicates=tuple(of("a", 2)),
        checkpoint="/somewhere",
        keep_weights=True,
    )
    assert Pack.from_json(pack.to_json()) == pack


def test_a_pack_is_named_by_its_members_and_their_order() -> None:
    one, two = of("a", 2)
    assert pack_id([one, two]) == pack_id([one, two])
    assert len({pack_id([one, two]), pack_id([two, one]), pack_id([one])}) == 3


def test_digests() -> None:
    # Spelled out: another spelling would hide every earlier result.
    text = rb'{"a":true,"b":[1,2.5,null,"\u00e9"]}'
    assert digest({"b": [1, 2.5, None, "é"], "a": True}) == hashlib.sha256(text).hexdigest()[:32]
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(1) != digest(1.0)  # so values are normalised before
    with pytest.raises(ValueError, match="JSON"):
        digest(math.nan)
