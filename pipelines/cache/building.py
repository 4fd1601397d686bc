"""A cache while it is being built: what is there, what is to be done, and the manifest at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from kdcore.errors import Refused
from pipelines.cache.manifest import CONSTANTS, MANIFEST, Manifest, Plan, load_manifest
from pipelines.cache.store import Shard, Unit, checksum, damage, finished_shards, is_file_of_shard, write_note
from pipelines.files import remove_unfinished, write_whole
from pipelines.nested import differences, in_short

PLAN = "plan.json"
_CONSTANTS_NOTE = "constants.json"


class ConstantsNote(BaseModel):
    """The note next to the constants: their plan's key, their checksum, and the error of sparse logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    sha256: str
    error: dict[str, float]


class Building:
    """A cache that grows in a folder, for one process at a time: the plan, the constants, the shards, the manifest.

    Killed at any point, it is started again with the same plan and goes on with what is missing. Refused where the
    folder holds shards of another plan, or a finished cache of more views; more views of the same are added to it.
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory, self.plan = directory, plan
        self._claim()
        self._remove_unfinished()
        self.note = self._constants_note()
        self.shards = self._finished_shards()

    def _claim(self) -> None:
        """Write the plan into the folder, after comparing it with one there that has shards already.

        A finished cache is known by its manifest: one that was copied here has no plan and no notes beside it.
        """
        finished = self._finished()
        earlier = finished.plan if finished is not None else read_plan(self.directory)
        if earlier is not None and self._has_shards(earlier):
            self._refuse_other(earlier)
        if finished is not None and not (self.directory / _CONSTANTS_NOTE).exists():
            self._note_all(finished)
        write_whole(self.directory / PLAN, self.plan.model_dump_json(indent=1).encode())

    def _note_all(self, finished: Manifest) -> None:
        """Write the notes that a copied cache lacks, which follow from its manifest; the constants' comes last."""
        key = finished.plan.key(finished.constants)
        for shard in finished.shards:
            write_note(self.directory, shard, key)
        self._write_constants_note(finished.constants, finished.error)

    def _has_shards(self, plan: Plan) -> bool:
        """Return whether a plan has shards there: a manifest, or the note of a shard."""
        notes = (note for part in plan.parts for note in (self.directory / part).glob("view-*/rows-*.json"))
        return (self.directory / MANIFEST).exists() or any(is_file_of_shard(note.name) for note in notes)

    def _remove_unfinished(self) -> None:
        """Remove the half-written files of a build that was killed; once the folder is known to be this cache's."""
        remove_unfinished(self.directory, {PLAN, MANIFEST, CONSTANTS, _CONSTANTS_NOTE}.__contains__)
        for part in self.plan.parts:
            for view in (self.directory / part).glob("view-*/"):
                remove_unfinished(view, is_file_of_shard)

    def _refuse_other(self, earlier: Plan) -> None:
        theirs, ours = earlier.without_views(), self.plan.without_views()
        if differing := differences(theirs, ours):
            key, there, here = differing[0]
            raise Refused(
                f"{self.directory} holds a cache of something else: {key} is {in_short(there)} there and "
                f"{in_short(here)} here; restore what has changed, or take another folder (cache.dir=...)"
            )
        finished = self._finished()
        for name, part in finished.plan.parts.items() if finished is not None else ():
            if part.num_views > self.plan.parts[name].num_views:
                raise Refused(
                    f"{self.directory} holds {part.num_views} views already; runs that show fewer can read it as it is"
                )

    def _finished(self) -> Manifest | None:
        """Return the manifest of the finished cache here.

        None if there is none, and where a damaged one lies beside the plan that it was of.
        """
        beside = (self.directory / PLAN).exists()
        if not beside and not (self.directory / MANIFEST).exists():
            return None
        try:
            return load_manifest(self.directory)
        except Refused:
            if beside:
                return None
            raise

    def _constants_note(self) -> ConstantsNote | None:
        """Return the note of the constants; None if these are missing or damaged."""
        try:
            note = ConstantsNote.model_validate_json((self.directory / _CONSTANTS_NOTE).read_bytes())
            whole = note.key == self.plan.key("") and checksum(self.directory / CONSTANTS) == note.sha256
        except (FileNotFoundError, ValidationError):
            return None
        return note if whole else None

    def _finished_shards(self) -> dict[Unit, Shard]:
        """Return the shards that are there; none without constants, which define their meaning."""
        if self.note is None:
            return {}
        return {shard.unit: shard for shard in finished_shards(self.directory, self.plan.units(), self.key)}

    def write_constants(self, tensors: Mapping[str, Tensor], error: dict[str, float]) -> None:
        """Write the constants; the shards come after them, since their meaning may depend on them.

        Shards of constants that were lost or damaged count again if the new constants are the same.
        """
        write_whole(self.directory / CONSTANTS, safetensors.torch.save(dict(tensors)))
        self.note = self._write_constants_note(checksum(self.directory / CONSTANTS), error)
        self.shards = self._finished_shards()

    def _write_constants_note(self, sha256: str, error: dict[str, float]) -> ConstantsNote:
        note = ConstantsNote(key=self.plan.key(""), sha256=sha256, error=error)
        write_whole(self.directory / _CONSTANTS_NOTE, note.model_dump_json(indent=1).encode())
        return note

    def constants(self) -> dict[str, Tensor]:
        return safetensors.torch.load_file(self.directory / CONSTANTS)

    @property
    def key(self) -> str:
        """The key that the shards' notes carry."""
        assert self.note is not None, "the constants come before the shards"
        return self.plan.key(self.note.sha256)

    def missing(self) -> list[Unit]:
        """Return the units whose shards are not there, in order."""
        return [unit for unit in self.plan.units() if unit not in self.shards]

    def finish(self) -> Manifest:
        """Write the manifest: from now on this is a cache.

        Refused where a shard cannot be seen from here.
        """
        assert self.note is not None, "the constants come before the manifest"
        assert not self.missing(), "the shards come before the manifest"
        shards = tuple(self.shards[unit] for unit in self.plan.units())
        for shard in shards:
            if problem := damage(self.directory, shard, full=False):
                raise Refused(f"{problem}; a cache is built in a folder that every node sees (cache.dir=...)")
        manifest = Manifest(plan=self.plan, constants=self.note.sha256, error=self.note.error, shards=shards)
        return manifest.write(self.directory)


def read_plan(directory: Path) -> Plan | None:
    """Return the plan of the cache that is built, or was, in a folder; None if there is none."""
    path = directory / PLAN
    try:
        return Plan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise Refused(f"{path} is not the plan of a cache; choose another folder (cache.dir=...)") from error
