"""How far repeated measurements lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return {n, mean, stdev}; the sample standard deviation, None for fewer than two values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"n": len(values), "mean": statistics.mean(values), "stdev": deviation}
