"""What a person should know once, such as that a run is on the CPU beside a GPU: a line of the log for each."""

from __future__ import annotations

import logging
from functools import cache

logger = logging.getLogger("stillhouse")


@cache
def warn_once(text: str) -> None:
    """Log a line once a process: driver and worker may be the same one."""
    logger.warning("%s", text)
