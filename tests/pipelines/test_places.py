"""Places that cannot be reached, by what is wrong with them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kdcore.errors import Refused
from pipelines import places
from pipelines.places import Place


def test_files_of_a_hub_are_downloaded_first() -> None:
    """Asked for them, pyarrow raised errors that are none of its own."""
    with pytest.raises(Refused, match=r"^data.root=hf://datasets/a/b: .*snapshot_download, and give the folder"):
        Place.of("hf://datasets/a/b", "data.root")


def test_a_bucket_that_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_uri(location: str) -> None:
        raise OSError("When resolving region for bucket 'b': AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(places, "fs", SimpleNamespace(FileSystem=SimpleNamespace(from_uri=from_uri)))
    with pytest.raises(Refused, match=r"^data.root=s3://b/c: When .*region= or .endpoint_override=.*credentials"):
        Place.of("s3://b/c", "data.root")
    with pytest.raises(Refused, match=r"give a folder, or a URI that pyarrow.fs knows"):
        Place.of("gs://b/c", "data.root")


@pytest.mark.parametrize("location", ["s3://bucket/my images", "file:///a b"])
def test_a_space_in_a_uri(location: str) -> None:
    with pytest.raises(Refused, match=rf"^data.root={location}: a URI has no spaces; write each as %20$"):
        Place.of(location, "data.root")
    assert Place.of("file:///a%20b", "data.root").root == "/a b"
