"""What the index accepts, all loaders decode alike; what they do not, it refuses by name, with a remedy.

The bound: pixels are equal, but for values of 16 bits, and palettes and YCbCr in TIFF, which are at most 1 of 255 apart
(DALI rounds where Pillow cuts off). The reference and the resident loader both decode by `Source.decode`.
"""

from __future__ import annotations

import re
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import nvidia.dali as dali
from nvidia.dali import fn

from kdcore.errors import Refused
from pipelines.data.headers import plain_size
from pipelines.data.images import decode_image, inspect_image, look_at
from pipelines.data.index import build_index
from pipelines.views.policy import ViewPolicy
from tests.pipelines.loaders.test_parity import differences
from tests.pipelines.zoo import zoo

# Damage that does not show in the headers, and is not seen by checksums: data.check=decode finds it.
DAMAGED_WITHIN = {
    "jpeg, progressive, damaged 2",
    "png, damaged, a right checksum",
    "png, data too short",
    "png, an unknown filter",
    "webp, lossless, damaged 1",
}
_REFUSED = {
    "jpeg": "12 bits; arithmetic; cmyk without adobe; cut in half; height 0; lossless; no end; only a header; "
    "profile in a part too short; two components; without quantisation tables; wrong ending byte",
    "png": "a wrong checksum; a wrong checksum of text; an unknown critical chunk; cut in half; cut, end put back; "
    "grey of 16 bits; mode I;16; no end; palette missing; two headers; without an image",
    "bmp": "5-5-5; 5-6-5; 32 bits, other masks; cut",
    "tiff": "by hand, turned; cut; grey of 16 bits, big-endian; grey of 2 bits; grey of 4 bits; mode 1; mode F; "
    "mode I;16; mode LA; mode LAB; orientation 2; orientation 3; orientation 4; orientation 5; orientation 6; "
    "orientation 7; orientation 8; rgba, multiplied",
    "ppm": "16 bits; 5 bits; black and white text; cut; grey of 5 bits; grey text; mode F; mode I;16; pam; text",
    "webp": "cut at -1; cut at -99; cut at 20; cut at 200; cut at 40; exif behind 201 bytes; lossless, cut",
    "jpeg2000": "cut; grey code stream alone; mode I;16; mode LA; mode YCbCr",
}
REFUSED = {f"{kind}, {name}" for kind, names in _REFUSED.items() for name in names.split("; ")}
REFUSED |= {"gif", "ico", "tga", "pcx", "dds", "avif", "qoi", "sgi", "im", "icns", "text", "empty"}
NOT_EQUAL = ("16 bits", "tiff, mode P", "tiff, mode YCbCr")
PICTURES = zoo()


@cache
def content(name: str) -> bytes:
    return PICTURES[name]()


def complaint(name: str, *, decode: bool = False) -> str | None:
    """Return why the index refuses an image; None where it takes it."""
    try:
        inspect_image(content(name), f"{name}.img", decode=decode)
    except Refused as error:
        return str(error)
    return None


def by_dali(contents: list[bytes]) -> list[np.ndarray]:
    """The pictures, as the DALI loader decodes them: each by a window, which is the whole."""
    pipeline = dali.Pipeline(batch_size=len(contents), num_threads=2, device_id=None, prefetch_queue_depth=1)
    sizes = [np.array(inspect_image(one, "")[:2], dtype=np.int32) for one in contents]
    with pipeline:
        encoded, shape = fn.external_source(
            lambda: ([np.frombuffer(one, dtype=np.uint8) for one in contents], sizes), num_outputs=2, batch=True
        )
        start = np.zeros(2, dtype=np.int32)
        pipeline.set_outputs(
            fn.decoders.image_slice(
                encoded, start=start, shape=shape, axes=[0, 1], adjust_orientation=False, jpeg_fancy_upsampling=True
            )
        )
    pipeline.build()
    (found,) = pipeline.run()
    return [np.array(found[row]) for row in range(len(contents))]


def test_what_is_refused() -> None:
    refused = {name: message for name in PICTURES if (message := complaint(name))}
    assert refused.keys() == REFUSED
    assert {name for name in PICTURES if complaint(name, decode=True)} == REFUSED | DAMAGED_WITHIN
    for name, message in refused.items():
        assert message.startswith(f"{name}.img "), "the file"
        assert re.search("convert it to a JPEG or PNG in 8-bit RGB$|; repair or remove it", message), "and the remedy"


def test_the_readme_says_how_many() -> None:
    said = f"{len(PICTURES)} files of all formats: {len(REFUSED | DAMAGED_WITHIN)} refused, the others at most 1 of 255"
    assert said in (Path(__file__).parents[3] / "README.md").read_text()


def test_what_is_accepted_is_decoded_alike() -> None:
    names = sorted(PICTURES.keys() - REFUSED - DAMAGED_WITHIN)
    assert len(names) > 180
    wrong = {}
    for name, pixels in zip(names, by_dali([content(name) for name in names]), strict=True):
        height, width, _ = inspect_image(content(name), name)
        expected = np.asarray(decode_image(content(name), name, height, width), dtype=np.int16)
        worst = np.abs(expected - pixels).max() if expected.shape == pixels.shape else 255
        if worst > any(part in name for part in NOT_EQUAL):
            wrong[name] = worst
    assert wrong == {}


def test_the_loaders_show_it_alike(tmp_path: Path) -> None:
    """Through an index, crops and resizing, whose rounding is further off for black and white dots."""
    (tmp_path / "train" / "all").mkdir(parents=True)
    for number, name in enumerate(sorted(PICTURES.keys() - REFUSED - DAMAGED_WITHIN)):
        (tmp_path / "train" / "all" / f"{number:03d}.img").write_bytes(content(name))
    index = build_index(tmp_path, "train", tmp_path / "index", progress=False)
    apart = differences(index, ViewPolicy(size=24), views=2)
    assert apart.mean(axis=1).max() < 0.75
    assert apart.max() < 13.5


def with_right_checksums(changed: bytes) -> bytes:
    """Return what may be a PNG with the checksum of each chunk as it should be."""
    found, at = bytearray(changed), 8
    while at + 12 <= len(found):
        stop = at + 8 + int.from_bytes(found[at : at + 4], "big")
        if stop + 4 <= len(found):
            found[stop : stop + 4] = struct.pack(">I", zlib.crc32(found[at + 4 : stop]))
        at = stop + 4
    return bytes(found)


def test_a_damaged_header_is_never_plain_and_read_otherwise() -> None:
    """What is plain, Pillow reads with the same size and in a mode that is decoded alike, whatever is changed."""
    rng, num_plain = np.random.default_rng(0), 0
    for name in PICTURES:
        if not name.startswith(("jpeg,", "png,")):
            continue
        original = content(name)
        for kind in rng.integers(0, 3, 150):
            at, size = int(rng.integers(2, min(len(original), 700))), int(rng.integers(1, 4))
            middle = original[at : at + size] if kind == 0 else rng.integers(0, 256, size).astype(np.uint8).tobytes()
            changed = original[:at] + middle + original[at + (size if kind else 0) :]
            if name.startswith("png"):
                changed = with_right_checksums(changed)
            if (plain := plain_size(changed)) is not None:
                num_plain += 1
                assert look_at(changed, name, 2**60, decode=False) == plain
    assert num_plain > 1000


def test_damage_of_any_kind_is_refused_or_accepted() -> None:
    """Nothing but a refusal comes of changed bytes, whatever library reads them."""
    rng, num_refused = np.random.default_rng(1), 0
    for name in PICTURES:
        for _ in range(400 if name in ("avif", "dds") else 10):
            changed = bytearray(content(name) or b"?")
            for at in rng.integers(0, min(len(changed), 400), 3):
                changed[at] = int(rng.integers(0, 256))
            try:
                inspect_image(bytes(changed), name, 4_000_000, decode=True)
            except Refused:
                num_refused += 1
    assert num_refused > 1000
