"""What a look at the machine found, and what looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    area: str
    level: Literal["ok", "warn", "fail"]
    """'warn' where runs work but not as they could; 'fail' where they do not, or where something cannot be used."""
    seen: str
    remedy: str = ""
    """What to do; empty where all is well."""


Probe = Callable[[Path], Iterable[Finding]]
