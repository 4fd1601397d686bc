"""Which photographs `predict` shows its network, whatever they are called."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from cluster.assembly import assemble
from cluster.nodes.resources import rank_here
from cluster.recipe.reading import parse
from ops.evaluation.predict import find_photos, index_photos, likeliest
from pipelines.data.broken import USUAL, Acceptance
from tests.conftest import small_recipe, write_image_folder


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", ["photo", "photo.download", "photo.PNG", "2024.11.23"])
def test_a_photograph_is_known_by_its_content(photo, tmp_path, name):
    photo = photo.rename(tmp_path / name)
    found, broken = find_photos(photo, USUAL)
    assert (found, broken) == ([photo], [])
    parts = SimpleNamespace(classes=("a", "b"), config=SimpleNamespace(data=SimpleNamespace(multi_label=False)))
    source = index_photos(found, tmp_path / "work", parts, USUAL)
    assert list(source.read([0])) == [photo.read_bytes()]


def test_a_photograph_that_cannot_be_read_is_left_out(photo, monkeypatch):
    """It says why, and the others are shown."""
    other = photo.with_name("other.png")
    other.write_bytes(photo.read_bytes())
    read = Path.read_bytes

    def refusing(path: Path) -> bytes:
        if path == other:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    found, broken = find_photos(photo.parent, USUAL)
    assert found == [photo]
    assert broken == [f"{other} cannot be read (Permission denied); make it readable, or fetch it again"]


def test_a_photograph_of_a_phone_is_to_be_converted(photo):
    """Nothing is said of an index, which no user of `predict` knows."""
    (photo.parent / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (photo.parent / "notes.jpg").write_bytes(b"no image")
    found, broken = find_photos(photo.parent, USUAL)
    assert found == [photo]
    assert [text.partition(" is in HEIF")[1] for text in broken] == [" is in HEIF", ""]
    assert not any("index" in text for text in broken)


def test_the_recipe_says_which_photographs_are_accepted(photo, tmp_path):
    """One of more pixels than are usual, where data.max_pixels allows them."""
    Image.new("1", (9_500, 9_500)).save(photo)
    found, broken = find_photos(photo, USUAL)
    assert (found, len(broken)) == ([], 1)
    assert "more than data.max_pixels=89478485" in broken[0]
    lax = Acceptance(max_pixels=10**9)
    assert find_photos(photo, lax) == ([photo], [])
    parts = SimpleNamespace(classes=("a", "b"), config=SimpleNamespace(data=SimpleNamespace(multi_label=False)))
    assert len(index_photos([photo], tmp_path / "work", parts, lax)) == 1


def test_photographs_of_several_sizes_for_a_run_whose_images_have_one(photo, tmp_path):
    other = photo.with_name("other.png")
    Image.fromarray(np.full((40, 20, 3), 200, np.uint8)).save(other)
    images = write_image_folder(tmp_path / "images")
    changes = {"scaling__num_workers": 0, "data__loader": "resident", "data__crop_pct": 1.0}
    config = parse(small_recipe(images, tmp_path / "out", **changes))
    parts = assemble(config, rank_here(config))
    weights = tmp_path / "student.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in parts.student.state_dict().items()}
    safetensors.torch.save_file(tensors, weights)
    source = index_photos([photo, other], tmp_path / "work", parts, USUAL)
    assert [len(classes) for classes in likeliest(parts, weights, source, 2)] == [2, 2]
