"""Nemenyi's critical difference against Demšar's published values; groups by hand."""

from __future__ import annotations

import math

import pytest

from modmix.analysis import critical_difference as cd
from modmix.analysis.statistics import mean_ranks
from modmix.analysis.style import new_figure

# Demšar (JMLR 2006), table 5a: q at 0.05 and 0.10 for so many classifiers.
Q = {2: (1.960, 1.645), 3: (2.343, 2.052), 5: (2.728, 2.459), 8: (3.031, 2.780), 10: (3.164, 2.920)}


@pytest.mark.parametrize("methods", Q)
def test_quantiles_are_those_of_demsar(methods: int) -> None:
    scale = math.sqrt(methods * (methods + 1) / (6 * 14))
    for alpha, q in zip((0.05, 0.10), Q[methods], strict=True):
        assert cd.nemenyi(methods, 14, alpha) / scale == pytest.approx(q, abs=1.1e-3)


def test_the_example_of_demsar() -> None:
    """Section 3.2.2: four classifiers on 14 sets have a critical difference of 1.25 at 0.05."""
    assert cd.nemenyi(4, 14, 0.05) == pytest.approx(1.25, abs=0.01)


def test_groups() -> None:
    assert cd.groups_within([1.0, 2.0, 3.5, 3.6], 1.5) == [range(2), range(1, 3), range(2, 4)]
    assert cd.groups_within([1.0, 2.0, 3.0], 5.0) == [range(3)]
    assert cd.groups_within([1.0, 5.0, 9.0], 1.0) == []
    assert cd.groups_within([2.0, 2.0, 2.0], 0.5) == [range(3)]


def values(count: int) -> dict[str, dict[int, float]]:
    return {f"m{i}": {block: float(i) for block in range(5)} for i in range(count)}


def test_the_figure_has_every_method_and_every_group() -> None:
    found = cd.critical_difference(mean_ranks(values(12)))
    assert found.ranks == tuple(float(i) for i in range(1, 13))
    # q(12) = 3.268 (Demšar's table), so 3.268 · √(12 · 13 / 30) = 7.45
    assert found.difference == pytest.approx(7.452, abs=2e-3)
    assert found.groups == tuple(range(i, i + 8) for i in range(5))
    ax = new_figure(cd.height(found), cd.width(found)).add_subplot()
    cd.draw(ax, found, {})
    texts = [text.get_text() for text in ax.texts]
    assert all(any(f"m{i} " in f"{text} " for text in texts) for i in range(12))
    assert len([line for line in ax.lines if line.get_gid() == "group"]) == 5
    assert any("critical difference 7.45" in text for text in texts)


def test_a_difference_beyond_the_range_is_said() -> None:
    found = cd.critical_difference(
        mean_ranks({m: {0: v, 1: v} for m, v in (("a", 1.0), ("b", 2.0))})
    )
    ax = new_figure(cd.height(found), cd.width(found)).add_subplot()
    cd.draw(ax, found, {})
    assert any("more than the whole range" in text.get_text() for text in ax.texts)


@pytest.mark.parametrize("methods", [2, 3, 7, 12, 40])
@pytest.mark.parametrize("letters", [3, 25])
def test_all_text_is_inside_the_figure_and_apart(methods: int, letters: int) -> None:
    costs = {
        f"{i:02}".ljust(letters, "m"): {block: float(i) for block in range(3)}
        for i in range(methods)
    }
    found = cd.critical_difference(mean_ranks(costs))
    figure = new_figure(cd.height(found), cd.width(found))
    ax = figure.add_subplot()
    cd.draw(ax, found, {})
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])
    # The axis of ranks is of the same width whatever is beside it.
    ends = ax.transData.transform([(1.0, 0.0), (float(methods), 0.0)])
    assert (ends[1, 0] - ends[0, 0]) / figure.dpi == pytest.approx(3.2, rel=0.05)
