"""A cache in another place: put there whole or not at all, copied once to each machine that reads it."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pyarrow import fs

from kdcore.errors import Refused
from pipelines.cache.building import Building
from pipelines.cache.local import local_folder, publish
from pipelines.cache.manifest import load_manifest
from pipelines.cache.reader import refuse_damaged
from pipelines.cache.store import Unit
from pipelines.leases import leased
from pipelines.places import Place
from tests.pipelines.cache.test_reader import UNIT, reader
from tests.pipelines.cache.test_store import build, contents, plan


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


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_copy_of_other_content_says_what_to_remove(cache, tmp_path):
    """It said to restore a file, or to build the cache, neither of which mends a machine's copy."""
    copies = str(tmp_path / "copies")
    copy = local_folder(cache.as_uri(), copies)
    flip(copy / UNIT.path)
    with pytest.raises(Refused, match=rf"its checksum differs; remove {copy}, this machine's copy"):
        reader(copy).outputs(UNIT.view, np.array([7]))
    shutil.rmtree(copy)
    assert reader(local_folder(cache.as_uri(), copies)).outputs(1, np.array([7])).logits.tolist() == [[7, 107, -7]]


def test_content_that_is_damaged_in_the_store_is_not_kept(cache, tmp_path):
    flip(cache / UNIT.path)
    with pytest.raises(Refused, match=rf"damaged: {cache}/{UNIT.path} has changed .*; restore the file"):
        local_folder(cache.as_uri(), str(tmp_path / "copies"))
    assert left(tmp_path / "copies") == []


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


@pytest.mark.parametrize("num_bytes", [None, 50], ids=["gone", "cut off"])
def test_a_damaged_cache_is_not_copied(num_bytes, cache, tmp_path):
    shard = cache / UNIT.path
    content = shard.read_bytes()
    shard.unlink()
    if num_bytes is not None:
        shard.write_bytes(content[:num_bytes])
    with pytest.raises(Refused, match=rf"damaged: {shard} (is missing|has {num_bytes} bytes)"):
        publish(cache, str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_copied_cache_is_built_on_like_its_original(cache, tmp_path):
    """It was overwritten by a build of anything else, computed anew for one view more, and cut down for one less."""
    copy = tmp_path / "copy"
    publish(cache, str(copy))
    before = contents(copy)
    with pytest.raises(
        Refused, match=r"copy holds a cache of something else: identity.views.seed is 0 there and 5 here"
    ):
        Building(copy, plan(views={"seed": 5}))
    with pytest.raises(Refused, match="holds 2 views already"):
        Building(copy, plan(num_views=1))
    assert contents(copy) == before
    assert len(Building(copy, plan(num_views=3)).missing()) == 3
    for folder in (cache, copy):
        build(folder, plan(num_views=3))
    whole = contents(copy)
    assert {name: whole[name] for name in whole if not name.startswith(".work")} == contents(cache)


def test_a_copied_cache_whose_manifest_cannot_be_read_is_not_built_over(cache, tmp_path):
    copy = tmp_path / "copy"
    publish(cache, str(copy))
    (copy / "manifest.json").write_bytes(b"cut off")
    with pytest.raises(Refused, match=r"copy/manifest.json is not a manifest"):
        Building(copy, plan())


def test_a_cache_is_not_copied_over_one_that_is_being_built(cache, tmp_path):
    """Whether its build was interrupted, or runs."""
    begun, running = tmp_path / "begun", tmp_path / "running"
    build(begun, plan(views={"seed": 5}), stop_after=1)
    before = contents(begun)
    with pytest.raises(Refused, match=r"begun holds another cache, not finished; take another place"):
        publish(cache, begun.as_uri())
    after = contents(begun)
    assert {name: after[name] for name in before} == before
    assert "manifest.json" not in after
    with leased(running, "cache build"), pytest.raises(Refused, match=r"running is in use"):
        publish(cache, str(running))
    same = tmp_path / "same"
    build(same, plan(num_views=3), stop_after=1)
    assert publish(cache, str(same)).digest == load_manifest(same).digest


def test_a_disk_that_fills_at_the_manifest(cache, tmp_path, monkeypatch):
    """Is said in one line, and leaves nothing that stands in the way; nor does a manifest that was cut off."""
    store, replaced = tmp_path / "store", Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.name == "manifest.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replaced(path, target)

    with monkeypatch.context() as full:
        full.setattr(Path, "replace", fail)
        with pytest.raises(Refused, match=r"store/manifest.json cannot be written \(No space left"):
            publish(cache, str(store))
    assert not (store / "manifest.json").exists()
    for content in (b"", (cache / "manifest.json").read_bytes()[:-20]):
        (store / "manifest.json").write_bytes(content)
        assert publish(cache, str(store)).digest == load_manifest(store).digest


def test_a_store_that_does_not_answer(cache, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("NETWORK_CONNECTION during HeadObject")

    silent = SimpleNamespace(get_file_info=fail)
    monkeypatch.setattr("pipelines.places.filesystem_of", lambda location, setting: (silent, "bucket/cache"))
    named = r"^s3://bucket/cache/manifest.json cannot be read \(NETWORK_CONNECTION during HeadObject\); check that"
    with pytest.raises(Refused, match=named):
        local_folder("s3://bucket/cache?secret_key=x", str(tmp_path / "copies"))
    with pytest.raises(Refused, match=named):
        publish(cache, "s3://bucket/cache?secret_key=x")
    silent.get_file_info = lambda _: SimpleNamespace(type=fs.FileType.NotFound)
    silent.create_dir = silent.open_output_stream = silent.delete_file = fail
    with pytest.raises(Refused, match=r"cache/constants.safetensors cannot be written \(NETWORK_.* may write to it$"):
        publish(cache, "s3://bucket/cache")
    place = Place.of("s3://bucket/cache", "-o")
    with pytest.raises(Refused, match=r"cache/x cannot be written \(NETWORK_.* may write to it$"):
        place.write("x", b"")
    with pytest.raises(Refused, match=r"cache/x cannot be removed \(NETWORK_.* may write to it$"):
        place.remove("x")


def test_a_remote_folder_without_a_cache(tmp_path):
    with pytest.raises(Refused, match=r"holds no manifest.json"):
        local_folder(tmp_path.as_uri(), str(tmp_path / "copies"))
    with pytest.raises(Refused, match=r"cache.dir=gopher://x/y: .*give a folder, or a URI"):
        local_folder("gopher://x/y", str(tmp_path / "copies"))
