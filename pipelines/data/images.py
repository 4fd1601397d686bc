"""An encoded image: looked at once when it is indexed, decoded whole where a picture is asked for."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import Image

from kdcore.errors import Refused
from pipelines.data.coding import differs

# What the loaders decode alike. MPO is a camera's JPEG with further pictures behind the first.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")

# Whose end says nothing: only decoding tells whether they are whole.
_DECODED = ("BMP", "TIFF", "PPM", "JPEG2000")


def inspect_image(content: bytes, name: str) -> tuple[int, int, int]:
    """Return (height, width, CRC-32 of the content) of an encoded image.

    Height and width are those stored, before any EXIF rotation. Refused, naming the image, where the content is not a
    whole image of a kind that every loader decodes alike.
    """
    with refusing_broken(name), Image.open(BytesIO(content)) as image:
        width, height = image.size
        kind, mode = image.format, image.mode
        # A JPEG that does not end in its end marker is cut short, or has something appended: decoding tells which.
        if (kind == "JPEG" and b"\xff\xd9" not in content[-64:]) or kind in _DECODED:
            image.load()
    if reason := differs(content, kind, mode):
        raise Refused(f"{name} is {reason}, which the loaders do not decode alike; convert it to JPEG or PNG")
    if kind not in _FORMATS or mode not in _MODES:
        raise Refused(
            f"{name} is a {kind} image of mode {mode}, which the loaders do not decode alike; convert it to JPEG or PNG"
        )
    return height, width, zlib.crc32(content)


def decode_image(content: bytes, name: str, height: int, width: int) -> Image.Image:
    """Return the picture in RGB; Refused where it is not of this size in pixels, or cannot be decoded."""
    with refusing_broken(name), Image.open(BytesIO(content)) as image:
        if image.size == (width, height):
            return image.convert("RGB")
        found = f"{image.height}x{image.width}"
    raise Refused(f"{name} is {found} pixels, but {height}x{width} in the index; build the index again")


def black_image(height: int, width: int) -> bytes:
    """Return a black picture of this size, encoded."""
    file = BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def refusing_broken(name: str) -> Iterator[None]:
    """Turn what the system or Pillow raises about an image into a Refused that names it."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition(" <_io")[0]
        raise Refused(
            f"{name} cannot be read as an image ({reason}); repair or remove it, then build the index again"
        ) from error
