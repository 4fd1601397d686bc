"""Name what photographs show: python predict.py PHOTO [PHOTO ...]; needs only onnxruntime, numpy and Pillow."""

# An export holds this file as predict.py, next to model.onnx, so it imports nothing from the project it comes from.

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

SHOWN = 5
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises
MODES = ("1", "CMYK", "L", "LA", "P", "RGB", "RGBA", "YCbCr")  # Pillow's modes with at most 8 bits per channel


def prepare(photo, seen):
    """Return a photograph as the network sees it: float32 [1,3,H,W]. ValueError where it would be seen as another."""
    opened = Image.open(photo)
    if opened.mode not in MODES:  # converting it would clip its brightness
        raise ValueError(f"a {opened.format} image of mode {opened.mode}; convert it to 8-bit RGB")
    image = opened.convert("RGB")
    (height, width), (cover_height, cover_width) = seen["size"], seen["cover"]
    if image.width * cover_height >= cover_width * image.height:  # the smallest size of its shape that covers
        resized = image.width * cover_height // image.height, cover_height
    else:
        resized = cover_width, image.height * cover_width // image.width
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    image = image.resize(resized, Image.Resampling[seen["interpolation"].upper()])
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    pixels = (pixels - np.float32(seen["mean"])) / np.float32(seen["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def main(photos):
    """Print a line per photograph: its likeliest classes, or all that it shows, with their probabilities.

    Return 1 where a photograph was left out, else 0.
    """
    file = Path(__file__).with_name("model.onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    status = 0
    for photo in photos:
        try:
            images = prepare(photo, facts["preprocessing"])
        except UNREADABLE as error:
            print(f"left out: {photo}: {error}", file=sys.stderr)
            status = 1
            continue
        logits = session.run(["logits"], {"images": images})[0][0].astype(np.float64)
        if facts.get("multi_label"):  # each class is a yes or no, named from 0.5 on
            shares = 1 / (1 + np.exp(-logits))
            named = [i for i in shares.argsort()[::-1] if shares[i] >= 0.5]
        else:
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            named = shares.argsort()[::-1][:SHOWN]
        print(photo, *(f"{facts['classes'][i]} {shares[i]:.1%}" for i in named), sep="\t")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
