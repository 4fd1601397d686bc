"""Which index a run's workers open, where several runs have looked at the same images."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcore.errors import Refused
from pipelines.data.broken import Acceptance
from pipelines.data.index import build_index, open_index
from tests.pipelines.pictures import write_plain_folder


def test_runs_that_accept_other_images_keep_their_indexes(tmp_path: Path) -> None:
    """Side by side in one folder; a pointer of an earlier version, which had one name for all, is still good."""
    write_plain_folder(tmp_path, num=5)
    usual = build_index(tmp_path, "train", tmp_path / "index", progress=False)
    skipping = Acceptance("skip", "headers", 5000)
    with pytest.raises(Refused, match=r"no index of .*/train in .* with data.on_broken=skip, data.check=headers"):
        open_index(tmp_path, "train", tmp_path / "index", acceptance=skipping)
    (pointer,) = (tmp_path / "index").glob("latest-*.json")
    build_index(tmp_path, "train", tmp_path / "index", progress=False, acceptance=skipping)
    again = open_index(tmp_path, "train", tmp_path / "index")
    assert (again.on_broken, again.fingerprint) == ("refuse", usual.fingerprint)
    assert open_index(tmp_path, "train", tmp_path / "index", acceptance=skipping).on_broken == "skip"
    (other,) = set((tmp_path / "index").glob("latest-*.json")) - {pointer}
    other.rename(pointer)
    assert open_index(tmp_path, "train", tmp_path / "index", acceptance=skipping).on_broken == "skip"
