"""A small image folder that a test may change."""

from pathlib import Path

import pytest

from tests.pipelines.pictures import write_plain_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_plain_folder(tmp_path / "data", num=6)
    return tmp_path / "data"
