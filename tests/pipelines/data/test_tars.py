"""Tars that are cut off, joined, or hold what is not read: refused by name, never listed in part."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcore.errors import Refused
from pipelines.data.compressed import decompress, find_compressed
from pipelines.data.listing import Listing
from pipelines.data.tars import find_tars, list_tars
from pipelines.places import Place
from tests.pipelines.containers import add

LINK, SYMLINK = tarfile.LNKTYPE, tarfile.SYMTYPE
Members = list[tuple[str, bytes | tuple[bytes, str]]]  # (name, content, or the kind of a link and where it leads)


def listed(root: Path) -> Listing:
    place = Place.of(root, "data.root")
    return list_tars(place, "train", find_tars(place, "train"))


def paths(root: Path) -> list[str]:
    return listed(root).table["path"].to_pylist()


def write(path: Path, members: Members) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            if isinstance(content, tuple):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = content
                tar.addfile(member)
            else:
                add(tar, name, content)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


IMAGE = jpeg()
FOLDERS: Members = [(f"{name}/{number}.jpg", IMAGE) for name in "ab" for number in range(10)]


@pytest.mark.parametrize(
    ("beyond", "complaint"),
    [
        (-1, r"train.tar is not a whole tar \(unexpected end of data\); copy it again"),
        (
            0,
            r"has no end-of-archive mark, as if it were cut off; copy it again, .*: truncate -s \d+ /",
        ),
        (100, r"train.tar is not a whole tar \(it ends within a header\); copy it again"),
        (600, r"train.tar is not a whole tar \(it ends within 'b/5.jpg'\); copy it again"),
    ],
)
def test_a_tar_that_is_cut_off_between_two_files(beyond: int, complaint: str, tmp_path: Path) -> None:
    """In bytes from the header of the sixteenth of twenty images."""
    write(tmp_path / "train.tar", FOLDERS)
    with tarfile.open(tmp_path / "train.tar") as tar:
        offset = tar.getmembers()[15].offset
    os.truncate(tmp_path / "train.tar", offset + beyond)
    with pytest.raises(Refused, match=complaint):
        listed(tmp_path)


def test_a_tar_whose_writer_marks_no_end_is_read_once_it_has_one(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", FOLDERS)
    whole = (tmp_path / "train.tar").read_bytes()
    with tarfile.open(tmp_path / "train.tar") as tar:
        last = tar.getmembers()[-1]
    os.truncate(tmp_path / "train.tar", last.offset_data + _padded(last.size))
    with pytest.raises(Refused, match=r"append it: truncate -s (\d+) ") as refused:
        listed(tmp_path)
    os.truncate(tmp_path / "train.tar", int(str(refused.value).split()[-2]))
    assert len(listed(tmp_path).table) == 20
    (tmp_path / "train.tar").write_bytes(whole[: last.offset_data + _padded(last.size) + 512])  # one block of zeros
    assert len(listed(tmp_path).table) == 20


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // 512) * 512


def test_tars_that_were_joined(tmp_path: Path) -> None:
    write(tmp_path / "x", FOLDERS[:4])
    (tmp_path / "train.tar").write_bytes(2 * (tmp_path / "x").read_bytes())
    with pytest.raises(
        Refused, match=r"train.tar has data after its end-of-archive mark, at byte [\d,]+ of 20,480: it is damaged, or"
    ):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([("a/1.jpg", IMAGE), ("a/2.jpg", (LINK, "a/1.jpg"))], r"train.tar: a/2.jpg is a link to 'a/1.jpg', not a"),
        ([("a/1.jpg", IMAGE), ("b", (SYMLINK, "a"))], r"train.tar: b is a link to 'a', not a file; write the tar"),
        ([("a/1.jpg", IMAGE), ("b/1.jpg", (tarfile.FIFOTYPE, ""))], r"b/1.jpg is a pipe, a device or the like; write"),
        ([("a/0.jpg", IMAGE), ("a/0.mask.png", IMAGE)], r"a/0.jpg and a/0.mask.png are two images of one sample; keep"),
        ([("a/0.jpg", IMAGE), ("a/0.jpg_orig", IMAGE)], r"a/0.jpg and a/0.jpg_orig are two images of one sample; keep"),
        ([("0.jpg", IMAGE), ("0.cls", b"0"), ("1.txt", b""), ("1.cls", b"1")], r"sample 1 has a label and no image"),
        ([("0.jpg", IMAGE), ("1.jpg", IMAGE), ("0.cls", b"0")], r"sample 0 has a label and no image \(only 0.cls\)"),
        ([("0.jpg", IMAGE), ("0.json", b'{"label": [0, 2]}')], r"0.json gives \[0, 2\] as a label; give one number"),
        ([("0.jpg", IMAGE), ("0.json", b'{"filename": 17}')], r"0.json gives 17 as filename; give a text, or leave"),
        ([("a/1.jpg", IMAGE), ("b/3.jpg", IMAGE), ("a/1.jpg", b"")], r"train.tar: a/1.jpg is there twice; write"),
        ([("a/caf\udce9.jpg", IMAGE)], r"train.tar: 'a/caf\\udce9.jpg' has a name that is not UTF-8; rename it"),
        ([("0.jpg", IMAGE), ("0.cls", b"caf\xe9")], r"train.tar: 0.cls is not text in UTF-8 \(.*\); repair or remove"),
        ([("0.jpg", IMAGE), ("0.cls", b"9" * 20)], r"has an image of class 9{20}, which is too large a number; give"),
    ],
)
def test_what_is_not_read_is_named(members: Members, complaint: str, tmp_path: Path) -> None:
    write(tmp_path / "train.tar", members)
    with pytest.raises(Refused, match=complaint):
        listed(tmp_path)


@pytest.mark.parametrize(
    "members",
    [
        [("about.json", b"{}"), ("a/._1.jpg", b""), ("a/read me.txt", b""), ("LICENSE", b"")],
        [("index.json", b'{"a": 1}\n{"b": 2}\n'), ("metadata.json", b'{"class": "Dataset"}')],
        [("train/.thumbnails/a.jpg", IMAGE), ("__MACOSX/a/._0.jpg", b"")],
    ],
)
def test_what_belongs_to_no_sample_is_passed_over(members: Members, tmp_path: Path) -> None:
    """Hidden files and folders, captions and facts about the whole."""
    write(tmp_path / "train.tar", [*members, *FOLDERS])
    assert (len(listed(tmp_path).table), listed(tmp_path).classes) == (20, ("a", "b"))


def test_what_could_be_an_image_is_one(tmp_path: Path) -> None:
    """Of any suffix or none, alone in its sample; what it is, reading it tells."""
    write(tmp_path / "train.tar", [("a/0.jpg", IMAGE), ("a/1", IMAGE), ("a/2.jpg_orig", IMAGE), ("b/1.gif", b"")])
    assert paths(tmp_path) == ["train/a/0.jpg", "train/a/1", "train/a/2.jpg_orig", "train/b/1.gif"]
    write(tmp_path / "train.tar", [("0.jfif", IMAGE), ("0.cls", b"0"), ("1.jpg", IMAGE), ("1.cls", b"1")])
    assert paths(tmp_path) == ["train/0/0.jfif", "train/1/1.jpg"]


def test_names_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", [(f"train/{name}/{name}.{n}.jpg", IMAGE) for name in ("cat", "dog") for n in (0, 1)])
    expected = ["train/cat/cat.0.jpg", "train/cat/cat.1.jpg", "train/dog/dog.0.jpg", "train/dog/dog.1.jpg"]
    assert paths(tmp_path) == expected


def compressed(root: Path, *names: str) -> None:
    write(root / "x", FOLDERS)
    for name in names:
        content = (root / "x").read_bytes()
        (root / name).write_bytes(content if name.endswith(".tar") else gzip.compress(content))
    (root / "x").unlink()


def test_half_decompressed_tars(tmp_path: Path) -> None:
    compressed(tmp_path, "train-0.tar", "train-0.tar.gz", "train-1.tar.gz")
    with pytest.raises(Refused, match=r"train-1.tar.gz is compressed and lies beside train-0.tar, which is not; decom"):
        listed(tmp_path)
    (tmp_path / "train-1.tar.gz").unlink()
    assert len(listed(tmp_path).table) == 20, "one that was decompressed and kept is no other"


def test_two_compressed_tars_of_one_name(tmp_path: Path) -> None:
    compressed(tmp_path, "train-0.tar.gz", "train-0.tgz")
    place = Place.of(tmp_path, "data.root")
    with pytest.raises(Refused, match=r"train-0.tar.gz and train-0.tgz are both train-0.tar when they are decompress"):
        decompress(place, find_compressed(place, "train"), tmp_path, lambda num_bytes: None)
