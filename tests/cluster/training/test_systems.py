"""The three papers' systems train whole runs, for a CNN pair and a ViT pair; in this process, without a cluster."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cluster.recipe.reading import parse
from cluster.tracking.journal import read_journal
from cluster.training.launch import launch
from kdcore.configs import ModelConfig
from kdcore.models import build_model


def made_for(size: int) -> dict[str, list[int]]:
    """A network's own size, at which nobody looks then for the cause of its wrong answers; 160 takes 6,400 tokens."""
    return {"input_size": [3, size, size]}


VIT = {"model": "test_vit", "args": {"img_size": 32, "patch_size": 8, "pretrained_cfg_overlay": made_for(32)}}
CNN = {"model": "cifar_resnet8", "args": {}}
NARROW = {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}}
TAPS = {"cnn": ("layer2", "layer3"), "vit": ("blocks.2", "blocks.4")}


def method(system: str, kind: str) -> list[dict]:
    if system == "wttm":
        return [{"term": "ce", "weight": 1.0}, {"term": "wttm", "weight": 2.0, "gamma": 0.5}]
    if system == "simkd":
        return [{"term": "simkd", "weight": 1.0}]
    pairs = [{"student": tap, "teacher": tap} for tap in TAPS[kind]]
    return [{"term": "ce", "weight": 1.0}, {"term": "feature_only", "weight": 1.0, "pairs": pairs}]


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("system", ["wttm", "simkd", "feature_only"])
def test_one_epoch(recipe, tmp_path, system, kind):
    """Every batch of an epoch, finite losses that fall, and a student that has changed and is evaluated."""
    teacher = VIT if kind == "vit" else CNN
    torch.manual_seed(3)
    weights = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(build_model(ModelConfig(**teacher), ("a", "b", "c")).state_dict(), weights)
    student = (VIT if kind == "vit" else NARROW) | {"classifier": "reused" if system == "simkd" else "own"}
    config = parse(
        recipe(
            views__size=32,
            views__num_views=1,
            student=student,
            teacher=teacher | {"checkpoint": str(weights)},
            method=method(system, kind),
            optimizer={"opt": "adamw", "lr": 0.003},
            train__epochs=3,
            tracking__every_steps=6,
            scaling__num_workers=0,
        )
    )
    result = launch(config)
    rows = [row for row in read_journal(Path(result.run_dir) / "metrics.jsonl") if "train/loss" in row]
    losses = [row["train/loss"] for row in rows]
    assert result.steps == 18
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert 0 <= result.metrics["val/agreement"] <= 1
    deployed = safetensors.torch.load_file(Path(result.run_dir) / "student.safetensors")
    theirs = safetensors.torch.load_file(weights)["fc.weight" if kind == "cnn" else "head.weight"]
    reused = [name for name, tensor in deployed.items() if torch.equal(tensor, theirs)]
    assert len(reused) == (system == "simkd"), "SimKD deploys the teacher's classifier, nothing else does"


@pytest.mark.timeout(120)
def test_a_run_in_this_process_keeps_the_newest_checkpoints(recipe):
    """It ends, however often the recipe wants them, and leaves as many as the recipe keeps."""
    result = launch(parse(recipe(train__epochs=2, checkpoint__every_steps=2, scaling__num_workers=0)))
    assert result.steps == 12
    assert sorted(path.name for path in Path(result.run_dir).glob("step-*")) == ["step-00000010", "step-00000012"]


def test_simkd_between_kinds(recipe, tmp_path):
    """A CNN student whose map is smaller than a ViT teacher's grid of tokens: the tokens are pooled to it."""
    vit = {"model": "test_vit", "args": {"img_size": 16, "patch_size": 2, "pretrained_cfg_overlay": made_for(16)}}
    weights = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(build_model(ModelConfig(**vit), ("a", "b", "c")).state_dict(), weights)
    changes = {"student": NARROW | {"classifier": "reused"}, "teacher": vit | {"checkpoint": str(weights)}}
    config = parse(
        recipe(views__size=16, method=method("simkd", "vit"), train__max_steps=2, scaling__num_workers=0, **changes)
    )
    metrics = launch(config).metrics
    assert math.isfinite(metrics["train/simkd"])
    assert 0 <= metrics["val/top1"] <= 1  # nothing trains the classifier, but it is the teacher's


def test_mlflow_holds_the_run(recipe):
    """The resolved recipe, the packages, the pictures, the metrics by step and the weights."""
    import mlflow

    held_out = {"data__held_out": 0.25, "train__select": "held_out"}
    config = parse(recipe(scaling__num_workers=0, train__max_steps=4, **held_out))
    result = launch(config, command="python -m ops train x.yaml")
    client = mlflow.MlflowClient(f"sqlite:///{Path(config.output_dir) / 'mlflow.db'}")
    run = client.get_run(result.mlflow_run_id)
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names >= {"recipe.yaml", "packages.txt", "first_batch.png", "student.safetensors"}
    assert run.data.tags["method"] == "ce"
    assert "python -m ops train x.yaml" in run.data.tags["mlflow.note.content"]
    assert run.data.params["train.batch_size"] == "8"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [2, 4]
    assert {"val/top1", "held_out/top1", "data/wait_share", "speed/images_per_second"} <= run.data.metrics.keys()
    assert result.best_score == pytest.approx(
        max(m.value for m in client.get_metric_history(run.info.run_id, "held_out/top1"))
    )
