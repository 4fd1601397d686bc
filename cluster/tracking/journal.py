"""Journals: what a run measures, one JSON object a line with its step and time, beside the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.files import write_whole


def cut_journal(path: Path, last_step: int | None = None) -> None:
    """Delete from a journal what comes after a step, and a line that was cut off."""
    rows = [row for row in read_journal(path) if last_step is None or row["step"] <= last_step]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a journal; a last line that was cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
