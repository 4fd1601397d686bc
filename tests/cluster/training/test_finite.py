"""A run whose numbers are not finite ends, names the place, and saves nothing of it; or leaves such steps out."""

from __future__ import annotations

import json

import mlflow
import pytest
import safetensors.torch
import torch

from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.training.checkpoint import checkpoint_up_to
from cluster.training.finite import NotFinite
from cluster.training.launch import launch
from cluster.training.loop import TrainingLoop, new_state
from cluster.training.replay import replay_step
from kdcore.errors import Refused, RunFailed

CPU = torch.device("cpu")
KD = [{"term": "ce", "weight": 1.0}, {"term": "kd", "weight": 1.0, "temperature": 4.0}]


@pytest.fixture
def make(recipe, tmp_path):
    def config(**changes):
        own = {"scaling__num_workers": 0, "data__loader": "reference"}
        return parse(recipe(**own | changes))

    return config


@pytest.fixture
def loop(make):
    """A function that gives the loop of a run in this process and its batches, with fields of the recipe changed."""

    def begin(**changes):
        run = assemble(make(**changes), Rank(0, 1, CPU))
        made = TrainingLoop(run, new_state(run))
        return made, run.train_batches(0)

    return begin


def test_a_diverged_run_fails_and_says_where(make):
    """No NaN in its files, no weights to deploy, FAILED in MLflow."""
    config = make(optimizer__lr=1e8)
    with pytest.raises(
        RunFailed, match=r"the (term ce|gradient) was not finite in step \d+ of 12 \(.*samples .*--replay"
    ):
        launch(config)
    folder = RunFolder.of(config)
    assert not folder.result.exists()
    assert not folder.weights.exists()
    for line in folder.metrics.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    client = mlflow.MlflowClient(tracking_uri(config))
    assert client.get_run(folder.run_id.read_text()).info.status == "FAILED"


def test_the_step_the_term_and_the_samples_are_the_runs(loop):
    """Poisoned in the fourth step: the message names that step, the term, and the ids that the plan puts there."""
    made, batches = loop(method=[{"term": "ce", "weight": 1.0}, {"term": "ce", "weight": 0.5}])
    for _ in range(3):
        made.step(batches)
    made.watch.verify()
    term, seen = made.state.distiller.extras["ce_2"], []
    handle = term.register_forward_hook(lambda module, inputs, output: output + float("nan"))
    made.step(batches, lambda number, batch, output: seen.append(batch.sample_ids.tolist()))
    handle.remove()
    made.step(batches)
    place = rf"micro-batch 0, samples {', '.join(map(str, seen[0]))}"
    with pytest.raises(NotFinite, match=rf"the term ce_2 was not finite in step 4 of 12 \({place}\)"):
        made.watch.verify()


def test_a_gradient_that_is_not_finite_is_noticed(loop):
    made, batches = loop()
    made.state.distiller.student.conv1.weight.register_hook(lambda gradient: gradient / 0)
    made.step(batches)
    with pytest.raises(NotFinite, match="the gradient was not finite in step 1"):
        made.watch.verify()


def test_weights_that_are_not_finite_are_not_saved(loop):
    """The last update may be the one that breaks them: loss and gradient were finite."""
    made, batches = loop()
    made.step(batches)
    with torch.no_grad():
        made.state.distiller.student.conv1.weight[0] = float("inf")
    made.watch.verify()
    with pytest.raises(NotFinite, match=r"not finite after step 1 of 12 \(the first is student.conv1.weight"):
        made.watch.verify_weights()


def test_the_gradients_norm(loop):
    """That of all gradients as one vector, before clipping; clipping brings it to its bound."""
    made, batches = loop(train__clip_norm=1e-3)
    norms = []
    optimizer_step = made.state.optimizer.step

    def step():
        norms.append(torch.cat([p.grad.flatten() for p in made.parameters if p.grad is not None]).norm())
        optimizer_step()

    made.state.optimizer.step = step
    record = made.step(batches)
    assert float(norms[0]) == pytest.approx(1e-3, rel=1e-3)
    assert float(record.gradient_norm) > 1e-2
    plain, batches = loop()
    assert float(plain.step(batches).gradient_norm) == pytest.approx(float(record.gradient_norm), rel=1e-5)


def test_a_step_that_is_skipped_changes_nothing(loop):
    """Neither weights nor running statistics nor momentum; the next step is taken as if nothing had been."""
    made, batches = loop(train__on_nonfinite="skip", train__max_skipped=0.2)
    made.step(batches)
    before = {name: tensor.clone() for name, tensor in made.state.distiller.state_dict().items()}
    handle = made.state.distiller.student.conv1.weight.register_hook(lambda gradient: gradient * float("nan"))
    made.step(batches)
    handle.remove()
    after = made.state.distiller.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (made.state.step, made.state.skipped_steps) == (2, 1)
    made.step(batches)
    assert not torch.equal(before["student.conv1.weight"], made.state.distiller.state_dict()["student.conv1.weight"])


def test_a_first_step_that_is_skipped_is_as_if_it_had_not_been(loop):
    """CRD's constants are estimated in a run's first step, and its bank is written by it: both are of the next one."""
    method = [{"term": "ce", "weight": 1.0}, {"term": "crd", "weight": 0.8, "num_negatives": 8}]
    changes = {"method": method, "teacher": {"model": "cifar_resnet8", "random": True}}
    made, batches = loop(train__on_nonfinite="skip", train__max_skipped=0.2, **changes)
    crd = made.state.distiller.extras["crd"]
    before = crd.banks.clone()
    handle = made.state.distiller.student.conv1.weight.register_hook(lambda gradient: gradient * float("nan"))
    made.step(batches)
    handle.remove()
    assert made.state.skipped_steps == 1
    assert torch.equal(crd.banks, before)
    assert not crd.constants.any()
    made.step(batches)
    assert made.state.skipped_steps == 1
    assert (crd.constants > 0).all()
    assert not torch.equal(crd.banks, before)


def test_what_a_step_that_may_be_skipped_keeps(loop):
    """What its passes write: not CRD's bank, a gigabyte for ImageNet, nor its lists of samples."""
    method = [{"term": "ce", "weight": 1.0}, {"term": "crd", "weight": 0.8, "num_negatives": 8}]
    changes = {"method": method, "teacher": {"model": "cifar_resnet8", "random": True}}
    made, _ = loop(train__on_nonfinite="skip", train__max_skipped=0.2, **changes)
    made.watch.begin_step()
    names = {id(buffer): name for name, buffer in made.state.distiller.named_buffers()}
    kept = {names[id(buffer)] for buffer, _ in made.watch.buffers}
    of_terms = {name for name in names.values() if name.startswith("extras.")}
    assert kept == (set(names.values()) - of_terms) | {"extras.crd.constants"}
    assert {"extras.crd.banks", "extras.crd.class_index.by_class"} < of_terms


def test_a_moving_average_begins_with_the_first_update(loop):
    """That it begins with the first step, left out, would keep the first weights in it for as long as it remembers."""
    made, batches = loop(train__on_nonfinite="skip", train__max_skipped=0.2, train__ema_decay=0.9999)
    handle = made.state.distiller.student.conv1.weight.register_hook(lambda gradient: gradient * float("nan"))
    made.step(batches)
    handle.remove()
    made.step(batches)
    assert made.state.skipped_steps == 1
    assert torch.equal(made.state.ema.module.conv1.weight, made.state.distiller.student.conv1.weight)


def test_more_steps_than_allowed_are_not_skipped(loop):
    made, batches = loop(train__on_nonfinite="skip", train__max_skipped=0.1)
    made.state.distiller.student.conv1.weight.register_hook(lambda gradient: gradient * float("nan"))
    made.step(batches)
    with pytest.raises(NotFinite, match=r"2 of 12 steps was not finite, a larger share than train.max_skipped=0.1"):
        made.step(batches)


def test_skipped_steps_are_counted_and_logged(make):
    config = make(optimizer__lr=1e8, train__on_nonfinite="skip", train__max_skipped=1.0)
    result = launch(config)
    assert result.metrics["train/skipped_steps"] > 0
    weights = safetensors.torch.load_file(RunFolder.of(config).weights)
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())


def test_replay_begins_at_the_runs_own_batch(make):
    """From the first weights: the tensors of the step that failed, in the order in which they were computed."""
    config = make(optimizer__lr=1e8)
    with pytest.raises(RunFailed) as failed:
        launch(config)
    step = int(str(failed.value).partition("--replay ")[2].split()[0]) - 1
    found = replay_step(config, step, CPU, lambda done, to_do: None)
    assert f"samples {', '.join(map(str, found.sample_ids[0]))}" in str(failed.value)
    kinds = [one.kind for one in found.not_finite]
    assert kinds[0] in ("output", "gradient")
    assert "gradient" in kinds
    assert not replay_step(config, step - 1, CPU, lambda done, to_do: None).not_finite


def test_a_step_that_the_run_has_not_is_refused(make):
    with pytest.raises(Refused, match=r"--replay 13: the run has steps 1 to 12"):
        replay_step(make(), 12, CPU, lambda done, to_do: None)


CHECKPOINT = ("state.pt", "student.safetensors")  # of which one that was cut off lacks either


def test_the_newest_checkpoint_before_a_step(make, tmp_path):
    config = make(checkpoint__storage=str(tmp_path / "store"))
    folder = tmp_path / "store" / config.name
    for step, names in ((2, CHECKPOINT), (4, CHECKPOINT), (6, CHECKPOINT[:1]), (7, CHECKPOINT[1:]), (8, ())):
        (folder / f"step-{step:08d}").mkdir(parents=True)
        for name in names:
            torch.save({}, folder / f"step-{step:08d}" / name)
    chosen = {}
    for step in (1, 2, 5, 9):
        with checkpoint_up_to(config, step) as found:
            chosen[step] = found and found[0].name
    assert chosen == {1: None, 2: "step-00000002", 5: "step-00000004", 9: "step-00000004"}
