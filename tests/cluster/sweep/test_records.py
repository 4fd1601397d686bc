"""How a sweep's trials ended, as MLflow has it: once, at its time, whatever became of their runs there."""

import mlflow
import pytest

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.sweep.journal import Trial
from cluster.sweep.space import parent_of
from cluster.sweep.tracking import SweepRecord
from cluster.tracking.folder import RunFolder
from cluster.tracking.run import open_run
from tests.cluster.sweep.conftest import sweep

LONG_AGO = 1000  # an end time, in milliseconds


@pytest.fixture
def record(recipe, store) -> SweepRecord:
    """The record of a sweep that has begun."""
    return SweepRecord(parent_of(parse(recipe(tracking__uri=store)), sweep()), sweep(), "python -m ops sweep x")


def trial(number: int, end: str | None, reason: str = "") -> Trial:
    return Trial(f"{number:03d}-seed0", number, {"temperature": 1}, 0, end=end, reason=reason)


def config_of(record: SweepRecord, one: Trial) -> RunConfig:
    return record.parent.model_copy(update={"name": f"s-{one.name}", "output_dir": str(record.parent.run_dir)})


def run_of(record: SweepRecord, one: Trial) -> mlflow.entities.Run:
    run_id = RunFolder.of(config_of(record, one)).read_run_id()
    assert run_id is not None
    return record.client.get_run(run_id)


def finish(record: SweepRecord, *trials: Trial) -> None:
    record.finish_runs(trials, lambda one: config_of(record, one))


def test_a_run_that_was_deleted_keeps_no_other_back(record, caplog):
    """It is named; the others are written, at the sweep's end and where that is interrupted."""
    deleted, other, going_on = trial(0, "lost", "its node is gone"), trial(1, "finished"), trial(2, None)
    record.record_end({}, deleted)
    open_run(config_of(record, going_on), "", record.tags(going_on))
    for one in (deleted, going_on):
        record.client.delete_run(run_of(record, one).info.run_id)
    finish(record, deleted, other)
    record.mark_interrupted([going_on])
    assert "the run of 000-seed0 was deleted in MLflow" in caplog.text
    assert run_of(record, other).data.tags["sweep.decision"] == "finished"


@pytest.mark.parametrize("is_left", [False, True])
def test_a_trial_ends_once(is_left, record):
    """When the sweep decides, not when the sweep ends, whether or not the run has something left to deliver."""
    stopped = trial(0, "stopped", "below the median")
    config = config_of(record, stopped)
    open_run(config, "", record.tags(stopped))
    record.record_end({}, stopped)
    assert run_of(record, stopped).info.status == "KILLED"
    record.client.set_terminated(run_of(record, stopped).info.run_id, "KILLED", end_time=LONG_AGO)
    if not is_left:
        RunFolder.of(config).outbox.unlink()
    finish(record, stopped)
    assert run_of(record, stopped).info.end_time == LONG_AGO
    assert run_of(record, stopped).data.tags["sweep.decision"] == "below the median"
    assert not RunFolder.of(config).outbox.exists()


def test_a_retried_trial_keeps_no_error(record):
    retried = trial(0, "failed", "out of memory")
    record.record_end({}, retried)
    assert run_of(record, retried).data.tags["sweep.error"] == "out of memory"
    retried.end, retried.reason = "finished", ""
    record.record_end({}, retried)
    tags = run_of(record, retried).data.tags
    assert (tags["sweep.decision"], "sweep.error" in tags) == ("finished", False)


def test_what_a_finished_trial_has_kept_back_is_delivered(record):
    """Its tracker was away when it ended; the sweep's own end, or its command, brings it up to date."""
    finished = trial(0, "finished")
    folder = RunFolder.of(config_of(record, finished))
    open_run(config_of(record, finished), "", record.tags(finished))
    folder.outbox.write_text("FINISHED")
    finish(record, finished)
    assert run_of(record, finished).info.status == "FINISHED"
    assert not folder.outbox.exists()
