"""Runs that one store of MLflow has, and a switch that takes it away."""

import pytest

from cluster.recipe.reading import parse
from cluster.tracking import run as tracking
from cluster.tracking.mlflow_tracker import MlflowTracker


@pytest.fixture
def config(recipe, store):
    return parse(recipe(tracking__uri=store))


@pytest.fixture
def away(monkeypatch):
    """A switch: while `away.on`, every request to MLflow fails as it does without a network."""

    class Switch:
        on = False

    switch = Switch()
    send = MlflowTracker.send

    def maybe(self, rows):
        if switch.on:
            raise ConnectionError("no route")
        send(self, rows)

    monkeypatch.setattr(MlflowTracker, "send", maybe)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.05)
    return switch
