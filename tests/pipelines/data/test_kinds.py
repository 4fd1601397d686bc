"""The same images in every container: one fingerprint, one order, the same pixels; and what each kind refuses."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kdcore.errors import Refused
from pipelines.data.index import build_index, open_index
from pipelines.data.source import Source
from pipelines.data.variants import own_target
from pipelines.loaders.base import Request
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from tests.pipelines.containers import CONTAINERS, add, images_of, write_parquet, write_webdataset
from tests.pipelines.pictures import write_odd_folder, write_plain_folder

POLICY = ViewPolicy(size=24, mixup_alpha=0.4)


def build(root: Path, split: str = "train", **options: object) -> Source:
    return build_index(root, split, root / "index", progress=False, **options)  # type: ignore[arg-type]


def checksums(source: Source, kind: str = "reference") -> list[str]:
    """Of the first three batches."""
    plan = ViewPlan(POLICY, 4, len(source))
    loader = build_loader(
        kind,  # type: ignore[arg-type]
        source,
        plan,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        device=torch.device("cpu"),
        max_batch=4,
    )
    batches = loader.load([Request(0, plan.order(0, np.arange(start, start + 4))) for start in (0, 4, 8)])
    return [
        hashlib.sha256(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes()).hexdigest() for batch in batches
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original")
    write_odd_folder(root)
    return root


@pytest.fixture(scope="module")
def expected(folder: Path) -> Source:
    return build(folder)


@pytest.mark.parametrize("loader", ["reference", "dali"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_one_identity(container: str, loader: str, folder: Path, expected: Source, tmp_path: Path) -> None:
    CONTAINERS[container](folder, "train", tmp_path)
    source = build(tmp_path)
    assert (source.fingerprint, source.classes) == (expected.fingerprint, expected.classes)
    ids = np.random.default_rng(1).permutation(len(expected))
    assert source.read(ids) == expected.read(ids)
    assert source.subset(ids[:5]).read(np.array([4, 0])) == expected.read(ids[[4, 0]])
    assert source.split(0.2, 3)[1].fingerprint == expected.split(0.2, 3)[1].fingerprint
    assert checksums(source, loader) == checksums(expected, loader)


@pytest.mark.parametrize("container", CONTAINERS)
def test_indexed_once(container: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither listed nor read again; what workers open is the same."""
    CONTAINERS[container](folder, "train", tmp_path)
    first = build(tmp_path)
    monkeypatch.setattr("pipelines.data.index._make", None)
    again, opened = build(tmp_path), open_index(tmp_path, "train", tmp_path / "index")
    ids = np.arange(len(first))
    for one in (again, opened):
        assert one.table.equals(first.table)
        assert one.read(ids) == first.read(ids)
        assert one.names(ids) == first.names(ids)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_change_is_noticed(container: str, tmp_path: Path) -> None:
    """One image more in the container: an index of one more, although the first one is there."""
    write_plain_folder(tmp_path / "before", num=6)
    write_plain_folder(tmp_path / "after", num=7)
    out = tmp_path / "out"
    out.mkdir()
    CONTAINERS[container](tmp_path / "before", "train", out)
    before = build(out)
    for path in sorted(out.rglob("*"), reverse=True):
        if "index" not in path.relative_to(out).parts[:1]:
            path.unlink() if path.is_file() else path.rmdir()
    CONTAINERS[container](tmp_path / "after", "train", out)
    after = build(out)
    assert (len(before), len(after)) == (6, 7)
    assert after.fingerprint == build(tmp_path / "after").fingerprint


@pytest.mark.parametrize("container", ["tar of folders", "webdataset", "pack", "parquet"])
def test_a_file_that_is_cut_off_under_way_is_named(container: str, folder: Path, tmp_path: Path) -> None:
    CONTAINERS[container](folder, "train", tmp_path)
    source = build(tmp_path)
    name = source.names(np.array([0]))[0].partition(": ")[0]
    os.truncate(name, Path(name).stat().st_size - 1)
    with pytest.raises(
        Refused, match=rf"^{name} was changed or cut off after it was indexed; restore it, or start again"
    ):
        source.read(np.arange(len(source)))
    Path(name).unlink()
    with pytest.raises(Refused, match=rf"^{name} cannot be read \(No such file or directory\)"):
        source.read(np.arange(len(source)))


@pytest.mark.parametrize("container", ["folder", "tar of folders", "pack"])
def test_images_in_use_are_not_written_over(container: str, folder: Path, tmp_path: Path) -> None:
    """Memory is used again for other images, but not while any image in it is kept."""
    CONTAINERS[container](folder, "train", tmp_path)
    source = build(tmp_path)
    ids = np.arange(len(source))
    expected = [bytes(source.read(ids[number : number + 1])[0]) for number in ids]
    place = np.frombuffer(source.read(ids)[0], dtype=np.uint8).ctypes.data
    kept = source.read(ids)
    assert np.frombuffer(kept[0], dtype=np.uint8).ctypes.data == place, "the same memory"
    last = kept[-1]
    del kept
    for _ in range(3):
        assert source.read(ids[::-1]) == expected[::-1]
    assert last == expected[-1]


def test_a_tar_with_labels_for_some(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in ("0.jpg", "0.cls", "lonely.jpg"):
            add(tar, name, b"0")
    with pytest.raises(Refused, match=r"train.tar: lonely.jpg has no label, but others have; put a .cls file"):
        build(tmp_path)


def test_images_without_labels(folder: Path, tmp_path: Path) -> None:
    """In a folder, a tar, Parquet, a CSV and a pack: one fingerprint, no classes, and no purpose that needs labels."""
    roots = {name: tmp_path / name for name in ("folder", "tar", "parquet", "csv", "pack")}
    for root in roots.values():
        root.mkdir()
    (roots["folder"] / "train").mkdir()
    files = [file for file, _ in images_of(folder, "train")]
    for file in files:
        shutil.copy(file, roots["folder"] / "train" / file.name)
    with tarfile.open(roots["tar"] / "train.tar", "w") as tar:
        for file in files:
            add(tar, file.name, file.read_bytes())
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pq.write_table(pa.table({"image": rows, "caption": ["x"] * len(rows)}), roots["parquet"] / "train.parquet")
    shutil.copytree(roots["folder"] / "train", roots["csv"] / "files")
    (roots["csv"] / "train.csv").write_text("\n".join(["path", *(f"files/{file.name}" for file in files)]))
    CONTAINERS["pack"](roots["folder"], "train", roots["pack"])
    sources = {name: build(root) for name, root in roots.items()}
    assert len({source.fingerprint for source in sources.values()}) == 1
    for source in sources.values():
        assert (len(source), source.classes, source.labelled) == (13, (), False)
        assert source.read(np.arange(13)) == sources["folder"].read(np.arange(13))
        assert {len(part) for part in source.split(0.25, 0)} == {10, 3}
        with pytest.raises(Refused, match=r"have no labels, which an evaluation needs; give images with labels"):
            own_target(source)
    (roots["folder"] / "train" / "notes.txt").write_text("no image")
    with pytest.raises(Refused, match=r"notes.txt is not called like an image"):
        build(roots["folder"])


def test_a_tar_of_two_images_a_sample(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in ("0.left.jpg", "0.right.jpg", "0.cls"):
            add(tar, name, b"0")
    with pytest.raises(Refused, match=r"train.tar: 0.left.jpg and 0.right.jpg are two images of one sample"):
        build(tmp_path)


def test_a_tar_without_images_or_a_class_without_a_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        add(tar, "0.txt", b"a caption")
    with pytest.raises(Refused, match=r"train.tar holds no images; give tars of images"):
        build(tmp_path)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        add(tar, "0.jpg", b"")
        add(tar, "0.cls", b"3")
    (tmp_path / "classes.txt").write_text("cat\ndog")
    with pytest.raises(Refused, match=r"has an image of class 3, but there are names of 2 classes"):
        build(tmp_path)


def test_tars_that_are_cut_off(folder: Path, tmp_path: Path) -> None:
    CONTAINERS["tar of folders"](folder, "train", tmp_path)
    tar = tmp_path / "train.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    with pytest.raises(Refused, match=r"train.tar is not a whole tar \(.*\); copy it again"):
        build(tmp_path)


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_compressed_tars(suffix: str, folder: Path, expected: Source, tmp_path: Path) -> None:
    """Decompressed once, by name and again where that was removed; one that is cut off is named."""
    out = tmp_path / "out"
    out.mkdir()
    CONTAINERS["tar of folders"](folder, "train", out)
    content, packed = (out / "train.tar").read_bytes(), out / f"train.tar.{suffix}"
    if suffix == "zst":
        with pa.CompressedOutputStream(str(packed), "zstd") as file:
            file.write(content)
    else:
        packed.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[suffix].compress(content))
    (out / "train.tar").unlink()
    ids = np.arange(len(expected))
    for _ in range(2):
        source = build(out)
        assert source.fingerprint == expected.fingerprint
        assert source.read(ids) == expected.read(ids)
        assert source.names(ids)[0].endswith("/train.tar: train/a/cmyk.jpg")
        (plain,) = (out / "index").glob("tars-*")
        shutil.rmtree(plain)
    os.truncate(packed, packed.stat().st_size // 2)
    with pytest.raises(Refused, match=rf"train.tar.{suffix} is not a whole (compressed file|tar).*again"):
        build(out)


def test_names_of_splits(folder: Path, tmp_path: Path) -> None:
    """The hub says validation where recipes say val: the same images have one fingerprint nevertheless."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "val").mkdir(parents=True)
    write_webdataset(folder, "train", tmp_path / "a")
    (tmp_path / "a" / "train").rename(tmp_path / "a" / "validation")
    (folder / "val").symlink_to(folder / "train")
    try:
        assert build(tmp_path / "a", "val").fingerprint == build(folder, "val").fingerprint
    finally:
        (folder / "val").unlink()


def test_class_folders_win_over_what_lies_beside_them(folder: Path, tmp_path: Path) -> None:
    CONTAINERS["folder"](folder, "train", tmp_path)
    (tmp_path / "train.tar").write_bytes(b"not even a tar")
    assert build(tmp_path).names(np.array([0])) == [str(tmp_path / "train" / "a" / "cmyk.jpg")]


def test_a_split_that_is_nowhere(tmp_path: Path, folder: Path) -> None:
    write_parquet(folder, "train", tmp_path)
    with pytest.raises(Refused, match=r"has no split 'val'; it holds data"):
        build(tmp_path, "val")
    assert images_of(folder, "train")
