"""Training from a teacher cache in an object store is training from its folder."""

from pathlib import Path

import pytest

from cluster.cache.job import build
from pipelines.cache.local import publish
from tests.cluster.cache.cached import losses
from tests.pipelines.stores import s3_server, store, use_test_credentials


def test_the_same_losses(recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_credentials(monkeypatch)
    build(recipes())
    here = losses(recipes(cached=True))
    with s3_server() as port:
        store(port).create_dir("caches")
        uri = f"s3://caches/kd?endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1"
        publish(tmp_path / "cache", uri)
        (tmp_path / "cache").rename(tmp_path / "away")
        assert (
            losses(
                recipes(
                    cached=True,
                    cache={"dir": uri, "batch_size": 4, "rows_per_shard": 20, "copies_dir": str(tmp_path / "copies")},
                )
            )
            == here
        )
