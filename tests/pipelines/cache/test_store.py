"""A cache grows shard by shard, is whole or refused, and says what it belongs to."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from kdcore.errors import Refused
from pipelines.cache.building import Building
from pipelines.cache.columns import PlainColumn
from pipelines.cache.manifest import Part, Plan, load_manifest, refuse_other_identity
from pipelines.cache.store import Unit, finished_shards, map_shard, units_of, write_shard
from pipelines.files import locked

IDENTITY = {
    "teacher": {"model": "big", "weights": "a" * 64},
    "data": {"train": "b" * 64},
    "views": {"crop": "resized", "scale": [0.1, 1.0], "seed": 0, "fingerprint": "c" * 64},
    "preprocessing": {"mean": [0.5, 0.5, 0.5], "decoder": "dali on cpu"},
    "versions": {"torch": "2.15.0", "numpy": "2.4.6"},
}


def plan(num_views: int = 2, **changes) -> Plan:
    identity = {section: {**facts, **changes.get(section, {})} for section, facts in IDENTITY.items()}
    column = PlainColumn(name="logits", shape=(3,), coding="float32")
    part = Part(num_rows=10, num_views=num_views, columns=(column,))
    return Plan(identity=identity, parts={"train": part}, rows_per_shard=4, batch_size=4)


def rows_of(unit: Unit) -> dict[str, np.ndarray]:
    """Numbers that say which row of which view they are."""
    ids = np.arange(unit.start, unit.stop, dtype=np.float32)
    return {"logits": np.stack([ids, ids + 100 * unit.view, -ids], axis=1)}


def build(directory: Path, made: Plan | None = None, stop_after: int | None = None) -> Building:
    """Does what is missing; with stop_after only so many shards of it, and no manifest."""
    building = Building(directory, made or plan())
    if building.note is None:
        building.write_constants({"classifier.weight": torch.ones(2, 2)}, {})
    for unit in building.missing()[:stop_after]:
        building.shards[unit] = write_shard(directory, unit, rows_of(unit), building.key)
    if stop_after is None:
        building.finish()
    return building


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_units_cover_every_row_of_every_view_once():
    units = units_of("train", 10, 2, 4)
    assert [(u.view, u.start, u.stop) for u in units] == [(v, s, min(s + 4, 10)) for v in (0, 1) for s in (0, 4, 8)]


def test_a_shard_is_one_uncompressed_batch_of_fixed_size_rows(tmp_path):
    unit = Unit("train", 1, 4, 8)
    shard = write_shard(tmp_path, unit, rows_of(unit), "key")
    reader = pa.ipc.open_file(tmp_path / unit.path)
    assert reader.num_record_batches == 1
    assert reader.schema.field("logits").type == pa.list_(pa.float32(), 3)
    assert np.array_equal(map_shard(tmp_path, shard, {"logits": ("float32", 3)})["logits"], rows_of(unit)["logits"])
    assert (tmp_path / unit.path).stat().st_size < 4 * 3 * 4 + 1200


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint8", "int16", "int32"])
def test_every_number_type_is_mapped_without_change(tmp_path, dtype):
    values = np.arange(-6, 6).astype(dtype).reshape(4, 3)
    shard = write_shard(tmp_path, Unit("train", 0, 0, 4), {"x": values}, "key")
    mapped = map_shard(tmp_path, shard, {"x": (dtype, 3)})["x"]
    assert mapped.dtype == dtype
    assert np.array_equal(mapped, values)


def test_a_build_cut_off_anywhere_ends_in_the_same_bytes(tmp_path):
    """After every possible number of shards, with a half-written file left behind."""
    build(tmp_path / "whole")
    for done in range(7):
        directory = tmp_path / f"cut-{done}"
        build(directory, stop_after=done)
        (directory / "train" / "view-00000").mkdir(parents=True, exist_ok=True)
        (directory / "train" / "view-00000" / f"rows-000000000000-000000000004.arrow.{'0' * 32}.tmp").write_bytes(
            b"half"
        )
        assert len(Building(directory, plan()).missing()) == 6 - done
        build(directory)
        assert contents(directory) == contents(tmp_path / "whole")


def test_a_shard_without_its_note_is_done_again(tmp_path):
    """The process died between the two."""
    build(tmp_path, stop_after=3)
    (tmp_path / Unit("train", 0, 4, 8).note).unlink()
    assert Building(tmp_path, plan()).missing()[0] == Unit("train", 0, 4, 8)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty note", "foreign note", "another view's note"])
def test_a_damaged_shard_is_done_again(tmp_path, damage):
    build(tmp_path)
    whole = contents(tmp_path)
    unit = Unit("train", 1, 4, 8)
    hurt(tmp_path, unit, damage)
    again = Building(tmp_path, plan())
    assert again.missing() == [unit]
    assert len(list(finished_shards(tmp_path, plan().units(), again.key))) == len(plan().units()) - 1
    build(tmp_path)
    assert contents(tmp_path) == whole


def hurt(directory: Path, unit: Unit, damage: str) -> None:
    path, note = directory / unit.path, directory / unit.note
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "remove":
        path.unlink()
    elif damage == "empty note":
        note.write_text("")
    elif damage == "another view's note":
        shutil.copy(directory / Unit("train", 0, 4, 8).note, note)
    else:
        facts = json.loads(note.read_text())
        note.write_text(json.dumps({**facts, "key": "0" * 64}))


def test_more_views_are_added_and_fewer_refused(tmp_path):
    build(tmp_path, plan(num_views=2))
    assert len(Building(tmp_path, plan(num_views=3)).missing()) == 3
    build(tmp_path, plan(num_views=3))
    build(tmp_path.with_name("three"), plan(num_views=3))
    assert contents(tmp_path) == contents(tmp_path.with_name("three"))
    with pytest.raises(Refused, match="holds 3 views already"):
        Building(tmp_path, plan(num_views=2))


@pytest.mark.parametrize("shards", [0, 4])
def test_an_interrupted_build_may_want_fewer_views(tmp_path, shards):
    """`cache build` said that it held views that were not there, and a run that it was not finished."""
    build(tmp_path, plan(num_views=3), stop_after=shards)
    build(tmp_path, plan(num_views=1))
    assert load_manifest(tmp_path).plan.parts["train"].num_views == 1
    build(tmp_path, plan(num_views=3))
    build(tmp_path.with_name("three"), plan(num_views=3))
    assert contents(tmp_path) == contents(tmp_path.with_name("three"))


def test_more_views_that_were_given_up_do_not_bind(tmp_path):
    build(tmp_path, plan(num_views=2))
    build(tmp_path, plan(num_views=3), stop_after=1)
    build(tmp_path, plan(num_views=2))
    assert load_manifest(tmp_path).plan.parts["train"].num_views == 2


def test_a_build_that_has_stored_nothing_does_not_bind(tmp_path):
    """A full GPU ended its first batch, and its advice of a smaller cache.batch_size was refused."""
    build(tmp_path, plan(), stop_after=0)
    smaller = plan().model_copy(update={"batch_size": 2})
    build(tmp_path, smaller)
    build(tmp_path.with_name("smaller"), smaller)
    assert contents(tmp_path) == contents(tmp_path.with_name("smaller"))


def test_a_folder_of_another_cache_is_refused(tmp_path):
    build(tmp_path, stop_after=1)
    with pytest.raises(Refused, match=r"identity.views.seed is 0 there and 5 here"):
        Building(tmp_path, plan(views={"seed": 5, "fingerprint": "d" * 64}))


def test_files_that_are_not_the_caches_stay(tmp_path):
    """Neither in a folder that is no cache's, nor beside one: half-written shards and plans alone are removed."""
    own = f"manifest.json.{'a' * 32}.tmp", f"train/view-00000/rows-000000000000-000000000004.json.{'b' * 32}.tmp"
    others = "thesis.tmp", f"thesis.{'c' * 32}.tmp", f"home/rows-0-4.arrow.{'d' * 32}.tmp", "train/view-00000/x.tmp"
    build(tmp_path, stop_after=1)
    for name in (*own, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a year of work")
    (tmp_path / "folder.tmp").mkdir()
    with pytest.raises(Refused, match="holds a cache of something else"):
        Building(tmp_path, plan(views={"seed": 5}))
    assert all((tmp_path / name).exists() for name in (*own, *others))
    Building(tmp_path, plan())
    assert not any((tmp_path / name).exists() for name in own)
    assert all((tmp_path / name).exists() for name in (*others, "folder.tmp"))


def test_other_constants_make_other_shards(tmp_path):
    """Sparse logits mean nothing without the code they were written with."""
    build(tmp_path)
    (tmp_path / "constants.safetensors").unlink()
    again = Building(tmp_path, plan())
    again.write_constants({"classifier.weight": torch.zeros(2, 2)}, {})
    assert len(Building(tmp_path, plan()).missing()) == 6


@pytest.mark.parametrize("content", [None, b"", b"x" * 100])
def test_constants_that_are_lost_cost_no_shards(content, tmp_path):
    """They come out the same when they are made again."""
    build(tmp_path)
    whole, path = contents(tmp_path), tmp_path / "constants.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again = Building(tmp_path, plan())
    assert again.note is None
    again.write_constants({"classifier.weight": torch.ones(2, 2)}, {})
    assert again.missing() == []
    again.finish()
    assert contents(tmp_path) == whole


def test_a_shard_on_another_nodes_disk_is_noticed(tmp_path):
    """The manifest is not written for files that the driver does not see."""
    building = build(tmp_path, stop_after=5)
    unit = building.missing()[0]
    building.shards[unit] = write_shard(tmp_path / "elsewhere", unit, rows_of(unit), building.key)
    with pytest.raises(Refused, match=r"rows-000000000008-000000000010.arrow is missing; .* every node sees"):
        building.finish()
    assert not (tmp_path / "manifest.json").exists()


def test_an_unfinished_cache_is_no_cache(tmp_path):
    build(tmp_path, stop_after=5)
    with pytest.raises(Refused, match=r"is not finished, or is not a cache; .*cache build"):
        load_manifest(tmp_path)


def test_a_manifest_edited_by_hand_is_noticed(tmp_path):
    build(tmp_path)
    path = tmp_path / "manifest.json"
    edited = json.loads(path.read_text())
    edited["plan"]["identity"]["teacher"]["weights"] = "0" * 64
    path.write_text(json.dumps(edited))
    with pytest.raises(Refused, match="changed by hand"):
        load_manifest(tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(Refused, match=r"is not a manifest; restore it, or build the cache again"):
        load_manifest(tmp_path)
    path.unlink()
    build(tmp_path)
    assert load_manifest(tmp_path).plan == plan()


REFUSED = {
    "teacher.weights": {"teacher": {"weights": "0" * 64}},
    "teacher.model": {"teacher": {"model": "other"}},
    "data.train": {"data": {"train": "0" * 64}},
    "views.scale": {"views": {"scale": [0.2, 1.0], "fingerprint": "0" * 64}},
    "views.seed": {"views": {"seed": 1, "fingerprint": "0" * 64}},
    "preprocessing.mean": {"preprocessing": {"mean": [0.4, 0.5, 0.5]}},
    "preprocessing.decoder": {"preprocessing": {"decoder": "dali on gpu"}},
    "versions.torch": {"versions": {"torch": "3.0"}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_difference_is_named(tmp_path, name):
    """By itself before any fingerprint over it; other library versions alone can be trusted."""
    build(tmp_path)
    manifest, expected = load_manifest(tmp_path), plan(**REFUSED[name]).identity
    refuse_other_identity(manifest, IDENTITY, "here")
    with pytest.raises(Refused, match=f"belongs to something else: {name} is .* there and .* here.*build the cache"):
        refuse_other_identity(manifest, expected, "here")
    if name == "versions.torch":
        refuse_other_identity(manifest, expected, "here", trust=True)
    else:
        with pytest.raises(Refused, match=name):
            refuse_other_identity(manifest, expected, "here", trust=True)


def test_what_is_not_known_is_not_compared(tmp_path):
    """A run from the cache need not have the teacher's weights."""
    build(tmp_path)
    refuse_other_identity(load_manifest(tmp_path), {**IDENTITY, "teacher": {"model": "big"}}, "here")


def test_a_cache_may_be_moved(tmp_path):
    build(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert load_manifest(tmp_path / "b").plan == plan()


def test_one_build_at_a_time(tmp_path):
    first, second = (locked(tmp_path / "lock", wait=False) for _ in range(2))
    with first, pytest.raises(BlockingIOError), second:
        pass
    with locked(tmp_path / "lock", wait=False):
        pass
