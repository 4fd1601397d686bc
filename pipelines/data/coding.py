"""Which codings of images the loaders do not decode alike, format by format, seen without decoding them.

What is refused here was found by `tests/pipelines/zoo.py`: DALI refuses what Pillow reads (NVIDIA/DALI#306, #2766,
#3913, #5296), or gives other values.
"""

from __future__ import annotations

from PIL import Image

from pipelines.data.headers import chunks

# {format: the modes, in Pillow's terms, that the loaders decode alike}. MPO is a camera's JPEG with further pictures
# after the first.
_ALIKE = {
    "JPEG": ("L", "RGB", "CMYK"),
    "MPO": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr"),
    "PPM": ("1", "L", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "JPEG2000": ("L", "RGB", "RGBA"),
}
FORMATS = tuple(kind for kind in _ALIKE if kind != "MPO")  # Pillow opens an MPO as a JPEG
_JPEG_ALIKE = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_NO_PAYLOAD = (0x01, *range(0xD0, 0xD9))  # markers of a JPEG without a payload
_SCAN, _QUANTISATION = 0xDA, 0xDB
_STREAM = b"\xff\x4f\xff\x51"  # begins the code stream of a JPEG 2000, and its sizes
_DEPTH_AT = 42  # offset, from there, of the first component's depth
_BITS, _ORIENTATION, _EXTRA = 258, 274, 338  # tags of a TIFF
_MULTIPLIED = 1  # a value of the last of these
_HAS_EXIF = 0x08  # a flag of a WebP's header
_YCC = b"colr\1\0\0\0\0\0\x12"  # the box of a JPEG 2000 that names its colour space


def differs(content: bytes, image: Image.Image) -> str | None:
    """Return why the loaders do not decode an image alike, in words; None if they do. image: as Pillow opened it."""
    kind, mode = str(image.format), image.mode
    if mode not in _ALIKE.get(kind, ()):
        return f"a {kind} image of mode {mode}"
    if kind in ("JPEG", "MPO"):
        return _jpeg_differs(content, mode)
    if kind == "PNG" and not _is_whole_png(content, mode):
        return "a PNG that is cut short, lacks a part, or whose checksums are wrong"
    if kind == "BMP" and _bmp_bits(content) == 16:
        return "a BMP of 16 bits"
    if kind == "TIFF":
        return _tiff_differs(image)
    if kind == "PPM" and not _is_plain_ppm(content):
        return "a PPM in text, or of another depth than 8 bits"
    if kind == "JPEG2000":
        return _jpeg2000_differs(content, mode)
    if kind == "WEBP" and _hides_exif(content):
        return "a WebP with EXIF facts behind a chunk of an odd number of bytes"
    return None


def _jpeg_differs(content: bytes, mode: str) -> str | None:
    segments = _jpeg_segments(content)
    markers = {marker for marker, _ in segments}
    frame = next((marker for marker, _ in segments if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)), 0)
    if frame not in _JPEG_ALIKE:
        return f"a JPEG of the frame type {f'SOF{frame - 0xC0}' if frame else 'unknown'}, such as lossless"
    if not markers >= {_QUANTISATION, _SCAN}:
        return "a JPEG without its tables or without an image"
    if mode == "CMYK" and not any(marker == 0xEE and body.startswith(b"Adobe") for marker, body in segments):
        return "a CMYK JPEG without Adobe's marker, which says whether its values are inverted"
    return None


def _jpeg_segments(content: bytes) -> list[tuple[int, bytes]]:
    """Return (marker, first bytes) of a JPEG's segments up to its first scan."""
    found: list[tuple[int, bytes]] = []
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and (not found or found[-1][0] != _SCAN):
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _NO_PAYLOAD:
            at += 2
        else:
            found.append((marker, content[at + 4 : at + 16]))
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return found


def _is_whole_png(content: bytes, mode: str) -> bool:
    """Return whether a PNG's critical chunks are those that decoders must read, with correct checksums."""
    critical = [(kind, is_right) for kind, _, _, is_right in chunks(content) if kind[:1].isupper()]
    kinds = [kind for kind, _ in critical]
    needed = {b"IHDR", b"IDAT", b"IEND"} | ({b"PLTE"} if mode == "P" else set())
    return (
        needed <= set(kinds) <= needed | {b"PLTE"} and kinds.count(b"IHDR") == 1 and all(right for _, right in critical)
    )


def _bmp_bits(content: bytes) -> int:
    """Return a BMP's bits per pixel."""
    at = 24 if content[14] == 12 else 28  # OS/2's header is shorter
    return int.from_bytes(content[at : at + 2], "little")


def _tiff_differs(image: Image.Image) -> str | None:
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(_ORIENTATION, 1) != 1:
        return "a TIFF that is to be turned or mirrored for viewing"
    if not {1, 8, 16} >= set(tags.get(_BITS, (0,))):
        return "a TIFF whose values have another depth than 1, 8 or 16 bits, or that does not say which"
    if _MULTIPLIED in tags.get(_EXTRA, ()):
        return "a TIFF whose colours are multiplied by their opacity"
    return None


def _hides_exif(content: bytes) -> bool:
    """Return whether DALI fails to find a WebP's EXIF facts: it overlooks the padding byte of an odd chunk."""
    if content[12:16] != b"VP8X" or not content[20] & _HAS_EXIF:
        return False
    at = 12
    while at + 8 <= len(content) and content[at : at + 4] != b"EXIF":
        num_bytes = int.from_bytes(content[at + 4 : at + 8], "little")
        if num_bytes % 2:
            return True
        at += 8 + num_bytes
    return False


def _is_plain_ppm(content: bytes) -> bool:
    """Return whether a PPM or PGM holds bytes of the whole range, or a PBM bits."""
    lines = (line.partition(b"#")[0] for line in content[:4096].split(b"\n"))
    words = b" ".join(lines).split(maxsplit=4)
    return words[0] == b"P4" or (words[0] in (b"P5", b"P6") and len(words) > 3 and words[3] == b"255")


def _jpeg2000_differs(content: bytes, mode: str) -> str | None:
    at = content.find(_STREAM)
    if at < 0 or at + _DEPTH_AT >= len(content) or (content[at + _DEPTH_AT] & 0x7F) + 1 != 8:
        return "a JPEG 2000 of another depth than 8 bits"
    if _YCC in content[:at]:
        return "a JPEG 2000 in the colour space YCC"
    if at == 0 and mode == "L":
        return "a grey JPEG 2000 without a file format about its code stream"
    return None
