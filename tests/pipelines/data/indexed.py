"""The index of a folder, built beside it."""

from pathlib import Path

from pipelines.data.index import build_index
from pipelines.data.source import Source


def build(root: Path, split: str = "train") -> Source:
    return build_index(root, split, root.parent / "cache", progress=False)
