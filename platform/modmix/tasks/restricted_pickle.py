"""Reads pickles of NumPy arrays in plain containers without running code from the file.

A pickle names the functions that rebuild its objects, so an ordinary unpickler runs whatever the
file asks for. This one admits the few names that NumPy writes into the pickle of an array. Each
stands for a function below, which rebuilds an array and nothing else; NumPy's own functions are
never called through the file. All other names are refused.

Admitted are pickles of protocols 0 to 5, written by Python 2 or 3 and NumPy 1 or 2. Texts of
Python 2 are read as latin-1, which keeps every byte. Arrays are read-only.

A hostile file can still end the process, for example by claiming memory or by a key that is nested
a million times.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.data import Array

# Of types: no records, whose fields could lie about what their bytes are, and no size of 0 bytes,
# of which a short file could claim any number.
_CODE = re.compile(r"[biufcSUO][1-9]\d{0,8}")


class _Type:
    """A NumPy type: its code, to which ``__setstate__`` adds the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or _CODE.fullmatch(code) is None:
            raise ValueError(f"an array of type {str(code)[:40]!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in parts[:3]):
            raise ValueError("an array of records")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, Any]):
    """An array that is filled once, from a state whose type is a `_Type`, and read-only then.

    NumPy trusts the states of its own pickles: more objects than the shape has are written past the
    end, and a second state frees memory that a view of the first one still reads.
    """

    _is_filled = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, fortran, values = state
        dtype = _dtype_of(kind)
        if self._is_filled:
            raise ValueError("an array that is filled twice")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array without a shape")
        if not isinstance(values, list if dtype.hasobject else (bytes, str)):
            raise ValueError("an array without values of its type")
        if len(values) * (dtype.itemsize if dtype.hasobject else 1) != (
            math.prod(shape) * dtype.itemsize
        ):
            raise ValueError("an array with more or fewer values than its shape has")
        whole: Any = (version, shape, dtype, bool(fortran), values)
        super().__setstate__(whole)
        self._close()

    def _close(self) -> None:
        self._is_filled = True
        self.flags.writeable = False


def _dtype_of(kind: Any) -> np.dtype[Any]:
    if not isinstance(kind, _Type):
        raise ValueError("an array without a type")
    return kind.dtype


def _empty_array(kind: Any, *_: Any) -> Array:
    """An empty array, to be filled by its ``__setstate__``: what NumPy's pickles begin with."""
    if kind is not _ADMITTED["numpy.ndarray"]:
        raise ValueError("a subclass of numpy.ndarray")
    return _Array((0,), dtype="b")


def _array_of_buffer(
    buffer: bytes | bytearray, kind: Any, shape: Any, order: Any = "C", axes: Any = None
) -> Array:
    """A contiguous array, as protocol 5 stores it."""
    if type(buffer) not in (bytes, bytearray):  # no view of an array, which may be filled later
        raise ValueError("an array of something other than bytes")
    values = np.frombuffer(buffer, dtype=_dtype_of(kind))
    if order == "K" and axes is not None:
        values = values.reshape(shape).transpose(axes)
    else:
        values = values.reshape(shape, order="F" if order == "F" else "C")
    array = values.view(_Array)
    array._close()
    return array


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Bytes that Python 3 wrote as text, as protocols 0 to 2 have no opcode for them."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding other than latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Bytes of length 0, as protocols 0 to 2 store them."""
    return b""


def _not_called() -> None:
    raise ValueError("an array that NumPy did not write")


class _Admitted:
    """A function that a pickle can call but not change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a change of a function")


_OF_NUMPY = {
    "multiarray._reconstruct": _Admitted(_empty_array),
    "numeric._frombuffer": _Admitted(_array_of_buffer),
}
_ADMITTED: Mapping[str, _Admitted] = {
    "numpy.ndarray": _Admitted(_not_called),  # pickles only name it as an argument
    "numpy.dtype": _Admitted(_Type),
    "_codecs.encode": _Admitted(_latin1),
    "builtins.bytes": _Admitted(_no_bytes),
    "__builtin__.bytes": _Admitted(_no_bytes),
    **{f"numpy.core.{name}": function for name, function in _OF_NUMPY.items()},
    **{f"numpy._core.{name}": function for name, function in _OF_NUMPY.items()},
}


class _Refused(Exception):
    """A pickle names something that is not admitted."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (full := f"{module}.{name}") not in _ADMITTED:
            raise _Refused(full)
        return _ADMITTED[full]

    def persistent_load(self, pid: Any) -> Any:  # noqa: ARG002
        raise _Refused("a persistent object")


def read_pickle(path: Path, mend: str) -> Any:
    """Read a pickle of arrays, texts and numbers in dicts, lists and tuples.

    Args:
        path: the file.
        mend: clause for error messages that says what the file should be.

    Raises:
        DataError: not a pickle, damaged, too large for memory, or it names anything else; the
            message says what.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except _Refused as refused:
        raise DataError(
            f"{path}: must hold only NumPy arrays in dicts and lists, as other pickles can run "
            f"code when they are read, got {str(refused)[:100]!r}; {mend}"
        ) from None
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory; {mend}") from error
    except OSError:
        raise
    except Exception as error:  # whatever damaged bytes make the unpickler or NumPy raise
        reason = "".join(c if c.isprintable() else "?" for c in str(error)[:200])
        raise DataError(
            f"{path}: must be a whole pickle, got {reason or type(error).__name__}; {mend}"
        ) from error
