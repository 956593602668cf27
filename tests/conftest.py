"""Options of the whole suite."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu-paths",
        action="store_true",
        help="train on the processor by the branches that a GPU takes (MODMIX_FORCE_GPU_PATHS=1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # It sets what Ray reads when it is imported, which any module of tests may do first.
    import modmix.execution.tune_cluster  # noqa: F401

    if config.getoption("--gpu-paths"):
        os.environ["MODMIX_FORCE_GPU_PATHS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that none is left for one process at the end; otherwise in order."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies of this process end without figures and tables, two thirds of a small one's time."""
    monkeypatch.setattr("modmix.analysis.report.write_all", lambda *_: None)
