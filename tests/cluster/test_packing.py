"""Packing on a Ray cluster: the same bytes as in one process; a cluster without a free core is waited for, aloud."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from cluster.nodes.waiting import Patience, wait_for_place
from cluster.packing import shards_on_cluster
from kdcore.errors import ClusterFailed, RunFailed
from pipelines.data.convert import PackJob, run_pack_job
from tests.pipelines.pictures import write_plain_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "train").iterdir()}


def test_the_same_bytes(ray_cluster: None, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_plain_folder(images, num=24, side=64)
    jobs = [PackJob(str(images), "train", str(tmp_path / name), str(tmp_path / "index"), 6000) for name in "ab"]
    run_pack_job(jobs[0], jobs[0].prepare())
    run_pack_job(jobs[1], jobs[1].prepare(), write_shards=shards_on_cluster(jobs[1]))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    (images / "train" / "0" / "000.jpg").write_bytes(b"other")
    job = PackJob(str(images), "train", str(tmp_path / "c"), str(tmp_path / "index"), 6000)
    with pytest.raises(RunFailed, match=r"packing .*000.jpg cannot be read as an image \(its size is no longer"):
        run_pack_job(job, job.packing(), write_shards=shards_on_cluster(job))


class Occupant:
    """Takes all cores of the tests' cluster."""

    def here(self) -> None: ...


def test_a_cluster_without_a_free_core(ray_cluster: None) -> None:
    occupant = ray.remote(num_cpus=4)(Occupant).remote()
    ray.get(occupant.here.remote())
    said: list[str] = []
    with pytest.raises(ClusterFailed, match=r"^waited 2 s for 1 x 1 CPU, and the cluster has 4 CPU on 1 node; free: 0"):
        wait_for_place({"CPU": 1}, Patience(2, said.append, "end other work"))
    ray.kill(occupant)
    wait_for_place({"CPU": 1}, Patience(60, said.append, "end other work"))
    assert not said
