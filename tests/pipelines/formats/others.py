"""Files of the other formats: PPM, WebP and JPEG 2000, and those that are refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from tests.pipelines.formats.picture import HEIGHT, WIDTH, Zoo, base, exif, profile, saved


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
