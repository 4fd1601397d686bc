"""Image folders: the same on a disk and in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from kdcore.errors import Refused
from pipelines.data.folder import list_folder, list_store_folder
from pipelines.data.listing import Listing
from pipelines.places import Place


def listed(root: Path, kind: str) -> Listing:
    if kind == "disk":
        return list_folder(Place.of(root, "data.root"), "train")
    store = fs.SubTreeFileSystem(str(root.parent), fs.LocalFileSystem())
    return list_store_folder(Place("s3://bucket", "s3://bucket", store, root.name), "train")


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
@pytest.mark.parametrize("names", [["cat/0.jpg", "notes.txt"], ["a.jpg", "notes.txt"]])
def test_files_beside_the_class_folders(names: list[str], kind: str, tmp_path: Path) -> None:
    write(tmp_path, *names)
    with pytest.raises(Refused, match=r"/train/\S+ lies beside the class folders; move it into one, or remove it"):
        listed(tmp_path, kind)


def test_a_store_folder_without_files(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(Refused, match=r"s3://bucket/train has no class folders; put each class's images into a folder"):
        listed(tmp_path, "store")
