"""One run on the same images in every container: the same losses, whoever resumes it where, on 1 and 2 ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import Assembly, assemble, checkpoint_facts, open_data
from cluster.rank import Rank
from cluster.recipe import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.training.launch import launch
from cluster.training.loop import TrainingLoop, new_state
from kdcore.batch import Batch
from pipelines.data import remote
from pipelines.data.convert import PackJob, run_pack_job
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


def losses_of(loop: TrainingLoop, until: int) -> list[float]:
    """Of every micro-batch up to a step, the exact numbers."""
    losses: list[float] = []
    batches = loop.run.train_batches(loop.state.step)
    while loop.state.step < until:
        loop.step(batches, lambda _number, _batch, output: losses.append(output.loss.item()))
    return losses


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
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.01)
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
    assert replaced == f"{file} has changed since it was indexed; restore it, or build the index again"
    artifacts = mlflow.MlflowClient(tracking_uri(config)).list_artifacts(folder.run_id.read_text())
    assert "broken_images.txt" in {artifact.path for artifact in artifacts}
    counts = [row["data/replaced_images"] for row in read_journal(folder.metrics) if "data/replaced_images" in row]
    assert counts[-1] == 1
