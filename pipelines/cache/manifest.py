"""The manifest: what a cache's numbers belong to. Written last; what does not agree with it is refused, by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcore.errors import Refused
from pipelines.cache.columns import Column
from pipelines.cache.store import PartName, Shard, Unit, units_of
from pipelines.files import write_whole
from pipelines.identity import identity_of
from pipelines.nested import differences, digest_of, flat, in_short

# Raise this with any change to what a stored number means.
VERSION = 1
MANIFEST = "manifest.json"
CONSTANTS = "constants.safetensors"
_LIBRARIES = ("torch", "torchvision", "nvidia-dali-cuda130", "pillow", "numpy")
_UNFINISHED = "is not finished, or is not a cache; `python -m ops cache build RECIPE` builds it, or resumes building it"


class Part(BaseModel):
    """A split of the data with its views: num_rows samples in num_views views, as these columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int = Field(ge=1, lt=2**40)
    num_views: int = Field(ge=1, lt=2**24)
    columns: tuple[Column, ...]


class Plan(BaseModel):
    """Everything about a cache that is known before its first row is computed.

    identity: what the rows are a function of, as nested plain values: fingerprints of teacher, data and views,
    preprocessing, library versions. head: how the teacher gets from its last features to its logits, where that is
    stored (see `cluster.teachers.stored`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    FIRST_FIELDS: ClassVar[frozenset[str]] = frozenset({"version", "head"})

    version: int = VERSION
    identity: dict[str, Any]
    parts: dict[PartName, Part]
    rows_per_shard: int = Field(ge=1, lt=2**40)
    batch_size: int
    head: dict[str, Any] | None = None

    @property
    def num_units(self) -> int:
        """The number of pieces of work, counted without listing them."""
        return sum(-(-part.num_rows // self.rows_per_shard) * part.num_views for part in self.parts.values())

    def units(self) -> list[Unit]:
        """Return the work, in order."""
        return [
            unit
            for name, part in self.parts.items()
            for unit in units_of(name, part.num_rows, part.num_views, self.rows_per_shard)
        ]

    def key(self, constants_sha256: str) -> str:
        """Return a key that is equal for builds whose shards are interchangeable: the number of views may differ."""
        return digest_of({"plan": self.without_views(), "constants": constants_sha256})

    def without_views(self) -> dict[str, Any]:
        """Return the plan as plain values, without the numbers of views."""
        plain: dict[str, Any] = identity_of(self)
        for part in plain["parts"].values():
            del part["num_views"]
        return plain


class Manifest(BaseModel):
    """A finished cache's description of itself.

    constants: checksum of `constants.safetensors`; error: of sparse logits, on views held back from the fit of their
    code; digest: of all else, so that a manifest edited by hand is noticed. A digest is not a signature: anyone who can
    write to the folder can recompute it, for other rows as well. So what is read is bounded by the manifest, and lies
    within the folder; whether rows are the teacher's, `python -m ops cache verify` tells by recomputing some.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    FIRST_FIELDS: ClassVar[frozenset[str]] = frozenset({"digest"})

    plan: Plan
    constants: str
    error: dict[str, float]
    shards: tuple[Shard, ...]
    digest: str = ""

    def write(self, directory: Path) -> Manifest:
        """Write the manifest with its digest; from now on the cache is finished."""
        signed = self.model_copy(update={"digest": self._own_digest()})
        write_whole(directory / MANIFEST, signed.model_dump_json(indent=1).encode())
        return signed

    def _own_digest(self) -> str:
        return digest_of({name: value for name, value in identity_of(self).items() if name != "digest"})

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


def read_manifest(content: bytes, where: str) -> Manifest:
    """Return a manifest's content, checked against its own digest and for gaps.

    Refused for what cannot be trusted.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise Refused(f"{where}/{MANIFEST} is not a manifest; restore it, or build the cache again") from error
    if manifest.digest != manifest._own_digest():
        raise Refused(
            f"{where}/{MANIFEST} has been changed by hand: its digest differs; remove it and run "
            "`python -m ops cache build`, which rebuilds it from the shards"
        )
    if manifest.plan.version != VERSION:
        raise Refused(
            f"the cache {where} is of version {manifest.plan.version}, this program reads {VERSION}; build it again in "
            "another folder"
        )
    # Counted first: forged numbers would make a list without end.
    if len(manifest.shards) != manifest.plan.num_units or (
        [shard.unit for shard in manifest.shards] != manifest.plan.units()
    ):
        raise Refused(f"{where}/{MANIFEST} does not list the shards of its plan; build the cache again")
    return manifest


def load_manifest(directory: Path) -> Manifest:
    """Return the manifest of a local cache."""
    path = directory / MANIFEST
    if not path.is_file():
        raise Refused(f"the cache {directory} {_UNFINISHED}")
    return read_manifest(path.read_bytes(), str(directory))


def refuse_other_identity(manifest: Manifest, expected: Mapping[str, Any], where: str, trust: bool = False) -> None:
    """Check that the cache's identity is the expected one, as far as that is known; Refused where it is not.

    trust: whether other versions of libraries are accepted.
    """
    known = {key: value for key, value in flat(manifest.plan.identity).items() if key in flat(expected)}
    differing = differences(known, expected)
    serious = [one for one in differing if not (trust and one[0].startswith("versions."))]
    if not serious:
        return
    (key, there, here), *others = serious
    more = f" ({len(others)} more differ: {', '.join(one[0] for one in others[:4])})" if others else ""
    trusting = ", or accept other versions with cache.trust=true" if key.startswith("versions.") else ""
    raise Refused(
        f"the cache {where} belongs to something else: {key} is {in_short(there)} there and {in_short(here)} "
        f"here{more}; restore what has changed, or build the cache again in another folder (cache.dir=...){trusting}"
    )


def pixel_versions() -> dict[str, str]:
    """Return the versions of the libraries that determine pixels and outputs."""

    def one(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    return {name: one(name) for name in _LIBRARIES}
