"""Rows come back in the order asked for, from any shards; nothing damaged is served."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from kdcore.batch import Needs
from kdcore.errors import Refused, RunFailed
from pipelines.cache.manifest import load_manifest
from pipelines.cache.reader import CacheReader
from pipelines.cache.store import Unit, checksum, write_shard
from tests.pipelines.cache.test_store import build, plan, rows_of

CPU = torch.device("cpu")


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
    with pytest.raises(Refused, match=r"has 2 views, so no view 2; set views.num_views=2"):
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


def test_constants_of_another_content_are_never_served(cache):
    """As many bytes, and a file of tensors still."""
    path = cache / "constants.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Refused, match=r"the cache is damaged: .*constants.safetensors has changed since it was writ"):
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
