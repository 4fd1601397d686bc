"""Caches whose digests are right and whose content is not: anyone can compute a digest."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from kdcore.errors import Refused
from pipelines.cache.manifest import CONSTANTS, MANIFEST, Manifest, load_manifest
from pipelines.cache.reader import CacheReader
from pipelines.cache.store import arrow_file
from tests.pipelines.cache.test_store import build

ROW = {"logits": np.zeros((4, 3), dtype=np.float32)}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """10 rows in 2 views, 4 rows a shard."""
    build(tmp_path / "cache")
    return tmp_path / "cache"


def sign(directory: Path, content: dict[str, Any]) -> None:
    """Write a manifest with the digest that belongs to it, if it can have one."""
    try:
        content["digest"] = Manifest.model_validate({**content, "digest": ""})._own_digest()
    except ValidationError:
        content["digest"] = "0" * 64
    (directory / MANIFEST).write_text(json.dumps(content))


def forge(directory: Path, change: Change) -> None:
    content = json.loads((directory / MANIFEST).read_text())
    change(content)
    sign(directory, content)


def replace_shard(directory: Path, file: bytes) -> None:
    """The first shard's file, with size and checksum to match."""
    content = json.loads((directory / MANIFEST).read_text())
    shard = content["shards"][0]
    (directory / "train/view-00000/rows-000000000000-000000000004.arrow").write_bytes(file)
    shard |= {"num_bytes": len(file), "sha256": hashlib.sha256(file).hexdigest()}
    sign(directory, content)


def read(directory: Path) -> None:
    opened = CacheReader(directory, load_manifest(directory), "train", None, torch.device("cpu"))
    for view in range(2):
        opened.outputs(view, np.arange(10))


def with_part(name: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["plan"]["parts"][name] = content["plan"]["parts"].pop("train")
        for shard in content["shards"]:
            shard["part"] = name

    return change


def with_part_field(**fields: Any) -> Change:
    return lambda content: content["plan"]["parts"]["train"].update(fields)


def with_column(**fields: Any) -> Change:
    return lambda content: content["plan"]["parts"]["train"]["columns"][0].update(fields)


MANIFESTS: dict[str, Change] = {
    "a part above the folder": with_part("../x"),
    "a part elsewhere": with_part("/etc"),
    "a part that is the folder above": with_part(".."),
    "a part with a folder in it": with_part("a/../../b"),
    "a trillion rows": with_part_field(num_rows=10**12),
    "more rows than shards": with_part_field(num_rows=11),
    "no rows": with_part_field(num_rows=0),
    "fewer than no rows": with_part_field(num_rows=-5),
    "a billion views": with_part_field(num_views=10**9),
    "rows of a shard beyond all": lambda content: content["plan"].update(rows_per_shard=10**30),
    "no rows of a shard": lambda content: content["plan"].update(rows_per_shard=0),
    "a row of 2^40 numbers": with_column(shape=[2**20, 2**20]),
    "a row of another width": with_column(shape=[4]),
    "a row of no width": with_column(shape=[0]),
    "a row of negative width": with_column(shape=[-3]),
    "numbers of another type": with_column(coding="float16"),
    "another column": with_column(name="features"),
    "no shards": lambda content: content.update(shards=[]),
    "shards in another order": lambda content: content["shards"].reverse(),
    "a shard twice": lambda content: content["shards"].__setitem__(1, content["shards"][0]),
    "a shard of negative size": lambda content: content["shards"][0].update(num_bytes=-1),
    "another version": lambda content: content["plan"].update(version=99),
}


def test_a_manifest_signed_anew_and_otherwise_as_it_was_is_read(cache: Path) -> None:
    """So the others are refused for what is changed in them."""
    forge(cache, lambda content: None)
    read(cache)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_signed_anew(cache: Path, name: str) -> None:
    forge(cache, MANIFESTS[name])
    began = time.monotonic()
    with pytest.raises(Refused):
        read(cache)
    assert time.monotonic() - began < 5


def nulls() -> bytes:
    array = pa.array([[1.0, 2.0, 3.0], None, [1.0, 2.0, None], [0.0, 0.0, 0.0]], pa.list_(pa.float32(), 3))
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([array], names=["logits"])
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def no_batches() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema({"logits": pa.list_(pa.float32(), 3)})):
        pass
    return bytes(sink.getvalue())


WHOLE = bytes(arrow_file(ROW))
SHARDS = {
    "fewer rows": bytes(arrow_file({"logits": np.zeros((3, 3), dtype=np.float32)})),
    "more rows": bytes(arrow_file({"logits": np.zeros((5, 3), dtype=np.float32)})),
    "no rows": bytes(arrow_file({"logits": np.zeros((0, 3), dtype=np.float32)})),
    "another width": bytes(arrow_file({"logits": np.zeros((4, 2), dtype=np.float32)})),
    "another type": bytes(arrow_file({"logits": np.zeros((4, 3), dtype=np.float64)})),
    "another field": bytes(arrow_file({"other": np.zeros((4, 3), dtype=np.float32)})),
    "nulls": nulls(),
    "no batches": no_batches(),
    "nothing": b"",
    "noise": os.urandom(2000),
    "cut off": WHOLE[: len(WHOLE) // 2],
    "a magic word alone": b"ARROW1\0\0",
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_signed_anew(cache: Path, name: str) -> None:
    replace_shard(cache, SHARDS[name])
    with pytest.raises(Refused, match=r"rows-000000000000-000000000004\.arrow"):
        read(cache)


def test_a_shard_with_any_byte_of_its_frame_changed_is_read_within_bounds_or_refused(cache: Path) -> None:
    """144 mutations: what is served has the shape that the manifest says."""
    rng = np.random.default_rng(0)
    served = 0
    for _ in range(144):
        file = bytearray(WHOLE)
        file[rng.integers(len(file))] ^= 1 << rng.integers(8)
        replace_shard(cache, bytes(file))
        try:
            read(cache)
            served += 1
        except Refused:
            pass
    assert 0 < served < 144


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b'\x08\0\0\0\0\0\0\0{"a":1}', os.urandom(500)])
def test_constants_signed_anew(cache: Path, content: bytes) -> None:
    (cache / CONSTANTS).write_bytes(content)
    forge(cache, lambda manifest: manifest.update(constants=hashlib.sha256(content).hexdigest()))
    with pytest.raises(Refused, match=r"constants\.safetensors"):
        read(cache)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"plan": ' * 5000, "null", '{"plan": NaN}'])
def test_a_manifest_that_is_none(cache: Path, content: str) -> None:
    (cache / MANIFEST).write_text(content)
    with pytest.raises(Refused, match="is not a manifest"):
        load_manifest(cache)
