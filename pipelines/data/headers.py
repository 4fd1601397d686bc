"""The size of a plain JPEG or PNG, from its headers only: in a third of the time that a library takes to open it.

Most files are plain. For anything else this module says nothing, and Pillow is asked. What is plain here, Pillow and
the loaders read with the same size, which the tests show for a zoo of files and for damaged headers.
"""

from __future__ import annotations

import zlib
from struct import Struct

Size = tuple[int, int]  # (height, width) in pixels

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset((0xFFC0, 0xFFC1, 0xFFC2))  # baseline, extended, progressive
_TABLES, _SCAN, _QUANTISATION = 0xFFC4, 0xFFDA, 0xFFDB
_SKIPPED = frozenset((0xFFDD, 0xFFFE, *range(0xFFE0, 0xFFF0)))  # restart interval, comment, applications
_ADOBE, _OF_PROFILE_OR_PICTURES = 0xFFEE, 0xFFE2
_LENGTHS = {0xFFE0: 16, _ADOBE: 14}  # at least, with the two bytes of the length
_SEGMENT = Struct(">HH")
_FRAME = Struct(">BHHB")  # bits, height, width, components

PNG_START = b"\x89PNG\r\n\x1a\n"
_CHUNK, _WORD, _HEADER = Struct(">I4s"), Struct(">I"), Struct(">IIBBBBB")
# {kind of colour: its depths}, of those that Pillow and DALI decode alike; 3 has a palette
_DEPTHS = {0: (1, 2, 4, 8), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# {chunk that may stand between header and data: its least bytes}
_BESIDE = {b"PLTE": 3, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"bKGD": 1, b"sBIT": 1, b"tIME": 7, b"tEXt": 1}


def plain_size(content: bytes) -> Size | None:
    """Return the size of a plain JPEG or PNG; None for anything else."""
    if content.startswith(_JPEG_START):
        return _plain_jpeg(content)
    return _plain_png(content) if content.startswith(PNG_START) else None


def _plain_jpeg(content: bytes) -> Size | None:
    """Return the size of a JPEG of one or three components, of 8 bits, that ends in its end marker."""
    if content.find(_JPEG_END, len(content) - 64 if len(content) > 64 else 0) < 0:
        return None
    at, stop = 2, len(content) - 5
    size, tables = None, 0
    while at <= stop:
        marker, length = _SEGMENT.unpack_from(content, at)
        if marker == _SCAN:
            is_whole = length == 6 + 2 * content[at + 4] and at + 2 + length < len(content)
            return size if is_whole and tables == 3 else None
        if length < _LENGTHS.get(marker, 2):
            return None
        if marker in _FRAMES:
            if size is not None or length < 11 or at + 10 > len(content):
                return None
            bits, height, width, components = _FRAME.unpack_from(content, at + 4)
            if bits != 8 or components not in (1, 3) or length != 8 + 3 * components or not height or not width:
                return None
            size = height, width
        elif marker == _QUANTISATION:
            if not _holds_whole_tables(content, at + 4, at + 2 + length):
                return None
            tables |= 1
        elif marker == _TABLES:
            tables |= 2
        elif marker not in _SKIPPED or (marker == _OF_PROFILE_OR_PICTURES and not _is_profile(content, at, length)):
            return None
        at += 2 + length
    return None


def _holds_whole_tables(content: bytes, at: int, stop: int) -> bool:
    """Return whether a segment is quantisation tables of 8 or 16 bits and nothing else."""
    while at < stop:
        at += 65 if at < len(content) and content[at] < 16 else 129
    return at == stop


def _is_profile(content: bytes, at: int, length: int) -> bool:
    """Return whether a segment is a part of a colour profile, or at least not a list of further pictures."""
    start = content[at + 4 : at + 16]
    return length >= 18 if start.startswith(b"ICC_PROFILE\0") else not start.startswith(b"MPF\0")


def _plain_png(content: bytes) -> Size | None:
    """Return the size of a PNG whose chunks are all of a common kind and have correct checksums."""
    if len(content) < 45 or content[12:16] != b"IHDR":
        return None
    width, height, depth, colour, packing, filtering, interlacing = _HEADER.unpack_from(content, 16)
    if depth not in _DEPTHS.get(colour, ()) or packing or filtering or interlacing > 1 or not height or not width:
        return None
    kinds = []
    for kind, _, length, is_right in chunks(content):
        if not is_right or (kind not in _PLAIN and length < _BESIDE.get(kind, len(content))):
            return None
        kinds.append(kind)
    if kinds[-1:] != [b"IEND"] or b"IDAT" not in kinds or kinds.count(b"IHDR") != 1:
        return None
    return None if colour == 3 and b"PLTE" not in kinds[: kinds.index(b"IDAT")] else (height, width)


_PLAIN = frozenset((b"IHDR", b"IDAT", b"IEND"))


def chunks(content: bytes) -> list[tuple[bytes, int, int, bool]]:
    """Return (kind, where its content begins, bytes of that, whether its checksum is right) of a PNG's chunks.

    Up to its end, or up to where the file is cut off: that chunk is not right.
    """
    found = []
    at, view = len(PNG_START), memoryview(content)
    while at + 12 <= len(content):
        length, kind = _CHUNK.unpack_from(content, at)
        stop = at + 8 + length
        is_whole = stop + 4 <= len(content)
        is_right = is_whole and zlib.crc32(view[at + 4 : stop]) == _WORD.unpack_from(content, stop)[0]
        found.append((kind, at + 8, length, is_right))
        if kind == b"IEND" or not is_whole:
            break
        at = stop + 4
    return found
