"""Indices of two small image folders."""

from __future__ import annotations

import pytest
import torch

from pipelines.data.index import build_index
from pipelines.data.source import Source
from tests.pipelines.pictures import write_odd_folder, write_plain_folder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def odd_index(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("odd")
    write_odd_folder(root)
    return build_index(root, "train", root / "cache", progress=False)


@pytest.fixture(scope="session")
def plain_index(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("plain")
    write_plain_folder(root)
    return build_index(root, "train", root / "cache", progress=False)
