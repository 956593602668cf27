"""The invented file of HIGGS's layout."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.tasks.higgs import COLUMNS
from tests.benchmarks import higgs_synthetic
from tests.benchmarks.higgs_synthetic import BLOCK_ROWS, main, write_file

NUMBER = re.compile(rb"-?\d\.\d{18}e[+-]\d\d")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("higgs") / "small.csv"
    write_file(path, 3000, seed=1, processes=1)
    return path


def table(path: Path) -> np.ndarray[Any, Any]:
    return np.loadtxt(path, delimiter=",")


def test_it_is_written_as_the_real_file_is(file: Path) -> None:
    lines = file.read_bytes().splitlines()
    assert len(lines) == 3000
    for line in lines[::100]:
        fields = line.split(b",")
        assert len(fields) == COLUMNS
        assert all(NUMBER.fullmatch(field) for field in fields), line
        assert fields[0] in (b"0.000000000000000000e+00", b"1.000000000000000000e+00")
        # Every number is one of float32, in full.
        assert [f"{np.float32(field):.18e}".encode() for field in fields] == fields


def test_the_bytes_depend_on_rows_and_seed_alone(tmp_path: Path) -> None:
    rows = BLOCK_ROWS + 17
    for name, processes in (("one.csv", 1), ("two.csv", 2), ("two.csv.gz", 2)):
        write_file(tmp_path / name, rows, seed=3, processes=processes)
    one = (tmp_path / "one.csv").read_bytes()
    assert one.count(b"\n") == rows
    assert (tmp_path / "two.csv").read_bytes() == one
    assert gzip.decompress((tmp_path / "two.csv.gz").read_bytes()) == one
    write_file(tmp_path / "other.csv", rows, seed=4)
    assert (tmp_path / "other.csv").read_bytes() != one


def test_masses_are_those_of_the_particles(file: Path) -> None:
    """m_jj, m_bb and m_wwbb from four-momenta, up to a constant and to the steps of the columns."""
    rows = table(file)
    angle = np.pi / 1.7427

    def vectors(momentum: int, direction: int | None, phi: int) -> Any:
        p, f = rows[:, momentum], rows[:, phi] * angle
        eta = np.zeros(len(rows)) if direction is None else rows[:, direction]
        return np.stack([p * np.cosh(eta), p * np.cos(f), p * np.sin(f), p * np.sinh(eta)])

    lepton, missing = vectors(1, 2, 3), vectors(4, None, 5)
    jets = [vectors(6 + 4 * i, 7 + 4 * i, 8 + 4 * i) for i in range(4)]

    def mass(*particles: Any) -> Any:
        e, x, y, z = sum(particles)
        return np.sqrt(np.maximum(e**2 - x**2 - y**2 - z**2, 0))

    for column, expected in (
        (22, mass(jets[2], jets[3])),
        (26, mass(jets[0], jets[1])),
        (28, mass(lepton, missing, *jets)),
    ):
        inside = (rows[:, column] > 0.1) & (rows[:, column] < 11.9)
        ratio = expected[inside] / rows[inside, column]
        assert inside.mean() > 0.9
        assert np.quantile(ratio, [0.01, 0.99]) == pytest.approx(np.median(ratio), rel=0.02)


def test_there_is_something_to_learn(file: Path) -> None:
    """Signal has a peak in the mass of two jets; both classes are there in the official shares."""
    rows = table(file)
    is_signal = rows[:, 0] == 1
    assert is_signal.mean() == pytest.approx(0.53, abs=0.03)
    peak = np.abs(rows[:, 26] - np.median(rows[is_signal, 26])) < 0.1
    assert peak[is_signal].mean() > 2 * peak[~is_signal].mean()
    assert np.abs(rows[:, 1:].mean(0)).max() < 3
    assert rows[:, 1:].std(0).min() > 0.2


def test_whoever_sees_it_sees_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "h.csv"
    path.write_text("what was there before")

    def fail(*_: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(higgs_synthetic, "make_block", fail)
    with pytest.raises(SystemExit, match="No space left on device: free some space"):
        main([str(path), "--rows", "100", "--processes", "1"])
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path / "h.csv.gz"), "--rows", "50"])
    assert "50 rows" in capsys.readouterr().out
    assert len(gzip.decompress((tmp_path / "h.csv.gz").read_bytes()).splitlines()) == 50
    for wrong in (["h.txt"], ["h.csv", "--rows", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
