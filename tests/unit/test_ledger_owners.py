"""Studies belong to owners: they are kept apart, read by all, and written by their owner."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.base.owner import current_owner, owner_and_name
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry, NewConfiguration, Result


@pytest.fixture
def alice(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url, owner="alice")
    yield opened
    opened.close()


@pytest.fixture
def bob(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url, owner="bob")
    yield opened
    opened.close()


def start(ledger: Ledger, name: str, seeds: int = 2) -> None:
    """A study of one configuration with one result, described by its owner's name."""
    ledger.start_study(name, spec={"of": ledger.owner}, text="", source="", details={})
    lease = ledger.acquire(name)
    replicates = [(f"a-{seed}", seed) for seed in range(seeds)]
    wanted = NewConfiguration(key="a", method="mul", params={}, replicates=replicates)
    ledger.add(name, [wanted], [Entry(part="p", method="mul", number=0, configuration="a")])
    if ledger.claim(lease, "pack", ["a-0"]):
        ledger.finish(lease, [Result(replicate="a-0", state="done", history={"epoch": [1.0]})])
    ledger.release(lease)


# ---------------------------------------------------------------- who one is


def test_the_owner_is_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODMIX_OWNER", raising=False)
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    assert current_owner() == "alice"
    monkeypatch.setenv("MODMIX_OWNER", "team-7")
    assert current_owner() == "team-7"
    monkeypatch.setenv("MODMIX_OWNER", "")
    assert current_owner() == "alice"


@pytest.mark.parametrize(
    ("login", "expected"),
    [
        ("EXAMPLE\\jane doe", "EXAMPLE-jane-doe"),
        ("_svc", "svc"),
        ("jürgen", "j-rgen"),
        ("é", "user"),
    ],
)
def test_login_names_become_names(
    monkeypatch: pytest.MonkeyPatch, login: str, expected: str
) -> None:
    monkeypatch.delenv("MODMIX_OWNER", raising=False)
    monkeypatch.setattr(getpass, "getuser", lambda: login)
    assert current_owner() == expected


def test_users_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("uid not found")

    monkeypatch.delenv("MODMIX_OWNER", raising=False)
    monkeypatch.setattr(getpass, "getuser", unknown)
    assert re.fullmatch(r"user-\d+", current_owner())


@pytest.mark.parametrize("given", ["a/b", "-x", "a b", "ä"])
def test_owners_that_are_no_names(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MODMIX_OWNER", given)
    with pytest.raises(InputError, match=r"^MODMIX_OWNER must be letters, digits, .* got "):
        current_owner()


def test_names_with_and_without_owner() -> None:
    assert owner_and_name("alice/curve") == ("alice", "curve")
    assert owner_and_name("curve") == ("", "curve")


def test_somebody_else_s_outputs_have_a_folder_of_their_own() -> None:
    home = Home(Path("/runs"))
    assert home.study("curve") == Path("/runs/curve")
    assert home.study("alice/curve") == Path("/runs/@alice/curve")  # "@" begins no study's name
    for name in ("a/b/c", "/curve", "alice/", "../curve"):
        with pytest.raises(InputError):
            home.study(name)


# ---------------------------------------------------------------- in the ledger


def test_two_owners_may_have_studies_of_one_name(alice: Ledger, bob: Ledger) -> None:
    start(alice, "curve")
    start(bob, "curve")
    assert alice.study("curve").spec == {"of": "alice"}
    assert bob.study("curve").spec == {"of": "bob"}
    assert alice.study("bob/curve").spec == {"of": "bob"}
    assert alice.study("alice/curve") == alice.study("curve")
    assert [(r.owner, r.name, r.key) for r in alice.studies()] == [
        ("alice", "curve", "alice/curve"),
        ("bob", "bob/curve", "bob/curve"),
    ]
    assert [r.name for r in bob.studies()] == ["alice/curve", "curve"]


def test_both_share_what_is_trained(alice: Ledger, bob: Ledger) -> None:
    start(alice, "curve")
    start(bob, "curve")
    assert bob.adopt("curve") == 1
    assert [(r.state, r.origin) for r in bob.replicates("curve")] == [
        ("done", "reused"),
        ("pending", ""),
    ]


def test_studies_of_others_are_read(alice: Ledger, bob: Ledger) -> None:
    start(alice, "curve")
    name = "alice/curve"
    assert not bob.has_study("curve")
    assert bob.has_study(name)
    with pytest.raises(InputError, match=r"no study 'curve' .* \(it has alice/curve\)"):
        bob.study("curve")
    assert bob.replicates(name) == alice.replicates("curve")
    assert bob.configurations(name) == alice.configurations("curve")
    assert bob.entries(name) == alice.entries("curve")
    assert bob.packs(name) == alice.packs("curve")
    assert bob.histories(name, ["a-0"]) == {"a-0": {"epoch": [1.0]}}
    assert bob.replicate_states(name) == {"a-0": "done", "a-1": "pending"}
    assert bob.holder(name) is None
    lease = alice.acquire("curve")
    assert bob.holder(name) is not None
    alice.release(lease)


WRITES: dict[str, Callable[[Ledger, str], object]] = {
    "start": lambda to, name: to.start_study(name, spec={}, text="", source="", details={}),
    "acquire": lambda to, name: to.acquire(name),
    "check": lambda to, name: to.check_own(name),
    "state": lambda to, name: to.set_state(name, "failed"),
    "run": lambda to, name: to.set_study_run(name, "run"),
    "runs": lambda to, name: to.set_configuration_runs(name, [("a", "run", "digest")]),
    "add": lambda to, name: to.add(name, [], []),
    "entries": lambda to, name: to.keep_only_entries(name, {}),
    "drop": lambda to, name: to.keep_only_configurations(name, [], []),
    "failures": lambda to, name: to.reset_failures(name),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_nobody_writes_another_s_study(
    alice: Ledger, bob: Ledger, write: Callable[[Ledger, str], object]
) -> None:
    start(alice, "curve")
    before = alice.study("curve"), alice.replicates("curve"), alice.entries("curve")
    with pytest.raises(
        InputError, match=r"^study 'alice/curve' can be read, and only alice can change it: copy"
    ):
        write(bob, "alice/curve")
    assert before == (alice.study("curve"), alice.replicates("curve"), alice.entries("curve"))


def test_long_names_fit(ledger_url: str) -> None:
    ledger = Ledger(ledger_url, owner="o" * 100)
    start(ledger, "n" * 100)
    assert ledger.study("n" * 100).owner == "o" * 100
    ledger.close()
