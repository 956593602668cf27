"""Figures are the same whatever the environment says about matplotlib."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRAW = """
import hashlib, os, sys
from modmix.analysis.style import new_figure, styled, to_bytes
with styled():
    figure = new_figure(2.0)
    figure.subplots().plot([1, 2], [3, 1], label="β")
for form in ("png", "svg"):
    print(hashlib.sha256(to_bytes(figure, form)).hexdigest())
print(os.environ.get("MPLBACKEND"), type(figure.canvas).__name__)
"""
RC = "backend: module://nowhere\ntext.usetex: True\nsavefig.bbox: tight\nlines.linewidth: 9\n"


def draw(folder: Path, **environment: str) -> tuple[list[str], str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "MATPLOTLIBRC")}
    done = subprocess.run(
        [sys.executable, "-c", DRAW],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**inherited, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@pytest.mark.slow
def test_figures_are_drawn_with_agg_whatever_is_left_in_the_environment(tmp_path: Path) -> None:
    *plain, backend, canvas = draw(tmp_path)[0]
    assert (backend, canvas) == ("None", "FigureCanvasAgg")
    (tmp_path / "matplotlibrc").write_text(RC)
    (tmp_path / "file").touch()
    wanted = "module://matplotlib_inline.backend_inline"
    for name in (wanted, "qtagg"):
        (*found, backend, canvas), errors = draw(
            tmp_path, MPLBACKEND=name, MPLCONFIGDIR=str(tmp_path / "file")
        )
        assert found == plain
        assert (backend, canvas) == (name, "FigureCanvasAgg")  # the next program finds it as it was
        assert errors == ""
