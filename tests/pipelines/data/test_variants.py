"""ImageNet's test sets in small: how each names its classes and its right answers, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import fs

from kdcore.errors import Refused
from kdcore.remarks import warn_once
from pipelines.data import variants
from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.data.variants import Target
from tests.counted_names import CountedName, counted_names

CLASSES = ("n01", "n02", "n10")


def open_target(folder: Path, variant: str | None, classes: tuple[str, ...], cache_dir: Path) -> Target:
    return variants.open_target(
        build_index(folder.parent, folder.name, cache_dir), str(folder.parent), variant, classes
    )


@pytest.fixture
def folder(tmp_path):
    """A function that writes one picture into each of the given class folders and gives their root."""

    def write(*names: str):
        for number, name in enumerate(names, 1):
            path = tmp_path / "images" / name / f"ILSVRC2012_val_0000000{number}.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
        return tmp_path / "images"

    return write


def test_the_same_classes(folder, tmp_path):
    target = open_target(folder(*CLASSES), None, CLASSES, tmp_path)
    assert target.answers.tolist() == [[0], [1], [2]]
    assert target.shown is None


def test_other_classes_are_named(folder, tmp_path):
    with pytest.raises(Refused, match=r"differ .* in 1 names \(it lacks 'n10'\); .*--variant v2, real"):
        open_target(folder("n01", "n02"), None, CLASSES, tmp_path)


def test_the_same_classes_in_another_order(folder, tmp_path):
    """As Parquet numbers them by its list of names, and folders by their names."""
    target = open_target(folder(*CLASSES), None, ("n10", "n01", "n02"), tmp_path)
    assert target.answers.tolist() == [[1], [2], [0]]
    assert target.classes == ("n10", "n01", "n02")


def test_the_same_classes_two_of_which_have_one_name():
    """As the bird and the machine have in English lists of ImageNet's classes."""
    table = pa.table({"label": np.arange(3, dtype=np.int32)})
    names = ("crane", "dog", "crane")
    assert variants.target_of_same_classes(Source("images", names, table), names).answers.tolist() == [[0], [1], [2]]


def test_many_classes_are_looked_up_once_each():
    """Not compared with all the others, of which some data sets have 21,841."""
    names = counted_names(300)
    table = pa.table({"label": np.arange(300, dtype=np.int32)})
    target = variants.target_of_same_classes(Source("images", names, table), tuple(map(str, names[::-1])))
    assert target.answers[:, 0].tolist() == list(range(300))[::-1]
    assert CountedName.compared < 3000


def test_the_same_classes_in_another_order_of_several_labels(folder, tmp_path):
    (folder("a").parent / "val.csv").write_text(
        "path,labels\nimages/a/ILSVRC2012_val_00000001.png,a|c\nimages/a/ILSVRC2012_val_00000002.png,\n"
    )
    shutil.copy(*(tmp_path / "images" / "a" / f"ILSVRC2012_val_0000000{number}.png" for number in (1, 2)))
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    index = build_index(tmp_path, "val", tmp_path / "index")
    target = variants.open_target(index, str(tmp_path), None, ("c", "b", "a"))
    assert sorted(target.answers.tolist()) == [[-1, -1], [2, 0]]
    assert target.multi_label
    with pytest.raises(Refused, match="have several labels each, and --variant a needs one"):
        variants.open_target(index, str(tmp_path), "a", ("c", "b", "a"))


@pytest.mark.parametrize("variant", [None, *variants.VARIANTS])
def test_images_without_labels(variant, folder, tmp_path):
    flat = folder("n01") / "n01"
    with pytest.raises(Refused, match="have no labels, which an evaluation needs; give images with labels"):
        open_target(flat, variant, CLASSES, tmp_path)


@pytest.mark.parametrize(
    ("classes", "is_said"),
    [(("n01440764", "n01443537"), False), (("n01443537", "n01440764"), True), (("tench", "goldfish"), True)],
)
def test_classes_that_may_not_be_in_the_order_of_imagenet(classes, is_said, folder, tmp_path, caplog):
    warn_once.cache_clear()
    assert open_target(folder("0", "1"), "v2", classes, tmp_path).answers.tolist() == [[0], [1]]
    assert ("are not WordNet ids in order: the results are right only if" in caplog.text) == is_said


def test_v2_orders_folders_by_number(folder, tmp_path):
    """By name the folders are 0, 1, 10, 2: the labels are numbers all the same."""
    classes = tuple(f"n{number:02}" for number in range(11))
    target = open_target(folder(*map(str, range(11))), "v2", classes, tmp_path)
    assert target.index.classes[2] == "10"
    assert target.answers[:, 0].tolist() == [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("names", "said"), [(("0", "1", "n02"), "'n02' is not one"), (("0", "1"), "there are 2")])
def test_v2_refuses_other_folders(folder, tmp_path, names, said):
    with pytest.raises(Refused, match=rf"--variant v2 wants folders 0 to 2.*{said}"):
        open_target(folder(*names), "v2", CLASSES, tmp_path)


@pytest.mark.parametrize("variant", ["a", "r"])
def test_some_of_the_classes(folder, tmp_path, variant):
    target = open_target(folder("n01", "n10"), variant, CLASSES, tmp_path)
    assert target.shown.tolist() == [0, 2]
    assert target.answers.tolist() == [[0], [1]]
    assert target.classes == ("n01", "n10")


def test_a_class_that_the_network_lacks(folder, tmp_path):
    with pytest.raises(Refused, match=r"the class 'n11' .* is not one of the network's 3 classes"):
        open_target(folder("n01", "n11"), "a", CLASSES, tmp_path)


def test_real_labels(folder, tmp_path):
    """Lists are in order of the number in the file's name; some images have two answers, some none."""
    root = folder(*CLASSES)
    (tmp_path / "real.json").write_text(json.dumps([[0, 2], [], [1]]))
    assert open_target(root, "real", CLASSES, tmp_path).answers.tolist() == [[0, 2], [-1, -1], [1, -1]]


def test_real_labels_in_a_store(folder, tmp_path, monkeypatch):
    """The answers are read from the place that the images are read from, whatever it is."""
    root, store = folder(*CLASSES), fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr("pipelines.places.filesystem_of", lambda location, setting: (store, ""))
    index = build_index(root.parent, root.name, tmp_path / "index")
    with pytest.raises(Refused, match=r"--variant real: s3://bucket/imagenet/real.json is missing; put the file"):
        variants.open_target(index, "s3://bucket/imagenet", "real", CLASSES)
    (tmp_path / "real.json").write_text("[[0, 2], [], [1]]")
    target = variants.open_target(index, "s3://bucket/imagenet", "real", CLASSES)
    assert target.answers.tolist() == [[0, 2], [-1, -1], [1, -1]]
    (tmp_path / "real.json").write_text("[[0, 2], [")
    with pytest.raises(Refused, match=r"s3://bucket/imagenet/real.json is not whole JSON .*; put the file of the ReaL"):
        variants.open_target(index, "s3://bucket/imagenet", "real", CLASSES)


def test_real_labels_of_other_images(folder, tmp_path):
    root = folder(*CLASSES)
    with pytest.raises(Refused, match="put the file of the ReaL labels beside the folder"):
        open_target(root, "real", CLASSES, tmp_path)
    (tmp_path / "real.json").write_text("[[0], [1]]")
    with pytest.raises(Refused, match=r"00000003\.png: the name does not end in a number from 1 to 2"):
        open_target(root, "real", CLASSES, tmp_path)
    (tmp_path / "real.json").write_text("[[0], [1], [700]]")
    with pytest.raises(Refused, match="names class 700, but the network has 3"):
        open_target(root, "real", CLASSES, tmp_path)
