"""`pyarrow.csv` reading a HIGGS file to a table of float32, with all its threads.

    python -m tests.benchmarks.peers.arrow FILE

Prints the rows and the seconds of reading alone.
"""

from __future__ import annotations

import sys
import time

import pyarrow
import pyarrow.csv

COLUMNS = [f"c{i}" for i in range(29)]


def main() -> None:
    begun = time.perf_counter()
    table = pyarrow.csv.read_csv(
        sys.argv[1],
        read_options=pyarrow.csv.ReadOptions(column_names=COLUMNS, block_size=1 << 23),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pyarrow.float32() for name in COLUMNS}
        ),
    )
    print(table.num_rows, time.perf_counter() - begun)


if __name__ == "__main__":
    main()
