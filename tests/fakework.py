"""A work of packs of one model each, for tests and measurements of runners."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from modmix.base.messages import Event, Finished, Pack, Replicate, TaskRef, digest
from modmix.base.settings import training_defaults
from modmix.execution.local import Verdict


class FakeWork:
    """So many packs of one model each; notes what it is told.

    Args:
        changed: called at every end of a pack and every tick.
    """

    def __init__(self, count: int, changed: Callable[[FakeWork], None] = lambda _: None) -> None:
        self.waiting = [pack(i) for i in reversed(range(count))]
        self.out: dict[str, Pack] = {}
        self.finished_models: set[str] = set()
        self.failures: list[tuple[str, bool, bool]] = []  # text, of the machine, counted
        self.events: list[Event] = []
        self.slots = 0
        self._changed = changed
        self.ends: list[tuple[float, float]] = []  # wall and processor clock at each pack's end
        self.verdicts: Mapping[str, Verdict] = {}
        self.stopping = False

    @property
    def finished(self) -> bool:
        return not self.waiting and not self.out

    @property
    def queued(self) -> int:
        return len(self.waiting)

    def next_pack(self) -> Pack | None:
        if not self.waiting:
            return None
        chosen = self.waiting.pop()
        self.out[chosen.id] = chosen
        return chosen

    def record(self, events: Sequence[Event]) -> None:
        self.events += events
        self.finished_models |= {e.replicate for e in events if isinstance(e, Finished)}

    def ended(
        self, pack: str, failure: str = "", *, of_machine: bool = True, counted: bool = True
    ) -> None:
        gone = self.out.pop(pack)
        self.ends.append((time.perf_counter(), time.process_time()))
        if failure:
            self.failures.append((failure, of_machine, counted))
        if self.stopping or (failure and of_machine):
            self.waiting.append(gone)
        self._changed(self)

    def resize(self, slots: int) -> None:
        self.slots = slots

    def tick(self) -> None:
        self._changed(self)


def pack(number: int) -> Pack:
    replicate = Replicate(
        key=digest(number),
        configuration=digest(["configuration", number]),
        seed=0,
        method="mul",
        params={"beta": number / 1000},
        training=training_defaults(),
        encoders={"left": {"name": "mlp", "hidden": [64]}},
        structure="structure",
    )
    return Pack(
        id=digest(["pack", number]),
        study="overhead",
        task=TaskRef(name="digits", options={}, fingerprint="none"),
        replicates=(replicate,),
    )
