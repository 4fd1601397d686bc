"""Images that Pillow reads and DALI does not, or reads otherwise: NVIDIA/DALI#306, #2766, #3913, #5296."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from kdcore.errors import Refused
from pipelines.data.images import inspect_image

EXIF = Image.Exif()
EXIF[274] = 6  # turned
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)


def coded(kind, mode="RGB", **options):
    file = BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "JPEG2000", "TIFF", "JPEG", "WEBP"])
def test_whole_images_pass_and_cut_ones_do_not(kind):
    content = coded(kind)
    assert inspect_image(content, "a")[:2] == (64, 80)
    with pytest.raises(Refused, match=r"^a "):
        inspect_image(content[: len(content) * 2 // 3], "a")


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 10}])
def test_jpegs_of_every_common_kind_pass(options):
    assert inspect_image(coded("JPEG", **options), "a")[:2] == (64, 80)


def test_a_cut_jpeg_of_several_pictures_is_refused():
    """As phones make them: its end was not asked for, and decoding refused it later."""
    content = coded("MPO", save_all=True, append_images=[Image.fromarray(PIXELS[::-1])])
    assert inspect_image(content, "a")[:2] == (64, 80)
    with pytest.raises(Refused, match=r"^a cannot be read as an image \(image file is truncated"):
        inspect_image(content[: len(content) * 3 // 10], "a")


def lossless():
    content = coded("JPEG")
    at = content.index(b"\xff\xc0")
    return content[: at + 1] + b"\xc3" + content[at + 2 :]


UNLIKE = {
    "png_noiend": lambda: coded("PNG")[:-12],
    "lossless jpeg": lossless,
    "text ppm": lambda: b"P3\n2 1\n255\n1 2 3 4 5 6\n",
    "ppm of 5 bits": lambda: b"P6\n# a comment\n2 1\n31\n" + bytes(range(6)),
    "pgm of 16 bits": lambda: b"P5 2 1 65535\n" + struct.pack(">2H", 1, 2),
    "grey and alpha tiff": lambda: coded("TIFF", "LA"),
    "webp, exif behind an odd chunk": lambda: coded("WEBP", exif=EXIF, icc_profile=bytes(201)),
}


def test_a_webp_with_exif_behind_even_chunks_passes():
    assert inspect_image(coded("WEBP", exif=EXIF, icc_profile=bytes(200)), "a")[:2] == (64, 80)


@pytest.mark.parametrize("case", UNLIKE)
def test_what_is_decoded_otherwise_is_refused(case):
    with pytest.raises(Refused, match=r"^a "):
        inspect_image(UNLIKE[case](), "a")


def test_a_ppm_with_a_comment_passes():
    assert inspect_image(b"P6\n# made by hand\n2 1 # wide\n255\n" + bytes(range(6)), "a")[:2] == (1, 2)


@pytest.mark.parametrize(("height", "width"), [(1, 1400), (1400, 1), (1, 65500)])
def test_an_image_that_a_centre_crop_makes_huge_is_refused(height, width):
    """Of 1x65500 pixels, resized to a shorter side of 256, a worker would hold 15 GB."""
    file = BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG")
    has = rf"^a has {height}x{width} pixels: resized to a shorter side of 256, .*, it has [\d,]+, more than"
    with pytest.raises(Refused, match=rf"{has} 89,478,485; .* data.max_pixels=(\d+)$") as refused:
        inspect_image(file.getvalue(), "a", max_pixels=1_000_000)
    enough = int(str(refused.value).rpartition("=")[2])
    assert inspect_image(file.getvalue(), "a", max_pixels=enough)[:2] == (height, width)
    with pytest.raises(Refused, match=rf"{has} {enough - 1:,}; "):
        inspect_image(file.getvalue(), "a", max_pixels=enough - 1)


def test_a_long_image_passes():
    file = BytesIO()
    Image.new("RGB", (1300, 1)).save(file, "JPEG")
    assert inspect_image(file.getvalue(), "a", max_pixels=5000)[:2] == (1, 1300)
