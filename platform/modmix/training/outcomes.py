"""Models of a pack that are done: their test, and the weights and predictions that are kept."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from modmix.base.messages import Finished, PackedPredictions
from modmix.base.settings import selection
from modmix.methods.model import model_spec, pack_weights
from modmix.training.batches import Examples
from modmix.training.builder import Builder
from modmix.training.group import Group
from modmix.training.record import Record, results


class Outcomes:
    """Tests models, once each, and keeps what the pack asks for.

    Args:
        builder: of the pack's models.
        splits: the data, by split.

    Attributes:
        weights, predictions: of models that are done, by position in the pack.
    """

    def __init__(self, builder: Builder, splits: Mapping[str, Examples]) -> None:
        self._builder = builder
        self._pack = builder.pack
        self._splits = splits
        self._select = selection(self._pack.replicates[0].training)
        self.weights: dict[int, bytes] = {}
        self.predictions: dict[int, bytes] = {}

    def clear(self) -> None:
        """Forget all weights and predictions."""
        self.weights, self.predictions = {}, {}

    def test(
        self, group: Group, done: Collection[int], records: Sequence[Record], size: int
    ) -> None:
        """Test those of a group's models that are ``done`` and close their records.

        Args:
            done: positions in the pack.
            size: examples at a time.
        """
        rows = [
            row
            for row, member in enumerate(group.members)
            if member.index in done and records[member.index].finished is None
        ]
        if not rows:
            return
        started = time.perf_counter()
        kept = frozenset(self._pack.keep_predictions)
        keep = {row for row in rows if self._pack.replicates[group.members[row].index].key in kept}
        tests = group.evaluate_chosen(rows, self._splits["test"], size, keep)
        # Weights that combine parts of different epochs have not been evaluated as a whole yet.
        vals = group.evaluate_chosen(rows, self._splits["val"], size) if group.best_parts else None
        share = (time.perf_counter() - started) / len(rows)
        for i, (row, test) in enumerate(zip(rows, tests.metrics, strict=True)):
            index = group.members[row].index
            record = records[index]
            record.seconds += share
            chosen = record.chosen_at(self._select)
            metrics = results(record.row(chosen))
            if vals is not None:
                metrics.update({f"val/{name}": value for name, value in vals.metrics[i].items()})
            metrics.update({f"test/{name}": value for name, value in test.items()})
            if self._pack.keep_weights:
                self.weights[index] = self._pack_weights(group, row)
            if row in keep:
                self.predictions[index] = tests.predictions[row]
            record.close("done", "", metrics, chosen=chosen)

    def _pack_weights(self, group: Group, row: int) -> bytes:
        replicate, data = self._builder.replicate(group.members[row].index), self._builder.data
        description = {
            "task": data.name,
            "class_names": list(data.class_names),
            "seed": replicate.seed,
        }
        return pack_weights(group.chosen_state(row), model_spec(replicate, data), description)

    def event(self, index: int, record: Record) -> Finished:
        """The event of a model that has ended, with what is kept of it."""
        data = self.predictions.get(index)
        return record.event(
            self._pack.id,
            self._pack.replicates[index].key,
            weights=self.weights.get(index),
            predictions=None
            if data is None
            else PackedPredictions(rows=self._splits["test"].rows, data=data),
        )
