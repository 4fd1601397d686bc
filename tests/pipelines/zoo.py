"""A zoo of image files: every format, mode, depth, orientation, marker and colour space that users bring, made anew.

Each file is a function of nothing. What Pillow cannot write is put together by hand.
"""

from __future__ import annotations

from tests.pipelines.formats.bmp import bmps
from tests.pipelines.formats.jpeg import jpegs
from tests.pipelines.formats.others import jpeg2000s, others, portable, webps
from tests.pipelines.formats.picture import Zoo
from tests.pipelines.formats.png import pngs
from tests.pipelines.formats.tiff import tiffs


def zoo() -> Zoo:
    """Return {name: what makes the file}."""
    return {**jpegs(), **pngs(), **bmps(), **tiffs(), **portable(), **webps(), **jpeg2000s(), **others()}
