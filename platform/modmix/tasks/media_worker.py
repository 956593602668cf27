"""The decoding process of `media_decode`: one JSON line in, one JSON line out.

The first line has the task, its options, and its source if it is a user's own. Each further one
asks for a shard: ``path``, ``items``, and ``crashed``, the items not to be retried and the reasons.
Answers are {"item": row} before each item and {"done": true} after the shard is written, or
{"error": text, …}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modmix.base import sources as own
from modmix.base.errors import ModmixError
from modmix.tasks.base import make_task
from modmix.tasks.data import Array, Input
from modmix.tasks.media import MediaTask
from modmix.tasks.media_decode import REASONS, Item
from modmix.tasks.media_read import Unreadable


def main() -> None:
    """Serve requests until the input ends or the parent is gone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be read as an answer
    try:
        for answer in _answers():
            print(json.dumps(answer), file=answers, flush=True)
    except BrokenPipeError:  # the parent is gone
        os._exit(1)  # without flushing the pipe once more


def _answers() -> Iterator[dict[str, Any]]:
    try:
        started = json.loads(sys.stdin.readline())
        own.register(started["sources"])
        task = make_task(started["task"], started["options"])
        assert isinstance(task, MediaTask), task
        for line in sys.stdin:
            yield from _shard(task, json.loads(line))
    except OSError as error:
        yield {"error": str(error), "errno": error.errno, "file": error.filename}
    except ModmixError as error:
        yield {"error": str(error), "errno": None}
    except Exception:
        yield {"error": f"decoding failed:\n{traceback.format_exc()}", "errno": None}


def _shard(task: MediaTask, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Decode the items of a request and write them."""
    inputs = task.inputs()
    arrays: dict[str, list[Array]] = {one.name: [] for one in inputs}
    reasons: dict[str, str] = dict(request["crashed"])
    for row, values in enumerate(request["items"]):
        yield {"item": row}
        if str(row) in reasons:
            continue
        try:
            decoded = task.decode(Item(**{**values, "files": tuple(values["files"])}))
            checked = {one.name: _checked(one, decoded[one.name]) for one in inputs}
        except Unreadable as error:
            reasons[str(row)] = str(error)
            continue
        for name, array in checked.items():
            arrays[name].append(array)
    _write(Path(request["path"]), inputs, arrays, reasons)
    yield {"done": True}


def _checked(one: Input, values: Array) -> Array:
    expected = one.stored_shape
    assert values.shape == expected, f"{one.name}: {values.shape}, not {expected}"
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.astype(one.dtype, copy=False)
    # One NaN would make the mean NaN, and with it the input of every item.
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise Unreadable(f"its {one.name} has values that are not finite numbers of {one.dtype}")
    return found


def _write(
    path: Path,
    inputs: Sequence[Input],
    arrays: Mapping[str, Sequence[Array]],
    reasons: Mapping[str, str],
) -> None:
    """Write a shard atomically, in a folder that is there."""
    whole: dict[str, Any] = {
        one.name: np.stack(arrays[one.name])
        if arrays[one.name]
        else np.empty((0, *one.stored_shape), one.dtype)
        for one in inputs
    }
    whole[REASONS] = np.frombuffer(json.dumps(reasons).encode(), dtype=np.uint8)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **whole)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    main()
