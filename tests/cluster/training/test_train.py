"""Whole runs through Ray Train: same samples and losses on 1 and 2 workers, the same bits in a run that failed once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import safetensors.torch
import torch

from cluster.assembly import assemble
from cluster.passes import evaluate
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.training.board import open_board
from cluster.training.launch import RunResult, launch
from kdcore.configs import ModelConfig
from kdcore.errors import Refused, RunFailed
from kdcore.models import build_model
from tests.cluster.runs import same_bits
from tests.conftest import small_recipe, write_image_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MIXED = {
    "views__mixup_alpha": 0.4,
    "views__cutmix_alpha": 1.0,
    "views__erase_probability": 0.25,
    "views__auto_augment": "rand-m9-mstd0.5-inc1",
    "views__repeats": 2,
    "train__ema_decay": 0.9,
    "train__clip_norm": 5.0,
}


def records(run_dir: str) -> dict[tuple[int, int], dict]:
    """{(step, micro-batch): what was recorded}, over all ranks."""
    rows = [
        json.loads(line) for path in Path(run_dir).glob("batches-*.jsonl") for line in path.read_text().splitlines()
    ]
    return {(row["step"], row["micro_batch"]): row for row in rows}


def weights(run_dir: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(run_dir) / "student.safetensors")


METHOD = [
    {"term": "ce", "weight": 0.5},
    {"term": "kd", "weight": 0.5, "temperature": 4.0},
    {"term": "feature_mse", "weight": 1.0, "pairs": [{"student": "layer2", "teacher": "layer2"}]},
]


@pytest.fixture(scope="module")
def configure(tmp_path_factory) -> Callable[..., RunConfig]:
    """A function that gives the configuration of a run of a name and a number of workers, with a teacher, on 48
    pictures of the module's own, which a test may break, and one validation image a class."""
    folder = tmp_path_factory.mktemp("train")
    root = write_image_folder(folder / "fragile", val=1)
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(model.state_dict(), folder / "teacher.safetensors")
    teacher = {"model": "cifar_resnet8", "checkpoint": str(folder / "teacher.safetensors")}
    changes = {"checkpoint__every_steps": 1, "scaling__max_failures": 2, "tracking__record_batches": True, **MIXED}

    def make(name: str, num_workers: int, **more: Any) -> RunConfig:
        scaled = {"name": name, "scaling__num_workers": num_workers, "teacher": teacher, "method": METHOD}
        return parse(small_recipe(root, folder / "out", **scaled, **changes, **more))

    return make


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, configure) -> RunResult:
    return launch(configure("undisturbed", 2))


def test_one_worker_and_two(configure, undisturbed):
    """1 and 2 workers see the same samples in the same global batches, with losses equal to rounding.

    Begun in one process, without Ray, and continued by a worker.
    """
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        launch(configure("alone", 0), watch=interrupt_at_step(4))
    alone = launch(configure("alone", 1), watch=lambda state, messages: heard.extend(messages))
    assert "continuing at step 3 of 12, workers: 1" in heard
    one, two = records(alone.run_dir), records(undisturbed.run_dir)
    assert len(one) == 2 * 6 * 2  # epochs x steps x micro-batches
    assert one.keys() == two.keys()
    for place, row in one.items():
        assert (row["views"], row["sample_ids"]) == (two[place]["views"], two[place]["sample_ids"])
        assert row["loss"] == pytest.approx(two[place]["loss"], rel=2e-4)
    for epoch in range(2):
        rows = [row for (step, _), row in one.items() if step // 6 == epoch]
        seen = [pair for row in rows for pair in zip(row["sample_ids"], row["views"], strict=True)]
        assert len(set(seen)) == 48
        assert {one for one, _ in seen} == {one for one, view in seen if view == 2 * epoch}, "each in both views"
        assert {view for _, view in seen} == {2 * epoch, 2 * epoch + 1}
    other = weights(undisturbed.run_dir)
    for name, tensor in weights(alone.run_dir).items():  # and batch norm's running statistics, of all micro-batches
        torch.testing.assert_close(tensor.float(), other[name].float(), rtol=1e-3, atol=1e-4)


def interrupt_at_step(step: int) -> Callable[[dict[str, Any], list[str]], None]:
    def watch(state: dict[str, Any], messages: list[str]) -> None:
        if state.get("step") == step:
            raise KeyboardInterrupt

    return watch


def test_failure_and_continuation(configure, undisturbed, tmp_path):
    """A file that breaks in the middle of a run ends it: the run may fail twice, but not for what would fail a third
    time, and the line says where, and which file. Mended, the same command goes on from the last step checkpoint, in
    mid-epoch, to the very bits of an undisturbed run. The checkpoints lie behind a URI."""
    config = configure("disturbed", 2, checkpoint__storage=(tmp_path / "store").as_uri())
    plan_order = sorted(records_by_step(config).items())
    victim_id = plan_order[-1][1][0]  # seen in the last step of the first epoch
    victim = image_path(config, victim_id)
    good, times = victim.read_bytes(), victim.stat()
    victim.write_bytes(good[:60] + bytes(len(good) - 60))
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))  # behind the index's back
    heard: list[str] = []
    with pytest.raises(RunFailed, match=rf"rank [01], step \d of 12: .*{victim.name}"):
        launch(config, watch=lambda state, messages: heard.extend(messages))
    assert not [message for message in heard if "continuing" in message]
    victim.write_bytes(good)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    kept = sorted(path.name for path in (tmp_path / "store" / "disturbed").glob("step-*"))
    assert kept, "no checkpoint was written before the failure"
    assert 0 < int(kept[-1].removeprefix("step-")) < 6
    disturbed = launch(config)
    assert not list(Path(disturbed.run_dir).glob("step-*"))
    assert same_bits(weights(undisturbed.run_dir), weights(disturbed.run_dir))
    steps = [row["step"] for row in read_journal(Path(disturbed.run_dir) / "metrics.jsonl") if "train/loss" in row]
    assert steps == sorted(set(steps)), "metrics of a step were kept twice"


def records_by_step(config) -> dict[int, list[int]]:
    """{step of the first epoch: sample ids}, from the plan alone."""
    from cluster.images import open_data
    from pipelines.views.plan import ViewPlan

    plan = ViewPlan(config.views, config.seed, len(open_data(config)["train"]))
    return {step: plan.order(0, np.arange(step * 8, step * 8 + 8)).tolist() for step in range(6)}


def image_path(config, sample_id: int) -> Path:
    from cluster.images import open_data

    return Path(open_data(config)["train"].names(np.array([sample_id]))[0])


def test_no_run_without_its_mlflow(ray_cluster, recipe):
    """The workers start while the driver opens the run; where it cannot, no step is taken."""
    config = parse(recipe(scaling__num_workers=1, tracking__uri="http://127.0.0.1:9"))
    with pytest.raises(Refused, match=r"MLflow store http://127.0.0.1:9 does not answer .* correct tracking.uri"):
        launch(config)
    assert not RunFolder.of(config).metrics.exists()


def test_ended_by_hand_before_its_first_step(ray_cluster, recipe, monkeypatch):
    """Nothing of it is in MLflow, and its board is gone."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.training.fitting.fit", end)
    monkeypatch.setattr("cluster.training.launch.open_run", lambda *_: pytest.fail("nobody has asked for it"))
    board = open_board()
    monkeypatch.setattr("cluster.training.board.open_board", lambda: board)
    with pytest.raises(KeyboardInterrupt):
        launch(parse(recipe(scaling__num_workers=1)))
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(board.look.remote(), timeout=60)


def test_few_validation_images(configure, undisturbed):
    """Three of them and two ranks: each counts once in the run's means, as it does where one process evaluates."""
    rank = Rank(0, 1, torch.device("cpu"))
    run = assemble(configure("undisturbed", 2), rank)
    run.student.load_state_dict(weights(undisturbed.run_dir))
    expected = evaluate(run.student, run.evaluation_loader("val"), len(run.indexes["val"]), rank)
    assert expected["images"] == 3
    for name in ("top1", "nll"):
        assert undisturbed.metrics[f"val/{name}"] == pytest.approx(expected[name], rel=1e-4)


def test_a_finished_run_is_not_run_again(configure, undisturbed):
    assert launch(configure("undisturbed", 2)) == undisturbed
    with pytest.raises(Refused, match=r"holds a run of another recipe \(seed: 0 there, 1 now\); choose another name"):
        launch(configure("undisturbed", 2, seed=1))


def test_mlflow_holds_what_workers_log(configure, undisturbed):
    """Of several, the first one: metrics by step, and the files of the end."""
    import mlflow

    output_dir = Path(configure("undisturbed", 2).output_dir)
    client = mlflow.MlflowClient(f"sqlite:///{output_dir / 'mlflow.db'}")
    history = client.get_metric_history(undisturbed.mlflow_run_id, "train/loss")
    assert [metric.step for metric in history] == [2, 4, 6, 8, 10, 12]
    names = {artifact.path for artifact in client.list_artifacts(undisturbed.mlflow_run_id)}
    assert names >= {"recipe.yaml", "packages.txt", "first_batch.png", "student.safetensors"}
