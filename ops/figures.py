"""Figures that are kept in the repository: the same numbers give the same file."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from pipelines.files import write_figure


def save_reproducibly(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, with ids that depend on its content only, and without a date."""
    with rc_context({"svg.hashsalt": path.stem}):
        write_figure(path, figure, metadata={"Date": None})
