"""Nodes that fail, and the packs that avoid them."""

from __future__ import annotations

from modmix.execution.nodes import Nodes


def test_a_pack_avoids_the_node_where_it_failed() -> None:
    nodes = Nodes()
    nodes.failed("a", "pack", "OSError: disk")
    assert nodes.avoided("pack", ["a", "b"]) == ("a",)
    assert nodes.avoided("other", ["a", "b"]) == ()
    assert nodes.has_failures
    nodes.trained("b", "pack")
    assert nodes.avoided("pack", ["a", "b"]) == ()


def test_all_avoid_a_node_that_failed_twice_in_a_row() -> None:
    said: list[str] = []
    nodes = Nodes(said.append)
    nodes.failed("a", "one", "no disk")
    nodes.trained("a", "other")
    nodes.failed("a", "two", "no disk")
    assert nodes.avoided("other", ["a", "b"]) == ()
    assert said == []
    nodes.failed("a", "three", "Traceback\nOSError: no disk", name="10.0.0.1")
    assert nodes.avoided("other", ["a", "b"]) == ("a",)
    assert said == ["warning: node 10.0.0.1 is avoided from now on: OSError: no disk"]
    nodes.failed("a", "four", "no disk")
    assert len(said) == 1


def test_all_avoid_a_node_that_fails_its_preflight() -> None:
    said: list[str] = []
    nodes = Nodes(said.append)
    nodes.failed("abcdef0123", "one", "", unfit=True)
    assert nodes.avoided("other", ["abcdef0123", "b"]) == ("abcdef0123",)
    assert said == ["warning: node abcdef01 is avoided from now on: unknown reason"]


def test_a_node_is_never_avoided_where_no_other_is_left() -> None:
    nodes = Nodes()
    nodes.failed("a", "pack", "x", unfit=True)
    nodes.failed("b", "pack", "x")
    assert nodes.avoided("pack", ["a", "b"]) == ("a",)  # b is no worse for others
    assert nodes.avoided("pack", ["a"]) == ()
    assert nodes.avoided("pack", []) == ()
    nodes.failed("b", "pack", "x")
    assert nodes.avoided("pack", ["a", "b"]) == ()
    assert not nodes.has_good(["a", "b"])
    assert nodes.has_good(["a", "b", "c"])
    assert nodes.avoided("pack", ["a", "b", "c"]) == ("a", "b")


def test_workers_that_cannot_start_again_and_again_are_said_once() -> None:
    said: list[str] = []
    nodes = Nodes(said.append)
    for why in ("no module", "no module", "no memory"):
        nodes.failed_start(why)
    assert said == []
    nodes.failed_start("no module")
    nodes.failed_start("no module")
    assert said == ["warning: workers could not be started 3 times: no module"]


def test_silent_deaths_of_workers_are_said_later() -> None:
    """One may have died with its node, so a few are no sign of a fault."""
    said: list[str] = []
    nodes = Nodes(said.append)
    for _ in range(9):
        nodes.failed_start("it died", silent=True)
    assert said == []
    nodes.failed_start("it died", silent=True)
    nodes.failed_start("it died", silent=True)
    assert said == ["warning: workers could not be started 10 times: it died"]


def test_nodes_that_are_tried_again_are_avoided_under_another_name() -> None:
    said: list[str] = []
    nodes = Nodes(said.append)
    nodes.failed("a", "pack", "no disk")
    assert nodes.avoided("pack", ["a", "b"]) == ("a",)
    nodes.taken_back(only_bad=False)
    assert said == []
    nodes.taken_back(only_bad=True)
    nodes.taken_back(only_bad=True)  # said once
    assert nodes.avoided("pack", ["a"]) == ()
    assert nodes.avoided("pack", ["a", "b"]) == ("a", "none-3")
    assert nodes.avoided("other", ["a", "b"]) == ()
    assert said == ["warning: only avoided nodes are left: they are tried again"]
