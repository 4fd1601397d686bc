"""Shared by the tests of cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.machines import Machines


@pytest.fixture(scope="session")
def nodes(worker_executable: str) -> Iterator[Machines]:
    """Two nodes with room for two workers each; a dead node is noticed within seconds. Its tests come last of all."""
    from tests.cluster.machines import cluster_of  # only here: it imports Ray

    with cluster_of(2, py_executable=worker_executable) as machines:
        yield machines


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all: making one takes seconds."""
    import mlflow  # only here: it takes seconds, too

    folder = tmp_path_factory.mktemp("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_experiment("stillhouse", artifact_location=(folder / "artifacts").as_uri())
    uri: str = client.tracking_uri
    return uri
