"""Journals: what a run measures, one JSON object a line with its step and time, beside the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdcore.errors import Refused
from pipelines.files import write_text


def cut_journal(path: Path, last_step: int | None = None) -> None:
    """Delete from a journal what comes after a step, and a line that was cut off."""
    rows = [row for row in read_journal(path) if last_step is None or row.get("step", 0) <= last_step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a journal; a last line that was cut off is left out.

    Refused, naming the line, where one before the last is none: nothing here writes such a file.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step", 0), int):
            rows.append(row)
        elif number < len(lines):
            raise Refused(f"{path}, line {number} is no row of a journal; remove that line, or restore the file")
    return rows
