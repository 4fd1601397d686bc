"""The file that DALI fails at is named, also where Pillow reads it: NVIDIA/DALI#306, #5296."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdcore.errors import Refused
from pipelines.data import images
from pipelines.data.index import build_index
from pipelines.loaders.base import Request
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from tests.conftest import write_image_folder


def test_the_file_is_named(tmp_path, monkeypatch):
    """The index would refuse it; it is let through here, as a kind that nobody has thought of would be."""
    root = write_image_folder(tmp_path / "images")
    file = root / "train" / "class1" / "003.png"
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-12])
    monkeypatch.setattr(images, "differs", lambda *args: None)
    source = build_index(root, "train", tmp_path / "index")
    plan = ViewPlan(ViewPolicy(size=16), 0, len(source))
    loader = build_loader("dali", source, plan, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu"))
    requests = [Request(view=0, sample_ids=np.arange(start, start + 8)) for start in (0, 8, 16, 24)]
    with pytest.raises(Refused, match=r"class1/003.png is read by Pillow and not by DALI"):
        list(loader.load(requests))
