"""Images that are broken at indexing, that break later, or are written over: refused, or replaced on request."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcore.errors import Refused
from pipelines.data.broken import Acceptance
from pipelines.data.index import open_index
from pipelines.loaders.base import Request
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.data.test_kinds import build
from tests.pipelines.pictures import write_plain_folder


def test_broken_images_are_left_out_on_request(tmp_path: Path) -> None:
    write_plain_folder(tmp_path / "images", num=240)
    bad = tmp_path / "images" / "train" / "1" / "bad.jpg"
    bad.write_bytes(b"no image")
    write_plain_folder(tmp_path / "whole", num=240)
    whole = build(tmp_path / "whole")
    for container in CONTAINERS:
        out = tmp_path / container
        out.mkdir()
        if container != "pack":
            CONTAINERS[container](tmp_path / "images", "train", out)
            with pytest.raises(Refused, match=r"bad.jpg cannot be read as an image"):
                build(out)
            source = build(out, acceptance=Acceptance("skip"))
            assert source.fingerprint == whole.fingerprint
            assert [message for message in source.broken if "bad.jpg" in message] == list(source.broken)
            assert len(source.broken) == 1
            assert open_index(out, "train", out / "index", acceptance=Acceptance("skip")).broken == source.broken
    for name in "abc":
        (bad.parent / f"{name}.jpg").write_bytes(b"nor this")
    with pytest.raises(Refused, match=r"4 of the 244 images in .* are broken, more than the 1% .*; repair them"):
        build(tmp_path / "images", acceptance=Acceptance("skip"))


@pytest.mark.parametrize("container", ["folder", "tar of folders", "pack"])
@pytest.mark.parametrize("loader", ["reference", "dali"])
def test_images_that_break_later_are_black_on_request(container: str, loader: str, tmp_path: Path) -> None:
    """The bytes of one change behind the index's back, its size does not: every loader shows a black picture."""
    for name in ("images", "out"):
        (tmp_path / name).mkdir()
    write_plain_folder(tmp_path / "images", num=12)
    CONTAINERS[container](tmp_path / "images", "train", tmp_path / "out")
    whole = build(tmp_path / "out", acceptance=Acceptance("skip"))
    before, victim = whole.read(np.arange(12)), 7
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and "index" not in path.parent.name and before[victim] in path.read_bytes():
            times = path.stat()
            path.write_bytes(path.read_bytes().replace(before[victim], b"?" * len(before[victim])))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    source = build(tmp_path / "out", acceptance=Acceptance("skip"))
    assert source.fingerprint == whole.fingerprint
    plan = ViewPlan(ViewPolicy.evaluation(24), 0, 12)
    made = build_loader(
        loader,  # type: ignore[arg-type]
        source,
        plan,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        device=torch.device("cpu"),
        max_batch=12,
    )
    (batch,) = made.load([Request(0, np.arange(12))])
    assert [int(row) for row in (batch.images.amax(dim=(1, 2, 3)) == 0).nonzero()] == [victim]
    assert list(source.replaced) == [victim]
    after = source.read(np.arange(12))
    assert [row for row in range(12) if after[row] != before[row]] == [victim]


def test_a_file_written_over_in_place_is_found_by_its_size_and_by_relisting(tmp_path: Path) -> None:
    """More files than are looked at: what is cheap does not show it, and reading does."""
    write_plain_folder(tmp_path / "images", num=6)
    source = build(tmp_path / "images")
    pointer = next((tmp_path / "images" / "index").glob("latest-*.json"))
    latest = json.loads(pointer.read_text())
    latest["traces"]["files"] = {}
    pointer.write_text(json.dumps(latest))
    file = Path(source.names(np.array([2]))[0])
    file.write_bytes(file.read_bytes() + b"appended")
    unnoticed = build(tmp_path / "images")
    assert unnoticed.fingerprint == source.fingerprint
    with pytest.raises(Refused, match=r"its size is no longer the \d+ bytes that were indexed"):
        unnoticed.read(np.arange(6))
    relisted = build(tmp_path / "images", relist=True)
    assert relisted.fingerprint != source.fingerprint
    assert relisted.read(np.array([2])) == [file.read_bytes()]
