"""Checks that the GPU decodes regions of JPEGs as the CPU does: the same views by both, picture by picture.

    python -m ops.benchmarks.gpu_regions IMAGES [--number 10000]        # prints one line of JSON

In a process of its own, since the bug in question (nvImageCodec issue 55) may crash it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ops.benchmarks.gpu_bench import Bench
from ops.doctor.decoders import WRONG
from pipelines.data.index import build_index
from pipelines.loaders.base import Request
from pipelines.loaders.choose import Decode, build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

NUMBER = 10_000
DECLINED = "ROI decode with fancy upsampling"  # nvImageCodec logs this where nvJPEG leaves a region to another decoder


def regions(bench: Bench) -> dict[str, Any]:
    """Return how far regions decoded on the GPU differ from the CPU's, or how the process ended.

    times_declined: how often nvImageCodec logged that nvJPEG, the GPU's decoder, declines a region.
    """
    words = [sys.executable, "-m", "ops.benchmarks.gpu_regions", str(bench.images)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1][:300]
        return {"error": f"the process ended with {done.returncode}: {said}"}
    declined = (done.stdout + done.stderr).count(DECLINED)
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "times_declined": declined}


def compare(images: Path, number: int, size: int = 224) -> dict[str, Any]:
    """Decode at least `number` random regions of a folder's images by both; return statistics of their difference."""
    with tempfile.TemporaryDirectory() as folder:
        source = build_index(images, "train", Path(folder), progress=False)
        plan = ViewPlan(ViewPolicy(size=size), 0, len(source))
        views = -(-number // len(source))

        def pictures(decode: Decode) -> Any:
            loader = build_loader(
                "dali",
                source,
                plan,
                mean=(0, 0, 0),
                std=(1 / 255,) * 3,
                device=torch.device("cuda", 0),
                decode=decode,
                num_threads=8,
                max_batch=256,
            )
            ids = np.arange(len(source))
            batches = [ids[start : start + 256] for start in range(0, len(ids), 256)]
            return loader.load(Request(view, part) for view in range(views) for part in batches)

        means, largest = [], 0.0
        for ours, theirs in zip(pictures("gpu"), pictures("cpu"), strict=True):
            apart = (ours.images.float() - theirs.images.float()).abs().flatten(1)
            means.append(apart.mean(dim=1).cpu())
            largest = max(largest, float(apart.max()))
        mean = torch.cat(means)
    shares = {f"{share:.0%}": float(mean.quantile(share)) for share in (0.5, 0.99)}
    return {
        "images": len(source),
        "regions": len(mean),
        "mean_of_255": {"all": float(mean.mean()), **shares, "100%": float(mean.max())},
        "largest_pixel_of_255": largest,
        "regions_wrong": int((mean > WRONG).sum()),
        "wrong_from": WRONG,
        "nvjpeg": nvjpeg_version(),
    }


def nvjpeg_version() -> str | None:
    """Return the version of nvJPEG that this process decodes with; None where none can be loaded."""
    try:
        library = ctypes.CDLL("libnvjpeg.so.13")  # the one of that name that DALI has loaded
    except OSError:
        return None
    parts = [ctypes.c_int(-1) for _ in range(3)]  # major, minor, patch
    for number, part in enumerate(parts):
        library.nvjpegGetProperty(number, ctypes.byref(part))
    return ".".join(str(part.value) for part in parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--number", type=int, default=NUMBER)
    args = parser.parse_args()
    print(json.dumps(compare(args.images, args.number)))
