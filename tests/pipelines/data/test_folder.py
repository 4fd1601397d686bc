"""Image folders: the same on a disk and in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from kdcore.errors import Refused
from pipelines.data.folder import list_folder, list_store_folder
from pipelines.data.kinds import locate_split, recognise
from pipelines.data.listing import Listing
from pipelines.places import Place


def listed(root: Path, kind: str) -> Listing:
    if kind == "disk":
        return list_folder(Place.of(root, "data.root"), "train")
    store = fs.SubTreeFileSystem(str(root.parent), fs.LocalFileSystem())
    return list_store_folder(Place("s3://bucket", "s3://bucket", store, root.name), "train")


def recognise_at(location: str, split: str) -> None:
    recognise(Place.of(location, "data.root"), split)


def write(root: Path, *names: str) -> None:
    (root / "train").mkdir()
    for name in names:
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).write_bytes(b"x")


@pytest.mark.parametrize("kind", ["disk", "store"])
def test_every_file_is_an_image(kind: str, tmp_path: Path) -> None:
    """Whatever its suffix: what it is, reading it tells. Hidden ones are not there."""
    names = ["bird/a.jpe", "cat/0.jpg", "cat/1", "cat/2.jpg_orig", "dog/x.jfif", "dog/y.gif"]
    write(tmp_path, *names, "dog/.hidden", ".cache/x.jpg", "Thumbs.db", "cat/desktop.ini")
    listing = listed(tmp_path, kind)
    assert listing.table["path"].to_pylist() == [f"train/{name}" for name in names]
    assert (listing.classes, listing.table["label"].to_pylist()) == (("bird", "cat", "dog"), [0, 1, 1, 1, 2, 2])


@pytest.mark.parametrize("kind", ["disk", "store"])
def test_images_alone_have_no_labels(kind: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.PNG")
    assert (listed(tmp_path, kind).classes, len(listed(tmp_path, kind).table)) == ((), 2)


@pytest.mark.parametrize("kind", ["disk", "store"])
def test_a_file_beside_the_class_folders(kind: str, tmp_path: Path) -> None:
    write(tmp_path, "cat/0.jpg", "notes.txt")
    with pytest.raises(
        Refused, match=r"/train/\S+ lies beside the class folders; move it into one if it is an image, or"
    ):
        listed(tmp_path, kind)


@pytest.mark.parametrize("kind", ["disk", "store"])
def test_a_file_among_images_alone(kind: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "metadata.csv")
    with pytest.raises(Refused, match=r"/train/metadata.csv is not called like an image, and there are no class") as e:
        listed(tmp_path, kind)
    assert ("list them with their labels in" in str(e.value)) == (kind == "disk")


def test_class_folders_without_a_split(tmp_path: Path) -> None:
    for name in ("cat/0.jpg", "dog/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(Refused, match=r"folders \(cat, dog\) hold images, as class folders do: move part of each.*val"):
        listed(tmp_path, "disk")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(Refused, match=r"it holds cat, dog, val: name one of them, or create"):
        listed(tmp_path, "disk")


def test_images_without_a_split(tmp_path: Path) -> None:
    for name in ("a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(Refused, match=r"images of its own, such as a.jpg: move them into train/<class>/ and val/"):
        listed(tmp_path, "disk")


def test_a_store_folder_without_files(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(Refused, match=r"s3://bucket/train has no class folders; put each class's images into a folder"):
        listed(tmp_path, "store")


@pytest.mark.parametrize("name", ["train.csv", "train.tar", "train.parquet"])
def test_a_file_in_the_place_of_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    for look in (recognise_at, locate_split):
        with pytest.raises(Refused, match=rf"{name} is a file; give its folder, {tmp_path}: a split is called by"):
            look(str(tmp_path / name), "train")
