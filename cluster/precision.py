"""The precision that networks compute in, which the recipe and the device decide."""

from __future__ import annotations

import torch

from cluster.rank import Rank
from cluster.recipe.config import RunConfig


def precision(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the dtype that networks compute in: bfloat16 where asked for, or with 'auto' where a CUDA device has it.

    Emulated, as on GPUs before Ampere, it is slower than float32 and does not count.
    """
    wanted = config.train.precision == "bfloat16" or (
        config.train.precision == "auto"
        and device.type == "cuda"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.bfloat16 if wanted else torch.float32


def autocast(config: RunConfig, rank: Rank) -> torch.autocast:
    """Return the context in which networks run."""
    dtype = precision(config, rank.device)
    return torch.autocast(rank.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
