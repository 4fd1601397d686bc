"""Journals: what a run measures, one JSON object per line with its step and time, in the run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcore.errors import Refused
from pipelines.files import write_text


def cut_journal(path: Path, last_step: int | None = None) -> None:
    """Delete from a journal what comes after a step, and a line that was cut off."""
    rows = [row for row in read_journal(path) if last_step is None or row.get("step", 0) <= last_step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def nan_for_null(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with NaN in place of every null, which stands for a number that was not finite.

    For computing with what `finite_or_null` wrote to a JSON file.
    """
    return {name: math.nan if value is None else value for name, value in row.items()}


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a journal; a last line that was cut off is left out.

    Refused, naming the line, where one before the last is not a row: no code here writes such a file.
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
            raise Refused(f"{path}, line {number} is not a row of a journal; remove that line, or restore the file")
    return rows
