"""A run in one process, without Ray, has what any other has: progress, checkpoints, and an exact continuation."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.run import open_run
from cluster.training.checkpoint import STATE, whole_checkpoints
from cluster.training.launch import launch
from cluster.training.saving import LocalSaver
from kdcore.errors import Refused, RunFailed
from tests.processes import exit_code_of


def train_to_step_9(config: RunConfig) -> None:
    """Train, and be killed at step 9."""

    def watch(state: dict[str, Any], messages: list[str]) -> None:
        if state.get("step") == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    launch(config, watch)


def train_without_ray(config: RunConfig) -> None:
    """Train where nobody has imported Ray, and whoever does from now on is refused it."""
    assert "ray" not in sys.modules, "one of this project's modules has imported it at its top"
    sys.modules["ray"] = None  # type: ignore[assignment]
    launch(config)


def configure(recipe, tmp_path: Path, name: str, every_steps: int = 1) -> RunConfig:
    """12 steps of 2 epochs, checkpoints every 4, metrics every step or every few, mixed and averaged."""
    return parse(
        recipe(
            scaling__num_workers=0,
            train__ema_decay=0.9,
            views__mixup_alpha=0.4,
            checkpoint__every_steps=4,
            tracking__every_steps=every_steps,
            data__loader="reference",
        )
        | {"output_dir": str(tmp_path / name)}
    )


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(config.run_dir / "student.safetensors")


def test_no_ray_is_needed(recipe, tmp_path):
    """Which takes a second of a run's start."""
    config = configure(recipe, tmp_path, "alone")
    assert exit_code_of(train_without_ray, config) == 0
    assert (config.run_dir / "student.safetensors").is_file()


def test_mlflow_wakes_after_the_first_step(recipe, tmp_path, monkeypatch):
    """Of a run with the store of its output folder; one that the recipe names, which may refuse it, is asked before."""
    opened: list[bool] = []  # whether a step had been taken

    def open_noting(config: RunConfig, *args: Any) -> str:
        opened.append(RunFolder.of(config).metrics.exists() and any(read_journal(RunFolder.of(config).metrics)))
        if tracking_uri(config).startswith("http"):
            raise Refused("a server that refuses")
        return open_run(config, *args)

    monkeypatch.setattr("cluster.training.launch.open_run", open_noting)
    config = configure(recipe, tmp_path, "alone")
    result = launch(config)
    assert opened == [True]
    history = MlflowClient(tracking_uri(config)).get_metric_history(result.mlflow_run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 13))
    elsewhere = parse(config.model_dump(mode="json") | {"name": "elsewhere", "tracking": {"uri": "http://127.0.0.1:9"}})
    with pytest.raises(Refused, match="a server that refuses"):
        launch(elsewhere)
    assert opened == [True, False]


@pytest.mark.parametrize("failing", [True, False])
def test_what_ends_before_its_first_step(recipe, tmp_path, monkeypatch, failing):
    """A failure is a run in MLflow, by its reason; one that was ended by hand is not there."""

    def end(*_: Any) -> None:
        raise RunFailed("no memory") if failing else KeyboardInterrupt

    monkeypatch.setattr("cluster.training.worker.TrainingLoop.step", end)
    config = configure(recipe, tmp_path, "alone")
    with pytest.raises(RunFailed if failing else KeyboardInterrupt):
        launch(config)
    run_id = RunFolder.of(config).read_run_id()
    assert (run_id is not None) == failing
    if run_id is not None:
        run = MlflowClient(tracking_uri(config)).get_run(run_id)
        assert (run.info.status, run.data.tags["error"].endswith("no memory")) == ("FAILED", True)


def test_killed_and_continued(recipe, tmp_path):
    """The checkpoint of step 8 divides what a row of metrics is the mean of."""
    undisturbed, killed = (configure(recipe, tmp_path, name, every_steps=3) for name in ("undisturbed", "killed"))
    launch(undisturbed)
    assert exit_code_of(train_to_step_9, killed) == -signal.SIGKILL
    assert [one.step for one in whole_checkpoints(killed)] == [4, 8]

    said: list[str] = []
    states: list[dict] = []

    def watch(state: dict, messages: list[str]) -> None:
        said.extend(messages)
        states.append(state)

    result = launch(killed, watch)
    assert "continuing at step 8 of 12, workers: 1" in said
    assert [state["step"] for state in states if "step" in state] == [9, 12]
    assert result.steps == 12
    ours, theirs = weights(killed), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert [one.step for one in whole_checkpoints(killed)] == [8, 12]
    means = [
        [
            {name: value for name, value in row.items() if name.startswith("train/") or name == "step"}
            for row in read_journal(config.run_dir / "metrics.jsonl")
            if "train/loss" in row
        ]
        for config in (killed, undisturbed)
    ]
    assert [row["step"] for row in means[0]] == [3, 6, 9, 12]
    assert means[0] == means[1]


def test_killed_after_its_last_step(recipe, tmp_path, monkeypatch):
    """The result has the same metrics as an undisturbed run's, those of its last steps too."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    undisturbed, killed = (configure(recipe, tmp_path, name) for name in ("undisturbed", "killed"))
    theirs = launch(undisturbed).metrics
    with monkeypatch.context() as patched:
        patched.setattr("cluster.training.worker.Recorder.finish", end)
        with pytest.raises(KeyboardInterrupt):
            launch(killed)
    ours = launch(killed).metrics
    assert ours.keys() == theirs.keys()
    assert ours["train/loss"] == theirs["train/loss"]


def test_a_checkpoint_that_was_cut_off_is_not_taken(recipe, tmp_path):
    config = configure(recipe, tmp_path, "run")
    result = launch(config)
    assert result.steps == 12
    (config.run_dir / "step-00000012" / "student.safetensors").unlink()
    assert [one.step for one in whole_checkpoints(config)] == [8]


def test_a_place_that_cannot_be_read_is_refused(recipe, tmp_path):
    (tmp_path / "file").write_text("no folder")
    config = configure(recipe, tmp_path, "run")
    storage = config.checkpoint.model_copy(update={"storage": str(tmp_path / "file" / "below")})
    with pytest.raises(Refused, match=r"checkpoint.storage: the folder .*below.run cannot be made"):
        launch(config.model_copy(update={"checkpoint": storage}))


def test_what_a_kill_has_left_of_old_checkpoints_is_removed_at_the_end(recipe, tmp_path):
    """Its last checkpoint was written, and the removal of older ones had not begun, or had come half way."""
    config = configure(recipe, tmp_path, "killed")
    launch(config)
    names = [one.name for one in sorted(config.run_dir.glob("step-*"))]
    assert names == ["step-00000008", "step-00000012"]
    shutil.copytree(config.run_dir / names[0], config.run_dir / "step-00000004")
    shutil.copytree(config.run_dir / names[0], config.run_dir / "step-00000006")
    (config.run_dir / "step-00000006" / STATE).unlink()
    LocalSaver(SimpleNamespace(config=config)).finish()  # type: ignore[arg-type]
    assert [one.name for one in sorted(config.run_dir.glob("step-*"))] == names
