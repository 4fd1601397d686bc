"""Rows come back in the order asked for, from any shards; nothing damaged is served."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from kdcore.batch import Needs
from kdcore.errors import Refused, RunFailed
from pipelines.cache.local import local_folder, publish
from pipelines.cache.manifest import load_manifest
from pipelines.cache.reader import CacheReader, refuse_damaged
from pipelines.cache.store import Unit, checksum, write_shard
from tests.pipelines.cache.test_store import build, plan, rows_of

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path) -> Path:
    """10 rows in 2 views, 4 rows a shard; row i of view v is [i, i + 100 v, -i]."""
    build(tmp_path / "cache")
    return tmp_path / "cache"


def reader(directory: Path, needs: Needs | None = None) -> CacheReader:
    return CacheReader(directory, load_manifest(directory), "train", needs, CPU)


@pytest.mark.parametrize("ids", [[3], [9, 0, 4, 8, 3, 7], [5, 5, 1, 5], list(range(10)), [7, 6, 5, 4], []])
def test_rows_in_the_order_asked_for(cache, ids):
    opened = reader(cache)
    for view in (1, 0, 1):
        logits = opened.outputs(view, np.array(ids, dtype=np.int64)).logits
        assert logits.tolist() == [[i, i + 100 * view, -i] for i in ids]


def test_many_random_batches(cache):
    opened, rng = reader(cache), np.random.default_rng(0)
    for _ in range(50):
        ids, view = rng.integers(10, size=rng.integers(1, 30)), int(rng.integers(2))
        assert opened.outputs(view, ids).logits[:, 1].tolist() == (ids + 100 * view).tolist()


def test_rows_of_several_views_in_one_gather(cache):
    opened, rng = reader(cache), np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(10, size=rng.integers(1, 30))
        views = rng.integers(2, size=len(ids))
        logits = opened.outputs(views, ids).logits
        assert logits.tolist() == [[i, i + 100 * v, -i] for i, v in zip(ids.tolist(), views.tolist(), strict=True)]


def test_a_batch_is_a_copy(cache):
    """Changing a batch changes neither the file nor the next batch."""
    opened = reader(cache)
    opened.outputs(0, np.arange(4)).logits.zero_()
    assert opened.outputs(0, np.arange(4)).logits[:, 0].tolist() == [0, 1, 2, 3]


def test_ids_outside_are_a_programmers_error(cache):
    with pytest.raises(AssertionError, match=r"lie in \[0, 10\)"):
        reader(cache).outputs(0, np.array([10]))


def test_a_view_too_many_is_refused(cache):
    with pytest.raises(Refused, match=r"has 2 views, there is no view 2; set views.num_views=2"):
        reader(cache).outputs(2, np.arange(3))


def test_a_column_that_is_lacking_is_refused_at_once(cache):
    with pytest.raises(Refused, match=r"holds logits, but the recipe reads features.layer4"):
        reader(cache, Needs(teacher_taps=frozenset({"layer4"})))


def test_the_classifier(cache):
    needs = Needs(teacher_logits=True, teacher_classifier=True)
    classifier = reader(cache, needs).outputs(0, np.arange(2)).classifier
    assert torch.equal(classifier.weight, torch.ones(2, 2))
    assert classifier.bias is None
    assert reader(cache).outputs(0, np.arange(2)).classifier is None


UNIT = Unit("train", 1, 4, 8)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def missing(path: Path) -> None:
    path.unlink()


def half_written(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(5.0).tobytes())] ^= 1
    path.write_bytes(content)


def zeroed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(content)


def foreign(path: Path) -> None:
    """A whole, valid shard of the same size, of another view."""
    shutil.copy(path.parents[1] / "view-00000" / path.name, path)


@pytest.mark.parametrize("damage", [truncated, missing, half_written])
def test_a_shard_of_another_size_is_found_at_once(cache, damage):
    damage(cache / UNIT.path)
    with pytest.raises(Refused, match=r"the cache is damaged: .*rows-000000000004.* (missing|bytes, not).*cache build"):
        reader(cache)


@pytest.mark.parametrize("damage", [flipped, zeroed, foreign])
def test_a_shard_of_another_content_is_never_served(cache, damage):
    """Found when its view is first read, whichever rows are asked for; the other view is not held up."""
    damage(cache / UNIT.path)
    opened = reader(cache)
    assert opened.outputs(0, np.arange(10)).logits[9].tolist() == [9, 9, -9]
    for _ in range(2):
        with pytest.raises(Refused, match=r"the cache is damaged: .*view-00001/rows-000000000004.*checksum differs"):
            opened.outputs(1, np.array([0]))


def test_a_shard_of_another_build_is_foreign(cache, tmp_path):
    """As many bytes, as whole, with its own note."""
    write_shard(cache, UNIT, {"logits": rows_of(UNIT)["logits"] + 1}, key="0" * 64)
    with pytest.raises(Refused, match="checksum differs"):
        reader(cache).outputs(1, np.array([0]))


@pytest.mark.parametrize("damage", [missing, truncated])
def test_damaged_constants(cache, damage):
    damage(cache / "constants.safetensors")
    with pytest.raises(Refused, match=r"the cache is damaged: .*constants.safetensors"):
        reader(cache)


def num_mapped(directory: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{directory}/train")


def test_views_read_long_ago_are_unmapped(tmp_path, monkeypatch):
    """A process may have so many mappings; the views of one batch stay, and none is read whole twice."""
    build(tmp_path, plan(num_views=6))
    monkeypatch.setattr("pipelines.cache.reader._MAPPED_SHARDS", 7)  # 3 shards a view
    opened, hashed = reader(tmp_path), []
    monkeypatch.setattr("pipelines.cache.store.checksum", lambda path: hashed.append(path) or checksum(path))
    for view in (0, 1, 2, 3, 4, 5, 0, 5):
        assert opened.outputs(view, np.array([7])).logits.tolist() == [[7, 7 + 100 * view, -7]]
        assert num_mapped(tmp_path) <= 6
    logits = opened.outputs(np.arange(6), np.full(6, 9)).logits
    assert logits[:, 1].tolist() == [9, 109, 209, 309, 409, 509]
    assert num_mapped(tmp_path) == 18
    mapped = list(opened._views.values())
    opened.outputs(np.arange(6), np.full(6, 3))
    assert all(any(one is other for other in mapped) for one in opened._views.values()), "nothing is mapped anew"
    assert len(hashed) == 18


@pytest.mark.parametrize(
    ("error", "remedy"), [(errno.ENOMEM, r"raise vm.max_map_count"), (errno.EMFILE, r"\(ulimit -n\)")]
)
def test_a_healthy_shard_is_not_accused_where_no_more_can_be_mapped(cache, monkeypatch, error, remedy):
    def fail(_: str) -> None:
        raise OSError(error, "no more")

    monkeypatch.setattr(pa, "memory_map", fail)
    with pytest.raises(RunFailed, match=rf"rows-000000000000-000000000004.arrow cannot be (mapped|opened).*{remedy}"):
        reader(cache).outputs(0, np.array([7]))


def test_a_remote_cache_is_copied_once(cache, tmp_path):
    uri, copies = cache.as_uri(), str(tmp_path / "copies")
    copy = local_folder(uri, copies)
    assert copy != cache
    assert reader(copy).outputs(1, np.array([7])).logits.tolist() == [[7, 107, -7]]
    written = (copy / "manifest.json").stat().st_mtime_ns
    assert local_folder(uri + "/", copies) == copy
    assert (copy / "manifest.json").stat().st_mtime_ns == written
    build(cache, plan(num_views=3))
    assert local_folder(uri, copies) not in (copy, cache)


def left(copies: Path) -> list[str]:
    return sorted(path.name.split(".")[-1] for path in copies.iterdir() if path.is_dir())


def test_a_copy_that_fails_leaves_nothing_behind(cache, tmp_path):
    """Nor what a process left that was killed at it; the next one has the manifest's files and no others."""
    copies = tmp_path / "copies"
    shard = cache / Unit("train", 1, 4, 8).path
    content = shard.read_bytes()
    (cache / "notes").mkdir()
    (cache / "notes" / "mine.txt").write_text("not of the cache")
    shard.unlink()
    for complaint in (r"view-00001/rows-000000000004-000000000008.arrow is missing", r"has \d+ bytes, not \d+"):
        with pytest.raises(Refused, match=rf"the cache is damaged: .*/cache/train/.*{complaint}.*; restore the file"):
            local_folder(cache.as_uri(), str(copies))
        assert left(copies) == []
        shard.write_bytes(content[:-100])
    shard.write_bytes(content)
    digest = load_manifest(cache).digest
    (copies / f"{digest}.0.tmp" / "train").mkdir(parents=True)
    copy = local_folder(cache.as_uri(), str(copies))
    assert left(copies) == [digest]
    assert not (copy / "notes").exists()


@pytest.mark.parametrize("num_bytes", [None, 0, 50], ids=["gone", "empty", "cut off"])
@pytest.mark.parametrize("name", ["manifest.json", "constants.safetensors", UNIT.path])
def test_a_damaged_copy_is_made_again(cache, tmp_path, name, num_bytes):
    copies = str(tmp_path / "copies")
    copy = local_folder(cache.as_uri(), copies)
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if num_bytes is not None:
        (copy / name).write_bytes(content[:num_bytes])
    assert reader(local_folder(cache.as_uri(), copies)).outputs(1, np.array([7])).logits.tolist() == [[7, 107, -7]]


def test_a_copy_without_room(cache, tmp_path, monkeypatch):
    copies = tmp_path / "copies"
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
        with pytest.raises(Refused, match=r"cache.copies_dir: a copy of .*/cache takes [\d,]+ bytes, .* has 100 free"):
            local_folder(cache.as_uri(), str(copies))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipelines.cache.local.fs.copy_files", fail)
    with pytest.raises(Refused, match=r"cache.copies_dir: .* cannot be written \(No space left on device"):
        local_folder(cache.as_uri(), str(copies))
    assert left(copies) == []


def test_a_cache_is_put_into_object_storage(cache, tmp_path):
    """All of it or none: the manifest comes last, and no other cache is overwritten."""
    store = tmp_path / "store"
    (cache / "leftover.tmp").write_bytes(b"half")
    publish(cache, store.as_uri())
    assert not (store / "leftover.tmp").exists()
    copy = local_folder(store.as_uri(), str(tmp_path / "copies"))
    assert reader(copy).outputs(1, np.array([7])).logits.tolist() == [[7, 107, -7]]
    (store / "manifest.json").unlink()
    next(store.rglob("*.arrow")).write_bytes(b"cut off")
    with pytest.raises(Refused, match=r"holds no manifest.json"):
        local_folder(store.as_uri(), str(tmp_path / "copies"))
    publish(cache, str(store))  # a folder will do as well
    assert publish(cache, str(store)).digest == load_manifest(store).digest
    refuse_damaged(store, list(load_manifest(store).shards), full=True)
    build(cache, plan(num_views=3))
    with pytest.raises(Refused, match=r"holds another cache; take another place"):
        publish(cache, str(store))


def test_a_remote_folder_without_a_cache(tmp_path):
    with pytest.raises(Refused, match=r"holds no manifest.json"):
        local_folder(tmp_path.as_uri(), str(tmp_path / "copies"))
    with pytest.raises(Refused, match=r"cache.dir=gopher://x/y: .*give a folder, or a URI"):
        local_folder("gopher://x/y", str(tmp_path / "copies"))
