"""Name what photographs show: python predict.py PHOTO [PHOTO ...]; needs onnxruntime, numpy and Pillow alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])
facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
classes, seen = facts["classes"], facts["preprocessing"]


def prepare(photo):
    """Return a photograph as the network sees it: float32 [1,3,H,W]."""
    image = Image.open(photo).convert("RGB")
    (height, width), (cover_height, cover_width) = seen["size"], seen["cover"]
    if image.width * cover_height >= cover_width * image.height:  # the smallest picture of its shape that covers
        resized = image.width * cover_height // image.height, cover_height
    else:
        resized = cover_width, image.height * cover_width // image.width
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    image = image.resize(resized, Image.Resampling[seen["interpolation"].upper()])
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    return ((pixels - np.float32(seen["mean"])) / np.float32(seen["std"])).transpose(2, 0, 1)[None]


for photo in sys.argv[1:]:
    logits = session.run(["logits"], {"images": np.ascontiguousarray(prepare(photo))})[0][0].astype(np.float64)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = probabilities.argsort()[::-1][:5]
    print(photo, *(f"{classes[i]} {probabilities[i]:.1%}" for i in best), sep="\t")
