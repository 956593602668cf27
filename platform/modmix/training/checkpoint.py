"""A pack's checkpoint: one safetensors file whose header holds the rest as JSON.

It is written under another name and then renamed, so that it is whole or not there.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from modmix.base.messages import NUMERICS_VERSION

_FILE = "checkpoint.safetensors"
# Raised whenever the same tensors lie in another order: one of before starts over.
_LAYOUT = 4


class CheckpointWarning(UserWarning):
    """A checkpoint cannot be used; training starts over."""


def save(folder: Path, pack: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint in ``folder``.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps(
        {"pack": pack, "numerics": NUMERICS_VERSION, "layout": _LAYOUT, "state": state}
    )
    temporary = folder / f"{_FILE}.{os.getpid()}.tmp"
    try:
        on_host = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(on_host, temporary, metadata={"modmix": header})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / _FILE)
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path, pack: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (on the host) and state of this pack's checkpoint, or None where none can be used.

    A damaged or foreign one gives a `CheckpointWarning`.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / _FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads(file.metadata()["modmix"])
            found = header["pack"], header["numerics"], header["layout"]
            if found != (pack, NUMERICS_VERSION, _LAYOUT):
                raise ValueError("it belongs to another pack or another version of modmix")
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, header["state"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        warn_unusable(folder, error)
        return None


def warn_unusable(folder: Path, error: Exception) -> None:
    """Say that a checkpoint is there and not used."""
    warnings.warn(
        f"{folder / _FILE}: the checkpoint cannot be used ({error}); training starts over",
        CheckpointWarning,
        stacklevel=2,
    )


def remove(folder: Path) -> None:
    """Delete the checkpoint, and its folder when nothing else is in it."""
    (folder / _FILE).unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
