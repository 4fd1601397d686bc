"""A zoo of image files: every format, mode, depth, orientation, marker and colour space that users bring, made anew.

Each file is a function of nothing. What Pillow cannot write is put together by hand.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.pipelines.pictures import picture

HEIGHT, WIDTH = 37, 53
Zoo = dict[str, Callable[[], bytes]]


def base(mode: str = "RGB", height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Return the picture in a mode."""
    image = picture(height, width, 7)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        ramp = np.linspace(0, 255, width).astype(np.uint8)
        image.putalpha(Image.fromarray(np.tile(ramp, (height, 1))))
        return image
    if mode == "PA":
        return base("LA").convert("PA")
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.quantize(64) if mode == "P" else image.convert(mode)


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (HEIGHT, WIDTH), **options: Any) -> bytes:
    """Return the picture as Pillow writes it."""
    file = BytesIO()
    base(mode, *size).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    """Return EXIF data with an orientation."""
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def profile(space: str = "sRGB") -> bytes:
    """Return a colour profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


# JPEG


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


# PNG


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


def wide(mode: str) -> np.ndarray:
    """Return the picture's rows in 16 bits, big-endian, with low bytes of their own."""
    pixels = np.asarray(base(mode)).reshape(HEIGHT, -1).astype(np.uint16)
    low = np.random.default_rng(5).integers(0, 256, pixels.shape)
    return (pixels * 256 + low).astype(">u2").view(np.uint8).reshape(HEIGHT, -1)


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
        "grey of 2 bits": lambda: png(_packed(2), 2, 0),
        "grey of 4 bits": lambda: png(_packed(4), 4, 0),
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


def _packed(bits: int) -> np.ndarray:
    """Return the picture in grey, so many bits a pixel."""
    values = np.asarray(base("L", width=52)) >> (8 - bits)
    parts = values.reshape(HEIGHT, -1, 8 // bits)
    shifts = np.arange(8 - bits, -1, -bits)
    return (parts << shifts).sum(axis=-1).astype(np.uint8)


def _animated_png() -> bytes:
    file = BytesIO()
    base().save(file, "PNG", save_all=True, append_images=[base().transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    return file.getvalue()


# BMP


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
        "4 bits": lambda: bmp(_rows(_packed(4)), 4, palette=b"".join(bytes([v * 17] * 3 + [0]) for v in range(16))),
        "os/2": lambda: _os2(bgr),
        "32 bits, masks": lambda: bmp(_rows(bgra), 32, HEIGHT, 3, struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)),
        "32 bits, other masks": lambda: bmp(_rows(bgra), 32, HEIGHT, 3, struct.pack("<3I", 0xFF, 0xFF00, 0xFF0000)),
        "cut": lambda: saved("BMP")[:-500],
    }
    return {f"bmp, {name}": make for name, make in zoo.items()}


# TIFF


def tiff(
    pixels: np.ndarray,
    order: str = "<",
    planar: int = 1,
    photometric: int = 2,
    orientation: int = 1,
    depth: int = 8,
    extra_samples: int | None = None,
    width: int = WIDTH,
) -> bytes:
    """Return an uncompressed TIFF of [H,W,C]; of fewer bits, of rows of bytes [H,B,1]."""
    height, _, channels = pixels.shape
    pixels = pixels.astype(pixels.dtype.newbyteorder(order))
    data = pixels.transpose(2, 0, 1).tobytes() if planar == 2 else pixels.tobytes()
    planes = channels if planar == 2 else 1
    extra = b""
    after = 8 + len(data)

    def outside(values: list[int], kind: str) -> int:
        nonlocal extra
        at = after + len(extra)
        extra += struct.pack(f"{order}{len(values)}{kind}", *values)
        return at

    bits = outside([depth] * channels, "H") if channels > 2 else depth
    size = len(data) // planes
    offsets = outside([8 + size * n for n in range(planes)], "I") if planes > 1 else 8
    counts = outside([size] * planes, "I") if planes > 1 else size
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, planes, offsets),
        (274, 3, 1, orientation),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, planes, counts),
        (284, 3, 1, planar),
        *([] if extra_samples is None else [(338, 3, 1, extra_samples)]),
    ]
    folder = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        packed = struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value)
        folder += struct.pack(f"{order}HHI", tag, kind, count) + packed
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", after + len(extra))
    return start + data + extra + folder + struct.pack(f"{order}I", 0)


def tiffs() -> Zoo:
    rgb, grey = np.asarray(base()), np.asarray(base("L"))[..., None]
    rgba = np.asarray(base("RGBA"))
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F")
    packings = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "tiff_lzma")
    zoo: Zoo = {
        **{f"mode {mode}": lambda mode=mode: saved("TIFF", mode) for mode in modes},
        **{f"packed by {name}": lambda name=name: saved("TIFF", compression=name) for name in packings},
        **{f"grey packed by {name}": lambda name=name: saved("TIFF", "L", compression=name) for name in packings[:4]},
        "black and white packed by group4": lambda: saved("TIFF", "1", compression="group4"),
        "lzw with differences": lambda: saved("TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
        **{f"orientation {n}": lambda n=n: saved("TIFF", tiffinfo={274: n}) for n in range(1, 9)},
        "big-endian": lambda: tiff(rgb, ">"),
        "by hand": lambda: tiff(rgb),
        "in planes": lambda: tiff(rgb, planar=2),
        "white is zero": lambda: tiff(grey, photometric=0),
        "black is zero": lambda: tiff(grey, photometric=1),
        "by hand, turned": lambda: tiff(rgb, orientation=6),
        "grey of 4 bits": lambda: tiff(_packed(4)[..., None], photometric=1, depth=4, width=52),
        "grey of 2 bits": lambda: tiff(_packed(2)[..., None], photometric=1, depth=2, width=52),
        "rgb of 16 bits": lambda: tiff(wide("RGB").view(">u2").reshape(HEIGHT, WIDTH, 3), depth=16),
        "rgba of 16 bits": lambda: tiff(wide("RGBA").view(">u2").reshape(HEIGHT, WIDTH, 4), depth=16, extra_samples=2),
        "grey of 16 bits, big-endian": lambda: tiff(wide("L").view(">u2")[..., None], ">", photometric=1, depth=16),
        "rgba, by hand": lambda: tiff(rgba, extra_samples=2),
        "rgba, multiplied": lambda: tiff(rgba, extra_samples=1),
        "rgb and something": lambda: tiff(rgba, extra_samples=0),
        "tiles": lambda: saved("TIFF", tiffinfo={322: 16, 323: 16}),
        "strips": lambda: saved("TIFF", strip_size=600, compression="tiff_lzw"),
        "black and white, white is zero": lambda: saved("TIFF", "1", compression="group4", tiffinfo={262: 0}),
        "several pages": _pages,
        "profile": lambda: saved("TIFF", icc_profile=profile()),
        "big tiff": lambda: saved("TIFF", big_tiff=True),
        "cut": lambda: tiff(rgb)[:-300],
    }
    return {f"tiff, {name}": make for name, make in zoo.items()}


def _pages() -> bytes:
    file = BytesIO()
    base().save(file, "TIFF", save_all=True, append_images=[base("L")])
    return file.getvalue()


# the others


def portable() -> Zoo:
    rgb, grey = np.asarray(base()), np.asarray(base("L"))
    size = f"{WIDTH} {HEIGHT}".encode()
    zoo: Zoo = {
        **{f"mode {mode}": lambda mode=mode: saved("PPM", mode) for mode in ("1", "L", "RGB", "I;16", "F")},
        "comment": lambda: b"P6\n# a comment\n" + size + b"\n255\n" + rgb.tobytes(),
        "comment behind": lambda: b"P6 " + size + b" # a comment\n255\n" + rgb.tobytes(),
        "5 bits": lambda: b"P6 " + size + b" 31\n" + (rgb >> 3).tobytes(),
        "grey of 5 bits": lambda: b"P5 " + size + b" 31\n" + (grey >> 3).tobytes(),
        "16 bits": lambda: b"P6 " + size + b" 65535\n" + (rgb.astype(">u2") * 257).tobytes(),
        "text": lambda: b"P3 " + size + b" 255\n" + b" ".join(str(v).encode() for v in rgb.ravel()),
        "grey text": lambda: b"P2 " + size + b" 255\n" + b" ".join(str(v).encode() for v in grey.ravel()),
        "black and white text": lambda: (
            b"P1 " + size + b"\n" + b" ".join(b"1" if v > 127 else b"0" for v in grey.ravel())
        ),
        "appended": lambda: saved("PPM") + b"more",
        "cut": lambda: saved("PPM")[:-99],
        "pam": lambda: b"P7\nWIDTH 53\nHEIGHT 37\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + rgb.tobytes(),
    }
    return {f"ppm, {name}": make for name, make in zoo.items()}


def webps() -> Zoo:
    zoo: Zoo = {
        **{f"mode {mode}": lambda mode=mode: saved("WEBP", mode) for mode in ("L", "LA", "P", "RGB", "RGBA")},
        **{f"quality {q}": lambda q=q: saved("WEBP", quality=q) for q in (1, 50, 100)},
        "lossless": lambda: saved("WEBP", lossless=True),
        "lossless rgba": lambda: saved("WEBP", "RGBA", lossless=True),
        "clear pixels kept": lambda: saved("WEBP", "RGBA", lossless=True, exact=True),
        "exif 6": lambda: saved("WEBP", exif=exif(6)),
        "profile": lambda: saved("WEBP", icc_profile=profile()),
        **{f"exif behind {n} bytes": lambda n=n: saved("WEBP", exif=exif(6), icc_profile=bytes(n)) for n in (200, 201)},
        "animated": _animated_webp,
        "1x1": lambda: saved("WEBP", size=(1, 1)),
        "2x2": lambda: saved("WEBP", size=(2, 2)),
        "appended": lambda: saved("WEBP") + b"more",
        **{f"cut at {n}": lambda n=n: saved("WEBP")[:n] for n in (20, 40, 200, -99, -1)},
        "lossless, cut": lambda: saved("WEBP", lossless=True)[:-99],
        **{f"damaged {n}": lambda n=n: _damaged_webp(n, lossless=False) for n in range(3)},
        **{f"lossless, damaged {n}": lambda n=n: _damaged_webp(n, lossless=True) for n in range(3)},
    }
    return {f"webp, {name}": make for name, make in zoo.items()}


def _damaged_webp(seed: int, lossless: bool) -> bytes:
    content = bytearray(saved("WEBP", lossless=lossless))
    rng = np.random.default_rng(seed)
    for at in rng.integers(60, len(content), 5):
        content[at] = int(rng.integers(0, 256))
    return bytes(content)


def _animated_webp() -> bytes:
    file = BytesIO()
    base().save(file, "WEBP", save_all=True, append_images=[base().transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    return file.getvalue()


def jpeg2000s() -> Zoo:
    zoo: Zoo = {
        **{
            f"mode {mode}": lambda mode=mode: saved("JPEG2000", mode)
            for mode in ("L", "LA", "RGB", "RGBA", "YCbCr", "I;16")
        },
        "code stream alone": lambda: saved("JPEG2000", no_jp2=True),
        "grey code stream alone": lambda: saved("JPEG2000", "L", no_jp2=True),
        "lossy": lambda: saved("JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[30]),
        "colours apart": lambda: saved("JPEG2000", mct=0),
        "tiles": lambda: saved("JPEG2000", tile_size=(16, 16)),
        "few resolutions": lambda: saved("JPEG2000", num_resolutions=2),
        "cut": lambda: saved("JPEG2000")[:-300],
    }
    return {f"jpeg2000, {name}": make for name, make in zoo.items()}


def others() -> Zoo:
    kinds = ("GIF", "ICO", "TGA", "PCX", "DDS", "AVIF", "QOI", "SGI", "IM", "ICNS")
    return {kind.lower(): lambda kind=kind: saved(kind) for kind in kinds} | {
        "text": lambda: b"no image",
        "empty": bytes,
    }


def zoo() -> Zoo:
    """Return {name: what makes the file}."""
    return {**jpegs(), **pngs(), **bmps(), **tiffs(), **portable(), **webps(), **jpeg2000s(), **others()}
