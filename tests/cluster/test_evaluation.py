"""Evaluating by shares: what a validation pass says, whatever the number of workers."""

from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from PIL import Image
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

import cluster.evaluation
import cluster.packing
from cluster.assembly import assemble
from cluster.evaluation import evaluate_networks, evaluate_share, find_target, load_student
from cluster.images import evaluation_batch
from cluster.passes import evaluate
from cluster.rank import Rank
from cluster.recipe.reading import parse
from kdcore.errors import Refused, RunFailed
from pipelines.data import index
from pipelines.data.copies import CopyPolicy
from tests.conftest import write_image_folder

CPU = torch.device("cpu")
PAIRS = [{"student": "layer2", "teacher": "layer2"}]
METHOD = [{"term": "ce", "weight": 1.0}, {"term": "feature_mse", "weight": 1.0, "pairs": PAIRS}]


@pytest.fixture
def run(recipe, tmp_path):
    """A configuration, and the weights of a student that was never trained."""
    config = parse(recipe(teacher={"model": "cifar_resnet8", "random": True}, method=METHOD, scaling__num_workers=0))
    torch.manual_seed(3)
    parts = assemble(config, Rank(0, 1, CPU))
    path = tmp_path / "student.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in parts.student.state_dict().items()}, path)
    return config, path


def seeded(config, weights, target, rank):
    """A share by a teacher whose random weights are the same for every worker."""
    torch.manual_seed(0)
    return evaluate_share(config, weights, target, rank)


def test_the_metrics_are_those_of_a_validation_pass(run):
    config, weights = run
    target = find_target(config, None, None)
    found = seeded(config, weights, target, Rank(0, 1, CPU))
    torch.manual_seed(0)
    parts = assemble(config, Rank(0, 1, CPU))
    loader, images = parts.evaluation_loader("val"), len(parts.indexes["val"])
    metrics, logits = parts.teacher_on("val", loader)
    expected = evaluate(load_student(parts, weights), loader, images, parts.rank, logits)
    assert {name: found.student.metrics()[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found.teacher.metrics()["top1"] == metrics["top1"]
    assert set(found.cka.widths) == {
        f"{side} {tap}" for side in ("student", "teacher") for tap in ("classifier_input", "layer2")
    }


@pytest.mark.parametrize("size", [1, 4, 7, 15, 1000])
def test_results_do_not_depend_on_how_many_images_are_shown_at_once(run, size):
    """Neither those of validation, student and teacher, nor of an evaluation; a run may go on with another number."""
    config, weights = run
    assert "data.evaluation_batch" in config.INCIDENTAL_FIELDS
    other = config.model_copy(update={"data": config.data.model_copy(update={"evaluation_batch": size})})
    found = {}
    for one in (config, other):
        torch.manual_seed(0)
        parts = assemble(one, Rank(0, 1, CPU))
        loader = parts.evaluation_loader("val")
        assert loader.max_batch == (size if one is other else 1024)
        metrics, logits = parts.teacher_on("val", loader)
        student = evaluate(load_student(parts, weights), loader, len(parts.indexes["val"]), parts.rank, logits)
        shared = seeded(one, weights, find_target(one, None, None), Rank(0, 1, CPU))
        found[one.data.evaluation_batch] = student, metrics, shared.student.metrics()
    for expected, results in zip(found[None], found[size], strict=True):
        assert results == pytest.approx(expected, rel=1e-5)
        assert results["top1"] == expected["top1"]


def test_how_many_images_are_shown_at_once_follows_size_and_memory(recipe, monkeypatch):
    def shown(gib, **changes):
        monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": gib * 2**18, "SC_PAGE_SIZE": 4096}.__getitem__)
        return evaluation_batch(parse(recipe(**changes)), CPU)

    assert shown(64, data__evaluation_size=224) == 128
    assert shown(64, data__evaluation_size=448) == 32
    assert shown(64, data__evaluation_size=32) == 1024
    assert shown(8, data__evaluation_size=224, scaling__num_workers=1) == 85
    assert shown(8, data__evaluation_size=224, scaling__num_workers=2) == 42
    assert shown(1, data__evaluation_size=4096, scaling__num_workers=2) == 1
    assert shown(1, data__evaluation_size=448, data__evaluation_batch=500) == 500


def test_shares_of_several_workers_are_the_whole(run):
    config, weights = run
    target = find_target(config, None, None)
    whole = seeded(config, weights, target, Rank(0, 1, CPU))
    first, *others = (seeded(config, weights, target, Rank(number, 4, CPU)) for number in range(4))
    for other in others:
        first.merge(other)
    assert first.images == whole.images == 15
    assert first.student.metrics() == pytest.approx(whole.student.metrics(), rel=1e-5)
    assert first.cka.result() == pytest.approx(whole.cka.result(), rel=1e-4)


def test_some_classes_are_chosen_among_alone(run, tmp_path):
    """Images of two of three classes: predictions of the third do not occur."""
    config, weights = run
    folder = write_image_folder(tmp_path / "other", classes=2) / "val"
    found = evaluate_networks(config, weights, find_target(config, folder, "a"))
    assert found.student.num_classes == 2
    assert found.images == 10
    assert sum(images for _, _, images in found.student.confusions(9)) == 10 * (1 - found.student.metrics()["top1"])


def test_images_elsewhere_are_accepted_as_the_recipe_says(recipe, tmp_path, monkeypatch):
    """And copies of them are kept as it says."""
    folder = write_image_folder(tmp_path / "other") / "val"
    Image.new("RGB", (100, 60)).save(next((folder / "class0").iterdir()))
    config = parse(recipe(data__max_pixels=5_000, data__copies_dir=str(tmp_path / "copies")))
    kept = []

    def build_index(*args, copies=None, **others):
        kept.append(copies)
        return index.build_index(*args, copies=copies, **others)

    monkeypatch.setattr("cluster.images.build_index", build_index)
    with pytest.raises(Refused, match=r"other/val/class0/.* has 60x100 pixels, more than data.max_pixels=5000"):
        find_target(config, str(folder), None)
    assert kept == [CopyPolicy(config.data.copies_dir, config.data.copies_bytes)] * 3


def test_weights_of_another_network(run, recipe):
    _, weights = run
    other = parse(recipe(student={"model": "cifar_resnet8"}, scaling__num_workers=0))
    with pytest.raises(Refused, match="does not fit the student cifar_resnet8 of the recipe"):
        evaluate_networks(other, weights, find_target(other, None, None))


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_cluster(ray_cluster, run, recipe):
    """Two workers in processes of their own: the student's metrics are those of this process."""
    config, weights = run
    target = find_target(config, None, None)
    alone = evaluate_networks(config, weights, target).student
    spread = config.model_copy(update={"scaling": config.scaling.model_copy(update={"num_workers": 2})})
    found = evaluate_networks(spread, weights, target)
    assert found.images == 15
    assert found.student.metrics()["top1"] == alone.metrics()["top1"]
    assert found.student.metrics()["nll"] == pytest.approx(alone.metrics()["nll"], rel=1e-5)


LOSSES = [WorkerCrashedError(), OutOfMemoryError("out of memory"), RayTaskError("f", "Traceback", ValueError("a bug"))]


@pytest.mark.parametrize("error", LOSSES, ids=lambda error: type(error).__name__)
def test_a_worker_that_stays_lost_ends_it_in_one_line(run, monkeypatch, error):
    """However it was lost: not all of Ray's errors are those of a task's own code."""

    def lost(*args):
        raise error

    tasks = SimpleNamespace(remote=lambda *args: "a share")
    ray = SimpleNamespace(
        remote=lambda **takes: lambda function: tasks,
        put=lambda value: value,
        get=lost,
        wait=lambda waiting, num_returns: (waiting, []),
    )
    for module in (cluster.evaluation, cluster.packing):
        monkeypatch.setattr(module, "ray", ray)
        monkeypatch.setattr(module, "wait_for_place", lambda takes, patience: None)
    config, weights = run
    with pytest.raises(RunFailed):
        cluster.evaluation.gather(config, weights, None)
    write = cluster.packing.shards_on_cluster(SimpleNamespace(root="/images"))
    with pytest.raises(RunFailed, match="packing /images"):
        next(write([0]))
