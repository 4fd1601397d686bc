"""Folders and files that cannot be indexed are refused by name, with a remedy."""

import os
import shutil
import socket
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from kdcore.errors import Refused
from pipelines.data.broken import Acceptance
from pipelines.data.classes import check_same_classes
from pipelines.data.index import build_index
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.data.indexed import build
from tests.pipelines.pictures import picture, write_plain_folder
from tests.pipelines.zoo import zoo


def test_missing_folders(root: Path) -> None:
    with pytest.raises(Refused, match=r"nowhere: no such folder; set data\.root to the folder"):
        build_index(root / "nowhere", "train", root.parent / "cache")
    with pytest.raises(Refused, match="no split 'val'; it holds train"):
        build(root, "val")
    (root / "val").mkdir()
    with pytest.raises(Refused, match="val has no class folders"):
        build(root, "val")


@pytest.mark.parametrize(
    ("split", "names", "complaint"),
    [
        (
            "val",
            ["test", "train"],
            r"holds test, train: if test is meant, add data.val_split=test \(to `data show`: --spl",
        ),
        ("val", ["test", "train", "validation"], r"if validation is meant, add data.val_split=validation"),
        ("val", ["Train", "Val"], r"if Val is meant, add data.val_split=Val"),
        ("train", ["Train", "Val"], r"if Train is meant, add data.train_split=Train \(to `data show`: --split Train\)"),
        ("val", ["train", "test.csv"], r"if test is meant, add data.val_split=test"),
        (
            "val",
            ["a", "train"],
            r"name one of them, or create .*/val; data.train_split and data.val_split name spl",
        ),
        ("val", ["train", "val.ZIP"], r"no split 'val', but val.ZIP, which is not read as it is; unpack it there$"),
    ],
)
def test_a_split_of_another_name_is_proposed(split: str, names: list[str], complaint: str, tmp_path: Path) -> None:
    for name in names:
        if "." in name:
            (tmp_path / name).write_bytes(b"x")
        else:
            (tmp_path / name).mkdir()
    with pytest.raises(Refused, match=complaint):
        build(tmp_path, split)


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"x")
    with pytest.raises(Refused, match=r"images.zip is not read as it is; unpack it, and give the folder that holds"):
        build(tmp_path / "images.zip")


def test_wrong_contents(root: Path) -> None:
    stray = root / "train" / "labels.csv"
    stray.write_text("x")
    with pytest.raises(Refused, match=r"labels\.csv lies beside the class folders"):
        build(root)
    stray.unlink()
    (root / "train" / "3").mkdir()
    with pytest.raises(Refused, match=r"class folder .*3 is empty"):
        build(root)


def test_files_that_are_no_images(root: Path) -> None:
    bad = root / "train" / "1" / "notes.txt"
    bad.write_text("not an image")
    with pytest.raises(
        Refused, match=r"^\S*notes.txt cannot be read as an image \(cannot identify image file\); repair or"
    ):
        build(root)
    (root / "train" / "1" / "zero.jpg").write_bytes(b"")
    with pytest.raises(Refused, match=r"notes.txt .*; likewise for 1 more files$"):
        build(root)


@pytest.mark.parametrize(
    ("mode", "suffix", "kind"), [("P", ".gif", "GIF image of mode P"), ("I;16", ".png", "PNG image of mode I;16")]
)
def test_images_that_loaders_decode_differently(root: Path, mode: str, suffix: str, kind: str) -> None:
    picture(9, 9, 1).convert("L").convert(mode).save(root / "train" / "1" / f"x{suffix}")
    with pytest.raises(Refused, match=f"x{suffix} is a {kind}.*convert it to a JPEG or PNG in 8-bit RGB"):
        build(root)


def test_a_truncated_jpeg_is_found(root: Path) -> None:
    file = root / "train" / "1" / "cut.jpg"
    picture(200, 300, 1).save(file)
    content = file.read_bytes()
    file.write_bytes(content + b"appended" * 20)
    assert len(build(root)) == 7, "what follows a whole JPEG does no harm"
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(Refused, match=r"cut.jpg cannot be read as an image \(image file is truncated"):
        build(root)


@pytest.mark.parametrize("brand", ["heic", "mif1", "hevc"])
def test_a_photograph_of_a_phone_is_to_be_converted(brand: str, root: Path) -> None:
    (root / "train" / "1" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftyp" + brand.encode() + b"\0\0\0\0mif1heic")
    with pytest.raises(Refused, match=r"IMG_1.HEIC is in HEIF, .* no loader reads; convert it to a JPEG$"):
        build(root)
    (root / "flat").mkdir()
    (root / "train" / "1" / "IMG_1.HEIC").rename(root / "flat" / "IMG_1.HEIC")
    with pytest.raises(Refused, match=r"IMG_1.HEIC is in HEIF, which no loader reads; convert it to a JPEG$"):
        build(root, "flat")


def test_a_link_that_leads_nowhere(root: Path) -> None:
    (root / "train" / "1" / "gone.jpg").symlink_to(root / "gone.jpg")
    with pytest.raises(Refused, match=r"1/gone.jpg cannot be read as an image \(No such file or directory\)"):
        build(root)


def test_classes_of_two_splits(root: Path) -> None:
    shutil.copytree(root / "train", root / "val")
    check_same_classes(build(root), build(root, "val"))
    (root / "val" / "2").rename(root / "val" / "two")
    with pytest.raises(Refused, match="differ in 2 classes; the first, '2', is in the training split only"):
        check_same_classes(build(root), build(root, "val"))


def odd_file(kind: str, folder: Path) -> Path:
    """Put something odd into a folder; return its path."""
    path = folder / "odd.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "name":
        path = Path(os.fsdecode(os.fsencode(folder) + b"/odd\xff.jpg"))
        shutil.copy(folder / "001.jpg", path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    return path


ODD = {
    "pipe": r"1/odd.jpg is not a regular file but a pipe, a device or the like; remove it$",
    "device": r"1/odd.jpg is not a regular file but a pipe, a device or the like; remove it$",
    "socket": r"1/odd.jpg is not a regular file",
    "link to itself": r"1/odd.jpg cannot be read as an image \(Too many levels of symbolic links\)",
    "name": r"^'.*1/odd\\udcff.jpg' has a name that is not UTF-8; rename it$",
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_refused_by_name(kind: str, root: Path) -> None:
    """Within a class, as a class, and in a CSV: nothing waits, and nothing is read for ever."""
    odd = odd_file(kind, root / "train" / "1")
    with pytest.raises(Refused, match=ODD[kind]):
        build(root)
    odd.unlink()
    if kind == "link to itself":
        (root / "train" / "loop").symlink_to(root / "train" / "loop")
        with pytest.raises(Refused, match=r"train/loop cannot be read .*Too many levels of symbolic links"):
            build(root)
    if kind in ("pipe", "device"):
        (root / "csv").mkdir()
        odd_file(kind, root / "csv")
        (root / "csv" / "train.csv").write_text("path,label\nodd.jpg,a\n")
        with pytest.raises(Refused, match=r"csv/odd.jpg is not a regular file"):
            build(root / "csv")


def test_an_image_of_too_many_pixels(root: Path) -> None:
    """Known from its header: not decoded. The limit is part of what an index is."""
    Image.new("L", (4000, 4000)).save(root / "train" / "1" / "large.png")
    assert len(build(root)) == 7
    build_limited = partial(build_index, root, "train", root.parent / "cache", progress=False)
    with pytest.raises(Refused, match=r"1/large.png has 4000x4000 pixels, more than data.max_pixels=15000000, and"):
        build_limited(acceptance=Acceptance(max_pixels=15_000_000))
    for number in range(120):
        picture(9, 9, number).save(root / "train" / "1" / f"small{number}.png")
    limited = build_limited(acceptance=Acceptance("skip", max_pixels=15_000_000))
    assert (len(limited), len(limited.broken)) == (126, 1)


@pytest.mark.parametrize("container", ["folder", "parquet", "pack"])
def test_damage_within_is_found_by_decoding(container: str, tmp_path: Path) -> None:
    """Nothing in the headers tells; a pack is looked at again."""
    (tmp_path / "out").mkdir()
    write_plain_folder(tmp_path / "images", num=6)
    (tmp_path / "images" / "train" / "1" / "bad.png").write_bytes(zoo()["png, data too short"]())
    CONTAINERS[container](tmp_path / "images", "train", tmp_path / "out")
    build_again = partial(build_index, tmp_path / "out", "train", tmp_path / "index", progress=False)
    assert len(build_again()) == 7
    with pytest.raises(Refused, match=r"bad.png cannot be read as an image \("):
        build_again(acceptance=Acceptance(check="decode"))
    with pytest.raises(Refused, match=r"1 of the 7 images in .* are broken, more than the 1%"):
        build_again(acceptance=Acceptance("skip", check="decode"))
