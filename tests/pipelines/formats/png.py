"""PNG files: of every depth, with every chunk, and damaged."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from tests.pipelines.formats.picture import HEIGHT, WIDTH, Zoo, base, exif, packed_grey, profile, saved, wide


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels: np.ndarray, depth: int, colour: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """Return a PNG of rows of bytes [H, bytes a row], or of pixels [H,W,C] where interlaced (8 bits)."""
    height = len(pixels)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width = pixels.shape[1] if interlaced else pixels.shape[1] * 8 // (depth * channels)
    if interlaced:
        starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
        passes = [pixels[y::dy, x::dx] for y, x, dy, dx in starts]
        data = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    else:
        data = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    body = chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_of(data: bytes, *chunks: bytes) -> bytes:
    """Return a PNG of the picture's size in RGB with these packed data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _png_in_parts() -> bytes:
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(base())))
    parts = [chunk(b"IDAT", data[start : start + 100]) for start in range(0, len(data), 100)]
    return png_of(b"", *parts)


def pngs() -> Zoo:
    rgb = np.asarray(base()).reshape(HEIGHT, -1)
    grey = np.asarray(base("L"))
    key = b"\0" + bytes(grey[0, :1])
    text = chunk(b"tEXt", b"Comment\0hello")
    zoo: Zoo = {
        **{
            f"mode {mode}": lambda mode=mode: saved("PNG", mode)
            for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
        },
        **{f"palette of {bits} bits": lambda bits=bits: _palette(bits) for bits in (1, 2, 4)},
        "palette, one colour clear": lambda: saved("PNG", "P", transparency=3),
        "palette, many colours clear": lambda: saved("PNG", "P", transparency=bytes(range(0, 256, 4))),
        "grey, one value clear": lambda: png(grey, 8, 0, chunk(b"tRNS", key)),
        "rgb, one value clear": lambda: png(
            rgb, 8, 2, chunk(b"tRNS", b"".join(b"\0" + bytes([v]) for v in rgb[0, :3]))
        ),
        "grey of 2 bits": lambda: png(packed_grey(2), 2, 0),
        "grey of 4 bits": lambda: png(packed_grey(4), 4, 0),
        "rgb of 16 bits": lambda: png(wide("RGB"), 16, 2),
        "rgba of 16 bits": lambda: png(wide("RGBA"), 16, 6),
        "grey of 16 bits": lambda: png(wide("L"), 16, 0),
        "grey and alpha of 16 bits": lambda: png(wide("LA"), 16, 4),
        "interlaced": lambda: png(np.asarray(base()), 8, 2, interlaced=True),
        "interlaced grey": lambda: png(grey[..., None], 8, 0, interlaced=True),
        "gamma": lambda: png(rgb, 8, 2, chunk(b"gAMA", struct.pack(">I", 100000))),
        "gamma 2.2": lambda: png(rgb, 8, 2, chunk(b"gAMA", struct.pack(">I", 45455))),
        "grey, gamma": lambda: png(grey, 8, 0, chunk(b"gAMA", struct.pack(">I", 100000))),
        "srgb": lambda: png(rgb, 8, 2, chunk(b"sRGB", b"\0")),
        "profile": lambda: saved("PNG", icc_profile=profile()),
        "chromaticities": lambda: png(rgb, 8, 2, chunk(b"cHRM", struct.pack(">8I", *range(10000, 90000, 10000)))),
        "background": lambda: png(np.asarray(base("RGBA")).reshape(HEIGHT, -1), 8, 6, chunk(b"bKGD", b"\0\xff" * 3)),
        "significant bits": lambda: png(rgb, 8, 2, chunk(b"sBIT", b"\5\6\5")),
        **{f"exif {n}": lambda n=n: saved("PNG", exif=exif(n)) for n in (3, 6)},
        "text": lambda: png(rgb, 8, 2, chunk(b"tEXt", b"Comment\0hello")),
        "animated": _animated_png,
        "appended": lambda: saved("PNG") + b"appended" * 20,
        "a wrong checksum": lambda: saved("PNG")[:-16] + b"xxxx" + saved("PNG")[-12:],
        "damaged, a right checksum": lambda: png_of(zlib.compress(rgb.tobytes())[:-9] + b"x" * 9),
        "data too short": lambda: png_of(zlib.compress(rgb.tobytes()[:900])),
        "data too long": lambda: png_of(zlib.compress(b"".join(b"\0" + row.tobytes() for row in rgb) + bytes(999))),
        "an unknown filter": lambda: png_of(zlib.compress(b"".join(b"\7" + row.tobytes() for row in rgb))),
        "a wrong checksum of text": lambda: png(rgb, 8, 2, text[:-1] + b"x"),
        "a wrong checksum of text behind": lambda: saved("PNG")[:-12] + text[:-1] + b"x" + saved("PNG")[-12:],
        "palette missing": lambda: png(grey, 8, 3),
        "palette too short": lambda: png(grey, 8, 3, chunk(b"PLTE", bytes(range(60)))),
        "two headers": lambda: png(rgb, 8, 2, chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))),
        "an unknown critical chunk": lambda: png(rgb, 8, 2, chunk(b"ABCD", b"x")),
        "an unknown chunk": lambda: png(rgb, 8, 2, chunk(b"abCd", b"x")),
        "in many parts": _png_in_parts,
        "without an image": lambda: saved("PNG")[:33] + saved("PNG")[-12:],
        "no end": lambda: saved("PNG")[:-12],
        "cut in half": lambda: saved("PNG")[: len(saved("PNG")) // 2],
        "cut, end put back": lambda: saved("PNG")[: len(saved("PNG")) // 2] + saved("PNG")[-12:],
        "1x1": lambda: saved("PNG", size=(1, 1)),
        "1x40": lambda: saved("PNG", size=(1, 40)),
    }
    return {f"png, {name}": make for name, make in zoo.items()}


def _palette(bits: int) -> bytes:
    file = BytesIO()
    base().quantize(2**bits).save(file, "PNG", bits=bits)
    return file.getvalue()


def _animated_png() -> bytes:
    file = BytesIO()
    base().save(file, "PNG", save_all=True, append_images=[base().transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    return file.getvalue()
