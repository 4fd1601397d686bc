"""TIFF files: of every mode, packing and orientation."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np

from tests.pipelines.formats.picture import HEIGHT, WIDTH, Zoo, base, packed_grey, profile, saved, wide


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
        "grey of 4 bits": lambda: tiff(packed_grey(4)[..., None], photometric=1, depth=4, width=52),
        "grey of 2 bits": lambda: tiff(packed_grey(2)[..., None], photometric=1, depth=2, width=52),
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
