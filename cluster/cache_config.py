"""The recipe's say on the teacher cache: where the teacher's outputs come from, and how they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from kdcore.configs import ModelConfig
from pipelines.cache.columns import Storage
from pipelines.cache.local import is_remote
from pipelines.views.plan import ViewPolicy


class TeacherConfig(ModelConfig):
    """The teacher. source: 'online', it answers beside the student; 'cache', its answers are read from the recipe's
    cache, and its weights are not needed (where they are there, the cache is checked against them)."""

    source: Literal["online", "cache"] = "online"

    @property
    def cached(self) -> bool:
        return self.source == "cache"

    def check(self) -> None:
        if not self.cached:
            super().check()

    @property
    def has_weights(self) -> bool:
        """Whether its weights lie on this machine."""
        files = [path for path in (self.checkpoint, self.class_indices) if path is not None]
        return self.checkpoint is not None and all(Path(path).is_file() for path in files)


class CacheConfig(Storage):
    """A cache of the teacher's outputs in `dir`: a folder, or to read from, a URI such as s3://bucket/folder.

    What the recipe's method reads is stored. taps, and head (what SimKD reuses of a teacher), add to it for the sake
    of other recipes. rows_per_shard: by default what fits in 128 MiB, at most 16,384. batch_size: images of one forward
    pass of the build. trust: read a cache that other versions of the libraries have built. copies_dir: where a machine
    keeps its copy of a remote cache.
    """

    dir: str
    taps: tuple[str, ...] = ()
    head: bool = False
    rows_per_shard: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=128, ge=1)
    trust: bool = False
    copies_dir: str | None = None

    def at(self, base: Path) -> CacheConfig:
        """With its folders absolute."""
        folder = self.dir if is_remote(self.dir) else str((base / self.dir).absolute())
        copies = str((base / self.copies_dir).absolute()) if self.copies_dir else None
        return self.model_copy(update={"dir": folder, "copies_dir": copies})


def require_cache(cache: CacheConfig | None, views: ViewPolicy) -> CacheConfig:
    """The recipe's cache section. ValueError where there is none, or where the number of views is open."""
    if cache is None:
        raise ValueError("the recipe has no cache; add a 'cache:' section, such as {dir: outputs/cache}")
    if views.num_views is None:
        raise ValueError(
            "a cache holds a fixed number of views, but views.num_views is open; set it, such as views.num_views=50 "
            "(a run then shows view `epoch mod num_views`)"
        )
    return cache
