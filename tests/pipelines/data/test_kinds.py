"""The same images in every container: one fingerprint, one order, the same pixels; and what each kind refuses."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
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
from scipy.io import savemat

from kdcore.errors import Refused
from pipelines.data.broken import Acceptance
from pipelines.data.index import build_index, open_index
from pipelines.data.source import Source
from pipelines.data.variants import own_target
from pipelines.loaders.base import Request
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from tests.pipelines.containers import CONTAINERS, add, images_of, write_parquet, write_webdataset
from tests.pipelines.pictures import picture, write_odd_folder, write_plain_folder

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
        num_classes=len(source.classes),
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
    with pytest.raises(Refused, match=rf"^{name} was changed or cut off after it was indexed; restore it, or build"):
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
    with pytest.raises(Refused, match=r"lies beside the class folders"):
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


def test_numbers_without_names_become_digits_of_one_width(tmp_path: Path) -> None:
    """As in CIFAR-100's Parquet, and in the image folder that is made of it: 9 comes before 10."""
    images = [{"bytes": _jpeg(tmp_path, seed), "path": None} for seed in range(3)]
    pq.write_table(pa.table({"img": images, "fine_label": [10, 9, 10]}), tmp_path / "test-0000.parquet")
    source = build(tmp_path, "test")
    assert source.classes == tuple(f"{label:02d}" for label in range(11))
    assert source.labels.tolist() == [9, 10, 10]
    assert source.table["path"].to_pylist() == ["test/09/1", "test/10/0", "test/10/2"]


def test_labels_that_are_text(tmp_path: Path) -> None:
    images = [{"bytes": _jpeg(tmp_path, seed), "path": f"{seed}.jpg"} for seed in range(2)]
    pq.write_table(pa.table({"image": images, "label": ["dog", "cat"]}), tmp_path / "train.parquet")
    source = build(tmp_path)
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1])


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"text": ["a"], "label": [0]}, r"has columns text, label, none of which hold images; give Parquet with one"),
        ({"image": [b"x"], "label": pa.array([None], pa.int64())}, r"column 'label' has 1 rows without a label"),
        ({"image": [b"x"], "label": [-1]}, r"has an image of class -1, but labels count from 0"),
        ({"image": [b"x"], "label": [0]}, r"train.parquet: train/0/0 cannot be read as an image"),
        (pa.Table.from_arrays([pa.array([b"x"]), *[pa.array([0])] * 2], ["image", "label", "label"]), r"'label' twice"),
    ],
)
def test_parquet_that_holds_something_else(table: dict | pa.Table, complaint: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    with pytest.raises(Refused, match=complaint):
        build(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(Refused, match=r"train.parquet is not a whole Parquet file"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,label\na.jpg,cat", r"train.csv has no column 'path'; it needs the columns path and label"),
        ("path,label\n", r"train.csv has no rows"),
        ("path,label\na.jpg,cat\nb", r"train.csv cannot be read as a CSV \(.*Expected 2 columns, got 1"),
        ("path,label\na.jpg,cat", r"train.csv: /.*/a.jpg, of row 1 below the header, cannot be read \(No such file"),
        ("path,label\na.jpg,", r"has images of a class without a name"),
    ],
)
def test_csvs_that_are_wrong(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(Refused, match=complaint):
        build(tmp_path)


@pytest.fixture
def flat(tmp_path: Path) -> tuple[Path, Source]:
    """ImageNet's validation images side by side, and the same in class folders."""
    root, sorted_root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC", tmp_path / "sorted"
    (root / "val").mkdir(parents=True)
    for number, wnid in enumerate(WNIDS, 1):
        (sorted_root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        for folder in (root / "val", sorted_root / "val" / wnid):
            picture(20, 30, number).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG", format="JPEG")
    return root, build(sorted_root, "val")


WNIDS = ("n03", "n01", "n02", "n01")


def test_flat_validation_images_with_kaggles_labels(flat: tuple[Path, Source], tmp_path: Path) -> None:
    root, expected = flat
    lines = [f"ILSVRC2012_val_{number:08d},{wnid} 1 2 3 4 n09 5 6 7 8" for number, wnid in enumerate(WNIDS, 1)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    source = build(root, "val")
    assert (source.fingerprint, source.classes) == (expected.fingerprint, ("n01", "n02", "n03"))
    assert source.read(np.arange(4)) == expected.read(np.arange(4))


def test_flat_validation_images_with_the_devkits_labels(flat: tuple[Path, Source]) -> None:
    root, expected = flat
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    numbers = {"n01": 2, "n02": 3, "n03": 1}
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[wnid]}\n" for wnid in WNIDS))
    with pytest.raises(Refused, match=r"as the development kit's meta.mat says; put that file beside it"):
        build(root, "val")
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O")]
    synsets = np.array([(number, wnid) for wnid, number in numbers.items()], dtype=kinds)[:, None]
    savemat(devkit / "meta.mat", {"synsets": synsets})
    assert build(root, "val").fingerprint == expected.fingerprint


def test_flat_validation_images_without_labels(flat: tuple[Path, Source]) -> None:
    root, _ = flat
    with pytest.raises(Refused, match=r"without class folders, and no labels; put LOC_val_solution.csv or"):
        build(root, "val")
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n01 1 2 3 4")
    with pytest.raises(Refused, match=r"has no label for ILSVRC2012_val_00000002.JPEG"):
        build(root, "val")


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
        num_classes=3,
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


def test_a_split_that_is_nowhere(tmp_path: Path, folder: Path) -> None:
    write_parquet(folder, "train", tmp_path)
    with pytest.raises(Refused, match=r"has no split 'val'; it holds data"):
        build(tmp_path, "val")
    assert images_of(folder, "train")


def _jpeg(folder: Path, seed: int) -> bytes:
    picture(20, 20, seed).save(folder / "one.jpg")
    return (folder / "one.jpg").read_bytes()
