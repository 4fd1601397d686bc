"""An encoded image: looked at once when it is indexed, decoded whole when a picture is asked for."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcore.errors import Refused
from kdcore.located import refuse_pointer
from pipelines.data.coding import FORMATS, differs
from pipelines.data.headers import Size, plain_size

Encoded = bytes | memoryview  # an encoded image; a view's memory is reused when nothing holds the view

# A quarter of a GiB of RGB, where Pillow begins to warn. ImageNet's largest image has 61 million.
MAX_PIXELS = 89_478_485
# Validation resizes an image's shorter side to this before it crops the centre, as usual; the longer in proportion.
_SHORTER_SIDE = 256
# `inspect_image` limits an image's pixels, and `decode_image` opens only images that were inspected.
Image.MAX_IMAGE_PIXELS = None

_HEIF = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))  # brands, in the first box

_Pixels = TypeVar("_Pixels", int, NDArray[np.int64])

# Formats whose end says nothing: only decoding tells whether an image is whole.
_DECODED = ("BMP", "TIFF", "PPM", "JPEG2000")


def inspect_image(
    content: bytes, name: str, max_pixels: int = MAX_PIXELS, decode: bool = False
) -> tuple[int, int, int]:
    """Return (height, width, CRC-32 of the content) of an encoded image.

    Height and width are those stored, before any EXIF rotation. Refused, naming the image, where the content is not a
    whole image of a kind that every loader decodes alike, or has more pixels than max_pixels. decode: only whole
    images pass; else damage inside a JPEG, or a PNG that was written wrongly, passes too.
    """
    size = None if decode else plain_size(content)
    if size is None:
        size = look_at(content, name, max_pixels, decode)
    else:
        refuse_too_large(name, size, max_pixels)
    return *size, zlib.crc32(content)


def look_at(content: bytes, name: str, max_pixels: int, decode: bool) -> Size:
    """Return the size of an image as Pillow reads it; Refused as by `inspect_image`."""
    refuse_pointer(content, name)
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF:
        raise Refused(f"{name} is in HEIF, as phones save photographs, which no loader reads; convert it to a JPEG")
    with refusing_broken(name), Image.open(BytesIO(content)) as image:
        size = image.height, image.width
        refuse_too_large(name, size, max_pixels)
        reason = differs(content, image)
        # A JPEG that does not end in its end marker is cut short, or has something appended: decoding tells which.
        ends = image.format not in ("JPEG", "MPO") or b"\xff\xd9" in content[-64:]
        if reason is None and (decode or not ends or image.format in _DECODED):
            image.load()
    if reason:
        raise Refused(
            f"{name} is {reason}, which the loaders decode differently; convert it to a JPEG or PNG in 8-bit RGB"
        )
    return size


def is_too_large(shorter: _Pixels, longer: _Pixels, max_pixels: int) -> bool | NDArray[np.bool_]:
    """Return whether an image, or each of several, has too many pixels, also once it is resized for a centre crop.

    shorter, longer: the sides in pixels.
    """
    most = float(_most_resized(max_pixels))
    return (shorter * longer > max_pixels) | (longer * _SHORTER_SIDE**2 > most * shorter)


def refuse_too_large(name: str, size: Size, max_pixels: int) -> None:
    """Refuse an image with too many pixels: see `is_too_large`."""
    shorter, longer = sorted(size)
    if shorter * longer > max_pixels:
        raise Refused(
            f"{name} has {size[0]}x{size[1]} pixels, more than data.max_pixels={max_pixels}, and takes long to decode; "
            "make it smaller or remove it, or raise data.max_pixels"
        )
    if is_too_large(shorter, longer, max_pixels):
        resized = -(-longer * _SHORTER_SIDE**2 // max(1, shorter))
        raise Refused(
            f"{name} has {size[0]}x{size[1]} pixels: resized to a shorter side of {_SHORTER_SIDE}, for a centre crop, "
            f"it has {resized:,}, more than {_most_resized(max_pixels):,}; crop or remove it, or allow it with "
            f"data.max_pixels={resized}"
        )


def _most_resized(max_pixels: int) -> int:
    """Return the pixels that an image may have once it is resized: an image that is allowed by its own passes."""
    return max(max_pixels, MAX_PIXELS)


def decode_image(content: Encoded, name: str, height: int, width: int) -> Image.Image:
    """Return the picture in RGB; Refused where it is not of this size in pixels, or cannot be decoded."""
    with refusing_broken(name), Image.open(BytesIO(content), formats=FORMATS) as image:
        if image.size == (width, height):
            return image.convert("RGB")
        found = f"{image.height}x{image.width}"
    raise Refused(f"{name} is {found} pixels, but {height}x{width} in the index; restore it, or start again")


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
    except Refused:
        raise
    except (OSError, ValueError, SyntaxError, RuntimeError) as error:  # the last by readers such as AVIF's
        raise _broken(name, error) from error


def unreadable(name: str, error: Exception) -> Refused:
    """Return the refusal of an indexed image for the system's error about it, on the node that reads it."""
    if isinstance(error, FileNotFoundError):
        return Refused(
            f"{name} cannot be read as an image ({error.strerror}) on the node {socket.gethostname()}; mount its "
            "folder there as on the other nodes, or where it was removed on purpose, start again"
        )
    return _broken(name, error)


def _broken(name: str, error: Exception) -> Refused:
    reason = getattr(error, "strerror", None) or str(error).partition(" <_io")[0]
    return Refused(f"{name} cannot be read as an image ({reason}); repair or remove it, then start again")
