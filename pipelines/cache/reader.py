"""Batches of teacher outputs out of memory-mapped shards: one gather per field, whatever rows are asked for.

A view's shards are hashed when the view is first read, in threads, which also brings them into memory; so nothing
damaged is ever served. Arrow's own `Table.take` is not used: on a mapped table of several shards it copies the
whole column.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcore.batch import Classifier, Needs, TeacherOutputs
from kdcore.errors import Refused
from pipelines.cache.columns import Code, Column, FieldSpec, ProjectedColumn, SparseColumn
from pipelines.cache.manifest import CONSTANTS, Manifest
from pipelines.cache.projection import Projection
from pipelines.cache.rows import decode, wanted
from pipelines.cache.sparse import LogitCode
from pipelines.cache.store import REMEDY, Shard, checksum, damage, map_shard, remedy_for

# Per reader, of the views read last: Linux allows a process 65,530 mappings, unless configured otherwise.
_MAPPED_SHARDS = 8192
Fields = dict[str, NDArray[np.generic]]  # {field: [rows,width]} of one shard

CODES, CLASSIFIER = "codes.", "classifier."
CLASS_MEANS = "class_means_of_views."  # "class_means." were those of images cut as for validation
CLASS_SIMILARITY = "class_similarity"


class CacheReader:
    """Rows of one part of a cache, on a device: `reader.outputs(views, sample_ids)`.

    needs: what is read; only those columns are touched; None for all of them. Refused for a column that the cache
    lacks, and for a shard that is missing, of another size, or (at the first read of its view) of another content.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, part: str, needs: Needs | None, device: torch.device
    ) -> None:
        self.directory, self.device = directory, device
        self.rows_per_shard = manifest.plan.rows_per_shard
        self.part = manifest.plan.parts[part]
        self.columns = self.part.columns if needs is None else wanted(self.part.columns, needs, str(directory))
        self.fields = {name: spec for column in self.columns for name, spec in column.fields().items()}
        self.shards: list[list[Shard]] = [[] for _ in range(self.part.num_views)]
        for shard in manifest.shards:
            if shard.part == part:
                self.shards[shard.view].append(shard)
        refuse_damaged(directory, [shard for view in self.shards for shard in view], full=False)
        constants = load_constants(directory, manifest)
        self.codes = codes_of(self.columns, constants, device)
        self.classifier = classifier_of(constants, device) if needs and needs.teacher_classifier else None
        self._views: dict[int, list[Fields]] = {}  # those read last, in order
        self._checked: set[int] = set()  # views whose shards were read whole

    def outputs(self, views: NDArray[np.int64] | int, sample_ids: NDArray[np.int64]) -> TeacherOutputs:
        """Return the teacher's outputs for these samples in their views, in the order given.

        views: one number for all, or one for each [B]; sample_ids [B].
        """
        return decode(self.columns, self.rows(views, sample_ids), self.codes, self.classifier)

    def rows(self, views: NDArray[np.int64] | int, sample_ids: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return {field: [B,width]} on the device, as stored."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        views = np.broadcast_to(np.asarray(views, dtype=np.int64), ids.shape)
        assert np.all((ids >= 0) & (ids < self.part.num_rows)), f"sample ids lie in [0, {self.part.num_rows})"
        ascending = np.lexsort((ids, views))
        runs = list(self._runs(views[ascending], ids[ascending]))
        back = torch.from_numpy(np.argsort(ascending)).to(self.device, non_blocking=True)
        gathered = {}
        for name, spec in self.fields.items():
            buffer = self._buffer(len(ids), spec)
            target = buffer.numpy()
            for shard, rows, start in runs:
                np.take(shard[name], rows, axis=0, out=target[start : start + len(rows)], mode="clip")  # unbuffered
            gathered[name] = buffer.to(self.device, non_blocking=True).index_select(0, back)
        return gathered

    def _runs(
        self, views: NDArray[np.int64], ids: NDArray[np.int64]
    ) -> Iterator[tuple[Fields, NDArray[np.int64], int]]:
        """Yield (a shard, the rows in it, where they begin) for rows that ascend by view and by id."""
        asked = np.unique(views).tolist()
        for view in asked:
            shards = self._opened(view)
            first, stop = np.searchsorted(views, (view, view + 1))
            bounds = np.arange(len(shards) + 1) * self.rows_per_shard
            ends = first + np.searchsorted(ids[first:stop], bounds)
            for number, shard in enumerate(shards):
                if ends[number] < ends[number + 1]:
                    rows = ids[ends[number] : ends[number + 1]] - bounds[number]
                    yield shard, rows, int(ends[number])
        self._let_go(len(asked))

    def _let_go(self, num_views: int) -> None:
        """Unmap the views that were read longest ago, if there are many; not the last `num_views`, which are in use."""
        while len(self._views) > max(2, num_views) and sum(map(len, self._views.values())) > _MAPPED_SHARDS:
            self._views.pop(next(iter(self._views)), None)  # another thread may have

    def _buffer(self, num: int, spec: FieldSpec) -> Tensor:
        """Return memory for a batch, pinned if the batch goes to a GPU: torch's allocator reuses it once copied."""
        on_gpu = self.device.type == "cuda"
        return torch.empty((num, spec.width), dtype=getattr(torch, spec.dtype), pin_memory=on_gpu)

    def _opened(self, view: int) -> list[Fields]:
        """Return a view's shards, mapped; checked whole at the first use, by their sizes later."""
        shards = self._views.pop(view, None)
        if shards is None:
            if not 0 <= view < self.part.num_views:
                raise Refused(
                    f"the cache {self.directory} has {self.part.num_views} views, so no view {view}; set "
                    f"views.num_views={self.part.num_views}, or build more of them"
                )
            refuse_damaged(self.directory, self.shards[view], full=view not in self._checked)
            self._checked.add(view)
            shards = [map_shard(self.directory, shard, self.fields) for shard in self.shards[view]]
        self._views[view] = shards  # now the last one read
        return shards


def refuse_damaged(directory: Path, shards: list[Shard], full: bool) -> None:
    """Check that each shard is what the manifest says; Refused for the first that is not. full: see `store.damage`."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        problems = [p for p in threads.map(lambda shard: damage(directory, shard, full), shards) if p is not None]
    if problems:
        more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
        raise Refused(f"the cache is damaged: {problems[0]}{more}; {remedy_for(directory)}")


def load_constants(directory: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return the cache's constants, checked: the classifier, the code of sparse logits, class means."""
    path = directory / CONSTANTS
    if not path.is_file():
        raise Refused(f"the cache is damaged: {path} is missing; {REMEDY}")
    if checksum(path) != manifest.constants:
        raise Refused(f"the cache is damaged: {path} has changed since it was written; {REMEDY}")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise Refused(f"the cache is damaged: {path} is not a file of tensors ({error}); {REMEDY}") from error


def tensors_under(constants: dict[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    """Return the constants whose names begin with the prefix, without it, on the device."""
    return {name.removeprefix(prefix): t.to(device) for name, t in constants.items() if name.startswith(prefix)}


def codes_of(columns: tuple[Column, ...], constants: dict[str, Tensor], device: torch.device) -> dict[str, Code]:
    """Return {column name: what it is read with}, for the columns that need it."""
    codes: dict[str, Code] = {}
    for column in columns:
        tensors = tensors_under(constants, f"{CODES}{column.name}.", device)
        try:
            if isinstance(column, SparseColumn):
                codes[column.name] = LogitCode.of(column.code_size, tensors)
            elif isinstance(column, ProjectedColumn):
                codes[column.name] = Projection.of(tensors)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise Refused(
                f"the cache is damaged: {CONSTANTS} lacks what decoding {column.name} needs; {REMEDY}"
            ) from error
    return codes


def classifier_of(constants: dict[str, Tensor], device: torch.device) -> Classifier:
    """Return the teacher's classifier; Refused where the cache was built without it."""
    stored = tensors_under(constants, CLASSIFIER, device)
    if "weight" not in stored:
        raise Refused(
            "the cache does not hold the teacher's classifier, which this recipe reads; build it with this recipe in "
            "another folder, or with cache.head=true"
        )
    return Classifier(stored["weight"], stored.get("bias"))
