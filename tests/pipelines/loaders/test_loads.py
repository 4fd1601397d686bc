"""Loads that are abandoned, overtaken, asked for what there is not, or meet a bad file: the loader goes on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcore.errors import Refused
from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.loaders.base import BLOCK, Request
from pipelines.views.policy import ViewPolicy
from tests.pipelines.loaders.loading import KINDS, PLAIN, loader, requests
from tests.pipelines.pictures import picture, write_plain_folder


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_load_leaves_no_trace(kind: str, odd_index: Source) -> None:
    pictures = loader(kind, odd_index, PLAIN)
    expected = [batch.images for batch in pictures.load(requests(13, 4))]
    for taken in (0, 1, 2, 4):
        endless = pictures.load(itertools.cycle(requests(13, 3, view=9)))
        for _ in range(taken):
            next(endless)
        again = [batch.images for batch in pictures.load(requests(13, 4))]
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_an_overtaken_load_says_so(kind: str, odd_index: Source) -> None:
    pictures = loader(kind, odd_index, PLAIN)
    first = pictures.load(requests(13, 2))
    next(first)
    list(pictures.load(requests(13, 13)))
    with pytest.raises(AssertionError, match=r"another load\(\) has taken this loader over"):
        next(first)


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_drawn_as_needed(kind: str, odd_index: Source) -> None:
    drawn = itertools.count()
    endless = (Request(next(drawn), np.arange(2)) for _ in itertools.count())
    batches = loader(kind, odd_index, PLAIN).load(endless)
    for _ in range(3):
        next(batches)
    assert next(drawn) <= 2 * BLOCK + 1, "those of a block, which is served, of the next, and one to see its size"


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_or_too_large_request_is_the_callers_mistake(kind: str, odd_index: Source) -> None:
    for ids in (np.arange(0), np.arange(6)):
        with pytest.raises(AssertionError, match="1 to 5 samples"):
            list(loader(kind, odd_index, PLAIN, max_batch=5).load([Request(0, ids)]))


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Source, Path]:
    """A folder of six, whose file number 3 is theirs to damage after indexing."""
    write_plain_folder(tmp_path, num=6, side=120)
    index = build_index(tmp_path, "train", tmp_path / "cache", progress=False)
    return index, Path(index.names(np.array([3]))[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["truncated", "longer", "garbage", "missing", "resized"])
def test_a_bad_file_is_named(kind: str, damage: str, damaged: tuple[Source, Path]) -> None:
    index, file = damaged
    content = file.read_bytes()
    reason = "cannot be read as an image"
    if damage in ("truncated", "longer"):
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else content + b"x")
        reason += rf" \(its size is no longer the {len(content)} bytes"
    elif damage == "garbage":
        file.write_bytes(b"\x00" * len(content))
        reason = "has changed since it was indexed"
    elif damage == "missing":
        file.unlink()
        reason += r" \(No such file"
    else:  # of the same number of bytes and time: what follows a whole JPEG is skipped
        times = file.stat()
        picture(50, 60, 0).save(file)
        file.write_bytes(file.read_bytes().ljust(len(content), b"\x00"))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        reason = "is 50x60 pixels, but 120x120 in the index"
    pictures = loader(kind, index, ViewPolicy.evaluation(24))
    with pytest.raises(Refused, match=rf"^{file} {reason}.*start again(, which indexes it anew)?$"):
        list(pictures.load(requests(6, 2)))
    file.write_bytes(content)
    assert len(list(pictures.load(requests(6, 2)))) == 3, "the loader works again once the file does"


def test_the_requests_own_errors_pass_through(odd_index: Source) -> None:
    def failing() -> Iterator[Request]:
        yield Request(0, np.arange(2))
        raise RuntimeError("the caller's")

    pictures = loader("dali", odd_index, PLAIN)
    with pytest.raises(RuntimeError, match="the caller's"):
        list(pictures.load(failing()))
    assert len(list(pictures.load(requests(13, 5)))) == 3
