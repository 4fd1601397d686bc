"""What a user should be told once, such as that a run uses the CPU although there is a GPU: one log line each."""

from __future__ import annotations

import logging
from functools import cache

logger = logging.getLogger("stillhouse")


@cache
def warn_once(text: str) -> None:
    """Log a line once per process: driver and worker may be the same one."""
    logger.warning("%s", text)
