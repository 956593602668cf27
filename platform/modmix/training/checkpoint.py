"""A pack's checkpoint: one safetensors file with the non-tensor state as JSON in its metadata.

Writes are atomic: to a temporary file, then renamed. A checkpoint is never replaced by an earlier
one: a worker whose driver was suspended and has since lost the study may be behind the worker that
trains its pack now.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from modmix.base.messages import NUMERICS_VERSION

_FILE = "checkpoint.safetensors"
# Increment when the layout of the tensors changes; older checkpoints are then not used.
_LAYOUT = 6


class CheckpointWarning(UserWarning):
    """A checkpoint cannot be used; training starts over."""


def save(
    folder: Path,
    pack: str,
    position: Sequence[int],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Replace the checkpoint in ``folder``, unless that one is further along.

    Args:
        position: how far the training is, compared from left to right.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if _position(folder, pack) > list(position):
        return
    about = {
        "identity": _identity(pack),
        "position": json.dumps(list(position)),
        "state": json.dumps(state),
    }
    temporary = folder / f"{_FILE}.{os.getpid()}.tmp"
    try:
        on_host = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(on_host, temporary, metadata=about)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / _FILE)
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path, pack: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (on the host) and state of this pack's checkpoint, or None if there is no usable one.

    Warns with `CheckpointWarning` about a file that is damaged, or of another pack or version.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / _FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = file.metadata()
            if about["identity"] != _identity(pack):
                raise ValueError("it belongs to another pack or another version of modmix")
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, json.loads(about["state"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        warn_unusable(folder, error)
        return None


def _identity(pack: str) -> str:
    return json.dumps({"pack": pack, "numerics": NUMERICS_VERSION, "layout": _LAYOUT})


def _position(folder: Path, pack: str) -> list[int]:
    """The position of this pack's checkpoint; [] if there is no usable one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / _FILE, framework="pt", device="cpu") as file:
            about = file.metadata()
        usable = about["identity"] == _identity(pack)
        found: list[int] = json.loads(about["position"]) if usable else []
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return []
    return found


def warn_unusable(folder: Path, error: Exception) -> None:
    """Warn that an existing checkpoint cannot be used."""
    warnings.warn(
        f"{folder / _FILE}: the checkpoint cannot be used ({error}); training starts over",
        CheckpointWarning,
        stacklevel=2,
    )


def remove(folder: Path) -> None:
    """Delete the checkpoint, and its folder if that is then empty."""
    (folder / _FILE).unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
