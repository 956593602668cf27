"""Train one pack: stages, epochs, evaluations, halving, checkpoints; say what happens as events.

All groups of a pack pass an evaluation before any goes on, so that halving compares like with
like and one checkpoint holds all. Inside an epoch nothing is read back from the device.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from modmix.base.allocator import keep_freed_memory
from modmix.base.messages import Event, Finished, Pack, PackStarted, Progress
from modmix.base.metrics import METRICS, higher_is_better
from modmix.methods.base import Stage
from modmix.methods.model import pack_weights
from modmix.methods.table import modalities as modalities_used
from modmix.tasks.data import Data
from modmix.training import checkpoint, products
from modmix.training.batches import Examples, Order
from modmix.training.builder import Builder
from modmix.training.group import Group, is_out_of_memory
from modmix.training.halving import rungs
from modmix.training.precision import arithmetic
from modmix.training.probe import Probe, Way
from modmix.training.record import Endings, Position, Record, Rung, results, rung_of

# A group is made smaller once less than this part of its models still trains.
_COMPACT_BELOW = 0.5


def train_pack(
    pack: Pack,
    data: Data,
    *,
    device: str = "cpu",
    threads: int | None = None,
    share: float = 1.0,
    dropped: Callable[[], Mapping[str, str]] = dict,
) -> Generator[Event, None, None]:
    """Train a pack's models and yield what happens.

    `PackStarted` first, `Progress` after every evaluation, `Finished` once per replicate as soon
    as it ends. Closing the generator stops training; with ``pack.checkpoint`` the next call goes
    on from the last checkpoint, and its results are those of an undisturbed run. ``threads`` is
    how many this process may use (None: torch's choice), and ``share`` the part of the memory.
    ``dropped`` is asked before every part of
    an epoch which models end as pruned: replicate key -> reason.

    Raises:
        InputError: hyperparameters that do not fit together.
        torch.OutOfMemoryError: one model alone does not fit.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()
    try:
        with arithmetic(pack.replicates[0].training["precision"], device):
            yield from _Run(pack, data, torch.device(device), share, dropped).events()
    finally:
        torch.set_num_threads(before)


class _Run:
    """The state of one pack's training, and what is done to it."""

    def __init__(
        self,
        pack: Pack,
        data: Data,
        device: torch.device,
        share: float = 1.0,
        dropped: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.pack, self.data, self.device, self.share = pack, data, device, share
        self.dropped = dropped
        first = pack.replicates[0]
        assert all(r.structure == first.structure for r in pack.replicates), pack.id
        self.settings = first.training
        names = modalities_used(first.method, list(data.inputs), first.params)
        self.train = Examples(data.train, names, device)
        self.val = Examples(data.val, names, device)
        self.test = Examples(data.test, names, device)
        self.order = Order(self.train.rows, self.settings["batch_size"], self.train.place)
        parts = min(self.settings["evaluations_per_epoch"], self.order.steps)
        self.bounds = [round(i * self.order.steps / parts) for i in range(parts + 1)]
        self.higher = higher_is_better(self.settings["monitor"])
        self.builder = Builder(pack, data, device)
        self.way = Way(eval_rows=self.settings["eval_batch_size"])
        self.records = [Record() for _ in pack.replicates]
        self.weights: dict[int, bytes] = {}  # of finished replicates, when the pack keeps them
        self.position = Position()
        self.groups: list[Group] = []
        self.stages: tuple[Stage, ...] = ()
        self.saved_at = time.monotonic()

    def events(self) -> Iterator[Event]:
        resumed = self._resume()
        self._leave_out_known()
        if not resumed:
            these = [i for i, record in enumerate(self.records) if record.training]
            if these:
                self._choose(these)
                self._start_stage()
        yield PackStarted(
            pack=self.pack.id,
            models=len(self.records),
            device=str(self.device),
            stacked=self.way.stacked,
            why=self.way.why,
            measured=self.way.measured,
            products=products.names() if self.device.type == "cpu" else {},
            resumed_epoch=self._epochs_done() if resumed else 0,
        )
        yield from [
            self._event(i)
            for i, record in enumerate(self.records)
            if record.finished and not record.known
        ]
        try:
            while self.groups:
                yield from self._drop()
                if self.groups:
                    yield from self._next_evaluation()
        except GeneratorExit:  # asked to stop: the next call goes on from right here
            self._save()
            raise

    def _next_evaluation(self) -> list[Event]:
        """Train up to the next evaluation, decide who goes on, and be ready for what follows."""
        if self.position.part == 0:
            self._start_epoch()
        present = [i for i, record in enumerate(self.records) if record.training]
        ending = self._train_and_evaluate()
        ending.update(self._out_of_patience(ending))
        rung = self._rung(ending)
        losers = {} if rung is None else self._losers(rung, ending)
        ending.update(losers)
        epoch, stage = self._epochs_done() + 1, self.position.stage
        if not self._advance():
            ending.update({i: ("done", "") for i in present if i not in ending})
        self._end(ending)
        self._make_smaller(at_once=bool(losers))
        if self.groups and self.position.stage != stage:
            self._start_stage()
        self._save_if_due()
        progress = self._progress(present, epoch)
        if rung is not None:
            progress = replace(progress, rung=rung.epoch, at_rung=rung.values)
        return [progress, *(self._event(i) for i in sorted(ending))]

    # ------------------------------------------------------------ where training stands

    def _stage_epochs(self, stage: int) -> int:
        own = self.stages[stage].epochs
        return int(self.settings["epochs"] if own is None else own)

    def _epochs_done(self) -> int:
        before = sum(self._stage_epochs(stage) for stage in range(self.position.stage))
        return before + self.position.epoch

    def _in_last_stage(self) -> bool:
        return self.position.stage == len(self.stages) - 1

    def _advance(self) -> bool:
        """Move to the next part, epoch or stage; False when there is none."""
        position = self.position
        position.part += 1
        if position.part == len(self.bounds) - 1:
            position.part = 0
            position.epoch += 1
        if position.epoch == self._stage_epochs(position.stage):
            if self._in_last_stage():
                return False
            position.epoch = 0
            position.stage += 1
        return True

    def _choose(self, these: Sequence[int]) -> None:
        """Make freshly initialised groups of the replicates at these positions, as pays here."""
        probe = Probe(
            self.builder,
            self.train,
            self.order,
            threads=torch.get_num_threads(),
            share=self.share,
        )
        way, groups = probe.choose(these)
        self.way, self.groups = way, groups
        self._take_way()

    def _take_way(self) -> None:
        torch.set_num_threads(min(torch.get_num_threads(), self.way.threads))
        for group in self.groups:
            if self.way.compiled:
                group.stack.compile()
            group.use_graphs(on=self.settings["cuda_graphs"])
        self.stages = self.groups[0].stack.template.method.stages()

    def _start_stage(self) -> None:
        stage = self.position.stage
        for group in self.groups:
            group.start_stage(self.stages[stage], self._stage_epochs(stage))
        for record in self.records:
            if record.training:
                record.best, record.best_at, record.waited = math.nan, None, 0

    def _start_epoch(self) -> None:
        for group in self.groups:
            group.reset_sums()
            if group.stack.template.method.refreshes(self.position.epoch):
                group.refresh(self.train, self.way.eval_rows)
            group.start_epoch(self.position.epoch, self.order, self._epochs_done())

    # ------------------------------------------------------------ training and its record

    def _train_and_evaluate(self) -> Endings:
        """One part of an epoch and its evaluation for every group; who diverged ends."""
        waiting, self.groups = self.groups, []
        ending: Endings = {}
        while waiting:
            group = waiting.pop(0)
            saved = group.snapshot() if len(group.members) > 1 else None
            started = time.perf_counter()
            values = self._attempt(group)
            if values is None:
                assert saved is not None
                group.load(*saved)
                waiting[:0] = group.halves()
                continue
            self.groups.append(group)
            ending.update(self._record(group, values, time.perf_counter() - started))
        return ending

    def _attempt(self, group: Group) -> dict[str, list[float]] | None:
        """Train and evaluate; None when several models together are too many for the memory."""
        start, stop = self.bounds[self.position.part : self.position.part + 2]
        try:
            group.train(self.train, self.order, start, stop)
            return group.evaluate(self.val, self.way.eval_rows)
        except Exception as error:
            if len(group.members) == 1 or not is_out_of_memory(error):
                raise
        # Only here, with the exception gone, is what its frames held free again.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _record(self, group: Group, values: dict[str, list[float]], seconds: float) -> Endings:
        """Append an evaluation to the histories and keep weights that are better."""
        alive = sum(self.records[member.index].training for member in group.members)
        keep = [False] * len(group.members)
        ending: Endings = {}
        for row, member in enumerate(group.members):
            record = self.records[member.index]
            if not record.training:
                continue
            record.seconds += seconds / alive
            if values["finite"][row]:
                line = self._line({name: column[row] for name, column in values.items()})
                line["lr"] = group.optimizer.rates[row]
                keep[row] = record.add(line, self.settings["monitor"], higher=self.higher)
            else:
                ending[member.index] = ("failed", self._diverged())
        group.keep_best(keep)
        return ending

    def _line(self, values: dict[str, float]) -> dict[str, float]:
        """The columns of one model at this evaluation."""
        steps = self.bounds[self.position.part + 1]
        return {
            "epoch": self._epochs_done() + steps / self.order.steps,
            "train/loss": values["loss"] / steps,
            "train/error": 100 * values["wrong"] / (steps * self.order.batch),
            **{f"val/{name}": values[name] for name in METRICS},
        }

    def _diverged(self) -> str:
        return (
            "diverged: loss, weights or scores were not finite in epoch "
            f"{self._epochs_done() + 1}; a lower learning_rate or a clip_norm may help"
        )

    # ------------------------------------------------------------ who ends

    def _out_of_patience(self, ending: Endings) -> Endings:
        """Models without improvement for `patience` evaluations; in the last stage only."""
        patience = self.settings["patience"]
        if patience is None or not self._in_last_stage():
            return {}
        return {
            i: ("done", "")
            for i, record in enumerate(self.records)
            if record.training and i not in ending and record.waited >= patience
        }

    def _rung(self, ending: Endings) -> Rung | None:
        """The rung of halving that this evaluation is, or None."""
        halving = self.settings["halving"] if self.pack.halving else None
        last_part = self.position.part == len(self.bounds) - 2
        if not halving or not last_part or not self._in_last_stage():
            return None
        eta, first, epoch = int(halving["eta"]), int(halving["min_epochs"]), self.position.epoch + 1
        if epoch not in rungs(first, eta, self._stage_epochs(self.position.stage)):
            return None
        return rung_of(self.pack, self.records, ending, epoch)

    def _losers(self, rung: Rung, ending: Endings) -> Endings:
        losers = rung.losers(self.pack, self.records, higher_is_better=self.higher)
        return {i: ("pruned", reason) for i, reason in losers.items() if i not in ending}

    def _drop(self) -> list[Event]:
        """End the models of which someone who sees other packs, too, has seen enough."""
        told = self.dropped()
        ending = {
            i: ("pruned", told[replicate.key])
            for i, replicate in enumerate(self.pack.replicates)
            if replicate.key in told and self.records[i].training and self.records[i].history
        }
        if ending:
            self._end(ending)
            self._make_smaller(at_once=True)
        return [self._event(i) for i in sorted(ending)]

    def _end(self, ending: Endings) -> None:
        """Close the records of models that end; those that are done see the test split, once."""
        for group in self.groups:
            self._end_done(
                group,
                [r for r, m in enumerate(group.members) if ending.get(m.index, ("",))[0] == "done"],
            )
        for index, (state, reason) in ending.items():
            record = self.records[index]
            if state == "failed":
                record.close(state, reason, {})
            elif state == "pruned":
                record.prune(reason)

    def _end_done(self, group: Group, rows: Sequence[int]) -> None:
        if not rows:
            return
        started = time.perf_counter()
        tests = group.evaluate_best(rows, self.test, self.way.eval_rows)
        share = (time.perf_counter() - started) / len(rows)
        for row, test in zip(rows, tests, strict=True):
            index = group.members[row].index
            record = self.records[index]
            record.seconds += share
            assert record.best_at is not None
            metrics = results(record.row(record.best_at))
            metrics.update({f"test/{name}": value for name, value in test.items()})
            record.close("done", "", metrics)
            if self.pack.keep_weights:
                self.weights[index] = self._pack_weights(group, row)

    def _pack_weights(self, group: Group, row: int) -> bytes:
        replicate = self.pack.replicates[group.members[row].index]
        description = {
            "task": self.data.name,
            "method": replicate.method,
            "params": dict(replicate.params),
            "encoders": {name: dict(spec) for name, spec in replicate.encoders.items()},
            "modalities": {name: list(shape) for name, shape in self.data.shapes.items()},
            "classes": self.data.classes,
            "class_names": list(self.data.class_names),
            "seed": replicate.seed,
        }
        return pack_weights(group.best_state(row), description)

    def _make_smaller(self, *, at_once: bool = False) -> None:
        """Let go of groups that ended, and of rows where most of a group did.

        ``at_once``: of every row that ended; the losers of a rung shall cost nothing more.
        """
        below = 1.0 if at_once else _COMPACT_BELOW
        groups, self.groups = self.groups, []
        for group in groups:
            rows = [r for r, m in enumerate(group.members) if self.records[m.index].training]
            if 0 < len(rows) < below * len(group.members):
                group.select(rows)
            if rows:
                self.groups.append(group)

    # ------------------------------------------------------------ events

    def _progress(self, present: Sequence[int], epoch: int) -> Progress:
        return Progress(
            pack=self.pack.id,
            epoch=epoch,
            epochs=sum(self._stage_epochs(stage) for stage in range(len(self.stages))),
            active=sum(record.training for record in self.records),
            metrics={
                self.pack.replicates[i].key: results(self.records[i].row(-1))
                for i in present
                if self.records[i].state != "failed"
            },
        )

    def _event(self, index: int) -> Finished:
        record = self.records[index]
        assert record.finished is not None
        return Finished(
            pack=self.pack.id,
            replicate=self.pack.replicates[index].key,
            history=record.history,
            seconds=record.seconds,
            weights=self.weights.get(index),
            **record.finished,
        )

    # ------------------------------------------------------------ checkpoints

    def _leave_out_known(self) -> None:
        """Set aside the members whose results the driver has: they are not trained again."""
        for record, replicate in zip(self.records, self.pack.replicates, strict=True):
            ended = self.pack.ended.get(replicate.key)
            if ended is not None:
                record.training, record.known = False, True
                record.best = math.nan if ended.best is None else ended.best
                record.finished = {"state": ended.state}
        if self.groups:
            self._make_smaller()

    def _save_if_due(self) -> None:
        seconds = float(os.environ.get("MODMIX_CHECKPOINT_SECONDS", "30"))
        if time.monotonic() - self.saved_at >= seconds:
            self._save()

    def _save(self) -> None:
        if self.pack.checkpoint is None or not self.groups:
            return
        tensors = {
            f"{g}/{name}": value
            for g, group in enumerate(self.groups)
            for name, value in group.state().items()
        }
        for index, blob in self.weights.items():
            tensors[f"weights/{index}"] = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        state = {
            "position": asdict(self.position),
            "records": [asdict(record) for record in self.records],
            "groups": [[member.index for member in group.members] for group in self.groups],
            "steps": [group.optimizer.steps for group in self.groups],
            "way": asdict(self.way),
        }
        checkpoint.save(Path(self.pack.checkpoint), self.pack.id, tensors, state)
        self.saved_at = time.monotonic()

    def _resume(self) -> bool:
        """Go back to the checkpoint, if there is a usable one."""
        if self.pack.checkpoint is None:
            return False
        folder = Path(self.pack.checkpoint)
        found = checkpoint.load(folder, self.pack.id, self.device)
        if found is None:
            return False
        try:
            self._restore(*found)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            # It is whole and this pack's, but of other code.
            checkpoint.warn_unusable(folder, error)
            self.records = [Record() for _ in self.pack.replicates]
            self.weights, self.position = {}, Position()
            return False
        return True

    def _restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        self.way = Way(**state["way"])
        self.groups = [
            self.builder.group(indices, stacked=self.way.stacked or len(indices) > 1)
            for indices in state["groups"]
        ]
        self._take_way()
        self.position = Position(**state["position"])
        self._start_stage()
        self.records = [Record(**record) for record in state["records"]]
        for name, blob in tensors.items():
            place, _, index = name.partition("/")
            if place == "weights":
                self.weights[int(index)] = blob.cpu().numpy().tobytes()
        for g, (group, steps) in enumerate(zip(self.groups, state["steps"], strict=True)):
            if self.position.part > 0:
                group.start_epoch(self.position.epoch, self.order, self._epochs_done())
            mine = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{g}/")}
            group.load(mine, steps)
