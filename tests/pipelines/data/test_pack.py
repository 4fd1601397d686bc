"""Packs on a disk: verified, resumed, stored anew, and refused where something is wrong."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import fs

from kdcore.errors import Refused
from pipelines.data import packing
from pipelines.data.broken import Acceptance
from pipelines.data.convert import PackJob, run_pack_job, verify_pack
from pipelines.data.index import build_index
from pipelines.data.pack import read_pack
from pipelines.data.shards import windows_of
from pipelines.data.source import Source
from pipelines.places import Place
from tests.conftest import write_image_folder
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.pictures import write_plain_folder

NUM = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    write_plain_folder(root, num=NUM, side=64)
    return root


@pytest.fixture
def original(folder: Path) -> Source:
    return build_index(folder, "train", folder / "index", progress=False)


def job_of(folder: Path, **options: object) -> PackJob:
    settings = {"shard_bytes": 6000, **options}
    target, index = folder.parent / "pack", folder.parent / "index"
    return PackJob(str(folder), "train", str(target), str(index), **settings)  # type: ignore[arg-type]


def shards(folder: Path) -> dict[str, tuple[int, bytes]]:
    """{name: (time, content)} of the files of the pack."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder.parent / "pack").rglob("*.arrow")
    }


def test_every_shard_is_a_whole_arrow_file_with_everything_in_it(folder: Path, original: Source) -> None:
    job = job_of(folder)
    packed = run_pack_job(job, job.prepare())
    assert packed.fingerprint == original.fingerprint
    found = {}
    for path in (folder.parent / "pack" / "train").glob("shard-?????.arrow"):
        for row in pa.ipc.open_file(pa.memory_map(str(path))).read_all().to_pylist():
            found[row["path"]] = row
    for sample_id, path in enumerate(original.table["path"].to_pylist()):
        (content,) = original.read(np.array([sample_id]))
        assert found[path]["image"] == content
        assert found[path]["label"] == original.labels[sample_id]
        assert (found[path]["height"], found[path]["width"]) == (64, 64)
    assert len(found) == NUM


def test_each_shard_is_a_sample_of_all_classes(folder: Path) -> None:
    """Not class after class: an order of shards within which samples are shuffled is then nearly a full shuffle."""
    job = job_of(folder, shard_bytes=16_000)
    run_pack_job(job, job.prepare())
    table = read_pack(Place.of(job.target, "place"), "train")
    labels, files = table["label"].to_numpy(), table["file"].to_numpy()
    whole = [file for file in np.unique(files) if (files == file).sum() >= 5]
    assert whole
    assert all(len(np.unique(labels[files == file])) > 1 for file in whole)


def test_what_is_there_is_not_written_again(folder: Path) -> None:
    job = job_of(folder)
    run_pack_job(job, job.prepare())
    before = shards(folder)
    (folder.parent / "pack" / "train" / "shard-00001.arrow").unlink()
    (folder.parent / "pack" / "train" / "shard-00002.facts.arrow").unlink()
    os.truncate(folder.parent / "pack" / "train" / "shard-00003.facts.arrow", 100)
    run_pack_job(job, job.prepare())
    after = shards(folder)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    written = {name for name, (time, _) in after.items() if time != before[name][0]}
    assert written == {"index.arrow", *(f"shard-0000{n}{kind}.arrow" for n in (1, 2, 3) for kind in ("", ".facts"))}


def test_another_packing_replaces_the_first(folder: Path, original: Source) -> None:
    for shard_bytes in (6000, 9000):
        job = job_of(folder, shard_bytes=shard_bytes)
        assert run_pack_job(job, job.prepare()).fingerprint == original.fingerprint


def test_a_byte_that_has_changed_is_found(folder: Path) -> None:
    job = job_of(folder)
    run_pack_job(job, job.prepare())
    assert len(verify_pack(job.target, "train")) == NUM
    shard = folder.parent / "pack" / "train" / "shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(Refused, match=r"shard-00001.arrow has changed since it was packed; remove it and pack again"):
        verify_pack(job.target, "train")


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_shard_that_is_cut_off_or_gone_is_found_before_it_is_read(folder: Path, is_indexed: bool) -> None:
    job = job_of(folder)
    run_pack_job(job, job.prepare())
    target, index = Path(job.target), folder / "another-index"
    if is_indexed:
        build_index(target, "train", index, progress=False)
    shard = target / "train" / "shard-00001.arrow"
    size = shard.stat().st_size
    os.truncate(shard, size - 10)
    with pytest.raises(
        Refused, match=rf"shard-00001.arrow has {size - 10:,} bytes, and was packed with {size:,}; copy"
    ):
        build_index(target, "train", index, progress=False)
    shard.unlink()
    with pytest.raises(Refused, match=r"shard-00001.arrow is not there, and was packed with"):
        build_index(target, "train", index, progress=False)


def test_an_image_that_changes_behind_the_index(folder: Path, original: Source) -> None:
    job = job_of(folder)
    shards_to_write = job.prepare()
    file = Path(original.names(np.array([5]))[0])
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    with pytest.raises(Refused, match=rf"{file} has changed since it was indexed; restore it, or start again"):
        run_pack_job(job, shards_to_write)


def test_stored_anew(folder: Path, original: Source) -> None:
    job = job_of(folder, max_side=40, quality=80)
    packed = run_pack_job(job, job.prepare())
    assert packed.fingerprint != original.fingerprint
    assert packed.table["path"].to_pylist() == original.table["path"].to_pylist()
    assert packed.labels.tolist() == original.labels.tolist()
    assert set(packed.heights) == set(packed.widths) == {40}
    for content, before in zip(packed.read(np.arange(NUM)), original.read(np.arange(NUM)), strict=True):
        with Image.open(BytesIO(content)) as image, Image.open(BytesIO(before)) as old:
            assert image.format == "JPEG"
            small = np.asarray(old.convert("RGB").resize((40, 40), Image.Resampling.BICUBIC), dtype=float)
            assert np.abs(np.asarray(image.convert("RGB")) - small).mean() < 8


def test_parquet_goes_straight_into_the_pack(folder: Path, original: Source, tmp_path: Path) -> None:
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    CONTAINERS["parquet"](folder, "train", parquet)
    job = PackJob(str(parquet), "train", str(tmp_path / "pack"), str(tmp_path / "index"), shard_bytes=6000)
    assert run_pack_job(job, job.prepare()).fingerprint == original.fingerprint
    assert not (tmp_path / "index").exists(), "no second copy on the way"


def test_broken_images_are_left_out_of_the_pack(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_plain_folder(folder, num=120)
    (folder / "train" / "1" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(Refused, match=r"bad.jpg cannot be read as an image"):
        job_of(folder).prepare()
    job = job_of(folder, acceptance=Acceptance("skip"))
    packed = run_pack_job(job, job.prepare())
    assert len(packed) == 120
    indexed = build_index(folder, "train", tmp_path / "other", acceptance=Acceptance("skip"))
    assert indexed.fingerprint == packed.fingerprint


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_side": 0}, "--max-side 0: give the pixels"),
        ({"quality": 101}, "--quality 101: give a JPEG quality from 1"),
    ],
)
def test_options_that_make_no_sense(folder: Path, options: dict[str, int], complaint: str) -> None:
    with pytest.raises(Refused, match=complaint):
        job_of(folder, **options).prepare()


def test_a_pack_of_itself(folder: Path) -> None:
    with pytest.raises(Refused, match=r"is both the source and the target; give another place"):
        PackJob(str(folder), "train", str(folder), str(folder / "index")).prepare()


@pytest.mark.parametrize("other", ["train/class0", "train/0.jpg", "train/train-0.tar"])
def test_a_pack_among_other_images(other: str, folder: Path) -> None:
    """Beside class folders it could not be read; other images would be hidden by it."""
    job = job_of(folder)
    place = Path(job.target) / other
    if place.suffix:
        place.parent.mkdir(parents=True)
        place.write_bytes(b"x")
    else:
        place.mkdir(parents=True)
    with pytest.raises(Refused, match=rf"/pack/{other} is not of a pack, .*; give another place with -o, or move that"):
        job.prepare()
    place.unlink() if place.suffix else place.rmdir()
    (place.parent / f"shard-00000.arrow.{'0' * 32}.tmp").write_bytes(b"a pack that was killed")
    (place.parent / ".hidden").mkdir()
    run_pack_job(job, job.prepare())
    job.prepare()


def test_an_index_that_is_cut_off_or_of_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(folder)
    run_pack_job(job, job.prepare())
    monkeypatch.setattr("pipelines.data.pack.VERSION", 3)
    with pytest.raises(Refused, match=r"index.arrow is a pack of version 2, not 3; pack again"):
        verify_pack(job.target, "train")
    index = folder.parent / "pack" / "train" / "index.arrow"
    os.truncate(index, index.stat().st_size // 2)
    with pytest.raises(Refused, match=r"index.arrow is not a whole index of a pack \(.*\); pack again"):
        build_index(job.target, "train", folder.parent / "index")


def test_shards_are_written_in_any_order_by_whoever(folder: Path, original: Source) -> None:
    """What a cluster does: each shard by itself, from the job's plain values alone."""
    job = job_of(folder)

    def backwards(numbers: list[int]) -> object:
        for number in numbers[::-1]:
            yield number, packing.write_shard(job.place, job.split, job.packing(), number)

    seen: list[int] = []
    packed = run_pack_job(job, job.prepare(), seen.append, backwards)  # type: ignore[arg-type]
    assert packed.fingerprint == original.fingerprint
    assert sum(seen) == NUM


def test_windows_of_tars_in_order_of_class_are_refused(tmp_path: Path) -> None:
    """A window of some of such tars holds few classes; of a pack of the same images, all of them."""
    write_image_folder(tmp_path / "images", train=20, classes=6)
    (tmp_path / "tars").mkdir()
    for number in range(6):
        with tarfile.open(tmp_path / "tars" / f"train-{number:04d}.tar", "w") as tar:
            tar.add(tmp_path / "images" / "train" / f"class{number}", f"class{number}")
    tars = build_index(tmp_path / "tars", "train", tmp_path / "index", progress=False)
    with pytest.raises(Refused, match=r"data.window_shards=2: a window of .* holds 2 of 6 classes"):
        windows_of(tars, 2)
    assert windows_of(tars, 6).num_shards == 6
    job = PackJob(str(tmp_path / "tars"), "train", str(tmp_path / "packed"), str(tmp_path / "index"), 20_000)
    assert windows_of(run_pack_job(job, job.prepare()), 4).num_shards > 4


def coloured(root: Path, colours: tuple[str, str]) -> Source:
    """Two classes of PPMs, all of one size whatever their colours."""
    for name, colour in zip(("cat", "dog"), colours, strict=True):
        (root / "train" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), colour).save(root / "train" / name / f"{number:02d}.ppm")
    return build_index(root, "train", root / "index", progress=False)


@pytest.mark.parametrize("store", [fs.LocalFileSystem(), fs.SubTreeFileSystem("/", fs.LocalFileSystem())])
def test_packing_again_cut_off_leaves_no_index_of_other_images(store: fs.FileSystem, tmp_path: Path) -> None:
    """Shards of the same sizes, as of corrected labels, under the old index would be images of other classes."""

    def cut_off(_: list[int]) -> Iterable[tuple[int, pa.Table]]:
        raise InterruptedError
        yield

    first, second = (coloured(tmp_path / "-".join(colours), colours) for colours in (("red", "blue"), ("blue", "red")))
    (tmp_path / "pack" / "train").mkdir(parents=True)
    place = Place(str(tmp_path / "pack"), "pack", store, str(tmp_path / "pack"))
    packing.build_pack(packing.SourcePacking(first, 2000), place, "train")
    with pytest.raises(InterruptedError):
        packing.build_pack(packing.SourcePacking(first, 2000), place, "train", write_shards=cut_off)
    assert read_pack(place, "train").num_rows == 40, "the same images again: their index is right all the time"
    with pytest.raises(InterruptedError):
        packing.build_pack(packing.SourcePacking(second, 2000), place, "train", write_shards=cut_off)
    assert not (tmp_path / "pack" / "train" / "index.arrow").exists()
