"""One run on the same images in every container: the same losses, whoever resumes it where, on 1 and 2 ranks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import Assembly, assemble
from cluster.images import open_data
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.training.checkpoint import checkpoint_facts
from cluster.training.launch import launch
from cluster.training.loop import TrainingLoop, new_state
from kdcore.batch import Batch
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from pipelines.data import store as store_files
from pipelines.data.convert import PackJob, run_pack_job
from tests.cluster.runs import losses_of
from tests.conftest import small_recipe, write_image_folder
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.stores import FailingProxy, s3_server, store, uri, use_test_credentials

CPU = torch.device("cpu")
STEPS, KILLED_AT = 20, 9  # of 6 an epoch: killed in mid-epoch

Begin = Callable[..., Assembly]


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Begin:
    """A function that gives a run's parts on a container, each written once."""
    images = write_image_folder(tmp_path_factory.mktemp("images"))
    roots: dict[str, Path] = {}

    def make(container: str, rank: Rank | None = None) -> Assembly:
        if container not in roots:
            root = roots[container] = tmp_path_factory.mktemp("container")
            for split in ("train", "val"):
                CONTAINERS[container](images, split, root)
        changes = {"train__epochs": 4, "scaling__num_workers": 0, "views__mixup_alpha": 0.4}
        recipe = small_recipe(roots[container], roots[container] / "out", **changes)
        return assemble(parse(recipe), rank or Rank(0, 1, CPU))

    return make


@pytest.fixture(scope="module")
def undisturbed(begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> tuple[Assembly, list[float], Path]:
    """The run on the image folder, its losses, and its checkpoint of the step at which others go on."""
    run, folder = begin("folder"), tmp_path_factory.mktemp("checkpoint")
    loop = TrainingLoop(run, new_state(run))
    before = losses_of(loop, KILLED_AT)
    loop.state.snapshot(checkpoint_facts(run)).write(LocalFileSystem(), str(folder))
    return run, before + losses_of(loop, STEPS), folder


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "folder"])
def test_the_same_run(container: str, begin: Begin, undisturbed: tuple[Assembly, list[float], Path]) -> None:
    """Fingerprints, 20 steps' losses, and the losses after a kill whose checkpoint was written on the folder."""
    expected, losses, checkpoint = undisturbed
    run = begin(container)
    for split, source in run.indexes.items():
        assert source.fingerprint == expected.indexes[split].fingerprint
    assert losses_of(TrainingLoop(run, new_state(run)), STEPS) == losses
    resumed = new_state(run)
    resumed.restore(checkpoint, checkpoint_facts(run))
    again = losses_of(TrainingLoop(run, resumed), STEPS)
    assert again == losses[-len(again) :]
    assert len(again) == (STEPS - KILLED_AT) * 2


@pytest.mark.parametrize("container", CONTAINERS)
def test_two_ranks_see_what_one_sees(container: str, begin: Begin) -> None:
    """The batches of two ranks are those of one, bit for bit, from a step in the middle of an epoch on."""
    alone = batches_of(begin(container), 2 * 8)
    ranks = [batches_of(begin(container, Rank(number, 2, CPU)), 8) for number in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    for ours, theirs in zip(alone, together, strict=True):
        assert torch.equal(ours.sample_ids, theirs.sample_ids)
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_an_order_by_windows(tmp_path: Path) -> None:
    """Resumed, and on two ranks: the same run. Its checkpoint is not that of a full shuffle or of other shards."""
    images = write_image_folder(tmp_path / "images")
    for name, shard_bytes in (("pack", 20_000), ("other", 30_000)):
        for split in ("train", "val"):
            job = PackJob(str(images), split, str(tmp_path / name), str(tmp_path / "index"), shard_bytes)
            run_pack_job(job, job.prepare())

    def make(root: str, shards: int | None, rank: Rank | None = None) -> Assembly:
        changes = {"train__epochs": 4, "scaling__num_workers": 0, "views__mixup_alpha": 0.4}
        recipe = small_recipe(tmp_path / root, tmp_path / "out", data__window_shards=shards, **changes)
        return assemble(parse(recipe), rank or Rank(0, 1, CPU))

    run = make("pack", 2)
    assert run.plan.windows is not None
    assert run.plan.windows.num_shards > 3
    loop = TrainingLoop(run, new_state(run))
    losses_of(loop, KILLED_AT)
    loop.state.snapshot(checkpoint_facts(run)).write(LocalFileSystem(), str(tmp_path / "checkpoint"))
    losses = losses_of(loop, STEPS)
    again = make("pack", 2)
    state = new_state(again)
    state.restore(tmp_path / "checkpoint", checkpoint_facts(again))
    assert losses_of(TrainingLoop(again, state), STEPS) == losses
    ranks = [batches_of(make("pack", 2, Rank(number, 2, CPU)), 8) for number in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    for ours, theirs in zip(batches_of(make("pack", 2), 16), together, strict=True):
        assert torch.equal(ours.sample_ids, theirs.sample_ids)
        assert torch.equal(ours.images, theirs.images)
    for other in (make("pack", None), make("pack", 1), make("other", 2)):
        with pytest.raises(Refused, match="views"):
            new_state(other).restore(tmp_path / "checkpoint", checkpoint_facts(other))
    with pytest.raises(Refused, match=r"data.window_shards=2: the images in .* are single files, not shards"):
        make("images", 2)


def batches_of(run: Assembly, num: int) -> list[Batch]:
    batches = run.train_batches(3)
    return [next(batches) for _ in range(num)]


def test_an_object_store_that_fails(
    begin: Begin,
    undisturbed: tuple[Assembly, list[float], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every fourth connection is cut or answered with an error; the run is killed and goes on: the folder's losses."""
    expected, losses, checkpoint = undisturbed
    use_test_credentials(monkeypatch)
    monkeypatch.setattr(store_files, "_FIRST_WAIT_SECONDS", 0.01)
    with s3_server() as port:
        store(port).create_dir("bucket")
        for split in ("train", "val"):
            job = PackJob(expected.config.data.root, split, uri("bucket", port), str(tmp_path / "index"), 8000)
            run_pack_job(job, job.prepare())
        proxy = FailingProxy(port, lambda number: {1: "cut", 3: "500"}.get(number % 8))
        root = uri("bucket", proxy.port)
        data = expected.config.data.model_copy(update={"root": root, "copies_dir": str(tmp_path / "copies")})
        config = expected.config.model_copy(update={"data": data, "output_dir": str(tmp_path / "out")})
        run = assemble(config, Rank(0, 1, CPU))
        assert losses_of(TrainingLoop(run, new_state(run)), STEPS) == losses
        resumed = assemble(config, Rank(0, 1, CPU), reuse_index=True)
        state = new_state(resumed)
        state.restore(checkpoint, checkpoint_facts(resumed))
        again = losses_of(TrainingLoop(resumed, state), STEPS)
        assert again == losses[-len(again) :]
        assert {"cut", "500"} <= set(proxy.failed)
        proxy.close()


def test_broken_images_are_listed_with_the_run(tmp_path: Path) -> None:
    """One is left out when the folder is indexed, one breaks later: both are in a file of the run, and in MLflow."""
    images = write_image_folder(tmp_path / "images", train=50)
    (images / "train" / "class1" / "bad.png").write_bytes(b"no image")
    changes = {"scaling__num_workers": 0, "train__epochs": 1, "data__on_broken": "skip", "data__loader": "reference"}
    config = parse(small_recipe(images, tmp_path / "out", **changes))
    source = open_data(config)["train"]
    file = Path(source.names(np.array([0]))[0])
    times = file.stat()
    file.write_bytes(b"?" * times.st_size)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    launch(config)
    folder = RunFolder.of(config)
    left_out, replaced = folder.broken_images.read_text().splitlines()
    assert "bad.png cannot be read as an image" in left_out
    assert replaced == f"{file} has changed since it was indexed; restore it, or start again, which indexes it anew"
    artifacts = mlflow.MlflowClient(tracking_uri(config)).list_artifacts(folder.run_id.read_text())
    assert "broken_images.txt" in {artifact.path for artifact in artifacts}
    counts = [row["data/replaced_images"] for row in read_journal(folder.metrics) if "data/replaced_images" in row]
    assert counts[-1] == 1


@pytest.fixture
def without_labels(tmp_path: Path) -> Callable[..., RunConfig]:
    """A function that gives a recipe whose training images have no labels; val: whether validation images have some."""
    images = write_image_folder(tmp_path / "images")
    for split in ("train", "val"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        for file in sorted((images / split).rglob("*.png")):
            shutil.copy(file, tmp_path / "flat" / split / f"{file.parent.name}-{file.name}")
    torch.manual_seed(7)
    teacher = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")

    def make(method: list[dict[str, object]], labelled: str, **changes: object) -> RunConfig:
        root = tmp_path / f"root-{labelled}"
        root.mkdir(exist_ok=True)
        for split in ("train", "val"):
            if not (root / split).exists():
                (root / split).symlink_to((images if split == labelled else tmp_path / "flat") / split)
        recipe = small_recipe(
            root,
            tmp_path / "out",
            scaling__num_workers=0,
            views__mixup_alpha=0.4,
            teacher={"model": "cifar_resnet8", "checkpoint": str(tmp_path / "teacher.safetensors")},
            method=method,
            **changes,
        )
        return parse(recipe)

    return make


KD = [{"term": "kd", "weight": 1.0, "temperature": 4.0}]


def test_training_without_labels(without_labels: Callable[..., RunConfig]) -> None:
    """A method that reads none trains, and is judged on labelled validation images as any other."""
    config = without_labels(KD, "val", data__held_out=0.2)
    result = launch(config)
    rows = read_journal(RunFolder.of(config).metrics)
    assert not any("train/top1" in row for row in rows)
    assert {"val/top1", "val/agreement", "held_out/agreement"} <= result.metrics.keys()
    assert "held_out/top1" not in result.metrics


def test_validation_without_labels(without_labels: Callable[..., RunConfig]) -> None:
    """By agreement with the teacher, which also chooses the weights."""
    config = without_labels([*KD, {"term": "ce", "weight": 1.0}], "train", train__select="val")
    result = launch(config)
    assert {"val/agreement", "val/kl", "train/top1"} <= result.metrics.keys()
    assert not {"val/top1", "val/top5", "val/nll", "val/teacher_top1"} & result.metrics.keys()
    assert result.best_score is not None


def test_labels_that_are_missing(without_labels: Callable[..., RunConfig]) -> None:
    with pytest.raises(Refused, match=r"have no labels, which the term ce reads; leave it out of the method"):
        launch(without_labels([*KD, {"term": "ce", "weight": 1.0}], "val"))
    with pytest.raises(Refused, match=r"no split of .* has labels, so the classes are unknown"):
        launch(without_labels(KD, "neither"))


def test_a_held_out_slice_of_a_sample(tmp_path: Path) -> None:
    """data.held_out is taken from what data.images_per_class leaves."""
    images = write_image_folder(tmp_path / "images", train=16)
    found = open_data(parse(small_recipe(images, tmp_path / "out", data__images_per_class=10, data__held_out=0.2)))
    assert np.bincount(found["train"].labels).tolist() == [8, 8, 8]
    assert np.bincount(found["held_out"].labels).tolist() == [2, 2, 2]
