"""Where the labels of a split of tars come from: decided once, from files or from folders, and never guessed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kdcore.errors import Refused
from kdcore.remarks import warn_once
from pipelines.data.index import build_index
from pipelines.data.tars import find_tars, list_tars
from pipelines.places import Place
from tests.pipelines.data.test_tars import IMAGE, Members, listed, write


def sample(name: str, label: str, suffix: str = ".cls") -> Members:
    return [(f"{name}.jpg", IMAGE), (f"{name}{suffix}", label.encode())]


@pytest.mark.parametrize(
    ("split", "layers"),
    [
        ("train", ""),
        ("train", "train/"),
        ("train", "./train/"),
        ("train", "/data/train/"),
        ("train", "imagenette2/train/"),
        ("train", "a/b/training/"),
        ("val", "validation/"),
        ("val", "val/"),
        ("extra", "extra/"),
    ],
)
def test_layers_of_folders_above_the_classes(split: str, layers: str, tmp_path: Path) -> None:
    write(tmp_path / f"{split}.tar", [(f"{layers}{name}/{n}.jpg", IMAGE) for name in ("n01", "n02") for n in range(2)])
    place = Place.of(tmp_path, "data.root")
    listing = list_tars(place, split, find_tars(place, split))
    assert (listing.classes, listing.table["label"].to_pylist()) == (("n01", "n02"), [0, 0, 1, 1])
    assert listing.table["path"].to_pylist()[-1] == f"{split}/n02/1.jpg"


def test_folders_below_the_classes_are_in_the_name(tmp_path: Path) -> None:
    """A class may be called as the split is, once all lie in the split's own folder, or where it has no folders."""
    write(tmp_path / "train.tar", [("train/0.jpg", IMAGE), ("car/0.jpg", IMAGE)])
    assert listed(tmp_path).table["path"].to_pylist() == ["train/car/0.jpg", "train/train/0.jpg"]
    write(tmp_path / "train.tar", [("train/train/x/0.jpg", IMAGE), ("train/car/0.jpg", IMAGE)])
    assert listed(tmp_path).table["path"].to_pylist() == ["train/car/0.jpg", "train/train/x/0.jpg"]


def test_names_before_they_were_put_into_the_tar(tmp_path: Path) -> None:
    """Count where the labels are folders, too."""
    write(
        tmp_path / "train.tar", [("a/0.jpg", IMAGE), ("a/0.json", b'{"filename": "x/one.JPEG"}'), ("b/y/1.jpg", IMAGE)]
    )
    assert listed(tmp_path).table["path"].to_pylist() == ["train/a/one.JPEG", "train/b/y/1.jpg"]


def test_images_without_class_folders(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", [("data/train/0.jpg", IMAGE), ("data/train/1.jpg", IMAGE)])
    (tmp_path / "classes.txt").write_text("of another split")
    listing = listed(tmp_path)
    assert (listing.classes, listing.table["path"].to_pylist()) == ((), ["train/0.jpg", "train/1.jpg"])


def test_labels_by_number(tmp_path: Path) -> None:
    """In `.cls` and `.json`, beside which a name says nothing else."""
    named = ("1.json", b'{"label": "nine"}')
    write(
        tmp_path / "train.tar",
        [*sample("0", "10"), *sample("1", "09\n"), named, *sample("2", '{"label": 2}', ".json")],
    )
    listing = listed(tmp_path)
    assert (len(listing.classes), listing.table["label"].to_pylist()) == (11, [2, 9, 10])


def test_labels_as_tools_write_them(tmp_path: Path) -> None:
    """Whole floats, as pandas writes them, are numbers, not names in order of text; a mark of byte order is none."""
    write(
        tmp_path / "train.tar",
        [
            *sample("0", '{"label": 10.0}', ".json"),
            *sample("1", "\ufeff9"),
            *sample("2", '\ufeff{"label": 2}', ".json"),
        ],
    )
    assert listed(tmp_path).table["label"].to_pylist() == [2, 9, 10]


@pytest.mark.parametrize(
    ("members", "names", "complaint"),
    [
        (
            [("train/a/0.jpg", IMAGE), ("val/a/0.jpg", IMAGE)],
            None,
            r"tar: val/a/0.jpg lies beside the folder 'train' of",
        ),
        ([("x/train/a/0.jpg", IMAGE), ("x/val/0.jpg", IMAGE)], None, r"x/val/0.jpg lies beside the folder 'train' of"),
        ([("x/test/0.jpg", IMAGE), ("x/val/0.jpg", IMAGE)], None, r"x/test/0.jpg lies in the folder 'test' of another"),
        ([("x/val/a/0.jpg", IMAGE)], None, r"x/val/a/0.jpg lies in the folder 'val' of another split; write tars of"),
        (
            [("a/0.jpg", IMAGE), ("1.jpg", IMAGE)],
            None,
            r"tar: 1.jpg has no label, but others have; put it into a class",
        ),
        (
            [*sample("data/0", "0"), ("data/1.jpg", IMAGE)],
            "cat",
            r"data/1.jpg has no label, but others have; put a .cls file beside it, or remove it \(data/0.jpg has",
        ),
        ([*sample("0", "0"), *sample("1", "-1")], "cat", r"has an image of class -1, but labels count from 0; correct"),
        ([*sample("0", "3"), ("0.json", b'{"label": 1}')], None, r"0.cls gives the label '3', and 0.json '1'; remove"),
        ([*sample("0", "1" * 5000)], None, r"has an image of class 1{40}, which is too large a number; give a name"),
        ([*sample("0", "[" * 200_000, ".json")], None, r"0.json is not JSON \(maximum recursion depth"),
        (
            [*sample("0", '{"label": 0}', ".json"), ("1.json", b'{"label": 0}')],
            None,
            r"the sample 1 has a label and no image \(only 1.json\); put its image",
        ),
        (
            [*sample("0", '{"label": NaN}', ".json")],
            None,
            r"0.json gives nan as a label; give a whole number, or a name",
        ),
        ([*sample("0", '{"label": 0.5}', ".json")], None, r"0.json gives 0.5 as a label; give a whole number, or a n"),
        (
            [*sample("0", "0")],
            "cat\n\ndog",
            r"classes.txt has nothing in line 2, and each line names the class of its number",
        ),
        ([*sample("0", "0")], b"caf\xe9", r"classes.txt is not text in UTF-8 \(.*\); save it as UTF-8"),
    ],
)
def test_labels_that_are_not_guessed(
    members: Members, names: str | bytes | None, complaint: str, tmp_path: Path
) -> None:
    write(tmp_path / "train.tar", members)
    if names is not None:
        (tmp_path / "classes.txt").write_bytes(names if isinstance(names, bytes) else names.encode())
    with pytest.raises(Refused, match=complaint):
        listed(tmp_path)


def test_a_list_beside_names_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may have readable names for ids, which stay the classes; that is said."""
    members = [[*sample("0", "n02"), *sample("1", "n01")], [("n02/0.jpg", IMAGE), ("n01/1.jpg", IMAGE)]]
    (tmp_path / "classes.txt").write_text("goldfish\ngreat white shark\ntench\n")
    for named in members:
        warn_once.cache_clear()
        write(tmp_path / "train.tar", named)
        assert listed(tmp_path).classes == ("n01", "n02")
        assert "classes.txt is not read: it names classes that are given as numbers" in caplog.messages[-1]


def test_the_lines_of_a_list(tmp_path: Path) -> None:
    """Without a mark of byte order, spaces around them, and empty ones at the end."""
    write(tmp_path / "train.tar", [*sample("0", "1"), *sample("1", "0")])
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfdog \r\ncat\r\n\r\n")
    assert listed(tmp_path).classes == ("dog", "cat")


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_list_of_classes_that_changes(is_compressed: bool, tmp_path: Path) -> None:
    """Is seen by the next build; compressed tars are not decompressed again for it. It is named where it lies."""
    images = tmp_path / "images"
    images.mkdir()
    write(tmp_path / "train.tar", [*sample("0", "0"), *sample("1", "1")])
    content = (tmp_path / "train.tar").read_bytes()
    (images / ("train.tar.gz" if is_compressed else "train.tar")).write_bytes(
        gzip.compress(content) if is_compressed else content
    )
    (images / "classes.txt").write_text("cat")
    with pytest.raises(Refused, match=rf"^{images} has an image of class 1, but there are names of 1 classes"):
        build_index(images, "train", tmp_path / "index")
    for names in (("cat", "dog"), ("dog", "cat"), ("dog", "cat", "eel")):
        (images / "classes.txt").write_text("\n".join(names))
        assert build_index(images, "train", tmp_path / "index").classes == names
    assert len(list((tmp_path / "index").glob("tars-*"))) == is_compressed


def test_a_split_that_an_earlier_version_has_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is listed again, its images not looked at again: what was guessed then is found, for little."""
    write(tmp_path / "train.tar", [*sample("0", "0"), *sample("1", "1")])
    first = build_index(tmp_path, "train", tmp_path / "index")
    (pointer,) = (tmp_path / "index").glob("latest-*.json")
    latest = json.loads(pointer.read_text())
    pointer.write_text(json.dumps({**latest, "version": 2}))
    monkeypatch.setattr("pipelines.data.index.describe", None)
    assert build_index(tmp_path, "train", tmp_path / "index").fingerprint == first.fingerprint
    assert json.loads(pointer.read_text()) == latest
