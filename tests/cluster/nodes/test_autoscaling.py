"""What an autoscaler can bring: from Ray's own store, from the file of `ray up`, or unknown."""

import math
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from cluster.nodes import autoscaling
from cluster.nodes.autoscaling import gpus_to_come, resources_of_ray_up, resources_to_come

OURS = yaml.safe_load((Path(autoscaling.__file__).parents[1] / "deploy" / "ray-cluster.yaml").read_text())


def types(**kinds):
    return {"head_node_type": "head", "available_node_types": {"head": {"resources": {"GPU": 9}}, **kinds}}


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (types(gpu={"resources": {"CPU": 8, "GPU": 2}, "max_workers": 4}), (32, 8)),
        (types(gpu={"resources": {"GPU": 2}}) | {"max_workers": 3}, (math.inf, 6)),
        (types(cpu={"resources": {"CPU": 8}, "max_workers": 4}), (32, 0)),
        (types(gpu={"resources": {"GPU": 2}, "max_workers": 0}), (0, 0)),
        (types(any={"max_workers": 4}), None),
        (types(any={"max_workers": 0}), (0, 0)),
        (types() | {"max_workers": 3}, (0, 0)),
        (types(head={"resources": {"CPU": 8, "GPU": 2}, "max_workers": 4}), (32, 8)),
        (OURS, None),
        (prepare_config(OURS), None),  # as it lies on the head: of one type, the head's, without resources
    ],
)
def test_the_file_of_ray_up(config, most, tmp_path, monkeypatch):
    expected = most and dict(zip(("CPU", "GPU"), most, strict=True))
    assert resources_of_ray_up(config) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(autoscaling, "_stated_by_ray", lambda: None)
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(config))
    assert resources_to_come() == expected
    assert gpus_to_come() == (most and most[1])


def test_without_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    monkeypatch.setattr(autoscaling, "_stated_by_ray", lambda: None)
    assert resources_to_come() == {}
    assert gpus_to_come() == 0
    monkeypatch.setenv("RAY_CLUSTER_NAME", "stillhouse")  # a pod of KubeRay's
    assert gpus_to_come() is None
    monkeypatch.setattr(autoscaling, "_stated_by_ray", lambda: {"CPU": 8.0, "GPU": 64.0})
    assert gpus_to_come() == 64
