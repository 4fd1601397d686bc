"""The files within a tar, by its headers. A tar that does not end as one, or holds anything but files, is refused."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from kdcore.errors import Refused
from pipelines.places import is_hidden

_READ_BYTES = 2**20
_DEREFERENCE = "write the tar again with the files themselves (tar --dereference --hard-dereference)"


@dataclass(frozen=True)
class Member:
    """A file within a tar: its name, and where its content lies."""

    path: PurePosixPath
    offset: int
    num_bytes: int

    @property
    def key(self) -> str:
        """The name before its first dot, with its folder."""
        return str(self.path.with_name(self.path.name.partition(".")[0]))

    @property
    def extension(self) -> str:
        return self.path.suffix.lower()


def members_of(file: Any, size: int, name: str) -> Iterator[Member]:
    """Yield the visible files of a tar of `size` bytes. name: of the tar, for an error.

    TarError where it cannot be read; Refused for links and anything else that is not a file, and for a tar that does
    not end where it should: only that tells one that is cut off between two files from a shorter one.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps one object per file
            if member.isdir() or is_hidden(member.name):
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"it ends within {member.name!a}")
            _refuse_other_than_file(member, name)
            yield Member(PurePosixPath(member.name), member.offset_data, member.size)
        _refuse_without_end(file, tar.offset, size, name)


def _refuse_other_than_file(member: tarfile.TarInfo, name: str) -> None:
    """Refuse a member whose bytes are not an extent of the tar, or whose name no index can hold."""
    try:
        member.name.encode()
    except UnicodeEncodeError as error:
        raise Refused(f"{name}: {member.name!a} has a name that is not UTF-8; rename it and write the tar again") from (
            error
        )
    if member.issym() or member.islnk():
        raise Refused(f"{name}: {member.name} is a link to {member.linkname!a}, not a file; {_DEREFERENCE}")
    if not member.isreg() or member.issparse():
        kind = "a sparse file" if member.isreg() else "a pipe, a device or the like"
        raise Refused(f"{name}: {member.name} is {kind}; write the tar again with plain files, or without it")


def _refuse_without_end(file: Any, offset: int, size: int, name: str) -> None:
    """Refuse a tar without a block of zeros after its last file, at the offset, or with anything else after it."""
    if 0 < size - offset < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends within a header")
    if size <= offset:
        raise Refused(
            f"{name} has no end-of-archive mark, as if it were cut off; copy it again, or, if its "
            f"writer leaves that out, append it: truncate -s {size + 2 * tarfile.BLOCKSIZE} {name}"
        )
    file.seek(offset)
    while part := file.read(_READ_BYTES):
        if part.count(0) != len(part):
            raise Refused(
                f"{name} has data after its end-of-archive mark, at byte {offset:,} of {size:,}: it is damaged, or "
                "several tars in one file; copy it again, or give each tar a file of its own"
            )
