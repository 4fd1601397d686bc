"""Runs that one store of MLflow has."""

import mlflow
import pytest

from cluster.recipe import parse


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """One store for all: making one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_experiment("stillhouse", artifact_location=(folder / "artifacts").as_uri())
    return client.tracking_uri


@pytest.fixture
def config(recipe, store):
    return parse(recipe(tracking__uri=store))
