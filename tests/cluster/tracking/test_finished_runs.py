"""A run's end in its trackers, whatever cut it off between its result and that."""

import errno
import re
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from cluster.sweep.runs import open_trial
from cluster.tracking import delivery, mlflow_tracker
from cluster.tracking import run as tracking
from cluster.tracking.delivery import deliver_all, deliver_rest
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_tracker import MlflowTracker, tracking_uri
from cluster.tracking.run import RunLog, close_run, open_run
from cluster.tracking.tracker import Tracker
from cluster.training.launch import launch
from kdcore.errors import Refused
from pipelines.files import write_text

FINISHING = {
    "the same command": lambda config: launch(config),
    "the sweep of its trial": lambda config: open_trial(
        SimpleNamespace(config=config.model_dump(mode="json")), {}, None
    ),
    "deliver": lambda config: deliver_all(config.run_dir.parent),
}


@pytest.mark.parametrize("by", FINISHING)
def test_cut_off_between_its_result_and_its_end(by, config, monkeypatch):
    """Killed once the folder says that the run is finished: MLflow hears of it, and has its student, all the same."""
    RunFolder.of(config).claim(config)
    open_run(config, "")
    RunLog(config, first_step=0).close()
    RunFolder.of(config).weights.touch()
    result = {"name": "run", "run_dir": "", "mlflow_run_id": RunFolder.of(config).read_run_id(), "metrics": {}}
    result |= {"steps": 1, "train_seconds": 1.0, "images_per_second": 1.0, "wall_seconds": 1.0}

    def be_killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tracking, "deliver", be_killed)
        with pytest.raises(KeyboardInterrupt):
            close_run(config, "FINISHED", result)
    assert RunFolder.of(config).state() == "finished"
    FINISHING[by](config)
    run = mlflow.MlflowClient(tracking_uri(config)).get_run(result["mlflow_run_id"])
    assert (run.info.status, "student.model" in run.data.tags) == ("FINISHED", True)
    assert not RunFolder.of(config).outbox.exists()


def test_a_finished_run_has_its_result_whatever_its_store_says(config, monkeypatch, caplog):
    """What was kept back for a store that is damaged, or gone, is kept on."""

    def fail(config: Any) -> dict[Tracker, Exception]:
        return {MlflowTracker(config): ConnectionError("no route")}

    write_text(RunFolder.of(config).outbox, "FINISHED")
    monkeypatch.setattr(delivery, "deliver", fail)
    deliver_rest(config)
    assert "does not answer (no route); the metrics of" in caplog.text
    assert RunFolder.of(config).outbox.exists()


@pytest.fixture
def kept_back(tmp_path, monkeypatch):
    """A function that delivers runs of these names and stores by another function, and gives who was asked for."""

    def deliver_by(function, **stores: str) -> tuple[str, list[str]]:
        asked = []

        def deliver_one(config: Any) -> dict[Tracker, Exception]:
            asked.append(config.name)
            try:
                function(config)
            except ConnectionError as error:
                return {MlflowTracker(config): error}
            (tmp_path / config.name / "outbox").unlink()
            return {}

        for name in stores:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "outbox").write_text("FINISHED")
        monkeypatch.setattr(delivery, "deliver", deliver_one)
        for module in (delivery, mlflow_tracker):
            monkeypatch.setattr(module, "tracking_uri", lambda config: stores[config.name])
        monkeypatch.setattr(delivery, "config_to_deliver", lambda folder: SimpleNamespace(name=folder.path.name))
        monkeypatch.setattr(delivery.RunFolder, "of", lambda config: RunFolder(tmp_path / config.name))
        with pytest.raises(Refused) as told:
            deliver_all(tmp_path)
        return str(told.value), asked

    return deliver_by


def test_a_run_that_cannot_be_delivered_keeps_no_other_back(kept_back):
    """Be it refused, or another user's; a store that does not answer is waited for once."""

    def one(config: Any) -> None:
        if config.name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", "a/outbox")
        if config.name == "b":
            raise Refused("no such run")
        if config.name in ("c", "d"):
            raise ConnectionError("no route")

    said, asked = kept_back(one, a="one", b="one", c="two", d="two", e="one")
    assert asked == ["a", "b", "c", "e"]
    assert re.search(r"/a cannot be delivered \(Permission denied: a/outbox\); let the owner of the run do so", said)
    assert said.endswith("; also not delivered: b, c, d; still delivered: e")


def test_a_run_that_goes_on_has_no_end(config):
    """One that was kept back, as the server was away, would else be delivered while it trains."""
    write_text(RunFolder.of(config).outbox, "KILLED")
    open_run(config, "")
    assert RunFolder.of(config).ended_as() == ""
