"""`train.patience_epochs`: the run ends where no better score came, and what it deploys and reports is its best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import safetensors.torch
import torch

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.recipe.rules import check_may_be_trained
from cluster.sweep.runs import validations_of
from cluster.sweep.trial import validations
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.training.checkpoint import TrainState
from cluster.training.launch import launch
from cluster.training.selection import patience_is_over, score_of, step_of_end
from kdcore.errors import Refused
from ops.history import Run
from tests.cluster.training.test_train import interrupt_at_step

PER_EPOCH = 4
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
CONSTANT = {"model": "vit_tiny_patch16_224", "args": SMALL}  # without batch norm: nothing changes but by the optimiser
SCORES = {4: 0.3, 8: 0.6, 12: 0.5, 16: 0.6, 20: 0.55, 24: 0.9}  # best after 2 epochs; patience of 3 ends after 5


@pytest.fixture
def waiting(recipe: Callable[..., dict[str, Any]]) -> Callable[..., RunConfig]:
    """A function that gives the recipe of at most 10 epochs of 4 steps, a quarter of the images held out."""

    def make(select: str = "held_out", **changes: Any) -> RunConfig:
        train = {"epochs": 10, "batch_size": 8, "micro_batch": 4, "select": select, "patience_epochs": 3}
        own = {"scaling__num_workers": 0, "data__held_out": 0.25, "train": train, "checkpoint__keep": 20}
        return parse(recipe(**{**own, "tracking__every_steps": 1, "data__loader": "reference", **changes}))

    return make


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations whose scores are SCORES, whatever the student answers."""
    offer = TrainState.offer_best

    def offer_scripted(state: TrainState, score: float, metrics: dict[str, float]) -> None:
        offer(state, SCORES[state.step], metrics)

    monkeypatch.setattr(TrainState, "offer_best", offer_scripted)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path / "student.safetensors")


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("select", ["held_out", "val"])
def test_the_run_ends_and_its_best_weights_are_deployed(waiting: Callable[..., RunConfig], select: str) -> None:
    """Said with the images that decided it; the numbers reported are those of the weights that are kept."""
    config, said = waiting(select), []
    result = launch(config, watch=lambda state, messages: said.extend(messages))
    assert (result.steps, result.best_step, result.best_score) == (20, 8, 0.6)
    where = {"held_out": "held-out training images", "val": "the validation set, whose accuracy is optimistic"}[select]
    assert (
        f"step 20 of 40: 3 epochs without a better score on {where}; the run ends, and the weights of step 8 (60.00%) "
        "are deployed" in said
    )
    deployed, best = weights(config.run_dir), weights(config.run_dir / "step-00000008")
    assert all(torch.equal(tensor, best[name]) for name, tensor in deployed.items())
    rows = {row["step"]: row for row in read_journal(RunFolder.of(config).metrics) if "val/top1" in row}
    reported = {name: value for name, value in rows[8].items() if name.startswith(("val/", "held_out/"))}
    assert reported.items() <= result.metrics.items()
    assert rows[8]["val/nll"] != rows[20]["val/nll"]
    run = Run.of(mlflow.MlflowClient(tracking_uri(config)).get_run(result.mlflow_run_id))
    assert run.metrics["val/nll"] == rows[8]["val/nll"]


@pytest.mark.usefixtures("scripted")
def test_cut_off_while_it_waits(waiting: Callable[..., RunConfig]) -> None:
    """In the middle of the fourth epoch, with two of three epochs waited, and again behind the last evaluation."""
    undisturbed = launch(waiting(name="undisturbed"))
    config = waiting(checkpoint__every_steps=3)
    for step in (14, 19):
        with pytest.raises(KeyboardInterrupt):
            launch(config, watch=interrupt_at_step(step))
    result = launch(config)
    assert (result.steps, result.best_step) == (undisturbed.steps, undisturbed.best_step) == (20, 8)
    ours, theirs = weights(config.run_dir), weights(Path(undisturbed.run_dir))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert {k: v for k, v in result.metrics.items() if "val/" in k or "held_out/" in k} == {
        k: v for k, v in undisturbed.metrics.items() if "val/" in k or "held_out/" in k
    }
    folder = RunFolder.of(config)  # its last checkpoint is there, its result is not: nothing more is trained
    folder.result.unlink()
    assert launch(config).steps == 20


def test_as_a_sweep_reads_it(waiting: Callable[..., RunConfig]) -> None:
    """The evaluation at which a run ends is its last: no stopping rule is asked about it."""
    config = waiting(
        student=CONSTANT,
        optimizer={"opt": "momentum", "lr": 1e-30},
    )
    assert launch(config).steps == 4 * PER_EPOCH
    read = [(row["epoch"], row["last"]) for row in validations(validations_of(config))]
    assert read == [(1, False), (2, False), (3, False), (4, True)]


@pytest.mark.ray
def test_two_workers_end_at_one_step(ray_cluster: None, waiting: Callable[..., RunConfig]) -> None:
    """A network that learns nothing scores the same for ever: the first evaluation is the best."""
    config = waiting(
        scaling__num_workers=2,
        student=CONSTANT,
        optimizer={"opt": "momentum", "lr": 1e-30},
        tracking__record_batches=True,
    )
    result = launch(config)
    assert (result.steps, result.best_step) == (4 * PER_EPOCH, PER_EPOCH)
    steps = [{row["step"] for row in read_journal(RunFolder.of(config).batches(rank))} for rank in range(2)]
    assert steps[0] == steps[1] == set(range(4 * PER_EPOCH))


def test_it_counts_from_evaluation_to_evaluation(waiting: Callable[..., RunConfig]) -> None:
    """With one evaluation in two epochs, three epochs are over at the second one without a better score."""
    config = waiting()
    train = config.train.model_copy(update={"evaluate_every_epochs": 2})
    config = config.model_copy(update={"train": train})
    waited = {step for step in range(1, 41) if patience_is_over(config.train, PER_EPOCH, step, best_step=8)}
    assert waited == set(range(24, 41))
    assert not any(patience_is_over(config.train, PER_EPOCH, step, best_step=0) for step in range(41))
    rows = [{"step": step, "held_out/top1": 0.5, "val/top1": step} for step in range(8, 41, 8)]
    assert step_of_end(config.train, PER_EPOCH, rows) == 24
    assert step_of_end(config.train, PER_EPOCH, rows[:2]) is None
    assert score_of("held_out", {"val/top1": 1.0, "held_out/agreement": 0.25}) == 0.25


def test_without_a_score_it_is_refused(waiting: Callable[..., RunConfig]) -> None:
    with pytest.raises(Refused, match=r"train.patience_epochs waits for a better score, but train.select is last"):
        check_may_be_trained(waiting("last"))
