"""Real MLflow stores for the tests of the mirror and the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_bench import Bench, Server, copy_database
from modmix.tracking.store import Store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database: making one takes more than a second."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Store(f"sqlite:///{path}")
    return path


@pytest.fixture
def bench(tmp_path: Path, empty_database: Path) -> Bench:
    made = Bench(tmp_path / "home")
    copy_database(empty_database, made.home.path / "mlflow.db")
    return made


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    copy_database(empty_database, folder / "server.db")
    made = Server(folder)
    made.start()
    yield made
    made.stop()
