"""Train one pack: stages, epochs, evaluations, halving and checkpoints; yields progress as events.

All groups of a pack complete an evaluation before any continues, so that halving compares models
after equal training and one checkpoint covers all groups. Between evaluations nothing is read back
from the device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from modmix.base.messages import (
    Event,
    Finished,
    Pack,
    PackStarted,
    Progress,
)
from modmix.base.metrics import METRICS, STAGE, higher_is_better
from modmix.base.settings import selection
from modmix.base.sources import explained
from modmix.tasks.data import Data
from modmix.training import checkpoint
from modmix.training.batches import Examples, Order
from modmix.training.builder import Builder
from modmix.training.device import arithmetic, environment, named
from modmix.training.fitting import on_groups, smaller, too_large_reason
from modmix.training.group import Group
from modmix.training.outcomes import Outcomes
from modmix.training.population import Population
from modmix.training.probe import Probe, Way
from modmix.training.record import Endings, Record, Rung, results, rung_of
from modmix.training.saving import Saved, Saves, from_tensors, to_tensors
from modmix.training.timeline import Position, Timeline, check_parts
from modmix.training.turns import check_turns

T = TypeVar("T")

# Ended rows are removed from a group once less than this fraction of its models still trains.
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
    """Train a pack's models and yield events.

    First `PackStarted`, then `Progress` after every evaluation, and `Finished` once for each
    replicate, as soon as it ends. Closing the generator stops training and writes a checkpoint if
    ``pack.checkpoint`` is set; the next call then resumes from the last checkpoint, with the same
    results as an uninterrupted run.

    Args:
        pack: the models, all of the same structure.
        data: the task's data.
        device: a torch device, e.g. "cpu" or "cuda:0".
        threads: torch's number of CPU threads (None: unchanged).
        share: fraction of the device's memory that this process may use.
        dropped: called before every part of an epoch; returns models to end as pruned, replicate
            key -> reason.

    Raises:
        InputError: incompatible hyperparameters.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with arithmetic(pack.replicates[0].training["precision"], device):
            # Errors raised in users' own files are reported with file and line.
            own = explained("training fails") if pack.sources else nullcontext()
            with own:
                yield from _Run(pack, data, named(device), share, dropped).events()
    finally:
        torch.set_num_threads(before)


@dataclass
class _Better:
    """The models that improved at an evaluation, by position in the pack; also for each part."""

    models: set[int] = field(default_factory=set)
    of_parts: dict[str, set[int]] = field(default_factory=dict)

    def any(self) -> bool:
        return any([self.models, *self.of_parts.values()])

    def keep(self, group: Group) -> None:
        """Keep the improved weights of a group, if it keeps its best ones."""
        if group.keeps_best:
            group.keep_best(
                [member.index in self.models for member in group.members],
                {
                    part: [member.index in models for member in group.members]
                    for part, models in self.of_parts.items()
                },
            )


class _Run:
    """The training of one pack."""

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
        check_parts(template.parts(), self.settings)
        self.splits = {
            split: Examples(data, split, template.inputs, device, share)
            for split in ("train", "val", "test")
        }
        self.train = self.splits["train"]
        self.order = Order(
            self.train.rows,
            self.settings["batch_size"],
            self.train.place,
            self.settings["batches"],
        )
        self.time = Timeline(template.method.stages(), self.settings, self.order.steps)
        check_turns(self.time.stages, template)
        self.higher = higher_is_better(self.settings["monitor"])
        self.population = Population(pack, self.builder, higher_is_better=self.higher)
        self.way = Way(eval_rows=self.settings["eval_batch_size"])
        self.records = [Record() for _ in pack.replicates]
        self.outcomes = Outcomes(self.builder, self.splits)
        self.groups: list[Group] = []
        self._beside: int | None = None  # other groups in `_on_groups`; None before its first call
        self.failing: Endings = {}  # models that did not fit, not reported yet
        seconds = float(os.environ.get("MODMIX_CHECKPOINT_SECONDS", "30"))
        self.saves = Saves(time.monotonic(), seconds)

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
            resumed_epoch=self.time.epochs_done if resumed else 0,
            environment=environment(self.device),
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
        except GeneratorExit:  # closed by the caller: the next call resumes from here
            self._save()
            raise

    def _next_evaluation(self) -> list[Event]:
        """Train up to the next evaluation, end models, advance the position; return events."""
        if self.time.position.part == 0:
            self._start_epoch()
        present = [i for i, record in enumerate(self.records) if record.training]
        ending = self._train_and_evaluate()
        ending.update(self.failing)
        self.failing = {}
        ending.update(self._out_of_patience(ending))
        rung = self._rung(ending)
        losers = {} if rung is None else self._losers(rung, ending)
        ending.update(losers)
        epoch, stage = self.time.epochs_done + 1, self.time.stage
        exchange = self.time.exchange
        if not self._advance():
            ending.update({i: ("done", "") for i in present if i not in ending})
        self._end(ending)
        self._make_smaller(at_once=bool(losers))
        if self.groups and self.time.stage is not stage:
            self._start_stage()
        failed = self._end_failing()
        progress = self._progress(present, epoch)
        if exchange is not None:
            self.population.exchange(self.records, self.groups, exchange)
        self._save_if_due()
        if rung is not None:
            progress = replace(progress, rung=rung.epoch, at_rung=rung.values)
        return [progress, *(self._event(i) for i in sorted(ending)), *failed]

    # ------------------------------------------------------------ starts of packs, stages, epochs

    def _advance(self) -> bool:
        """Move to the next part, epoch or stage; False at the end of the last stage."""
        training = [record for record in self.records if record.training]
        return self.time.advance(
            stage_is_over=bool(training) and all(record.stopped for record in training)
        )

    def _choose(self, these: Sequence[int]) -> None:
        """Build groups of the replicates at these positions, stacked where that is faster."""
        probe = Probe(self.builder, self.train, self.order, share=self.share)
        self.way, self.groups = probe.choose(these, self.time.entries())
        self._take_way()

    def _take_way(self) -> None:
        for group in self.groups:
            group.stack.compile(on=self.way.compiled)
            group.use_graphs(on=self.way.graphs)

    def _start_stage(self) -> None:
        """Enter the next stage; models that stopped early start from the weights saved then, unless
        the stage starts from best weights.
        """
        entry = self.time.entry()

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
        epoch = self.time.position.epoch

        def start(group: Group) -> float:
            started = time.perf_counter()
            group.reset_sums()
            group.choose_turn(epoch)
            for one in group.stack.template.method.passes(epoch):
                group.run_pass(one, self.splits[one.split], self.way.eval_rows)
            group.start_epoch(epoch, self.order, self.time.epochs_done)
            return time.perf_counter() - started

        # A repeated start does the same again; only passes may build on what they have computed.
        passes = any(g.stack.template.method.passes(epoch) for g in self.groups)
        for group, seconds in self._on_groups(start, undo=passes):
            self._charge(group, seconds)

    def _charge(self, group: Group, seconds: float) -> None:
        """Charge a group's time in equal shares to its models still training in this stage."""
        records = [self.records[member.index] for member in group.members]
        training = [record for record in records if record.training and not record.stopped]
        for record in training:
            record.seconds += seconds / len(training)

    # ------------------------------------------------------------ running out of memory

    def _on_groups(
        self, action: Callable[[Group], T], *, undo: bool = True
    ) -> list[tuple[Group, T]]:
        """Run an action on every group; return the resulting groups with the action's results.

        A group that runs out of memory is restored (see `on_groups`) and split in two. A model that
        does not fit on its own fails.
        """
        groups, self.groups = self.groups, []
        self._beside = len(groups) - 1
        done = on_groups(groups, action, self._too_large, undo=undo)
        self.groups = [group for group, _ in done]
        return done

    def _too_large(self, index: int) -> None:
        if not self.records[index].training:
            return  # a row that had already ended
        others = self.builder.built if self._beside is None else self._beside
        self.failing[index] = ("failed", too_large_reason(self.device, others))

    def _end_failing(self) -> list[Event]:
        """End models that did not fit, and return their events."""
        ending, self.failing = self.failing, {}
        self._end(ending)
        return [self._event(i) for i in sorted(ending)]

    # ------------------------------------------------------------ training and its record

    def _train_and_evaluate(self) -> Endings:
        """Train and evaluate every group for one part of an epoch; models that diverged end."""
        start, stop = self.time.steps

        def train(group: Group) -> tuple[dict[str, list[float]], float]:
            started = time.perf_counter()
            group.train(self.train, self.order, start, stop)
            values = group.evaluate(self.splits["val"], self.way.eval_rows)
            group.prepare_best()
            return values, time.perf_counter() - started

        ending: Endings = {}
        better = _Better()
        for group, (values, seconds) in self._on_groups(train):
            ending.update(self._record(group, values, seconds, better))
        if better.any():
            self._on_groups(better.keep, undo=False)
        return ending

    def _record(
        self, group: Group, values: dict[str, list[float]], seconds: float, better: _Better
    ) -> Endings:
        """Append an evaluation to the histories and note in ``better`` what has improved.

        ``seconds`` is the group's time.
        """
        self._charge(group, seconds)
        steps = self.time.steps[1]
        parts = [name.removeprefix("part/") for name in values if name.startswith("part/")]
        reports = [name.removeprefix("report/") for name in values if name.startswith("report/")]
        ending: Endings = {}
        for row, member in enumerate(group.members):
            record = self.records[member.index]
            if not record.training or record.stopped:
                continue
            if not values["finite"][row]:
                ending[member.index] = ("failed", self._diverged())
                continue
            line = {
                "epoch": self.time.epochs_done + steps / self.order.steps,
                **self._stage(),
                "train/loss": values["loss"][row] / steps,
                "train/error": 100 * values["wrong"][row] / (steps * self.order.batch),
                **{f"val/{name}": values[name][row] for name in METRICS},
                **{f"val/{name}": values[f"report/{name}"][row] for name in reports},
                "lr": group.optimizer.rates[row],
                **self.population.columns(member.index),
            }
            if record.add(line, self.settings["monitor"], higher=self.higher):
                better.models.add(member.index)
            for part in parts:
                models = better.of_parts.setdefault(part, set())
                value, patience = values[f"part/{part}"][row], self.settings["patience"]
                if record.add_part(part, value, patience, higher=self.higher):
                    models.add(member.index)
        return ending

    def _diverged(self) -> str:
        return (
            "diverged: loss, weights or scores were not finite in epoch "
            f"{self.time.epochs_done + 1}; a lower learning_rate or a clip_norm may help"
        )

    def _stage(self) -> dict[str, float]:
        """A column of the history for methods of several stages: the stage's number from 1."""
        if len(self.time.stages) == 1:
            return {}
        return {STAGE: float(self.time.position.stage + 1)}

    # ------------------------------------------------------------ ending models

    def _out_of_patience(self, ending: Endings) -> Endings:
        """Early stopping of models without improvement for ``patience`` evaluations.

        In the last stage they are done. In an earlier stage they wait for the next one, which
        starts from their current (or best) weights.
        """
        patience = self.time.patience
        if patience is None:
            return {}
        stopping = [
            i
            for i, record in enumerate(self.records)
            if record.training
            and not record.stopped
            and i not in ending
            and record.waited >= patience
        ]
        if self.time.in_last_stage:
            return dict.fromkeys(stopping, ("done", ""))
        if stopping:
            self._on_groups(lambda group: group.keep_stopped(stopping))
        for i in stopping:
            self.records[i].stopped = True
        return {}

    def _rung(self, ending: Endings) -> Rung | None:
        """The halving rung at this evaluation, or None. Epochs count over all stages."""
        epoch = self.time.rung if self.pack.halving else None
        if epoch is None:
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
        """End models that the driver has pruned in comparison with other packs."""
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
        """Close the records of models that end; only those that are done are tested, once."""
        if any(state == "done" for state, _ in ending.values()):
            done = [i for i, (state, _) in ending.items() if state == "done"]
            self._on_groups(
                lambda group: self.outcomes.test(group, done, self.records, self.way.eval_rows)
            )
            ending.update(self.failing)
            self.failing = {}
        for index, (state, reason) in ending.items():
            record = self.records[index]
            if state == "failed" and record.finished is None:
                record.close(state, reason, {})
            elif state == "pruned":
                record.prune(reason, self.select)

    def _make_smaller(self, *, at_once: bool = False) -> None:
        """Remove groups that have ended, and ended rows once most of a group has ended.

        ``at_once``: remove every ended row, so that pruned models cost nothing more.
        """
        below = 1.0 if at_once else _COMPACT_BELOW
        groups, self.groups = self.groups, []
        while groups:  # popped, so that a group is freed once its rows have been copied
            group = groups.pop(0)
            rows = [r for r, m in enumerate(group.members) if self.records[m.index].training]
            if 0 < len(rows) < below * len(group.members):
                group = smaller(group, rows)
            if rows:
                self.groups.append(group)

    # ------------------------------------------------------------ events

    def _event(self, index: int) -> Finished:
        return self.outcomes.event(index, self.records[index])

    def _progress(self, present: Sequence[int], epoch: int) -> Progress:
        values = {
            self.pack.replicates[i].key: results(self.records[i].row(-1))
            for i in present
            if self.records[i].state != "failed"
        }
        active = sum(record.training for record in self.records)
        return Progress(
            pack=self.pack.id, epoch=epoch, epochs=self.time.epochs, active=active, metrics=values
        )

    # ------------------------------------------------------------ checkpoints

    def _leave_out_known(self) -> None:
        """Do not train replicates whose results the driver already has."""
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
        ended = sum(not record.training for record in self.records)
        if self.groups and self.saves.due(time.monotonic(), ended):
            self._save()

    def _save(self) -> None:
        """Write a checkpoint; without groups, all models have ended and it holds their results."""
        if self.pack.checkpoint is None:
            return
        tensors, state = to_tensors(
            self.time.position,
            self.way,
            self.records,
            self.groups,
            weights=self.outcomes.weights,
            predictions=self.outcomes.predictions,
        )
        position = astuple(self.time.position)
        checkpoint.save(Path(self.pack.checkpoint), self.pack.id, position, tensors, state)
        self.saves.done(time.monotonic(), sum(not record.training for record in self.records))

    def _resume(self) -> bool:
        """Restore the checkpoint; return whether there was a usable one."""
        if self.pack.checkpoint is None:
            return False
        folder = Path(self.pack.checkpoint)
        found = checkpoint.load(folder, self.pack.id)
        if found is None:
            return False
        try:
            self._restore(from_tensors(*found))
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            # An intact checkpoint of this pack, but written by different code.
            checkpoint.warn_unusable(folder, error)
            checkpoint.remove(folder)  # or it might never be replaced, see `checkpoint.save`
            self.records = [Record() for _ in self.pack.replicates]
            self.outcomes.clear()
            self.failing = {}
            self.builder.changed = {}
            self.time.position, self.groups = Position(), []
            return False
        return True

    def _restore(self, saved: Saved) -> None:
        self.way, self.records = saved.way, saved.records
        for index, record in enumerate(self.records):
            self.population.set_values(index, record)
        self.outcomes.weights, self.outcomes.predictions = saved.weights, saved.predictions
        self.time.position = saved.position
        self.groups = []
        entry = self.time.entry()
        for group in saved.groups:
            self.groups += self.builder.started(
                group.indices,
                entry,
                stacked=self.way.stacked or len(group.indices) > 1,
                state=(group.tensors, group.steps),
            )
        self._take_way()
        if saved.position.part > 0:
            epoch, done = saved.position.epoch, self.time.epochs_done
            self._on_groups(lambda group: group.start_epoch(epoch, self.order, done))
