"""What the README says is typed here, on real data where it is there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

import modmix
from modmix.study import plan, spec

pytestmark = pytest.mark.slow

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("name", ["wikipedia.npz", "handwritten.npz"])
def test_your_own_data(name: str, tmp_path: Path) -> None:
    """The study file of that section, with fewer epochs, seeds and configurations."""
    folder = os.environ.get("MODMIX_TEST_DATA")
    if folder is None or not (Path(folder) / name).exists():
        pytest.skip(f"MODMIX_TEST_DATA has no {name}")
    (text,) = [block for block in blocks("yaml") if block.startswith("study: mine")]
    file = yaml.safe_load(text)
    assert file["task"] == {"name": "arrays", "path": "mine.npz"}
    file["training"]["epochs"], file["seeds"] = 3, 2
    file["parts"]["search"]["search"]["configurations"] = 2
    file["parts"]["beta_curve"]["methods"]["mulmix"]["max_subset"] = 2
    shutil.copy(Path(folder) / name, tmp_path / "mine.npz")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    study = modmix.run(tmp_path / "mine.yaml", runner="local", home=tmp_path / "runs", mlflow=False)
    frame = study.frame()
    assert set(frame["method"]) == {"mul", "mulmix", "base", "late", "add"}
    assert set(frame["n"]) == {2}
    assert frame["test/error/mean"].between(0, 95).all()


def test_searches_that_spend_less(tmp_path: Path) -> None:
    """The settings of that section make a study file together with a name and a task."""
    (text,) = [block for block in blocks("yaml") if block.startswith("replicates:")]
    source = spec.parse("study: s\ntask: digits\n" + text, name="x.yaml", folder=tmp_path)
    (part,) = plan.make(source).parts
    assert set(part.domains) == {"mul", "mulmix"}


def test_the_commands_exist() -> None:
    from typer.main import get_command

    from modmix.cli.main import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"^modmix ([a-z]+)", "\n".join(blocks("sh")), flags=re.MULTILINE))
    assert {"run", "status", "table", "best", "final"} <= named
    assert named <= known


def test_the_variables_exist() -> None:
    source = "\n".join(
        path.read_text() for path in (Path(__file__).parents[2] / "platform").rglob("*.py")
    )
    for name in re.findall(r"`(MODMIX_[A-Z_]+)`", README):
        if name != "MODMIX_TEST_DATA":
            assert name in source, name
