"""Builds the loader that a recipe names; each kind is imported only where it is used, as DALI is large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from kdcore.errors import Refused
from kdcore.remarks import warn_once
from pipelines.data.source import Source
from pipelines.loaders.base import Loader
from pipelines.loaders.render import Finish
from pipelines.views.plan import ViewPlan

Decode = Literal["auto", "cpu", "gpu"]


def decodes_on_gpu(decode: Decode) -> bool:
    """Return whether DALI decodes on the GPU.

    Only where that is asked for: nvImageCodec 0.9 may end the process at a region of a JPEG (its issue 55, which names
    five kinds of GPU). Seen with the pinned DALI and nvImageCodec, only on an H100: of 10,368 regions none was wrong,
    neither by nvJPEG 13.3, which decodes them, nor by 13.0, which leaves them to another decoder.
    """
    return decode == "gpu"


def build_loader(
    kind: Literal["dali", "reference", "resident"],
    source: Source,
    plan: ViewPlan,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    channels_last: bool = True,
    decode: Decode = "auto",
    num_threads: int = 2,
    max_batch: int = 256,
    prefetch: int = 2,
) -> Loader:
    """Return the loader that a run uses.

    mean, std: of pixels in [0, 1], per channel; channels_last: how batches lie in memory; decode: where JPEGs are
    decoded ("auto": `decodes_on_gpu`); num_threads: that decode, and as many that read; prefetch:
    batches prepared ahead.
    """
    if decode == "gpu" and device.type != "cuda":
        raise Refused(f"decode='gpu' with batches on {device}; use decode='cpu' or 'auto', or a CUDA device")
    if num_threads < 1 or prefetch < 2:
        raise Refused(f"num_threads={num_threads}, prefetch={prefetch}; give at least 1 thread, and 2 batches ahead")
    finish = Finish(
        plan.policy,
        plan.seed,
        mean=mean,
        std=std,
        num_classes=len(source.classes),
        device=device,
        channels_last=channels_last,
    )
    if kind == "reference":
        from pipelines.loaders.reference import ReferenceLoader

        return ReferenceLoader(source, plan, finish, max_batch, num_threads=num_threads)
    if kind == "resident":
        from pipelines.loaders.resident import ResidentLoader

        return ResidentLoader(source, plan, finish, max_batch, num_threads=num_threads)
    if kind == "dali":
        from pipelines.loaders.dali import DaliLoader

        on_gpu = decodes_on_gpu(decode)
        if decode == "auto" and device.type == "cuda":
            warn_once(
                "data.decode=auto: JPEGs are decoded on the CPU, as nvImageCodec 0.9 may crash the process at a region "
                "on the GPU (its issue 55); data.decode=gpu decodes there, if `doctor` finds it right"
            )
        return DaliLoader(
            source, plan, finish, max_batch, decode_on_gpu=on_gpu, num_threads=num_threads, prefetch=prefetch
        )
    raise Refused(f"there is no loader {kind!r}; choose 'dali', 'reference' or 'resident'")
