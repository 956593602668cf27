"""Reading pickles of arrays: what Python 2 and 3 and NumPy 1 and 2 write, and nothing that runs."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.base.errors import DataError
from modmix.tasks.restricted_pickle import read_pickle

MEND = "the option `path` must be another"
VALUES: dict[str, Any] = {
    "floats": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "axes": np.arange(6).reshape(1, 2, 3).transpose(2, 0, 1),
    "big": np.arange(3, dtype=">i4"),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 3)),
    "bytes": np.array([b"ab", b"c"]),
    "texts": np.array(["ä, b", "c"]),
    "objects": np.array([["video", "1"], [b"x", None]], dtype=object),
    "plain": [1, 2.5, None, True, (1, "ü"), {"a": {}}, b"", b"xyz", 1 << 70],
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def old_names(content: bytes) -> bytes:
    """The pickle as NumPy 1 wrote it; lengths of names are one byte from protocol 4 on."""
    if (
        content[0] == 0x80 and content[1] >= 4
    ):  # a frame begins with its length; without frames it can be read as well
        assert content[2:3] == b"\x95"
        content = content[:2] + content[11:]
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        content = content.replace(bytes([0x8C, len(new)]) + new, bytes([0x8C, len(old)]) + old)
        content = content.replace(b"c" + new, b"c" + old)
    assert b"numpy.core." in content
    assert b"numpy._core." not in content
    return content


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("numpy", [1, 2])
def test_arrays_and_plain_values_are_read(tmp_path: Path, protocol: int, numpy: int) -> None:
    content = pickle.dumps({"train": VALUES}, protocol=protocol)
    if numpy == 1:
        content = old_names(content)
    found = read_pickle(write(tmp_path / "x.pkl", content), MEND)["train"]
    assert list(found) == list(VALUES)
    for name, expected in VALUES.items():
        if isinstance(expected, np.ndarray):
            assert isinstance(found[name], np.ndarray)
            np.testing.assert_array_equal(found[name], expected)
            assert found[name].dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
        else:
            assert found[name] == expected


def python_2(key: str, array: np.ndarray) -> bytes:
    """{key: array} as Python 2 and NumPy 1 wrote it in protocol 2: all strings are bytes."""

    def text(raw: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(raw)) + raw

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85"
    empty += text(b"b") + b"\x87R"
    code = array.dtype.str[1:].encode()
    dtype = b"cnumpy\ndtype\n" + text(code) + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"<") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    shape = b"(" + b"".join(map(number, array.shape)) + b"t"
    state = b"(" + number(1) + shape + dtype + b"\x89" + text(array.tobytes()) + b"tb"
    return b"\x80\x02}" + text(key.encode("latin1")) + empty + state + b"s."


def test_python_2(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("<f4")
    found = read_pickle(write(tmp_path / "x.pkl", python_2("vidéo", array)), MEND)
    assert list(found) == ["vidéo"]  # latin-1 keeps every byte
    np.testing.assert_array_equal(found["vidéo"], array)
    assert found["vidéo"].dtype == np.float32


# ---------------------------------------------------------------- what is refused


class Evil:
    """Its pickle makes a file when it is read by an ordinary unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_pickle(path, MEND)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert message.endswith(f"; {MEND}")
    return message.removeprefix(f"{path}: ").removesuffix(f"; {MEND}")


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made"
    content = pickle.dumps({"train": [Evil(target)]}, protocol=protocol)
    pickle.loads(content)
    assert target.exists()  # the pickle does what it should
    target.unlink()
    assert refusal(write(tmp_path / "x.pkl", content)) == (
        "must hold only NumPy arrays in dicts and lists, as other pickles can run code when they "
        f"are read, got '{os.system.__module__}.system'"
    )
    assert not target.exists()


def call(module: str, name: str, arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + arguments + b"R."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("builtins", "bytearray"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "scalar"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("modmix.tasks.restricted_pickle", "read_pickle"),
        ("numpy", "ndarray.tofile"),
        ("copyreg", "_reconstructor"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, module: str, name: str) -> None:
    content = call(module, name, b"(V1\nt")
    assert refusal(write(tmp_path / "x.pkl", content)).endswith(f"got '{module}.{name}'")
    text = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)]
    content = b"\x80\x04" + text[0] + text[1] + b"\x93."
    assert refusal(write(tmp_path / "x.pkl", content)).endswith(f"got '{module}.{name}'")


def test_classes_and_persistent_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(a=1)))
    assert refusal(path).endswith("got 'collections.OrderedDict'")
    path.write_bytes(b"Vdisk\nQ.")
    assert refusal(path).endswith("got 'a persistent object'")


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Ran out of input"),
        (b"not a pickle", ""),
        (pickle.dumps(VALUES)[:-60], ""),
        (pickle.dumps(VALUES, protocol=2)[:500], ""),
        (b"PK\x03\x04", ""),
        # Records could claim that their bytes are no objects.
        (pickle.dumps(np.zeros(2, dtype=[("a", "f4")]), protocol=2), "an array of type 'V4'"),
        (pickle.dumps(np.zeros(2, dtype="M8[s]"), protocol=2), "an array of type 'M8'"),
        # Functions cannot be changed, arrays not be made in other ways.
        (b"c_codecs\nencode\n(N}V__defaults__\n(V1\ntstb.", "a change of a function"),
        (b"c_codecs\nencode\n(V1\nVutf-8\ntR.", "bytes in an encoding other than latin1"),
        (b"cbuiltins\nbytes\n(I1000000\ntR.", ""),
        (b"cnumpy\nndarray\n((I9\ntVf4\ntR.", ""),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntVb\ntR.", "a subclass of"),
        (ARRAY + b"(I1\n(I2\ntVf4\nI00\nVxy\ntb.", "an array without a type"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    path = write(tmp_path / "x.pkl", content)
    message = refusal(path)
    assert message.startswith("must be a whole pickle, got ")
    assert reason in message


def test_sizes_are_checked_before_values_are_read(tmp_path: Path) -> None:
    """A state with fewer bytes than its shape needs, and one of objects that are bytes."""
    for code, size in ((b"f4", b"I1000\n"), (b"O8", b"I1\n")):
        dtype = b"cnumpy\ndtype\n(V" + code + b"\nI00\nI01\ntR(I3\nV<\nNNNI-1\nI-1\nI0\ntb"
        content = ARRAY + b"(I1\n(" + size + b"t" + dtype + b"I00\nV12345678\ntb."
        assert "must be a whole pickle, got " in refusal(write(tmp_path / "x.pkl", content))


TYPE = b"cnumpy\ndtype\n(V%s\nI00\nI01\ntR(I3\nV<\nNNNI-1\nI-1\nI0\ntb"


def state(code: bytes, rows: int, values: bytes) -> bytes:
    """Opcodes that fill the array on the stack."""
    return b"(I1\n(I%d\nt" % rows + TYPE % code + b"I00\n" + values + b"tb"


def test_objects_must_be_as_many_as_the_shape_has(tmp_path: Path) -> None:
    """NumPy writes all objects of the list, past the end of the memory of the shape."""
    objects = b"(" + b"I1\n" * 5 + b"l"
    found = read_pickle(write(tmp_path / "x.pkl", ARRAY + state(b"O8", 5, objects) + b"."), MEND)
    assert found.tolist() == [1] * 5
    for rows in (0, 1, 4, 6, 1 << 40):
        path = write(tmp_path / "x.pkl", ARRAY + state(b"O8", rows, objects) + b".")
        assert "more or fewer values than its shape has" in refusal(path)


def test_memory_of_an_array_cannot_be_freed_below_a_view(tmp_path: Path) -> None:
    """A second state frees the values of the first, which a view would go on reading."""
    text = b"V" + b"a" * 2000 + b"\n"
    filled = ARRAY + b"p1\n" + state(b"i1", 2000, text)
    view = b"cnumpy.core.numeric\n_frombuffer\n(g1\n" + TYPE % b"i1" + b"(I2000\ntVC\ntR"
    for order in (view + b".", view + b"g1\n" + state(b"i1", 3, b"Vabc\n") + b"."):
        path = write(tmp_path / "x.pkl", filled + order)
        assert "an array of something other than bytes" in refusal(path)
    path = write(tmp_path / "x.pkl", filled + state(b"i1", 3, b"Vabc\n") + b".")
    assert "an array that is filled twice" in refusal(path)


def test_arrays_cannot_be_written_by_later_opcodes(tmp_path: Path) -> None:
    filled = ARRAY + state(b"i1", 3, b"Vabc\n")
    buffer = b"c_codecs\nencode\n(Vabc\nVlatin1\ntR"
    shared = b"cnumpy.core.numeric\n_frombuffer\n(" + buffer + TYPE % b"i1" + b"(I3\ntVC\ntR"
    for array in (filled, shared):
        found = read_pickle(write(tmp_path / "x.pkl", array + b"."), MEND)
        np.testing.assert_array_equal(found, [97, 98, 99])
        path = write(tmp_path / "x.pkl", array + b"I0\nI5\ns.")
        assert "read-only" in refusal(path)
        path = write(tmp_path / "x.pkl", array + state(b"i1", 1, b"Va\n") + b".")
        assert "an array that is filled twice" in refusal(path)


@pytest.mark.parametrize("code", [b"S0", b"U0", b"f4,f4", b"(2,)f4", b"V8", b"m8", b"f3", b"int8"])
def test_types_other_than_plain_ones_are_refused(tmp_path: Path, code: bytes) -> None:
    path = write(tmp_path / "x.pkl", ARRAY + state(code, 1 << 40, b"V\n") + b".")
    assert refusal(path).startswith("must be a whole pickle, got ")
