"""A recipe to sweep, the command's words, and sweeps whose results are made up."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from cluster.recipe.reading import validated
from cluster.sweep.config import SweepConfig
from cluster.sweep.journal import Trial
from cluster.sweep.space import LayerScores, build_space
from kdcore.configs import ModelConfig
from kdcore.models import build_model
from kdcore.quality.score import Quality
from tests.conftest import write_image_folder

ROOT = Path(__file__).parents[3]
PAIRS = [[{"student": "layer2", "teacher": "layer2"}], [{"student": "layer2", "teacher": "layer3"}]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a teacher and recipe.yaml: 4 epochs, a quarter of the images held out."""
    root = tmp_path_factory.mktemp("sweep")
    write_image_folder(root / "images", train=24)
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(model.state_dict(), root / "teacher.safetensors")
    recipe = {
        "name": "run",
        "output_dir": str(root / "out"),
        "data": {"root": str(root / "images"), "num_threads": 1, "held_out": 0.25, "loader": "reference"},
        "views": {"size": 16, "crop": "resized", "scale": [0.3, 1.0]},
        "student": {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}},
        "teacher": {"model": "cifar_resnet8", "checkpoint": str(root / "teacher.safetensors")},
        "method": [
            {"term": "ce", "weight": 0.5},
            {"term": "kd", "weight": 0.5, "temperature": 4.0},
            {"term": "feature_mse", "weight": 0.1, "pairs": PAIRS[0]},
        ],
        "optimizer": {"opt": "sgd", "lr": 0.05},
        "train": {"epochs": 4, "batch_size": 18, "micro_batch": 9},
        "scaling": {"num_workers": 0},
        "tracking": {"system_metrics": False, "every_steps": 3},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.fixture
def command(folder, tmp_path) -> Callable[..., list[str]]:
    """A function that gives the words of a sweep into the test's own folder."""

    def words(*more: str, **space: Any) -> list[str]:
        (tmp_path / "space.yaml").write_text(yaml.safe_dump({"name": "s"} | space))
        space_file, out = str(tmp_path / "space.yaml"), f"output_dir={tmp_path / 'out'}"
        return ["sweep", str(folder / "recipe.yaml"), "--space", space_file, *more, out]

    return words


QUALITY = {"a": 0.1, "b": 0.9, "c": 0.5}


ENDS = {
    "000-seed0": ("finished", 0.5),
    "000-seed1": ("finished", 0.7),
    "001-seed0": ("finished", 0.9),
    "001-seed1": ("stopped", 0.8),  # not to be compared with a mean of whole runs
    "002-seed0": ("finished", 0.6),
    "002-seed1": ("finished", 0.9),
    "003-seed0": ("failed", 0.0),
    "003-seed1": ("failed", 0.0),
}


def imagined(tmp_path: Path, ends: dict[str, tuple[str, float]], **space: Any) -> tuple[Any, list[Trial]]:
    """A plan, as far as reports read it, and trials that ended as {run: (end, last score)} says, at epoch 2 or 4."""
    fields = {"name": "s", "space": space, "stop": {"rule": "asha"}, "seeds": [0, 1]}
    sweep = validated(SweepConfig, fields, "space.yaml")
    quality = {tap: Quality(q, 0.0, 1.0, samples=9, dims=4, effective_dims=2.0) for tap, q in QUALITY.items()}
    scores = LayerScores(quality, ["early", "late"])
    plan = SimpleNamespace(
        sweep=sweep,
        space=build_space(sweep, scores),
        scores=scores,
        parent=SimpleNamespace(run_dir=tmp_path),
        score=lambda trial: trial.score("held_out/top1", selects_best=False),
    )
    points, trials = plan.space.points(), []
    for name, (end, score) in ends.items():
        number, seed = int(name[:3]), int(name[-1])
        trial = Trial(name, number, points[number], seed, end=end, result={"metrics": {"val/top1": score - 0.01}})
        epochs = {"finished": (2, 4), "stopped": (2,), "failed": ()}[end]
        trial.reports = [{"epoch": epoch, "held_out/top1": score - (epoch < max(epochs)) * 0.1} for epoch in epochs]
        trials.append(trial)
    return plan, trials
