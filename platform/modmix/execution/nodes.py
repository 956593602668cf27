"""Which nodes of a cluster fail, and which ones a pack avoids. Pure; nodes are named by their ids.

A pack avoids the nodes where it has failed, and every pack avoids a bad node: one that failed its
preflight (data, checkpoint folder, device), or twice in a row. A bad node is tried again only when
no other is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from modmix.execution.trials import Unsaved

MAX_FAILURES = 2  # in a row, before all packs avoid a node
SAID_AT = 3  # failed starts of workers with the same reason, before a warning
SAID_AT_SILENT = 10  # the same if no reason is known, as when a node is lost


class Nodes(Unsaved):
    """Failures by node.

    Args:
        log: called with a sentence when a node turns bad.
    """

    def __init__(self, log: Callable[[str], None] = lambda _: None) -> None:
        self._log = log
        self._failures: dict[str, int] = {}
        self._bad: set[str] = set()
        self._of_packs: dict[str, set[str]] = {}
        self._taken_back = 0
        self._tried_again = False
        self._starts = Counter[str]()  # workers that could not be started, by reason

    @property
    def has_failures(self) -> bool:
        """Whether `trained` has anything to forget."""
        return bool(self._failures or self._of_packs)

    def trained(self, node: str, pack: str) -> None:
        """A pack was trained to its end on this node."""
        self._failures.pop(node, None)
        self._of_packs.pop(pack, None)

    def failed(
        self, node: str, pack: str, why: str, *, unfit: bool = False, name: str = ""
    ) -> None:
        """A pack failed on this node.

        Args:
            unfit: the node failed its preflight, before it trained anything.
            name: of the node for people, such as its address.
        """
        self._of_packs.setdefault(pack, set()).add(node)
        self._failures[node] = self._failures.get(node, 0) + 1
        if node in self._bad or not (unfit or self._failures[node] >= MAX_FAILURES):
            return
        self._bad.add(node)
        reason = (why.strip().splitlines() or ["unknown reason"])[-1]
        self._log(f"warning: node {name or node[:8]} is avoided from now on: {reason}")

    def failed_start(self, why: str, *, silent: bool = False) -> None:
        """A worker died before it was ready, on a node that is not known.

        Warns once this is unlikely to be chance. A ``silent`` one may have been lost with its node.
        """
        self._starts[why] += 1
        if self._starts[why] == (SAID_AT_SILENT if silent else SAID_AT):
            self._log(f"warning: workers could not be started {self._starts[why]} times: {why}")

    def taken_back(self, *, only_bad: bool) -> None:
        """A pack that waited for another node is handed out again, ``only_bad`` if none is good."""
        self._taken_back += 1
        if only_bad and not self._tried_again:
            self._tried_again = True
            self._log("warning: only avoided nodes are left: they are tried again")

    def avoided(self, pack: str, alive: Collection[str]) -> tuple[str, ...]:
        """Nodes among ``alive`` that the pack must not be placed on; never all of them.

        After `taken_back` there is one more, which does not exist: Tune keeps count of waiting
        trials by placement group, and does not forget those that were taken back. So none of their
        groups may occur again.
        """
        bad = self._bad & set(alive)
        own = bad | (self._of_packs.get(pack, set()) & set(alive))
        for choice in (own, bad):
            if len(choice) < len(set(alive)):
                again = [f"none-{self._taken_back}"] if choice and self._taken_back else []
                return (*sorted(choice), *again)
        return ()

    def has_good(self, alive: Collection[str]) -> bool:
        """Whether any of these nodes is not bad."""
        return bool(set(alive) - self._bad)
