"""Resources of packs: what a study file may say, and what it means for each method."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modmix import api
from modmix.execution.tune_cluster import Needs
from modmix.study import files, spec
from modmix.study.plan import Plan
from modmix.study.spec import MethodResourcesSpec, StudySpec

STUDY = """
study: small
task: digits
resources: {RESOURCES}
parts: {curve: {methods: {mul: {beta: {grid: [0, 1]}}, add: }}}
"""


def check(tmp_path: Path, resources: str) -> tuple[StudySpec | None, list[str]]:
    file = tmp_path / "small.yaml"
    file.write_text(STUDY.replace("RESOURCES", resources))
    found, problems = spec.check(files.read(file))
    return found, [str(problem) for problem in problems]


@pytest.mark.parametrize("gpus", ["0", "0.25", "1", "2", "8.0"])
def test_gpus_that_ray_can_place(tmp_path: Path, gpus: str) -> None:
    found, problems = check(tmp_path, f"gpus: {gpus}")
    assert problems == []
    assert found is not None
    assert found.resources.gpus == float(gpus)


@pytest.mark.parametrize("where", ["gpus: 1.5", "methods: {mul: {gpus: 1.5}}"])
def test_one_and_a_half_devices_are_refused(tmp_path: Path, where: str) -> None:
    _, problems = check(tmp_path, where)
    assert len(problems) == 1
    assert "must be a fraction below 1 or a whole number, got 1.5" in problems[0]


def test_a_method_without_packs_is_refused(tmp_path: Path) -> None:
    _, problems = check(tmp_path, "methods: {mull: {cpus: 2}}")
    assert len(problems) == 1
    assert problems[0].endswith(
        "resources.methods.mull: unknown method 'mull': did you mean 'mul'? (no part trains it)"
    )


def test_a_method_has_the_study_s_values_where_it_has_none(tmp_path: Path) -> None:
    text = "cpus: 2, accelerator_type: H100, methods: {mul: {gpus: 0.5, memory: 3}}"
    found, problems = check(tmp_path, text)
    assert problems == []
    assert found is not None
    common: dict[str, Any] = {"cpus": 2, "accelerator_type": "H100"}
    assert found.resources.of("mul") == MethodResourcesSpec(gpus=0.5, memory=3, **common)
    assert found.resources.of("add") == MethodResourcesSpec(gpus=0, **common)


def test_gpus_of_a_single_method_count(tmp_path: Path) -> None:
    found, _ = check(tmp_path, "methods: {mul: {gpus: 1}}")
    assert found is not None
    assert found.resources.largest_pack == 1024
    plan: Any = SimpleNamespace(spec=found, methods={"mul": "mul", "add": "add"}, name="s")
    assert (Plan.gpus_of(plan, "mul"), Plan.gpus_of(plan, "add")) == (1, 0)
    runner: Any = api._make_runner("local", plan, address=None, workers=None, log=print)
    assert runner._gpus == {"": 0, "mul": 1}


@pytest.mark.parametrize(
    ("needs", "node", "expected"),
    [
        (Needs(), {"CPU": 4.0}, 4),
        (Needs(cpus=1.5), {"CPU": 4.0}, 2),
        (Needs(cpus=0.1), {"CPU": 1.0}, 10),
        (Needs(gpus=0.3), {"CPU": 64.0, "GPU": 4.0}, 12),  # three on each device, not 13 in all
        (Needs(gpus=0.5), {"CPU": 64.0, "GPU": 1.0}, 2),
        (Needs(gpus=2), {"CPU": 64.0, "GPU": 7.0}, 3),
        (Needs(gpus=1), {"CPU": 64.0}, 0),
        (Needs(memory=3e9), {"CPU": 64.0, "memory": 8e9}, 2),
        (Needs(accelerator_type="L4"), {"CPU": 2.0}, 0),
        (Needs(accelerator_type="L4"), {"CPU": 2.0, "accelerator_type:L4": 1.0}, 2),
    ],
)
def test_packs_that_a_node_has_room_for(
    needs: Needs, node: dict[str, float], expected: int
) -> None:
    assert needs.fitting(node) == expected


def test_packs_are_found_by_the_reference_to_an_own_class(tmp_path: Path) -> None:
    """A study file gives it a name; packs do not know that."""
    found, _ = check(tmp_path, "cpus: 2, methods: {mul: {gpus: 0.5, memory: 3}}")
    plan: Any = SimpleNamespace(spec=found, methods={"mul": "own.py:Gate@1", "add": "add"})
    assert api._needs(plan) == {
        "": Needs(cpus=2),
        "own.py:Gate@1": Needs(cpus=2, gpus=0.5, memory=3e9),
    }


def test_needs_as_people_read_them() -> None:
    assert str(Needs()) == "1 CPU"
    all_of_it = Needs(cpus=2, gpus=0.5, memory=3e9, accelerator_type="L4")
    assert str(all_of_it) == "2 CPUs, 0.5 GPUs, 3 GB of memory and a device of type L4"
    assert str(Needs(gpus=1)) == "1 CPU and 1 GPU"
