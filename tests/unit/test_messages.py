"""Packs: what travels, and how they are named."""

from __future__ import annotations

import hashlib
import math

import pytest

from modmix.base.messages import (
    Finished,
    Pack,
    PackedPredictions,
    Progress,
    Replicate,
    TaskRef,
    digest,
    pack_id,
)


def replicate(key: str, structure: str = "s", configuration: str = "p", seed: int = 0) -> Replicate:
    return Replicate(
        key=key,
        configuration=configuration,
        seed=seed,
        method="mul",
        params={"beta": 0.1, "weights": None, "hidden": [64]},
        training={"epochs": 3, "clip_norm": None},
        encoders={"left": {"name": "mlp", "hidden": [64]}},
        structure=structure,
    )


def of(structure: str, count: int) -> list[Replicate]:
    return [replicate(f"{structure}{i}", structure) for i in range(count)]


def test_a_pack_survives_its_journey() -> None:
    pack = Pack(
        id="i",
        study="s",
        task=TaskRef(name="digits", options={"train_rows": None}, fingerprint="f"),
        replicates=tuple(of("a", 2)),
        checkpoint="/somewhere",
        keep_weights=True,
        keep_predictions=("a0",),
    )
    assert Pack.from_json(pack.to_json()) == pack


def test_a_pack_is_named_by_its_members_and_their_order() -> None:
    one, two = of("a", 2)
    assert pack_id([one, two]) == pack_id([one, two])
    assert len({pack_id([one, two]), pack_id([two, one]), pack_id([one])}) == 3
    assert pack_id([one, two], study="a/s") != pack_id([one, two], study="b/s")


def test_long_fields_are_not_formatted() -> None:
    """Ray Tune formats every result: with 100 MB of weights, that would take the driver seconds."""
    ended = Finished(
        pack="p",
        replicate="r",
        state="done",
        weights=bytes(1000),
        history={"val/error": [0.25] * 1000},
        predictions=PackedPredictions(rows=1000, data=bytes(1000)),
    )
    seen = Progress(
        pack="p", epoch=1, epochs=2, active=100, metrics={str(i): {"a": 0.5} for i in range(100)}
    )
    assert len(repr([ended, seen])) < 500


def test_digests() -> None:
    # Spelled out: another spelling would hide every earlier result.
    text = rb'{"a":true,"b":[1,2.5,null,"\u00e9"]}'
    assert digest({"b": [1, 2.5, None, "é"], "a": True}) == hashlib.sha256(text).hexdigest()[:32]
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(1) != digest(1.0)  # so values are normalised before
    with pytest.raises(ValueError, match="JSON"):
        digest(math.nan)
