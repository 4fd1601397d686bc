"""Checks that DALI decodes regions of JPEGs as the loader needs them: on the CPU, and on the GPU.

python -m ops.doctor.decoders mixed       # prints the difference; `doctor` runs it so, as a GPU decoder may crash
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kdcore.errors import typed_line
from ops.doctor.findings import PROBE_SECONDS, Finding

SIZE = (500, 375)  # width, height: typical of ImageNet
REGIONS = 64
WRONG = 2.0  # of 255, mean over a region: the tests allow 1.5 between decoders; a shift by one pixel makes 3 here
GPU_SECONDS = PROBE_SECONDS / 2  # its process must end before the probe is given up; the CPU goes first


def probe_decoders(output_dir: Path) -> Iterator[Finding]:
    """Try DALI's decoders on regions of a picture: on the CPU, and on the GPU if there is one."""
    for device in ("cpu", "mixed") if torch.cuda.is_available() else ("cpu",):
        remedy = "make env" if device == "cpu" else "leave data.decode at auto, or set it to cpu: regions on the CPU"
        try:
            off = apart_in_a_process(device) if device == "mixed" else apart(device)
        except Exception as error:
            seen = f"DALI cannot decode regions of a JPEG ({device}): {typed_line(error, 300)}"
            yield Finding("decoders", "fail", seen, remedy)
            continue
        if off > WRONG:
            seen = f"DALI decodes regions of a JPEG wrongly ({device}): off by {off:.0f} of 255 in the mean of one"
            yield Finding("decoders", "fail", seen, remedy)
        else:
            yield Finding("decoders", "ok", f"DALI decodes regions of JPEGs ({device})")


def apart(device: str) -> float:
    """Return the largest mean difference, of 255, between a region as DALI decodes it and as Pillow does.

    device: DALI's 'cpu' or 'mixed'.
    """
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    encoded, picture = a_picture()
    start, shape = random_regions()
    pipeline = Pipeline(
        batch_size=REGIONS, num_threads=2, device_id=0 if device == "mixed" else None, prefetch_queue_depth=1
    )
    with pipeline:
        source = fn.external_source(source=lambda: ([encoded] * REGIONS, start, shape), num_outputs=3, batch=True)
        regions = fn.decoders.image_slice(
            source[0],
            device=device,
            start=source[1],
            shape=source[2],
            axes=[0, 1],
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
        pipeline.set_outputs(regions)
    pipeline.build()
    (decoded,) = pipeline.run()
    found = decoded.as_cpu() if device == "mixed" else decoded
    largest = 0.0
    for number, ((top, left), (height, width)) in enumerate(zip(start.tolist(), shape.tolist(), strict=True)):
        ours = np.array(found.at(number)).astype(np.int16)
        theirs = picture[top : top + height, left : left + width]
        if ours.shape != theirs.shape:
            raise RuntimeError(f"a region of {list(theirs.shape)} came as {list(ours.shape)}")
        largest = max(largest, float(np.abs(ours - theirs).mean()))
    return largest


def apart_in_a_process(device: str) -> float:
    """Return the result of `apart`, computed in another process. RuntimeError where that process fails."""
    command = [sys.executable, "-m", "ops.doctor.decoders", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer within {GPU_SECONDS:g} s; the process was ended") from None
    if done.returncode < 0:
        raise RuntimeError(f"the process was ended by signal {-done.returncode}")
    if done.returncode > 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return float(done.stdout.split()[-1])


def a_picture() -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Return a picture of smooth random colours as JPEG, and as Pillow decodes it: [H,W,3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8), np.array(Image.open(buffer)).astype(np.int16)


def random_regions() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return regions within the picture: (top, left) and (height, width) of each."""
    generator, (width, height) = np.random.default_rng(1), SIZE
    shape = np.stack([generator.integers(32, side + 1, REGIONS) for side in (height, width)], axis=1)
    start = (generator.random((REGIONS, 2)) * ([height, width] - shape + 1)).astype(np.int32)
    return start, shape.astype(np.int32)


if __name__ == "__main__":
    print(apart(sys.argv[1]))
