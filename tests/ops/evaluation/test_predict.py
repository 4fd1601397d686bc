"""Which photographs `predict` shows its network, whatever they are called."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ops.evaluation.predict import find_photos, index_photos


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", ["photo", "photo.download", "photo.PNG", "2024.11.23"])
def test_a_photograph_is_known_by_its_content(photo, tmp_path, name):
    photo = photo.rename(tmp_path / name)
    found, broken = find_photos(photo)
    assert (found, broken) == ([photo], [])
    parts = SimpleNamespace(classes=("a", "b"), config=SimpleNamespace(data=SimpleNamespace(multi_label=False)))
    source = index_photos(found, tmp_path / "work", parts)
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
    found, broken = find_photos(photo.parent)
    assert found == [photo]
    assert broken == [f"{other} cannot be read (Permission denied); make it readable, or fetch it again"]
