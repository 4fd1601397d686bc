"""How a run ends that is not to its liking: what MLflow and the folder say of it, and that nothing of it goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.run import RunLog
from cluster.training.launch import launch
from cluster.training.loop import TrainingLoop
from kdcore.errors import Refused, RunFailed
from tests.wheel import ROOT


@pytest.fixture
def alone(recipe) -> dict[str, Any]:
    """12 steps of 2 epochs in this process, with all that is recorded by default."""
    found: dict[str, Any] = recipe(scaling__num_workers=0, data__loader="reference")
    del found["tracking"]
    return found


def mlflow_run(config: RunConfig) -> Any:
    run_id = RunFolder.of(config).read_run_id()
    assert run_id is not None
    return MlflowClient(tracking_uri(config)).get_run(run_id)


def test_a_fresh_process_with_everything_by_default(alone, tmp_path: Path) -> None:
    """Nothing has imported MLflow there: the run's entry and the machine's sampler want it at the same time."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(alone))
    command = [sys.executable, "-m", "ops", "train", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert mlflow_run(parse(alone)).info.status == "FINISHED"


def test_a_fault_on_the_way(alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is FAILED by its reason, and the threads of its log are gone."""
    take = TrainingLoop.step

    def step(self: TrainingLoop, *args: Any) -> Any:
        if self.state.step == 10:
            raise IndexError("a term of one's own")
        return take(self, *args)

    monkeypatch.setattr(TrainingLoop, "step", step)
    config, before = parse(alone), set(threading.enumerate())
    with pytest.raises(IndexError):
        launch(config)
    run, said = mlflow_run(config), "IndexError: a term of one's own (rank 0, step 11 of 12)"
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", said)
    assert RunFolder.of(config).error.read_text() == said
    left = set(threading.enumerate()) - before
    assert not {thread.name for thread in left} & {"tracking", "machine"}
    monkeypatch.undo()
    launch(config)
    assert mlflow_run(config).info.status == "FINISHED"


def test_what_is_refused_on_the_way_has_failed(alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with workers: the run is under way by then."""

    def save(*_: Any) -> None:
        raise Refused("step-00000006 cannot be written (no space)")

    monkeypatch.setattr("cluster.training.saving.LocalSaver.save", save)
    config = parse(alone)
    said = "rank 0, step 7 of 12: step-00000006 cannot be written (no space)"
    with pytest.raises(RunFailed) as caught:
        launch(config)
    assert str(caught.value) == said
    assert RunFolder.of(config).error.read_text() == said
    assert mlflow_run(config).data.tags["error"] == said


@pytest.mark.parametrize("is_continued", [False, True])
def test_what_is_refused_after_the_last_step_has_failed(alone, monkeypatch: pytest.MonkeyPatch, is_continued) -> None:
    """Deployed weights that cannot be written; of a run continued there, the validation."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    def refuse(*_: Any) -> None:
        raise Refused("photo 3 is gone")

    config, failed = parse(alone), []
    if is_continued:
        with monkeypatch.context() as patched:
            patched.setattr("cluster.training.worker.Recorder.finish", end)
            with pytest.raises(KeyboardInterrupt):
                launch(config)
        monkeypatch.setattr("cluster.training.worker.Validation.evaluate", refuse)
    else:
        RunFolder.of(config).weights.mkdir(parents=True)
    monkeypatch.setattr("cluster.training.worker.Reporter.fail", lambda reporter: failed.append(reporter.rank))
    what = "photo 3 is gone" if is_continued else r"\S+student\.safetensors"
    with pytest.raises(RunFailed, match=f"^rank 0, after step 12 of 12: {what}") as caught:
        launch(config)
    assert RunFolder.of(config).error.read_text() == str(caught.value)
    assert failed == [0]


@pytest.mark.parametrize("noticed", ["while it trains", "at its end"])
def test_a_store_that_refuses_a_run_under_way_has_failed_it(
    alone, noticed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By one sentence, said once, whenever it is noticed."""
    ending, begin, end = threading.Event(), RunLog.begin, RunLog._end

    def refuse(*_: Any) -> str:
        if noticed == "at its end":
            ending.wait(60)
        raise Refused("the store is damaged; restore the file")

    def begin_and_wait(log: RunLog) -> None:
        begin(log)
        if noticed == "while it trains":
            log.thread.join(60)

    def note_end(log: RunLog) -> None:
        ending.set()
        end(log)

    monkeypatch.setattr("cluster.training.launch.open_run", refuse)
    monkeypatch.setattr(RunLog, "begin", begin_and_wait)
    monkeypatch.setattr(RunLog, "_end", note_end)
    config = parse(alone)
    with pytest.raises(RunFailed, match=r"^the store is damaged; restore the file$"):
        launch(config)
    folder = RunFolder.of(config)
    assert folder.error.read_text() == "the store is damaged; restore the file"
    assert folder.weights.exists() == (noticed == "at its end")
    assert "damaged" not in caplog.text


def test_a_damaged_store_does_not_hide_why_a_run_failed(alone, caplog: pytest.LogCaptureFixture) -> None:
    config = parse(alone | {"optimizer": {"opt": "sgd", "lr": 1e30}})
    Path(config.output_dir).mkdir()
    (Path(config.output_dir) / "mlflow.db").write_text("no database, but long enough to be taken for one" * 100)
    with pytest.raises(RunFailed, match="not finite"):
        launch(config)
    assert "not finite" in RunFolder.of(config).error.read_text()
    assert "is damaged" in caplog.text


def test_a_continued_run_that_mlflow_has_lost(alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before it trains, with what to do: then it is a new run there, which has all of its metrics."""
    config = parse(alone)

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cluster.training.worker.Validation.evaluate", end)  # at the end of the first epoch
        with pytest.raises(KeyboardInterrupt):
            launch(config)
    lost = "0123456789abcdef" * 2
    RunFolder.of(config).run_id.write_text(lost)
    with pytest.raises(Refused, match=f"{lost} not found.*delete .*mlflow_run_id"):
        launch(config)
    RunFolder.of(config).run_id.unlink()
    result = launch(config)
    history = MlflowClient(tracking_uri(config)).get_metric_history(result.mlflow_run_id, "train/loss")
    assert result.steps == 12
    assert [point.step for point in history] == [
        row["step"] for row in read_journal(RunFolder.of(config).metrics) if "train/loss" in row
    ]


def test_the_gradients_norm_is_a_mean_over_the_steps_of_its_interval(recipe) -> None:
    """Also where a validation came in between."""
    norms: dict[int, dict[int, float]] = {}
    for every in (1, 4):
        config = parse(
            recipe(scaling__num_workers=0, data__loader="reference", tracking__every_steps=every)
            | {"name": f"every-{every}"}
        )
        launch(config)
        rows = read_journal(RunFolder.of(config).metrics)
        norms[every] = {row["step"]: row["train/gradient_norm"] for row in rows if "train/gradient_norm" in row}
    assert set(norms[4]) == {4, 8, 12}
    for step, norm in norms[4].items():
        assert norm == pytest.approx(sum(norms[1][one] for one in range(step - 3, step + 1)) / 4)


def test_the_gradients_norm_leaves_out_the_steps_that_are_left_out(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the loss does; they counted as a norm of 0."""
    clip, norms = TrainingLoop.clip_gradient, []

    def clip_gradient(loop: TrainingLoop) -> Any:
        norms.append(clip(loop) if loop.state.step in (1, 2) else torch.tensor(float("nan")))
        return norms[-1]

    monkeypatch.setattr(TrainingLoop, "clip_gradient", clip_gradient)
    changes = {"train__on_nonfinite": "skip", "train__max_skipped": 1.0, "tracking__every_steps": 4}
    config = parse(recipe(scaling__num_workers=0, data__loader="reference", **changes))
    launch(config)
    logged = [row["train/gradient_norm"] for row in read_journal(RunFolder.of(config).metrics) if "train/lr" in row]
    assert logged == [pytest.approx(float(norms[1] + norms[2]) / 2), 0, 0]


def test_the_rate_that_is_logged_is_the_schedules(recipe) -> None:
    """The first layer has a small share of it."""
    decayed = {"opt": "adamw", "lr": 1e-3, "args": {"layer_decay": 0.5}}
    own = {"scaling__num_workers": 0, "data__loader": "reference", "train__max_steps": 1, "optimizer": decayed}
    student = {"model": "test_efficientnet"}
    config = parse(recipe(**own, student=student, schedule={"sched": "constant"}))
    assert launch(config).metrics["train/lr"] == 1e-3
