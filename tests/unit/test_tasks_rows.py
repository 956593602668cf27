"""Rows that are kept for a second pass, in memory and in a file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from modmix.tasks.rows import RowStore


@pytest.mark.parametrize("chunks_in_memory", [0, 1, 3, 100])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 61])
def test_rows_come_back_in_chunks_wherever_they_are(
    rows: int, chunks_in_memory: int, tmp_path: Path
) -> None:
    values = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    spill = tmp_path / "rows"
    with RowStore(spill, 3, 4, most_bytes=chunks_in_memory * 4 * 3 * 4) as store:
        at = 0
        for size in [0, 1, 2, 3, 5, 8, 13, 21, 34]:  # pieces that do not fit the chunks
            store.append(values[at : at + size])
            at += size
        store.written()
        assert store.rows == rows
        in_file = max(0, rows - 4 * chunks_in_memory)
        assert spill.stat().st_size == in_file * 3 * 4
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(store.chunk, range(-(-rows // 4))))
    assert [len(chunk) for chunk in found] == [min(4, rows - i) for i in range(0, rows, 4)]
    if rows:
        np.testing.assert_array_equal(np.concatenate(found), values)
    assert not spill.exists()


def test_the_file_goes_with_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with RowStore(tmp_path / "rows", 2, 4, most_bytes=0) as store:
            store.append(np.zeros((9, 2), np.float32))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
