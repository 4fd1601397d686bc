"""BMP files: of every depth, in runs, and with masks."""

from __future__ import annotations

import struct

import numpy as np

from tests.pipelines.formats.picture import HEIGHT, WIDTH, Zoo, base, packed_grey, saved


def bmp(
    rows: bytes, bits: int, height: int = HEIGHT, compression: int = 0, masks: bytes = b"", palette: bytes = b""
) -> bytes:
    info = struct.pack(
        "<IiiHHIIiiII", 40, WIDTH, height, 1, bits, compression, len(rows), 2835, 2835, len(palette) // 4, 0
    )
    start = 14 + len(info) + len(masks) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + info + masks + palette + rows


def _os2(bgr: np.ndarray) -> bytes:
    rows = _rows(bgr)
    info = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    return struct.pack("<2sIHHI", b"BM", 26 + len(rows), 0, 0, 26) + info + rows


def _rows(pixels: np.ndarray) -> bytes:
    """Return rows of bytes from bottom to top, each filled up to four bytes."""
    rows = pixels.reshape(len(pixels), -1)
    return b"".join(row.tobytes() + b"\0" * (-len(row.tobytes()) % 4) for row in rows[::-1])


def _sixteen(red: int, green: int, blue: int) -> np.ndarray:
    """Return the picture in so many bits of each colour, in one word."""
    r, g, b = (np.asarray(base())[..., c].astype(np.uint16) for c in range(3))
    return ((r >> (8 - red)) << (green + blue) | (g >> (8 - green)) << blue | b >> (8 - blue)).astype("<u2")


def _run_lengths() -> bytes:
    """Return the grey picture as runs: (count, value), line by line."""
    lines = []
    for row in np.asarray(base("L"))[::-1]:
        lines.append(b"".join(bytes([1, value]) for value in row) + b"\0\0")
    return b"".join(lines) + b"\0\1"


def bmps() -> Zoo:
    bgr, grey = np.asarray(base())[..., ::-1], np.asarray(base("L"))
    greys = b"".join(bytes([v, v, v, 0]) for v in range(256))
    bgra = np.concatenate((bgr, np.asarray(base("RGBA"))[..., 3:]), axis=2)
    zoo: Zoo = {
        **{f"mode {mode}": lambda mode=mode: saved("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")},
        "by hand": lambda: bmp(_rows(bgr), 24),
        "top down": lambda: bmp(_rows(bgr[::-1]), 24, -HEIGHT),
        "32 bits": lambda: bmp(_rows(bgra), 32),
        "5-5-5": lambda: bmp(_rows(_sixteen(5, 5, 5).view(np.uint8).reshape(HEIGHT, -1)), 16),
        "5-6-5": lambda: bmp(
            _rows(_sixteen(5, 6, 5).view(np.uint8).reshape(HEIGHT, -1)),
            16,
            HEIGHT,
            3,
            struct.pack("<3I", 0xF800, 0x7E0, 0x1F),
        ),
        "grey": lambda: bmp(_rows(grey), 8, palette=greys),
        "run lengths": lambda: bmp(_run_lengths(), 8, HEIGHT, 1, palette=greys),
        "4 bits": lambda: bmp(_rows(packed_grey(4)), 4, palette=b"".join(bytes([v * 17] * 3 + [0]) for v in range(16))),
        "os/2": lambda: _os2(bgr),
        "32 bits, masks": lambda: bmp(_rows(bgra), 32, HEIGHT, 3, struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)),
        "32 bits, other masks": lambda: bmp(_rows(bgra), 32, HEIGHT, 3, struct.pack("<3I", 0xFF, 0xFF00, 0xFF0000)),
        "cut": lambda: saved("BMP")[:-500],
    }
    return {f"bmp, {name}": make for name, make in zoo.items()}
