"""What a check of the machine found, the type of the functions that check, and how long each may take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROBE_SECONDS = 60.0  # one probe; the slowest imports DALI and builds its pipelines


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    area: str
    level: Literal["ok", "warn", "fail"]
    """'warn' where runs work, but not as well as they could; 'fail' where they do not, or something is unusable."""
    seen: str
    remedy: str = ""
    """What to do; empty where all is well."""


Probe = Callable[[Path], Iterable[Finding]]
