"""Smaller ONNX files of an exported student: float16 weights, and int8 calibrated on training images.

A file whose accuracy is below the student's by more than allowed is not kept.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from cluster.assembly import Assembly
from cluster.passes import every_image_once
from cluster.scores import TITLES, counts_for
from kdcore.errors import Refused
from ops.console import console, percent, table
from pipelines.loaders.base import requests_of
from pipelines.spread import evenly_spread

CALIBRATION_IMAGES = 256
BATCH = 64


@dataclass(frozen=True)
class Answers:
    """How well a file answers: top-1 on the validation images (mAP where they have several labels), in [0,1].

    The rate is NaN where a logit is not finite. num_bytes: of the file.
    """

    file: str
    rate: float
    num_bytes: int


class TrainingImages(CalibrationDataReader):
    """Evenly spaced training images, shown as in validation, one batch after another."""

    def __init__(self, parts: Assembly, number: int) -> None:
        ids = evenly_spread(len(parts.indexes["train"]), number)
        self.batches = parts.evaluation_loader("train", BATCH).load(requests_of(ids, BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch as the inputs of the network; None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.images.float().contiguous().numpy()}


def write_small_files(parts: Assembly, folder: Path, precisions: Sequence[str], max_loss: float) -> None:
    """Write model.<precision>.onnx next to model.onnx, and print how well each answers.

    Refused, and the file removed, where its top-1 (or mAP) is more than `max_loss` below that of model.onnx.
    """
    title = TITLES[rate_name(parts)]
    parts.indexes["val"].require_labels("a smaller file's check")
    exact = answers_of(folder / "model.onnx", parts)
    found = [exact]
    for precision in precisions:
        path = folder / f"model.{precision}.onnx"
        (write_float16 if precision == "fp16" else write_int8)(folder / "model.onnx", path, parts)
        found.append(answers_of(path, parts))
        if not exact.rate - found[-1].rate <= max_loss:  # a rate that is NaN is refused, too
            path.unlink()
            raise Refused(
                f"{path} has a {title} of {percent(found[-1].rate)} on the validation images where model.onnx has "
                f"{percent(exact.rate)}, so it was not kept; allow the loss with --max-loss, or leave {precision} out"
            )
    show(found, exact, len(parts.indexes["val"]), title)


def rate_name(parts: Assembly) -> str:
    """Return the metric by which files are compared."""
    return "mAP" if parts.config.data.multi_label else "top1"


def write_float16(source: Path, path: Path, parts: Assembly) -> None:
    """Write a file with float16 weights, whose inputs and outputs stay float32."""
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def write_int8(source: Path, path: Path, parts: Assembly) -> None:
    """Write a file with int8 weights, a scale per channel, and int8 activations in the ranges of training images."""
    metadata = onnx.load(source).metadata_props
    with tempfile.TemporaryDirectory() as folder, without_remarks():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            TrainingImages(parts, CALIBRATION_IMAGES),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
    model = onnx.load(path)
    del model.metadata_props[:]
    model.metadata_props.extend(metadata)
    onnx.save(model, path)


def answers_of(path: Path, parts: Assembly) -> Answers:
    """Return how well a file answers on all validation images."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images, loader = parts.indexes["val"], parts.evaluation_loader("val")
    counts = counts_for(images, "cpu")
    for batch in loader.load(every_image_once(len(images), parts.rank, loader.max_batch)):
        logits = session.run(["logits"], {"images": batch.images.float().contiguous().numpy()})[0]
        if not np.isfinite(logits).all():
            return Answers(path.name, math.nan, path.stat().st_size)
        counts.add(torch.from_numpy(logits), batch.labels)
    return Answers(path.name, counts.result()[rate_name(parts)], path.stat().st_size)


def show(found: Sequence[Answers], exact: Answers, num_images: int, title: str) -> None:
    """Print a row per file: top-1 or mAP, the change from model.onnx, and its size."""
    rows = [
        [
            one.file,
            percent(one.rate),
            "-" if one is exact else f"{100 * (one.rate - exact.rate):+.2f}",
            f"{one.num_bytes / 1e6:.2f}",
        ]
        for one in found
    ]
    console.print(table(f"on {num_images:,} validation images", ["file", title, "points", "MB"], rows))


@contextmanager
def without_remarks() -> Iterator[None]:
    """Run the body with ONNX Runtime's advice on quantisation silenced."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
