"""Train one pack: stages, epochs, evaluations, halving, checkpoints; report what happens as events.

All groups of a pack pass an evaluation before any goes on, so that halving compares like with
like and one checkpoint holds all. Inside an epoch nothing is read back from the device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from modmix.base.errors import InputError
from modmix.base.messages import Event, Finished, Pack, PackStarted, Progress
from modmix.base.metrics import METRICS, higher_is_better
from modmix.base.settings import selection
from modmix.methods.base import Stage
from modmix.methods.model import model_spec, pack_weights
from modmix.tasks.data import Data
from modmix.training import checkpoint
from modmix.training.batches import Examples, Order
from modmix.training.builder import Builder
from modmix.training.device import arithmetic, is_out_of_memory, named, release
from modmix.training.group import Group, StageEntry
from modmix.training.halving import rungs
from modmix.training.probe import Probe, Way
from modmix.training.record import Best, Endings, Position, Record, Rung, results, rung_of

T = TypeVar("T")

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
    on from the last checkpoint, and its results are those of an undisturbed run.

    Args:
        pack: the models, of one structure.
        data: the task's data.
        device: a torch device, "cpu" or "cuda:0".
        threads: how many this process may use (None: torch's choice).
        share: the part of the device's memory that this process may use.
        dropped: asked before every part of an epoch which models end as pruned: replicate key ->
            reason.

    Raises:
        InputError: hyperparameters that do not fit together.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with arithmetic(pack.replicates[0].training["precision"], device):
            yield from _Run(pack, data, named(device), share, dropped).events()
    finally:
        torch.set_num_threads(before)


class _Run:
    """The state of one pack's training, and what is done to it."""

    def __init__(
        self,
        pack: Pack,
        data: Data,
        device: torch.device,
        share: float,
        dropped: Callable[[], Mapping[str, str]],
    ) -> None:
        self.pack, self.data, self.device, self.share = pack, data, device, share
        self.dropped = dropped
        first = pack.replicates[0]
        assert all(r.structure == first.structure for r in pack.replicates), pack.id
        self.settings = first.training
        self.select = selection(self.settings)
        self.builder = Builder(pack, data, device, self._too_large)
        template = self.builder.model(0)
        self.stages = template.method.stages()
        _check_parts(template.parts(), self.settings)
        self.splits = {
            split: Examples(data, split, template.inputs, device, share)
            for split in ("train", "val", "test")
        }
        self.train = self.splits["train"]
        self.order = Order(self.train.rows, self.settings["batch_size"], self.train.place)
        parts = min(self.settings["evaluations_per_epoch"], self.order.steps)
        self.bounds = [round(i * self.order.steps / parts) for i in range(parts + 1)]
        self.higher = higher_is_better(self.settings["monitor"])
        self.way = Way(eval_rows=self.settings["eval_batch_size"])
        self.records = [Record() for _ in pack.replicates]
        self.weights: dict[int, bytes] = {}  # of finished replicates, when the pack keeps them
        self.position = Position()
        self.groups: list[Group] = []
        self.failing: Endings = {}  # models that did not fit, until their end is reported
        self.saved_at = time.monotonic()

    def events(self) -> Iterator[Event]:
        resumed = self._resume()
        self._leave_out_known()
        if not resumed:
            these = [i for i, record in enumerate(self.records) if record.training]
            if these:
                self._choose(these)
        yield PackStarted(
            pack=self.pack.id,
            models=len(self.records),
            device=str(self.device),
            stacked=self.way.stacked,
            why=self.way.why,
            measured=self.way.measured,
            resumed_epoch=self._epochs_done() if resumed else 0,
        )
        yield from [
            self._event(i)
            for i, record in enumerate(self.records)
            if record.finished and not record.known
        ]
        yield from self._end_failing()
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
        ending.update(self.failing)
        self.failing = {}
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
        failed = self._end_failing()
        self._save_if_due()
        progress = self._progress(present, epoch)
        if rung is not None:
            progress = replace(progress, rung=rung.epoch, at_rung=rung.values)
        return [progress, *(self._event(i) for i in sorted(ending)), *failed]

    # ------------------------------------------------------------ where training stands

    @property
    def stage(self) -> Stage:
        return self.stages[self.position.stage]

    def _stage_epochs(self, stage: int) -> int:
        own = self.stages[stage].epochs
        return int(self.settings["epochs"] if own is None else own)

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(self._stage_epochs(stage) for stage in range(len(self.stages)))

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
        training = [record for record in self.records if record.training]
        all_stopped = bool(training) and all(record.stopped for record in training)
        if position.epoch == self._stage_epochs(position.stage) or all_stopped:
            if self._in_last_stage():
                return False
            position.part = position.epoch = 0
            position.stage += 1
        return True

    def _choose(self, these: Sequence[int]) -> None:
        """Make freshly initialised groups of the replicates at these positions, as pays here."""
        probe = Probe(self.builder, self.train, self.order, share=self.share)
        self.way, self.groups = probe.choose(these, self._entry())
        self._take_way()

    def _take_way(self) -> None:
        for group in self.groups:
            group.stack.compile(on=self.way.compiled)
            group.use_graphs(on=self.way.graphs)

    def _entry(self) -> StageEntry:
        following = self.stages[self.position.stage + 1 :]
        return StageEntry(
            stage=self.stage,
            epochs=self._stage_epochs(self.position.stage),
            from_best=self._begins_best(self.stage),
            # Of the last stage, the chosen weights; of another, those that the next starts from.
            keeps_best=self._begins_best(following[0]) if following else self.select == "best",
        )

    def _begins_best(self, stage: Stage) -> bool:
        begin = self.select if stage.begin == "selected" else stage.begin
        return begin == "best"

    def _start_stage(self) -> None:
        """Enter the stage; models that stopped early in the one before begin from there."""
        entry = self._entry()

        def start(group: Group) -> None:
            rows = [r for r, m in enumerate(group.members) if self.records[m.index].stopped]
            if rows and not entry.from_best:
                group.go_back(rows)
            group.start_stage(entry)

        self._on_groups(start)
        for record in self.records:
            if record.training:
                record.start_stage()

    def _start_epoch(self) -> None:
        def start(group: Group) -> None:
            group.reset_sums()
            for one in group.stack.template.method.passes(self.position.epoch):
                group.run_pass(one, self.splits[one.split], self.way.eval_rows)
            group.start_epoch(self.position.epoch, self.order, self._epochs_done())

        self._on_groups(start)

    # ------------------------------------------------------------ what may not fit

    def _on_groups(self, action: Callable[[Group], T]) -> list[tuple[Group, T]]:
        """Do something with every group, and return the groups with its results.

        A group that is too large for the memory becomes two, from where it was before. A model
        that is too large alone fails.
        """
        waiting, self.groups = self.groups, []
        done: list[tuple[Group, T]] = []
        while waiting:
            group = waiting.pop(0)
            saved: tuple[dict[str, Tensor], int] | None = None
            try:
                if len(group.members) > 1:
                    saved = group.snapshot()
                done.append((group, action(group)))
                self.groups.append(group)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Only here, with the exception gone, is what its frames held free again.
            release(self.device)
            if len(group.members) == 1:
                self._too_large(group.members[0].index)
                continue
            if saved is not None:  # else the copy itself did not fit, and nothing was changed
                group.load(*saved)
                saved = None  # it takes memory that the halves need
            waiting[:0] = group.halves()
        return done

    def _too_large(self, index: int) -> None:
        if not self.records[index].training:
            return  # a row that had ended already
        self.failing[index] = (
            "failed",
            (
                f"out of memory on {self.device}: this model does not fit even alone; a smaller "
                "batch_size, encoder or eval_batch_size may help"
            ),
        )

    def _end_failing(self) -> list[Event]:
        """Report the end of models that did not fit."""
        ending, self.failing = self.failing, {}
        self._end(ending)
        return [self._event(i) for i in sorted(ending)]

    # ------------------------------------------------------------ training and its record

    def _train_and_evaluate(self) -> Endings:
        """One part of an epoch and its evaluation for every group; who diverged ends."""
        start, stop = self.bounds[self.position.part : self.position.part + 2]

        def train(group: Group) -> tuple[dict[str, list[float]], float]:
            started = time.perf_counter()
            group.train(self.train, self.order, start, stop)
            values = group.evaluate(self.splits["val"], self.way.eval_rows)
            group.prepare_best()
            return values, time.perf_counter() - started

        ending: Endings = {}
        for group, (values, seconds) in self._on_groups(train):
            ending.update(self._record(group, values, seconds))
        return ending

    def _record(self, group: Group, values: dict[str, list[float]], seconds: float) -> Endings:
        """Append an evaluation to the histories and keep weights that are better."""
        alive = sum(self.records[member.index].training for member in group.members)
        better = [False] * len(group.members)
        parts = [name for name in values if name.startswith("part/")]
        of_parts = {name.removeprefix("part/"): list(better) for name in parts}
        ending: Endings = {}
        for row, member in enumerate(group.members):
            record = self.records[member.index]
            if not record.training or record.stopped:
                continue
            record.seconds += seconds / alive
            if not values["finite"][row]:
                ending[member.index] = ("failed", self._diverged())
                continue
            line = self._line({name: column[row] for name, column in values.items()})
            line["lr"] = group.optimizer.rates[row]
            better[row] = record.add(line, self.settings["monitor"], higher=self.higher)
            for part, rows in of_parts.items():
                rows[row] = record.add_part(
                    part, values[f"part/{part}"][row], self.settings["patience"], higher=self.higher
                )
        if group.keeps_best:
            group.keep_best(better, of_parts)
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
        """Models without improvement for `patience` evaluations.

        In the last stage they are done; in an earlier one they wait for the next, which starts from
        the weights they have now.
        """
        patience = self.settings["patience"]
        if patience is None or not self.stage.judged or self._runs_on():
            return {}
        stopping = [
            i
            for i, record in enumerate(self.records)
            if record.training
            and not record.stopped
            and i not in ending
            and record.waited >= patience
        ]
        if self._in_last_stage():
            return dict.fromkeys(stopping, ("done", ""))
        if stopping:
            self._on_groups(lambda group: group.keep_stopped(stopping))
        for i in stopping:
            self.records[i].stopped = True
        return {}

    def _runs_on(self) -> bool:
        """Whether the next stage goes on with this one's optimizer."""
        following = self.stages[self.position.stage + 1 :]
        return bool(following) and following[0].optimizer == "kept"

    def _rung(self, ending: Endings) -> Rung | None:
        """The rung of halving that this evaluation is, or None. Epochs of all stages count."""
        halving = self.settings["halving"] if self.pack.halving else None
        last_part = self.position.part == len(self.bounds) - 2
        if not halving or not last_part or not self.stage.judged:
            return None
        eta, first, epoch = int(halving["eta"]), int(halving["min_epochs"]), self._epochs_done() + 1
        if epoch not in rungs(first, eta, self.epochs):
            return None
        return rung_of(self.pack, self.records, ending, epoch, self.select)

    def _losers(self, rung: Rung, ending: Endings) -> Endings:
        losers = rung.losers(self.pack, higher_is_better=self.higher)
        for i in losers:
            self.records[i].beaten = True
        return {
            i: ("pruned", reason)
            for i, reason in losers.items()
            if self.records[i].training and i not in ending
        }

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
        if any(state == "done" for state, _ in ending.values()):
            self._on_groups(lambda group: self._end_done(group, ending))
            ending.update(self.failing)
            self.failing = {}
        for index, (state, reason) in ending.items():
            record = self.records[index]
            if state == "failed" and record.finished is None:
                record.close(state, reason, {})
            elif state == "pruned":
                record.prune(reason, self.select)

    def _end_done(self, group: Group, ending: Endings) -> None:
        rows = [
            r
            for r, m in enumerate(group.members)
            if ending.get(m.index, ("",))[0] == "done" and self.records[m.index].finished is None
        ]
        if not rows:
            return
        started = time.perf_counter()
        size = self.way.eval_rows
        tests = group.evaluate_chosen(rows, self.splits["test"], size)
        # Parts have best epochs of their own, so that no evaluation was of the chosen weights.
        vals = group.evaluate_chosen(rows, self.splits["val"], size) if group.best_parts else None
        share = (time.perf_counter() - started) / len(rows)
        for i, (row, test) in enumerate(zip(rows, tests, strict=True)):
            index = group.members[row].index
            record = self.records[index]
            record.seconds += share
            chosen = record.chosen_at(self.select)
            metrics = results(record.row(chosen))
            if vals is not None:
                metrics.update({f"val/{name}": value for name, value in vals[i].items()})
            metrics.update({f"test/{name}": value for name, value in test.items()})
            if self.pack.keep_weights:
                self.weights[index] = self._pack_weights(group, row)
            record.close("done", "", metrics, chosen=chosen)

    def _pack_weights(self, group: Group, row: int) -> bytes:
        replicate = self.pack.replicates[group.members[row].index]
        description = {
            "task": self.data.name,
            "class_names": list(self.data.class_names),
            "seed": replicate.seed,
        }
        spec = model_spec(replicate, self.data)
        return pack_weights(group.chosen_state(row), spec, description)

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
            epochs=self.epochs,
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
        pairs = zip(self.records, self.pack.replicates, strict=True)
        for index, (record, replicate) in enumerate(pairs):
            ended = self.pack.ended.get(replicate.key)
            if ended is not None:
                record.training, record.known = False, True
                self.failing.pop(index, None)
                if ended.best is not None:
                    record.last = record.best.value = ended.best
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
        found = checkpoint.load(folder, self.pack.id)
        if found is None:
            return False
        try:
            self._restore(*found)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            # It is whole and this pack's, but of other code.
            checkpoint.warn_unusable(folder, error)
            self.records = [Record() for _ in self.pack.replicates]
            self.weights, self.position, self.failing = {}, Position(), {}
            self.groups = []
            return False
        return True

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.way = Way(**state["way"])
        self.position = Position(**state["position"])
        self.records = [_record(**record) for record in state["records"]]
        for name, blob in tensors.items():
            place, _, index = name.partition("/")
            if place == "weights":
                self.weights[int(index)] = blob.numpy().tobytes()
        self.groups = []
        entry = self._entry()
        for g, (indices, steps) in enumerate(zip(state["groups"], state["steps"], strict=True)):
            mine = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{g}/")}
            stacked = self.way.stacked or len(indices) > 1
            self.groups += self.builder.started(
                indices, entry, stacked=stacked, state=(mine, steps)
            )
        self._take_way()
        if self.position.part > 0:
            done = self._epochs_done()
            self._on_groups(lambda group: group.start_epoch(self.position.epoch, self.order, done))


def _record(
    *, best: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], **fields: Any
) -> Record:
    """A record as `dataclasses.asdict` wrote it."""
    own = {name: Best(**part) for name, part in parts.items()}
    return Record(best=Best(**best), parts=own, **fields)


def _check_parts(parts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if parts and settings["patience"] is not None and selection(settings) == "last":
        raise InputError(
            "patience stops each unimodal classifier of late fusion at its own best epoch, which "
            "needs select: best, got select: last; leave one of the two out"
        )
