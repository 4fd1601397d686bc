"""What is waited for until it is on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def noting_syncs(monkeypatch: pytest.MonkeyPatch, look: Callable[[], bool]) -> list[tuple[Path, bool]]:
    """A list that gets, from now on, each file and folder that is synced to the disk, and what `look` gives then."""
    synced: list[tuple[Path, bool]] = []
    sync = os.fsync

    def noted(number: int) -> None:
        sync(number)
        synced.append((Path(f"/proc/self/fd/{number}").readlink(), look()))

    monkeypatch.setattr(os, "fsync", noted)
    return synced
