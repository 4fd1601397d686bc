"""Indexing a folder: what it holds, that it is built once, and what it refuses."""

import os
import shutil
import socket
import zlib
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from kdcore.errors import Refused
from pipelines.data import describe
from pipelines.data import index as datasets
from pipelines.data.broken import Acceptance
from pipelines.data.classes import check_same_classes
from pipelines.data.folder import list_folder
from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.places import Place
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.pictures import picture, write_plain_folder
from tests.pipelines.zoo import zoo


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_plain_folder(tmp_path / "data", num=6)
    return tmp_path / "data"


def build(root: Path, split: str = "train") -> Source:
    return build_index(root, split, root.parent / "cache", progress=False)


def test_what_it_holds(odd_index: Source) -> None:
    index = odd_index
    assert len(index) == 13
    assert index.classes == ("a", "b")
    assert index.labels.tolist() == [0] * 6 + [1] * 7
    files = sorted((Path(index.root) / "train").glob("*/*"))
    assert index.names(np.arange(13)) == [str(file) for file in files]
    assert index.names(np.array([12, 0])) == [str(files[12]), str(files[0])]
    sizes = {Path(file).name: (h, w) for file, h, w in zip(files, index.heights, index.widths, strict=True)}
    assert sizes["landscape.jpg"] == (60, 80)
    assert sizes["one_pixel_high.png"] == (1, 40)
    assert sizes["rotated_by_exif.jpg"] == (72, 54), "the stored size, not the one to view"
    assert index.table["crc32"].to_pylist() == [zlib.crc32(file.read_bytes()) for file in files]
    assert index.table["num_bytes"].to_pylist() == [file.stat().st_size for file in files]


def test_built_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(root)
    monkeypatch.setattr(describe, "inspect_stored", None)  # reading any file would now fail
    again = build(root)
    assert again.table.equals(first.table)
    assert again.fingerprint == first.fingerprint
    assert len(list((root.parent / "cache").glob("*.arrow"))) == 1


def test_opened_without_a_look_at_the_folder(root: Path) -> None:
    """What a run's workers do after their driver: the index as it was last found, even where the folder is gone."""
    built = build(root)
    root.rename(root.with_name("away"))
    opened = datasets.open_index(root, "train", root.parent / "cache")
    assert opened.table.equals(built.table)
    assert (opened.root, opened.classes, opened.fingerprint) == (built.root, built.classes, built.fingerprint)
    with pytest.raises(Refused, match=r"there is no index of .*val"):
        datasets.open_index(root, "val", root.parent / "cache")


def test_listing_holds_columns(root: Path) -> None:
    """What is known of the files before they are read: columns, in order of sample id."""
    listing = list_folder(Place.of(root, "data.root"), "train")
    classes, files = listing.classes, listing.table
    assert files.column_names == ["path", "label", "num_bytes", "mtime_ns"]
    assert files["path"].num_chunks == 1
    paths, labels = files["path"].to_pylist(), files["label"].to_pylist()
    assert paths == sorted(paths)
    assert [classes[label] for label in labels] == [Path(path).parts[1] for path in paths]
    for path, size, time in zip(paths, files["num_bytes"].to_pylist(), files["mtime_ns"].to_pylist(), strict=True):
        status = (root / path).stat()
        assert (size, time) == (status.st_size, status.st_mtime_ns)


def test_a_changed_file_changes_the_index_and_a_touched_one_does_not(root: Path) -> None:
    before = build(root)
    file = Path(before.names(np.array([0]))[0])
    os.utime(file, ns=(1, 1))
    assert build(root).fingerprint == before.fingerprint
    picture(30, 20, 5).save(file)
    after = build(root)
    assert after.fingerprint != before.fingerprint
    assert (after.heights[0], after.widths[0]) == (30, 20)


def test_fingerprint_does_not_depend_on_the_place(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(root, other)
    assert build(other).fingerprint == build(root).fingerprint
    (other / "train" / "0").rename(other / "train" / "9")
    assert build(other).fingerprint != build(root).fingerprint


def test_two_folders_whose_files_agree_in_name_size_and_time(tmp_path: Path) -> None:
    """As where images without compression are unpacked without their times: clean ones and noisy ones, for example."""
    for number, name in enumerate(("clean", "noisy")):
        (tmp_path / name / "train" / "a").mkdir(parents=True)
        file = tmp_path / name / "train" / "a" / "0.bmp"
        picture(9, 9, number).save(file)
        os.utime(file, (0, 0))
    sources = [build(tmp_path / name) for name in ("clean", "noisy")]
    assert sources[0].fingerprint != sources[1].fingerprint
    for source in sources:
        source.check(0, source.read(np.array([0]))[0])


def test_hidden_files_do_not_exist_and_folders_may_nest(root: Path) -> None:
    before = build(root).names(np.arange(6))
    (root / "train" / ".cache").mkdir()
    (root / "train" / "0" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "2" / "more").mkdir()
    picture(9, 9, 1).save(root / "train" / "2" / "more" / "deep.png")
    index = build(root)
    assert index.names(np.arange(7)) == [*before, str(root / "train" / "2" / "more" / "deep.png")]
    assert index.labels[-1] == 2


def test_subset_renumbers(plain_index: Source) -> None:
    ids = np.array([7, 0, 3])
    subset = plain_index.subset(ids)
    assert len(subset) == 3
    assert subset.names(np.arange(3)) == plain_index.names(ids)
    assert np.array_equal(subset.labels, plain_index.labels[ids])
    assert subset.classes == plain_index.classes
    everyone = plain_index.subset(np.arange(len(plain_index)))
    assert everyone.fingerprint == plain_index.fingerprint
    assert len({plain_index.fingerprint, subset.fingerprint, plain_index.subset(ids[::-1]).fingerprint}) == 3


def test_split_is_balanced_complete_and_repeatable(plain_index: Source) -> None:
    rest, held = plain_index.split(0.25, seed=1)
    assert np.bincount(held.labels).tolist() == [1, 1, 1]
    assert np.bincount(rest.labels).tolist() == [3, 3, 3]
    both = rest.names(np.arange(9)) + held.names(np.arange(3))
    assert sorted(both) == plain_index.names(np.arange(12))
    assert plain_index.split(0.25, seed=1)[1].fingerprint == held.fingerprint
    assert len({plain_index.split(0.25, seed)[1].fingerprint for seed in range(8)}) > 4
    assert np.all(np.diff(rest.labels) >= 0)


def test_a_sample_is_part_of_every_larger_one(plain_index: Source) -> None:
    """So many of each class, chosen by the seed; all of them are the source itself."""
    samples = [plain_index.sample(number, seed=1) for number in (1, 2, 3, 4)]
    for number, sample in enumerate(samples, 1):
        assert np.bincount(sample.labels).tolist() == [number] * 3
    names = [set(sample.table["path"].to_pylist()) for sample in samples]
    assert all(smaller < larger for smaller, larger in pairwise(names))
    assert len({plain_index.sample(2, seed).fingerprint for seed in range(8)}) > 4
    assert samples[-1].fingerprint == plain_index.fingerprint
    with pytest.raises(Refused, match=r"class '0' has 4 images in .*, not 5; choose at most 4 a class"):
        plain_index.sample(5, seed=1)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.02, [1, 1, 1, 1, 0]), (0.34, [14, 7, 3, 1, 0]), (0.98, [39, 19, 7, 2, 0])],
)
def test_classes_too_small_for_the_fraction_are_held_out_as_far_as_they_go(
    fraction: float, expected: list[int]
) -> None:
    """At least one image of two, none of one: a long tail had four refusals that named one another."""
    sizes = [40, 20, 8, 3, 1]
    source = of_sizes(sizes)
    rest, held = source.split(fraction, seed=1)
    assert held.class_counts.tolist() == expected
    assert (rest.class_counts + held.class_counts).tolist() == sizes


@pytest.mark.parametrize("sizes", [[1, 1], [1, 0]])
def test_where_nothing_can_be_held_out(sizes: list[int]) -> None:
    with pytest.raises(
        Refused,
        match=r"keeps back none of the images in root \(no class has two\); .*data.held_out=0 train.select=last",
    ):
        of_sizes(sizes).split(0.5, seed=1)


def of_sizes(sizes: list[int]) -> Source:
    """A source of classes of these sizes, of whose images nothing is known but the label."""
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    return Source("root", tuple(map(str, range(len(sizes)))), pa.table({"label": labels}))


def test_missing_folders(root: Path) -> None:
    with pytest.raises(Refused, match=r"nowhere: no such folder; set data\.root to the folder"):
        build_index(root / "nowhere", "train", root.parent / "cache")
    with pytest.raises(Refused, match="no split 'val'; it holds train"):
        build(root, "val")
    (root / "val").mkdir()
    with pytest.raises(Refused, match="val has no class folders"):
        build(root, "val")


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


def test_progress_can_be_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(root, "train", root.parent / "cache", progress=True)
    assert "Traceback" not in capsys.readouterr().err


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
