"""Hyperparameters and domains, against configurations counted by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from modmix.base.space import (
    Choices,
    Condition,
    Constant,
    Domain,
    Grid,
    Hyperparameter,
    Kind,
    Range,
    active,
    canonical,
    every_value,
    grid_configurations,
    in_order_of_conditions,
    shown,
)


def declared(kind: Kind, **more: Any) -> Hyperparameter:
    return Hyperparameter(name="h", kind=kind, default=None, doc="", **more)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("float", [0, 1, -2.5, 1e300], ["1", None, True, float("nan"), float("inf"), 10**400]),
        ("int", [0, -3, 2**53], [1.0, True, "1", 2**53 + 1]),
        ("bool", [True, False], [0, 1, "yes", "true"]),
        ("str", ["", "sum"], [1, ["sum"], None]),
        ("ints", [[], [1, 2]], [1, [1.5], [True], ["1"], (1, 2)]),
        ("floats", [[], [1, 2.5]], [1.0, ["x"], [float("nan")]]),
        ("mapping", [{}, {"a": 1}], [[], {"a": "x"}, {"a": float("nan")}, {"a": True}]),
    ],
)
def test_kinds(kind: Kind, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert declared(kind).problem(value) is None, value
    for value in bad:
        assert str(declared(kind).problem(value)).startswith("must be "), value


@pytest.mark.parametrize(
    ("more", "kind", "value", "message"),
    [
        ({"low": 0.0}, "float", -0.5, "must be at least 0, got -0.5"),
        ({"high": 1.0}, "float", 1.5, "must be at most 1, got 1.5"),
        ({"low": 1}, "ints", [64, 0], "must be at least 1, got 0"),
        ({"low": 0}, "mapping", {"a": 1, "b": -1}, "must be at least 0, got -1"),
        ({"choices": ("a", "b")}, "str", "c", "must be one of a, b, got 'c'"),
        ({}, "int", None, "must be a whole number, got null"),
        ({}, "float", "fast", "must be a finite number, got 'fast'"),
    ],
)
def test_messages(more: dict[str, Any], kind: Kind, value: Any, message: str) -> None:
    assert declared(kind, **more).problem(value) == message


def test_null_is_for_optional_ones() -> None:
    assert declared("float", optional=True).problem(None) is None
    assert declared("float", optional=True).normalise(None) is None


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("float", 1, 1.0),
        ("floats", [1, 2], [1.0, 2.0]),
        ("mapping", {"b": 1, "a": 2}, {"a": 2.0, "b": 1.0}),
    ],
)
def test_one_spelling(kind: Kind, one: Any, other: Any) -> None:
    assert repr(declared(kind).normalise(one)) == repr(declared(kind).normalise(other))


def test_long_values_are_quoted_short() -> None:
    assert shown([1, 2]) == "[1, 2]"
    assert len(shown("x" * 10_000)) == 80


# ---------------------------------------------------------------- grids


def test_a_grid_is_a_product_with_the_last_name_fastest() -> None:
    configurations = grid_configurations(
        {"a": Grid(values=(1, 2)), "c": Constant(value=7), "b": Grid(values=(3, 4))}
    )
    assert configurations == [
        {"a": 1, "c": 7, "b": 3},
        {"a": 1, "c": 7, "b": 4},
        {"a": 2, "c": 7, "b": 3},
        {"a": 2, "c": 7, "b": 4},
    ]


def test_no_names_make_one_configuration() -> None:
    assert grid_configurations({}) == [{}]


def when(name: str, *values: Any) -> Condition:
    return Condition(name=name, values=values)


def test_conditions_leave_names_out_and_equal_configurations_count_once() -> None:
    domains: dict[str, Domain] = {
        "project": Grid(values=([8], [16]), when=when("merge", "sum", "mean")),
        "merge": Grid(values=("concat", "sum")),
    }
    assert grid_configurations(domains) == [
        {"merge": "concat"},  # once, although project has two values
        {"project": [8], "merge": "sum"},
        {"project": [16], "merge": "sum"},
    ]


def test_conditions_on_conditions() -> None:
    domains: dict[str, Domain] = {
        "c": Grid(values=(1, 2), when=when("b", 1)),
        "b": Grid(values=(0, 1), when=when("a", True)),
        "a": Grid(values=(False, True)),
    }
    assert in_order_of_conditions(domains) == ["a", "b", "c"]
    assert grid_configurations(domains) == [
        {"a": False},
        {"b": 0, "a": True},
        {"c": 1, "b": 1, "a": True},
        {"c": 2, "b": 1, "a": True},
    ]
    assert active(domains, {"a": False, "b": 1, "c": 2}) == {"a": False}


def test_a_circle_of_conditions() -> None:
    domains: dict[str, Domain] = {
        "a": Constant(value=1, when=when("b", 1)),
        "b": Constant(value=1, when=when("a", 1)),
        "c": Constant(value=1),
    }
    with pytest.raises(ValueError, match=r"^conditions form a circle: a, b$"):
        in_order_of_conditions(domains)


def test_a_large_grid_with_a_condition_takes_no_time() -> None:
    domains: dict[str, Domain] = {
        "a": Grid(values=tuple(range(100))),
        "b": Grid(values=tuple(range(200))),
        "c": Grid(values=(0, 1), when=when("a", 0)),
    }
    assert len(grid_configurations(domains)) == 99 * 200 + 400


# ---------------------------------------------------------------- every value


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (Constant(value=3), (3,)),
        (Choices(values=("a", [1])), ("a", [1])),
        (Range(low=0, high=1), None),
        (Range(low=1e-4, high=1, log=True), None),
        (Range(low=1, high=4, integer=True), (1, 2, 3, 4)),
        (Range(low=16, high=64, integer=True, step=24), (16, 40, 64)),
        (Range(low=16, high=63, integer=True, step=24), (16, 40)),
        (Range(low=0, high=0.5, step=0.1), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
        (Range(low=0, high=1, step=0.3), (0.0, 0.3, 0.6, 0.9)),
    ],
)
def test_every_value(domain: Domain, values: tuple[Any, ...] | None) -> None:
    assert every_value(domain) == values
    if isinstance(domain, Range) and values is not None:
        assert domain.last == values[-1]


# ---------------------------------------------------------------- one float for a number


def test_numbers_that_were_computed_are_those_that_people_write() -> None:
    """Against decimal fractions: whatever way leads to i/10 in float64, the value is i/10."""
    for i in range(1, 200):
        written = float(f"{i // 10}.{i % 10}")
        assert {canonical(i * 0.1), canonical(i / 10)} == {written}
    assert canonical(sum([0.1] * 10)) == 1.0
    assert str(canonical(-0.0)) == "0.0"
    for exact in (1e-300, 123456789.012345, 1.7976931348623157e308, 5e-324, 2.0**53):
        assert canonical(exact) == pytest.approx(exact, rel=1e-15)
    assert canonical([1, True, None, "0.30000000000000004", {"a": 0.1 + 0.2}]) == [
        1, True, None, "0.30000000000000004", {"a": 0.3},
    ]  # fmt: skip


def test_a_value_has_one_spelling() -> None:
    assert declared("float").normalise(0.1 + 0.2) == 0.3
    assert declared("floats").normalise([3 * 0.1, 1]) == [0.3, 1.0]
    assert declared("mapping").normalise({"b": 0.7 + 0.1, "a": 1}) == {"a": 1.0, "b": 0.8}


@pytest.mark.parametrize(
    ("low", "high", "step"), [(0, 1, 0.1), (0.1, 2.2, 0.3), (-1, 1, 0.05), (1e-3, 9e-3, 2e-3)]
)
def test_steps_of_a_range_are_decimal(low: float, high: float, step: float) -> None:
    domain = Range(low=low, high=high, step=step)
    count = int((Decimal(str(high)) - Decimal(str(low))) / Decimal(str(step))) + 1
    expected = [float(Decimal(str(low)) + i * Decimal(str(step))) for i in range(count)]
    assert [domain.nearest(low + i * step) for i in range(count)] == expected
    assert every_value(domain) == tuple(expected)


def test_whole_and_continuous_ranges_keep_what_is_proposed() -> None:
    assert Range(low=1, high=9, integer=True, step=2).nearest(5) == 5
    assert Range(low=0, high=1).nearest(0.123456789) == 0.123456789
    assert Range(low=0, high=1).nearest(0.1 + 0.2) == 0.3
