"""DALI and Pillow show the same view: bounds on the difference of every picture, in units of 1/255.

Both decode JPEG with libjpeg-turbo, bit for bit alike; what differs is the rounding of the resize, as Pillow rounds to
8 bits between its two passes. Measured over the folder of odd shapes: the mean over a picture is at most 0.25 and its
worst value 3 off with bilinear resizing, 0.30 and 5 with bicubic. On photographs of ImageNet at 224 pixels: 0.20 and 9
for random crops, 0.20 and 1 for the centre. A GPU decodes JPEG by other code, and is allowed more.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.loaders.base import Request
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "data" / "imagenet_fullsize" / "imagenet-fullsize-96.tar"
POLICIES = {
    "resized": ViewPolicy(size=48),
    "resized, bicubic": ViewPolicy(size=48, interpolation="bicubic"),
    "padded": ViewPolicy(size=32, crop="padded"),
    "center": ViewPolicy.evaluation(48),
    "center, oblong, bicubic": ViewPolicy.evaluation((32, 40), 0.95, "bicubic"),
}


def differences(index: Source, policy: ViewPolicy, views: int, device: str = "cpu", decode: str = "auto") -> np.ndarray:
    """|DALI - reference| in units of 1/255: [views * samples, values of a picture]."""
    plan = ViewPlan(policy, 8, len(index))
    found = []
    for kind, where, how in (("dali", device, decode), ("reference", "cpu", "cpu")):
        loader = build_loader(
            kind,  # type: ignore[arg-type]
            index,
            plan,
            mean=(0, 0, 0),
            std=(1 / 255,) * 3,
            device=torch.device(where),
            decode=how,  # type: ignore[arg-type]
            max_batch=len(index),
        )
        batches = loader.load(Request(view, np.arange(len(index))) for view in range(views))
        found.append(torch.cat([batch.images.cpu().flatten(1) for batch in batches]))
    return (found[0] - found[1]).abs().numpy()


@pytest.mark.parametrize("name", POLICIES)
def test_odd_shapes(name: str, odd_index: Source) -> None:
    policy = POLICIES[name]
    apart = differences(odd_index, policy, views=12)
    print(f"{name}: mean {apart.mean(axis=1).max():.2f}, max {apart.max():.0f} of 255")
    mean, worst = (0.5, 8.5) if policy.interpolation == "bicubic" else (0.35, 5.5)
    assert apart.mean(axis=1).max() < mean
    assert apart.max() < worst


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Source:
    if not PHOTOGRAPHS.exists():
        pytest.skip(f"{PHOTOGRAPHS.name} is not beside the project")
    root = tmp_path_factory.mktemp("photographs")
    (root / "train" / "all").mkdir(parents=True)
    with tarfile.open(PHOTOGRAPHS) as tar:
        members = [member for member in tar if member.isfile()][:32]
        for member in members:
            member.name = Path(member.name).name
            tar.extract(member, root / "train" / "all", filter="data")
    return build_index(root, "train", root / "cache", progress=False)


@pytest.mark.parametrize("policy", [ViewPolicy(), ViewPolicy.evaluation(224)], ids=["resized", "center"])
def test_photographs(policy: ViewPolicy, photographs: Source) -> None:
    apart = differences(photographs, policy, views=1)
    print(f"mean {apart.mean(axis=1).max():.2f}, max {apart.max():.0f} of 255")
    assert apart.mean(axis=1).max() < 0.35
    assert apart.max() < 10.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("decode", ["gpu", "cpu"])
@pytest.mark.parametrize("name", POLICIES)
def test_odd_shapes_on_a_gpu(name: str, decode: str, odd_index: Source) -> None:
    apart = differences(odd_index, POLICIES[name], views=4, device="cuda", decode=decode)
    print(f"{name}, decoded on the {decode}: mean {apart.mean(axis=1).max():.2f}, max {apart.max():.0f} of 255")
    assert apart.mean(axis=1).max() < 1.5
    assert apart.max() < 40
