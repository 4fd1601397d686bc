"""A real MLflow server that is stopped while runs go on: at the end it has every metric of every step, once."""

import pytest

from cluster.recipe.reading import parse
from cluster.tracking import run as tracking
from cluster.tracking.delivery import deliver_all
from cluster.tracking.folder import RunFolder
from cluster.tracking.run import RunLog
from cluster.training.launch import launch
from tests.cluster.servers import MlflowServer, is_complete

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = MlflowServer(tmp_path_factory.mktemp("server"))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def hooked(monkeypatch):
    """A function that has something done right after the metrics of a step are logged."""
    actions = {}
    real = RunLog.log

    def log(self, step, metrics):
        real(self, step, metrics)
        if "train/loss" in metrics and step in actions:
            actions.pop(step)()

    monkeypatch.setattr(RunLog, "log", log)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 30.0)
    return actions


def small(recipe, server, **changes):
    every = {"tracking__every_steps": 1, "scaling__num_workers": 0, "tracking__uri": server.uri}
    return parse(recipe(train__epochs=6, **every, **changes))


def test_stopped_and_started_in_mid_run(server, hooked, recipe):
    """Steps 6 to 24 of 36 are trained without the server."""
    config = small(recipe, server)
    hooked.update({5: server.stop, 24: server.start})
    result = launch(config)
    assert not hooked
    assert is_complete(config, result.mlflow_run_id)
    assert not RunFolder.of(config).outbox.exists()


def test_still_away_at_the_end(server, hooked, recipe, monkeypatch):
    """The run ends and says so; the next command that looks at its folder delivers the rest."""
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.5)
    config = small(recipe, server, name="late")
    hooked[10] = server.stop
    result = launch(config)
    assert result.steps == 36
    assert RunFolder.of(config).outbox.read_text() == "FINISHED"
    server.start()
    assert deliver_all(config.run_dir.parent) == ["late"]
    assert is_complete(config, result.mlflow_run_id)
