"""Any source into a pack: the packing of one split, as plain values from which every process can rebuild it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdcore.errors import Refused
from pipelines.data.broken import USUAL, Acceptance
from pipelines.data.index import build_index, open_index
from pipelines.data.kinds import PARQUET, recognise
from pipelines.data.pack import INDEX, SHARD_BYTES, Packing, read_pack, refuse_others, verify_shards
from pipelines.data.packing import Shards, SourcePacking, build_pack, check_packing_options
from pipelines.data.parquet import ParquetPacking
from pipelines.data.source import Source, open_table
from pipelines.files import make_folder, refuse_without_space
from pipelines.places import Place


@dataclass(frozen=True)
class PackJob:
    """One split of a source on its way into a pack.

    root, split: of the source; target: the folder or URI of the pack; index_dir: where the source's index is;
    max_side, quality: how images are re-encoded, see `SourcePacking`; acceptance: which images are packed.
    """

    root: str
    split: str
    target: str
    index_dir: str
    shard_bytes: int = SHARD_BYTES
    max_side: int | None = None
    quality: int | None = None
    acceptance: Acceptance = USUAL

    @property
    def place(self) -> Place:
        """Where the pack goes."""
        return Place.of(self.target, "-o")

    @property
    def stores_anew(self) -> bool:
        """Whether images are encoded again."""
        return self.max_side is not None or self.quality is not None

    def prepare(self) -> Packing:
        """Return the packing, its source indexed if that is needed; once, before `packing` is called anywhere.

        Refused for options that make no sense, and for a target that is the source or holds images of the split.
        """
        check_packing_options(self.max_side, self.quality)
        if Place.of(self.root, "SOURCE").root == self.place.root:
            raise Refused(f"{self.root} is both the source and the target; give another place with -o")
        refuse_others(self.place, self.split)
        if not self._is_streamed:
            build_index(self.root, self.split, self.index_dir, acceptance=self.acceptance)
        return self.packing()

    def packing(self) -> Packing:
        """Return the packing."""
        if self._is_streamed:
            place = Place.of(self.root, "SOURCE")
            return ParquetPacking(place, self.split, recognise(place, self.split)[1], self.shard_bytes, self.acceptance)
        source = open_index(self.root, self.split, self.index_dir, acceptance=self.acceptance)
        return SourcePacking(source, self.shard_bytes, self.max_side, self.quality, self.acceptance)

    @property
    def _is_streamed(self) -> bool:
        """Whether images go from Parquet into the pack without an index of their own."""
        return not self.stores_anew and recognise(Place.of(self.root, "SOURCE"), self.split)[0] is PARQUET


def run_pack_job(
    job: PackJob,
    packing: Packing,
    report: Callable[[int], object] = lambda images: None,
    write_shards: Shards | None = None,
) -> Source:
    """Write the pack, or what is missing of it, read every byte of it back, and return it.

    Refused where a byte is not what was written, or where images that were only moved have changed.
    """
    if job.place.is_local and isinstance(packing, SourcePacking) and not job.stores_anew:
        there = sum(file.num_bytes for file in job.place.list_files(job.split))
        least = (packing.num_shards - 1) * job.shard_bytes - there
        refuse_without_space(make_folder(Path(job.target), "-o"), least, "the shards of the pack")
    table = build_pack(packing, job.place, job.split, report, write_shards)
    verify_shards(job.place, table)
    packed = open_pack(job.place, job.split)
    if isinstance(packing, SourcePacking) and not job.stores_anew and packed.fingerprint != packing.source.fingerprint:
        raise Refused(f"{job.root} has changed while it was packed into {job.target}; remove that and pack again")
    return packed


def verify_pack(location: str, split: str) -> Source:
    """Return a pack's split after reading every byte of it; Refused where one is not what was written."""
    place = Place.of(location, "PLACE")
    if not place.has(f"{split}/{INDEX}"):
        raise Refused(
            f"{place.name_of(split)} is not a pack: it has no {INDEX}; `python -m ops data show {place.root}` reads "
            "images in other forms, and `data pack` makes a pack of them"
        )
    verify_shards(place, read_pack(place, split))
    return open_pack(place, split)


def open_pack(place: Place, split: str) -> Source:
    """Return a pack's split."""
    return open_table(place.root, read_pack(place, split), None if place.is_local else place.location)
