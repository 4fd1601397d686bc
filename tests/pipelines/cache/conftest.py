"""Shared by the tests of caches."""

from pathlib import Path

import pytest

from tests.pipelines.cache.test_store import build


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """10 rows in 2 views, 4 rows a shard; row i of view v is [i, i + 100 v, -i]."""
    build(tmp_path / "cache")
    return tmp_path / "cache"
