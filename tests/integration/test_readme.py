"""What the README shows is run here, on real data where it is there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import modmix

pytestmark = pytest.mark.slow

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str, beginning: str) -> str:
    """The only block in this language that begins so."""
    found = re.findall(rf"```{language}\n({re.escape(beginning)}.*?)```", README, flags=re.DOTALL)
    (text,) = found
    return str(text)


def run(file: dict[str, Any], folder: Path) -> modmix.Study:
    (folder / "study.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    path = folder / "study.yaml"
    return modmix.run(path, runner="local", home=folder / "runs", mlflow=False)


@pytest.mark.parametrize("name", ["wikipedia.npz", "handwritten.npz"])
def test_your_own_data(name: str, tmp_path: Path) -> None:
    """The study file of that section, with fewer epochs, seeds and configurations."""
    data = os.environ.get("MODMIX_TEST_DATA")
    if data is None or not (Path(data) / name).exists():
        pytest.skip(f"MODMIX_TEST_DATA has no {name}")
    file = yaml.safe_load(block("yaml", "study: mine"))
    assert file["task"] == {"name": "arrays", "path": "mine.npz"}
    file["training"]["epochs"], file["seeds"] = 3, 2
    file["parts"]["search"]["search"]["configurations"] = 2
    file["parts"]["beta_curve"]["methods"]["mulmix"]["max_subset"] = 2
    shutil.copy(Path(data) / name, tmp_path / "mine.npz")
    frame = run(file, tmp_path).frame()
    assert set(frame["method"]) == {"mul", "mulmix", "base", "late", "add"}
    assert set(frame["n"]) == {2}
    assert frame["test/error/mean"].between(0, 95).all()


def test_an_array_per_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the section's code writes is one that its study file reads."""
    draws = np.random.default_rng(0)
    labels = np.arange(300) % 3
    names = {
        "image": draws.normal(labels[:, None], 0.1, (300, 128)),
        "text": draws.normal(labels[:, None], 0.1, (300, 10)),
        "labels": labels,
    }
    monkeypatch.chdir(tmp_path)
    exec(block("python", "import numpy as np\nnp.savez"), dict(names))
    file = yaml.safe_load(block("yaml", "study: mine"))
    file["parts"] = {"others": file["parts"]["others"]}
    file["seeds"], file["training"]["learning_rate"] = 1, 0.01
    frame = run(file, tmp_path).frame()
    assert set(frame["modality"].dropna()) == {"image", "text"}
    assert (frame["test/error/mean"] == 0).all()  # classes ten deviations apart


def test_your_own_method(tmp_path: Path) -> None:
    (tmp_path / "my_sum.py").write_text(block("python", "# my_sum.py"))
    file = yaml.safe_load(block("yaml", "study: compare"))
    file["task"], file["seeds"] = {"name": "digits", "train_rows": 300}, 2
    file["training"] = {"learning_rate": 0.01}
    frame = run(file, tmp_path).frame()
    assert sorted(frame["method"]) == ["add", "mulmix", "my_sum", "my_sum"]
    assert (frame["test/error/mean"] < 15).all()
