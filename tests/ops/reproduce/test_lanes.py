"""A run as a lane is the product's run: the same losses step by step, continued at any step to the same bits."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from cluster.training.graphs import tensors_of
from kdcore.batch import Batch, Classifier, TeacherOutputs
from kdcore.errors import Refused
from ops.reproduce.lane import Lane
from tests.disks import noting_syncs
from tests.ops.reproduce.small_lanes import CPU, METHODS, steps


def weights(lane: Lane) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lane.state.distiller.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_of_the_products_loop(method, config):
    """Three epochs, over a warm-up and a drop of the rate; the loop reads another loader."""
    launch = pytest.importorskip("cluster.training.launch", reason="needs Ray", exc_type=ImportError).launch
    ours = Lane(config(method, "lane", data__loader="resident"), CPU)
    losses = steps(ours, 15)
    assert ours.done
    theirs = config(method, "run", data__loader="reference", tracking__record_batches=True)
    result = launch(theirs)
    records = [json.loads(line) for line in (theirs.run_dir / "batches-0.jsonl").read_text().splitlines()]
    assert losses == [record["loss"] for record in records]
    assert ours.curve[-1]["top1"] == result.metrics["val/top1"]
    deployed = safetensors.torch.load_file(theirs.run_dir / "student.safetensors")
    assert all(torch.equal(tensor, deployed[name]) for name, tensor in ours.state.deployed().items())


def test_judged_by_what_is_held_out(config):
    """With mixing; the result says which images, and how large the student is that would be deployed."""
    lane = Lane(config("simkd", "held", data__loader="resident", data__held_out=0.25, views__mixup_alpha=0.2), CPU)
    steps(lane, lane.run.total_steps)
    lane.finish({})
    result = json.loads((lane.folder.path / "result.json").read_text())
    held_out = lane.run.indexes["held_out"]
    assert 0 < len(held_out) < len(lane.run.indexes["train"]) < 22
    assert result["split"] == "held_out"
    assert result["final"]["images"] == result["teacher"]["images"] == len(held_out)
    saved = safetensors.torch.load_file(lane.folder.path / "student.safetensors")
    trained = [tensor for name, tensor in saved.items() if "running" not in name and "num_batches" not in name]
    assert result["deployed_parameters"] == sum(tensor.numel() for tensor in trained)


@pytest.mark.parametrize("first_step", [0, 3, 7])
def test_requests_are_the_plans_order(first_step, config, monkeypatch):
    """Computed for several steps at once, over the end of an epoch and from any step on."""
    monkeypatch.setattr("cluster.assembly.ORDERED_AT_ONCE", 2)
    run = Lane(config("dkd", "order", data__loader="resident"), CPU).run
    requests = list(run.train_requests(first_step))
    assert [request.epoch for request in requests] == [step / 5 for step in range(first_step, 15)]
    for step, request in zip(range(first_step, 15), requests, strict=True):
        start = step % 5 * 4
        assert request.views.tolist() == [step // 5] * 4
        assert request.sample_ids.tolist() == run.plan.order(step // 5, np.arange(start, start + 4)).tolist()


def test_a_checkpoint_is_on_the_disk_before_the_older_one_goes(config, monkeypatch):
    """Its files before they have their name, and that name, by which it is found."""
    lane = Lane(config("dkd", "synced", data__loader="resident"), CPU)
    lane.save()
    (older,) = lane.checkpoints()
    steps(lane, 1)
    synced = noting_syncs(monkeypatch, older.exists)
    lane.save()
    assert all(was_there for _, was_there in synced)
    files = {path.name.partition(".")[0] for path, _ in synced if path.parent.name == "unfinished"}
    assert {"state", "progress"} <= files
    assert synced[-1][0] == lane.folder.path.absolute()
    assert not older.exists()


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_continued_at_any_step_to_the_same_bits(stop, config):
    undisturbed = Lane(config("dkd", "undisturbed", data__loader="resident"), CPU)
    losses = steps(undisturbed, 10)
    first = Lane(config("dkd", "stopped", data__loader="resident"), CPU)
    assert steps(first, stop) == losses[:stop]
    first.save()
    again = Lane(config("dkd", "stopped", data__loader="resident"), CPU)
    assert again.state.step == stop
    assert steps(again, 10 - stop) == losses[stop:]
    assert again.curve == undisturbed.curve
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(tensor, weights(again)[name]), name


def test_the_journal_has_every_evaluation_once(config):
    """For the trackers; also where what came after a checkpoint is computed again."""
    lane = Lane(config("dkd", "journal", data__loader="resident"), CPU)
    steps(lane, 6)
    lane.save()
    steps(lane, 5)  # past the second epoch, and lost
    again = Lane(config("dkd", "journal", data__loader="resident"), CPU)
    steps(again, 9)
    again.finish({})
    rows = [json.loads(line) for line in again.folder.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 15]
    assert [row["val/top1"] for row in rows[:3]] == [epoch["top1"] for epoch in again.curve]
    assert [row["train/loss"] for row in rows[:3]] == [epoch["train_loss"] for epoch in again.curve]
    assert rows[3]["val/teacher_top1"] == json.loads(again.folder.result.read_text())["teacher"]["top1"]


def test_a_checkpoint_is_whole_or_not_there(config):
    lane = Lane(config("simkd", "atomic", data__loader="resident"), CPU)
    steps(lane, 1)
    lane.save()
    steps(lane, 1)
    lane.save()
    assert sorted(path.name for path in lane.folder.path.iterdir()) == ["facts.json", "recipe.yaml", "step-00000002"]
    (lane.folder.path / "unfinished").mkdir()  # what a kill leaves behind
    (lane.folder.path / "unfinished" / "state.pt").write_bytes(b"cut off")
    again = Lane(config("simkd", "atomic", data__loader="resident"), CPU)
    assert again.state.step == 2


def test_another_recipe_is_not_continued(config):
    lane = Lane(config("simkd", "same", data__loader="resident"), CPU)
    steps(lane, 1)
    lane.save()
    with pytest.raises(Refused, match=r"holds a run of another recipe \(optimizer.lr: 0.05 there, 0.1 now\)"):
        Lane(config("simkd", "same", data__loader="resident", optimizer__lr=0.1), CPU)


def test_a_state_goes_on_elsewhere(config, data, tmp_path):
    """Folders of runs and of images that were moved, as to another machine; beside other images it is refused."""
    here = config("dkd", "moved", data__loader="resident")
    lane = Lane(here, CPU)
    steps(lane, 2)
    lane.save()
    images, state = tmp_path / "images", tmp_path / "state"
    shutil.copytree(data, images)
    shutil.move(here.output_dir, state)
    there = here.model_copy(
        update={"output_dir": str(state), "data": here.data.model_copy(update={"root": str(images)})}
    )
    assert Lane(there, CPU).state.step == 2
    (images / "train" / "class0" / "0.png").unlink()
    with pytest.raises(Refused, match=r"its data is \w+..., this run's is"):
        Lane(there, CPU)


def test_a_graph_has_inputs_of_its_own():
    """All that differs from batch to batch, in the layout that it came in; what is copied into them is what is read."""
    features = {"layer2": torch.rand(2, 4, 3, 3).to(memory_format=torch.channels_last)}
    targets = TeacherOutputs(torch.rand(2, 5), features, Classifier(torch.rand(5, 4), None), torch.rand(2, 3, 6, 6))
    images = torch.rand(2, 3, 6, 6).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.tensor([1, 0]), torch.tensor([7, 8]), torch.zeros(2), targets=targets)
    own = copy.deepcopy(batch)
    ours, theirs = tensors_of(own), tensors_of(batch)
    assert len(ours) == 5
    assert not {tensor.data_ptr() for tensor in ours} & {tensor.data_ptr() for tensor in theirs}
    assert [tensor.stride() for tensor in ours] == [tensor.stride() for tensor in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        mine.copy_(other + 1)
    assert torch.equal(own.images, images + 1)
    assert torch.equal(own.targets.features["layer2"], features["layer2"] + 1)


def test_the_result(config):
    lane = Lane(config("dkd", "result", data__loader="resident"), CPU)
    steps(lane, 15)
    lane.save()
    lane.finish({"facts": {"commit": "abc"}})
    kept = ["facts.json", "metrics.jsonl", "recipe.yaml", "result.json", "student.safetensors"]
    assert sorted(path.name for path in lane.folder.path.iterdir()) == kept
    result = json.loads((lane.folder.path / "result.json").read_text())
    assert [epoch["epoch"] for epoch in result["curve"]] == [1, 2, 3]
    assert result["final"]["top1"] == result["curve"][-1]["top1"]
    assert result["final"].keys() >= {"agreement", "top5", "nll"}
    assert result["teacher"]["images"] == 6
    saved = safetensors.torch.load_file(lane.folder.path / "student.safetensors")
    assert torch.equal(saved["conv1.weight"], lane.run.student.conv1.weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"train__micro_batch": 2, "train__clip_norm": 0.5, "train__ema_decay": 0.9},
        {"train__select": "held_out", "data__held_out": 0.25, "train__evaluate_every_epochs": 2},
        {"train__on_nonfinite": "skip"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_all_that_the_loop_does_is_done_side_by_side(changes, config):
    """Micro-batches, clipping, moving averages, selection and skipping: the deployed weights are the product's."""
    launch = pytest.importorskip("cluster.training.launch", reason="needs Ray", exc_type=ImportError).launch
    lane = Lane(config("dkd", "lane", data__loader="resident", **changes), CPU)
    steps(lane, lane.run.total_steps)
    theirs = config("dkd", "run", data__loader="resident", **changes)
    launch(theirs)
    deployed = safetensors.torch.load_file(theirs.run_dir / "student.safetensors")
    ours = lane.state.deployed()
    assert all(torch.equal(tensor, deployed[name]) for name, tensor in ours.items())


def test_a_choice_by_other_images_is_refused(config):
    changes = {"train__select": "val", "data__held_out": 0.25}
    with pytest.raises(Refused, match=r"train.select=val, but runs side by side are judged by held_out"):
        Lane(config("dkd", "chosen", data__loader="resident", **changes), CPU)


def test_no_ray_dali_or_mlflow_is_needed():
    """The slices run on machines that have none of them.

    No library complains at the end of the process, as some in C++ do of objects that Python has not taken apart.
    """
    code = (
        "from kdcore.importing import importing\nwith importing('timm'):\n    import timm\n"
        "import sys, ops.reproduce.cifar100, ops.reproduce.paper3, ops.layers, pipelines.loaders.resident;"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'ray', 'mlflow', 'nvidia'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_graphs_on_a_gpu_compute_what_steps_without_them_do(method, config, monkeypatch):
    cuda = torch.device("cuda")
    graphed = Lane(config(method, "graphed", data__loader="resident"), cuda)
    with_graph = steps(graphed, 15)
    assert graphed.compute.graph is not None
    monkeypatch.setattr("cluster.training.graphs.EAGER_STEPS", 1000)
    without = steps(Lane(config(method, "eager", data__loader="resident"), cuda), 15)
    assert with_graph == pytest.approx(without, rel=1e-4)
