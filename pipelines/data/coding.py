"""What of an image's coding the loaders do not decode alike, seen in its bytes without decoding it."""

from __future__ import annotations

_PNG_END = b"IEND\xaeB`\x82"
_JPEG_ALIKE = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_NO_PAYLOAD = (0x01, *range(0xD0, 0xD9))  # markers of a JPEG that stand alone
_SIZE = b"\xff\x4f\xff\x51"  # begins the code stream of a JPEG 2000, and its sizes
_DEPTH_AT = 42  # of the first component, behind that


def differs(content: bytes, kind: str | None, mode: str) -> str | None:
    """Return why the loaders do not decode an image alike, in words; None where they do.

    kind, mode: Pillow's format and mode. DALI refuses what Pillow reads (NVIDIA/DALI#306, #2766, #3913, #5296), or
    gives other values.
    """
    if kind == "PNG" and _PNG_END not in content[-64:]:
        return "a PNG without its end, cut short"
    if kind in ("JPEG", "MPO") and (frame := _jpeg_frame(content)) not in _JPEG_ALIKE:
        return f"a JPEG of the frame type {f'SOF{frame - 0xC0}' if frame else 'unknown'}, such as lossless"
    if kind == "PPM" and not _is_plain_ppm(content):
        return "a PPM in text, or of another depth than 8 bits"
    if kind == "TIFF" and mode == "LA":
        return "a TIFF of grey with alpha"
    if kind == "JPEG2000" and _jpeg2000_depth(content) != 8:
        return "a JPEG 2000 of another depth than 8 bits"
    return None


def _jpeg_frame(content: bytes) -> int | None:
    """Return the marker of a JPEG's first frame; None where there is none."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif marker in _NO_PAYLOAD:
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def _is_plain_ppm(content: bytes) -> bool:
    """Return whether a PPM or PGM holds bytes of the whole range, or a PBM bits."""
    lines = (line.partition(b"#")[0] for line in content[:4096].split(b"\n"))
    words = b" ".join(lines).split(maxsplit=4)
    return words[0] == b"P4" or (words[0] in (b"P5", b"P6") and len(words) > 3 and words[3] == b"255")


def _jpeg2000_depth(content: bytes) -> int | None:
    """Return the bits of a JPEG 2000's first component."""
    at = content.find(_SIZE)
    return None if at < 0 or at + _DEPTH_AT >= len(content) else (content[at + _DEPTH_AT] & 0x7F) + 1
