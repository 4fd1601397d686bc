"""JPEG files: of every coding, with every marker, and damaged."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np

from tests.pipelines.formats.picture import Zoo, base, exif, profile, saved
from tests.pipelines.pictures import picture


def replaced(content: bytes, marker: int, change: Callable[[bytearray], None]) -> bytes:
    """Return a JPEG with the first segment of a marker changed; change gets what follows its length."""
    at = content.index(bytes([0xFF, marker]))
    length = int.from_bytes(content[at + 2 : at + 4], "big")
    body = bytearray(content[at + 4 : at + 2 + length])
    change(body)
    return content[: at + 2] + (len(body) + 2).to_bytes(2, "big") + bytes(body) + content[at + 2 + length :]


def without(content: bytes, marker: int) -> bytes:
    """Return a JPEG without the first segment of a marker."""
    at = content.index(bytes([0xFF, marker]))
    return content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") :]


def with_segment(content: bytes, marker: int, body: bytes) -> bytes:
    """Return a JPEG with one segment more, behind its start."""
    return content[:2] + bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body + content[2:]


def set_byte(at: int, value: int) -> Callable[[bytearray], None]:
    def change(body: bytearray) -> None:
        body[at] = value

    return change


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damaged(content: bytes, seed: int) -> bytes:
    """Return a JPEG with five bytes of its scan changed."""
    rng = np.random.default_rng(seed)
    changed = bytearray(content)
    for at in rng.integers(content.index(b"\xff\xda") + 20, len(content) - 10, 5):
        changed[at] = int(rng.integers(0, 255))
    return bytes(changed)


def without_all(content: bytes, marker: int) -> bytes:
    """Return a JPEG without any segment of a marker before its scan."""
    while bytes([0xFF, marker]) in content[: content.index(b"\xff\xda")]:
        content = without(content, marker)
    return content


def two_components() -> bytes:
    """Return a JPEG that says it has two components, of three."""
    content = saved("JPEG", keep_rgb=True)
    return replaced(content, 0xC0, lambda body: body.__setitem__(slice(5, None), bytes([2]) + body[6:12]))


def with_thumbnail() -> bytes:
    """Return EXIF data with a JPEG in it."""
    return b"Exif\0\0" + exif(1).tobytes()[6:] + saved("JPEG", size=(8, 8))


def mpo() -> bytes:
    file = BytesIO()
    base().save(file, "MPO", save_all=True, append_images=[picture(20, 30, 3)])
    return file.getvalue()


def jpegs() -> Zoo:
    zoo: Zoo = {
        **{f"mode {mode}": lambda mode=mode: saved("JPEG", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")},
        **{f"quality {q}": lambda q=q: saved("JPEG", quality=q) for q in (1, 10, 50, 95, 100)},
        **{f"subsampling {s}": lambda s=s: saved("JPEG", subsampling=s) for s in (0, 1, 2)},
        **{
            f"{h}x{w} subsampling {s}": lambda h=h, w=w, s=s: saved("JPEG", size=(h, w), subsampling=s)
            for h, w in ((1, 1), (1, 40), (33, 1), (2, 2), (8, 8), (16, 17), (15, 16), (200, 300))
            for s in (0, 2)
        },
        "progressive": lambda: saved("JPEG", progressive=True),
        "progressive grey": lambda: saved("JPEG", "L", progressive=True),
        "progressive cmyk": lambda: saved("JPEG", "CMYK", progressive=True),
        "optimised": lambda: saved("JPEG", optimize=True),
        "restart markers": lambda: saved("JPEG", restart_marker_blocks=2),
        "rgb, not ycc": lambda: saved("JPEG", keep_rgb=True),
        "rgb by ids alone": lambda: without(saved("JPEG", keep_rgb=True), 0xEE),
        "profile srgb": lambda: saved("JPEG", icc_profile=profile()),
        "profile lab": lambda: saved("JPEG", icc_profile=profile("LAB")),
        "comment": lambda: saved("JPEG", comment="a comment"),
        "density": lambda: saved("JPEG", dpi=(300, 72)),
        **{f"exif {n}": lambda n=n: saved("JPEG", exif=exif(n)) for n in range(1, 9)},
        "mpo": mpo,
        "no jfif": lambda: without(saved("JPEG"), 0xE0),
        "appended": lambda: saved("JPEG") + b"appended" * 20,
        "filled markers": lambda: saved("JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
        "photoshop": lambda: with_segment(saved("JPEG"), 0xED, b"Photoshop 3.0\0" + b"x" * 300),
        "cmyk without adobe": lambda: without(saved("JPEG", "CMYK"), 0xEE),
        "ycck": lambda: replaced(saved("JPEG", "CMYK"), 0xEE, set_byte(11, 2)),
        "adobe ycc": lambda: with_segment(saved("JPEG"), 0xEE, b"Adobe\0\x64\0\0\0\0\x01"),
        "adobe unknown transform": lambda: with_segment(saved("JPEG"), 0xEE, b"Adobe\0\x64\0\0\0\0\x00"),
        "adobe without jfif": lambda: without(with_segment(saved("JPEG"), 0xEE, b"Adobe\0\x64\0\0\0\0\x00"), 0xE0),
        "grey, sampled 2x2": lambda: replaced(saved("JPEG", "L"), 0xC0, set_byte(7, 0x22)),
        "lossless": lambda: saved("JPEG").replace(b"\xff\xc0", b"\xff\xc3", 1),
        "extended": lambda: saved("JPEG").replace(b"\xff\xc0", b"\xff\xc1", 1),
        "12 bits": lambda: replaced(saved("JPEG"), 0xC0, set_byte(0, 12)),
        "arithmetic": lambda: saved("JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1),
        "no end": lambda: saved("JPEG")[:-2],
        "cut in half": lambda: half(saved("JPEG", size=(200, 300))),
        "cut, end put back": lambda: half(saved("JPEG", size=(200, 300))) + b"\xff\xd9",
        "progressive, cut, end put back": lambda: half(saved("JPEG", size=(200, 300), progressive=True)) + b"\xff\xd9",
        **{f"damaged {n}": lambda n=n: damaged(saved("JPEG", size=(200, 300)), n) for n in range(4)},
        **{
            f"progressive, damaged {n}": lambda n=n: damaged(saved("JPEG", size=(200, 300), progressive=True), n)
            for n in range(4)
        },
        "restart markers, damaged": lambda: damaged(saved("JPEG", size=(200, 300), restart_marker_blocks=4), 1),
        "without huffman tables": lambda: without_all(saved("JPEG"), 0xC4),
        "without quantisation tables": lambda: without_all(saved("JPEG"), 0xDB),
        "only a header": lambda: saved("JPEG")[: saved("JPEG").index(b"\xff\xda")] + b"\xff\xd9",
        "a thumbnail within": lambda: saved("JPEG", exif=with_thumbnail()),
        "two components": lambda: two_components(),
        "multi-picture segment broken": lambda: with_segment(saved("JPEG"), 0xE2, b"MPF\0II*\0"),
        "profile in a part too short": lambda: with_segment(saved("JPEG"), 0xE2, b"ICC_PROFILE\0"),
        "odd tables": lambda: saved("JPEG", qtables=[[1] * 64, [255] * 64]),
        "tables of 16 bits": lambda: saved("JPEG", qtables=[[300] * 64, [700] * 64]),
        "height 0": lambda: replaced(saved("JPEG"), 0xC0, set_byte(2, 0)),
        "wrong ending byte": lambda: saved("JPEG")[:-1] + b"\xd8",
    }
    return {f"jpeg, {name}": make for name, make in zoo.items()}
