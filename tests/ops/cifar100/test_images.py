"""CIFAR-100 as published becomes an image folder without losing a bit or a label."""

import hashlib
import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdcore.errors import Refused
from ops.cifar100 import images as cifar
from ops.cifar100.images import write_cifar100
from pipelines.data.index import build_index

LABELS = {"train": [9, 10, 9, 99, 2], "test": [10, 0]}
COUNTS = {"train": 5, "val": 2}


def webp(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.fixture
def parquet(tmp_path):
    """A folder of published files in the small, with the training images in two files; and their pixels."""
    rng = np.random.default_rng(0)
    pixels = {split: rng.integers(0, 256, (len(n), 32, 32, 3)).astype(np.uint8) for split, n in LABELS.items()}
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split, name, rows in (("train", "0", [0, 1, 2]), ("train", "1", [3, 4]), ("test", "0", [0, 1])):
        images = [{"bytes": webp(pixels[split][row]), "path": None} for row in rows]
        labels = [LABELS[split][row] for row in rows]
        table = pa.table({"img": images, "fine_label": labels, "coarse_label": labels})
        pq.write_table(table, folder / f"{split}-0000{name}-of-00002.parquet")
    return folder, pixels


def test_every_pixel_and_label_arrives(parquet, tmp_path):
    folder, pixels = parquet
    root = write_cifar100(folder, tmp_path / "cifar100", COUNTS)
    for split, published in (("train", "train"), ("val", "test")):
        for row, label in enumerate(LABELS[published]):
            with Image.open(root / split / f"{label:02d}" / f"{row:05d}.png") as image:
                assert np.array_equal(np.asarray(image), pixels[published][row])
        assert len(list((root / split).rglob("*.png"))) == COUNTS[split]


@pytest.fixture
def pickles(tmp_path, parquet, monkeypatch):
    """The same images in the authors' format, with checksums of their own; a function that gives the folder."""
    folder = tmp_path / "official" / "cifar-100-python"
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    entries = {
        split: {"data": parquet[1][split].transpose(0, 3, 1, 2).reshape(len(labels), -1), "fine_labels": labels}
        for split, labels in LABELS.items()
    }
    _, meta = write("meta", {"fine_label_names": [str(number) for number in range(100)]})
    monkeypatch.setattr(cifar.CIFAR100, "train_list", [write("train", entries["train"])])
    monkeypatch.setattr(cifar.CIFAR100, "test_list", [write("test", entries["test"])])
    monkeypatch.setattr(cifar.CIFAR100, "meta", cifar.CIFAR100.meta | {"md5": meta})
    return folder.parent


def test_the_authors_pickles_give_the_same_folder(parquet, pickles, tmp_path):
    ours, theirs = (write_cifar100(source, tmp_path / source.name / "out", COUNTS) for source in (pickles, parquet[0]))
    found = sorted(path.relative_to(ours) for path in ours.rglob("*.png"))
    assert found == sorted(path.relative_to(theirs) for path in theirs.rglob("*.png"))
    assert len(found) == sum(COUNTS.values())
    assert all((ours / path).read_bytes() == (theirs / path).read_bytes() for path in found)


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_no_pickle_is_opened_whose_checksum_is_not_the_published_one(name, pickles, tmp_path):
    (pickles / "cifar-100-python" / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(Refused, match=r"does not hold the published files .* no other pickle is opened; fetch them"):
        write_cifar100(pickles, tmp_path / "cifar100", COUNTS)
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "cifar100").exists()


def test_classes_are_in_order_of_number(parquet, tmp_path):
    """Labels of the folder are those of the files: what published weights rely on."""
    images = [{"bytes": webp(np.zeros((32, 32, 3), np.uint8)), "path": None}] * 100
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        pq.write_table(pa.table({"img": images, "fine_label": range(99, -1, -1)}), tmp_path / f"{name}.parquet")
    root = write_cifar100(tmp_path, tmp_path / "cifar100", {"train": 100, "val": 100})
    index = build_index(root, "train", tmp_path / "index")
    assert index.classes == tuple(f"{label:02d}" for label in range(100))
    assert index.labels.tolist() == list(range(100))


def test_it_is_written_once(parquet, tmp_path):
    root = write_cifar100(parquet[0], tmp_path / "cifar100", COUNTS)
    (root / "train" / "02" / "00004.png").unlink()
    write_cifar100(parquet[0], root, COUNTS)
    assert not (root / "train" / "02" / "00004.png").exists()


def test_missing_files_are_refused_before_anything_is_written(parquet, tmp_path):
    folder, _ = parquet
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(Refused, match=r"has 3 rows in 1 files train-\*\.parquet, but CIFAR-100 has 5; give the"):
        write_cifar100(folder, tmp_path / "cifar100", COUNTS)
    with pytest.raises(Refused, match=r"has 0 rows in 0 files train"):
        write_cifar100(tmp_path / "nowhere", tmp_path / "cifar100")
    assert not (tmp_path / "cifar100").exists()


def test_another_data_set_is_refused(parquet, tmp_path):
    folder, _ = parquet
    pq.write_table(pa.table({"image": [b""] * 2, "label": [0, 1]}), folder / "train-00001-of-00002.parquet")
    with pytest.raises(Refused, match="has no column 'fine_label', so it is not CIFAR-100's"):
        write_cifar100(folder, tmp_path / "cifar100", COUNTS)
    (folder / "train-00001-of-00002.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(Refused, match="is not a Parquet file"):
        write_cifar100(folder, tmp_path / "cifar100", COUNTS)
    assert not (tmp_path / "cifar100").exists()
