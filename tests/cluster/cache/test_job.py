"""A build gives the same bytes wherever it runs, and whoever is killed on the way."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.cache.job import build
from cluster.cache.progress import Progress
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse, to_yaml
from cluster.training.launch import launch
from kdcore.configs import ModelConfig
from kdcore.errors import Refused, RunFailed
from kdcore.models import build_model
from tests.cluster.servers import wait_for
from tests.commands import Command


@pytest.fixture
def config(recipe, tmp_path) -> RunConfig:
    """Two mixed views of 48 images and 15 validation images, in shards of 4 rows: 28 units."""
    torch.manual_seed(7)
    path = tmp_path / "teacher.safetensors"
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(model.state_dict(), path)
    return parse(
        recipe(
            teacher={"model": "cifar_resnet8", "checkpoint": str(path)},
            method=[
                {"term": "kd", "weight": 0.5, "temperature": 4.0},
                {"term": "nd", "weight": 0.5},
            ],
            views__num_views=2,
            cache={"dir": str(tmp_path / "cache"), "features": "int8", "batch_size": 2, "rows_per_shard": 4},
            scaling__num_workers=0,
        )
    )


def elsewhere(config: RunConfig, folder: str, num_workers: int = 2) -> RunConfig:
    cache = config.cache.model_copy(update={"dir": str(Path(config.cache.dir).with_name(folder))})
    scaling = config.scaling.model_copy(update={"num_workers": num_workers})
    return config.model_copy(update={"cache": cache, "scaling": scaling})


def contents(config: RunConfig) -> dict[str, bytes]:
    """The files of a cache, but for those of its lease."""
    directory = Path(config.cache.dir)
    files = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


class Interrupted(Exception):
    """What the tests stop a build with."""


def test_interrupted_at_some_rows(config, monkeypatch):
    """In this process: each start goes on with what was finished, and the end is that of an undisturbed build."""
    build(elsewhere(config, "whole", 0))
    monkeypatch.setattr(Progress, "interval_seconds", 0.0)

    def stop_at(row: int, state: dict[str, Any], messages: list[str]) -> None:
        if state["step"] >= row:
            raise Interrupted

    for row in (2, 6, 20, 50, 110):
        with pytest.raises(Interrupted):
            build(config, watch=partial(stop_at, row))
        assert not (Path(config.cache.dir) / "manifest.json").exists()
    build(config)
    assert contents(config) == contents(elsewhere(config, "whole", 0))


def test_what_a_watcher_is_told(config):
    seen: list[tuple[dict[str, Any], list[str]]] = []
    build(config, watch=lambda *told: seen.append(told))
    build(config, watch=lambda *told: seen.append(told))
    (first, _), (last, messages) = seen[-2], seen[-1]
    assert first["step"] == first["total_steps"] == last["step"] == 2 * 48 + 15
    assert first["bytes"] == 2 * 48 * (2 * 3 + 64 + 4) + 15 * 2 * 3
    assert messages == ["111 of 111 rows are there already"]


def test_a_broken_image_ends_the_build_with_its_name(config, tmp_path):
    """What was finished before stays."""
    from tests.conftest import write_image_folder

    root = write_image_folder(tmp_path / "own")
    broken = config.model_copy(update={"data": config.data.model_copy(update={"root": str(root)})})
    path = root / "train" / "class2" / "010.png"
    good, times = path.read_bytes(), path.stat()

    def break_it(state: dict[str, Any], messages: list[str]) -> None:
        path.write_bytes(good[:60] + bytes(len(good) - 60))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    with pytest.raises(Refused, match=r"010.png"):
        build(broken, watch=break_it)
    assert list(Path(config.cache.dir).rglob("*.arrow"))


@pytest.mark.ray
@pytest.mark.slow
def test_killed_three_times(ray_cluster, config, tmp_path, worker_executable):
    """A worker, another worker, and the driver, each with SIGKILL: the bytes of an undisturbed build in one process."""
    import ray

    build(elsewhere(config, "whole", 0))
    killed = elsewhere(config, "killed")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(killed))
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = Command(["cache", "build", str(recipe)], tmp_path / "output", worker_executable, address)
    # Told after the first shard.
    wait_for(lambda: "building the cache" in driver.said or driver.poll() is not None, 200)
    driver.kill()
    assert driver.returncode == -signal.SIGKILL, driver.said
    assert not (Path(killed.cache.dir) / "manifest.json").exists()

    victims: list[int] = []

    def kill_a_worker(state: dict[str, Any], messages: list[str]) -> None:
        if state and len(victims) < 2 and state["step"] < state["total_steps"]:  # else it waits for room
            alive = [pid for pid in workers() if pid not in victims]
            if alive:
                os.kill(alive[0], signal.SIGKILL)
                victims.append(alive[0])

    build(killed, watch=kill_a_worker)
    assert len(victims) == 2
    assert contents(killed) == contents(elsewhere(config, "whole", 0))


def workers() -> list[int]:
    """The processes of the build's workers."""
    import ray
    from ray.util.state import list_actors

    ours = ray.get_runtime_context().gcs_address
    alive = [("class_name", "=", "CacheWorker"), ("state", "=", "ALIVE")]
    return [actor.pid for actor in list_actors(address=ours, filters=alive, detail=True)]


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_in_a_worker_ends_the_job(ray_cluster, config, tmp_path):
    wrong = config.model_copy(update={"cache": config.cache.model_copy(update={"taps": ("layer9",)})})
    with pytest.raises(RunFailed, match=r"layer9"):
        build(elsewhere(wrong, "wrong"))


@pytest.mark.ray
@pytest.mark.slow
def test_two_ranks_read_one_cache(ray_cluster, config):
    """The losses of a run with the teacher in one process, micro-batch by micro-batch."""
    exact = config.cache.model_copy(update={"dtype": "float32", "features": "float32"})
    tracking = config.tracking.model_copy(update={"record_batches": True})
    online = config.model_copy(update={"cache": exact, "tracking": tracking, "name": "online"})
    build(online)
    cached = elsewhere(online, "cache").model_copy(
        update={"teacher": online.teacher.model_copy(update={"source": "cache"}), "name": "cached"}
    )
    one, two = records(launch(online).run_dir), records(launch(cached).run_dir)
    assert one.keys() == two.keys()
    for place, loss in one.items():
        assert two[place] == pytest.approx(loss, rel=2e-4)


def records(run_dir: str) -> dict[tuple[int, int], float]:
    """{(step, micro-batch): loss} over all ranks."""
    lines = [line for path in Path(run_dir).glob("batches-*.jsonl") for line in path.read_text().splitlines()]
    return {(row["step"], row["micro_batch"]): row["loss"] for row in map(json.loads, lines)}
