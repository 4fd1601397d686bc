"""`sign`: who vouches for a cache, or for an export with its model card; `lineage --trust` verifies it.

A digest tells a damaged file from an intact one, and no more: anyone who can write to a folder can recompute it. A
signature tells whose content it is. It covers

    an export   the SHA-256 of each of its files: weights, programs, the model card, and lineage.json, which holds the
                digest of the cache and the fingerprints of run and teachers. So it vouches for that whole chain
    a cache     the digest of its manifest, which holds the checksums of its shards and constants

`signature.json` holds what is covered, the signer's public key, and an Ed25519 signature over both. It does not prove
when it was made: its date is the signer's word.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcore.errors import Refused
from ops.console import say
from ops.evaluation.subjects import LINEAGE
from ops.export.files import SIGNATURE, refuse_others
from ops.export.keys import fingerprint, raw, read_private, read_public
from pipelines.cache.manifest import MANIFEST, load_manifest
from pipelines.cache.store import checksum
from pipelines.files import read_object, write_json
from pipelines.leases import leased

Trusted = Mapping[bytes, str]  # {public key: the signer's name}
Kind = Literal["export", "cache"]


class Statement(BaseModel):
    """What is signed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["stillhouse signature 1"] = "stillhouse signature 1"
    """What this is: signed with the rest, so that it cannot pass as a signature of anything else."""
    kind: Kind
    """What kind of folder is signed."""
    date: str = Field(max_length=40)
    """When it was signed, by the signer's clock."""
    covers: dict[str, str]
    """SHA-256 of each file of an export by its name; of a cache, its manifest's digest."""

    def to_bytes(self) -> bytes:
        """Return the statement as the bytes that are signed: equal for equal statements."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


class Signature(BaseModel):
    """The content of signature.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    statement: Statement
    """What is signed."""
    public_key: str = Field(max_length=100)
    """The signer's Ed25519 key, 32 bytes in base64."""
    signature: str = Field(max_length=200)
    """The signature over the statement, 64 bytes in base64."""


class Finding(NamedTuple):
    """What a folder's signature is worth. signer: None without a signature; problem: None for an intact one."""

    signer: str | None = None
    is_trusted: bool = False
    problem: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether a trusted signer vouches for the folder's present content."""
        return self.is_trusted and self.problem is None

    def __str__(self) -> str:
        if self.signer is None:
            return "nobody"
        return self.problem or (self.signer if self.is_trusted else f"{self.signer}, not trusted")


def sign(folder: str, key: str) -> int:
    """Sign a cache, or an export with its model card. Refused for an export next to files of another one."""
    private, place = read_private(Path(key)), Path(folder)
    kind = kind_of(place)
    with leased(place, "sign"):
        if kind == "export":
            refuse_others(place)
        covers = covered(place)
        statement = Statement(kind=kind, date=datetime.now(UTC).isoformat(timespec="seconds"), covers=covers)
        made = private.sign(statement.to_bytes())
        public = private.public_key()
        content = Signature(statement=statement, public_key=in_base64(raw(public)), signature=in_base64(made))
        write_json(place / SIGNATURE, content.model_dump())
    say(f"signed by key {fingerprint(public)}: {', '.join(covers)}")
    return 0


def kind_of(folder: Path) -> Kind:
    """Return which kind of signable folder this is. Refused for any other folder."""
    if (folder / MANIFEST).is_file():
        return "cache"
    if not (folder / LINEAGE).is_file():
        raise Refused(f"{folder} is neither an export nor a finished cache; give the folder of one")
    return "export"


def covered(folder: Path) -> dict[str, str]:
    """Return the digests that stand for everything in a folder.

    Refused where none can: the target of a link in an export may change, and Python imports from it.
    """
    if kind_of(folder) == "cache":
        return {MANIFEST: load_manifest(folder).digest}
    entries = sorted(folder.rglob("*"))
    for path in entries:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            what = "a link" if path.is_symlink() else "neither a file nor a folder"
            raise Refused(f"{path} is {what}, which no signature covers; remove it, or put a copy of its target there")
    files = [path for path in entries if path.is_file() and is_covered(path.relative_to(folder))]
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}


def is_covered(path: Path) -> bool:
    """Return whether a file of an export is signed: all but the signature, leases, and what killed writers left."""
    return path.as_posix() != SIGNATURE and not path.name.startswith(".") and path.suffix != ".tmp"


def in_base64(content: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(content).decode()


def trusted_keys(files: Sequence[str]) -> dict[bytes, str]:
    """Return {public key: the signer's name} of files of public keys; the name is the file's, without suffix."""
    return {raw(read_public(Path(file))): Path(file).stem for file in files}


def examine(folder: Path, trusted: Trusted) -> Finding:
    """Return what the signature of a folder is worth now: whose it is, and what has changed since."""
    path = folder / SIGNATURE
    if not path.is_file():
        return Finding()
    try:
        found = Signature.model_validate(read_object(path, ""))
        public = base64.b64decode(found.public_key, validate=True)
        key = Ed25519PublicKey.from_public_bytes(public)
        signer = trusted.get(public, f"key {fingerprint(key)}")
        key.verify(base64.b64decode(found.signature, validate=True), found.statement.to_bytes())
    except InvalidSignature:
        return Finding(signer, problem=f"FORGED: {SIGNATURE} was not made by {signer}")
    except (Refused, ValidationError, ValueError, binascii.Error):
        return Finding("?", problem=f"DAMAGED: {SIGNATURE} was not written by `sign`")
    return Finding(signer, public in trusted, changes(folder, found.statement))


def changes(folder: Path, statement: Statement) -> str | None:
    """Return which files were changed, added or removed since a folder was signed; None if nothing was."""
    try:
        kind, now = kind_of(folder), covered(folder)
    except Refused as error:
        return f"ALTERED: {error}"
    if kind != statement.kind:
        return f"ALTERED: the signature is that of another {statement.kind}"
    then = statement.covers
    found = [
        f"{name} {'is gone' if name not in now else 'is not signed' if name not in then else 'was changed'}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    return f"ALTERED: {', '.join(found)}" if found else None
