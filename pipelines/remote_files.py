"""Single files in an object store, such as weights and recipes: copied once to each machine that reads them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pyarrow import fs

from kdcore.credentials import without_credentials
from kdcore.errors import Refused, one_line
from pipelines.files import locked, make_folder, own_temporary_folder, write_whole
from pipelines.places import filesystem_of


def fetched(uri: str) -> Path:
    """Return this machine's copy of a file behind a URI, made by the first process that asks.

    It is known by the URI, the size and the time of the file there: a file that was rewritten is copied again. Refused,
    in one line, where it cannot be read.
    """
    shown = without_credentials(uri).partition("?")[0]
    filesystem, path = filesystem_of(uri, "a file's URI")
    try:
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise Refused(_unreadable(shown, error)) from error
    if info.type != fs.FileType.File:
        raise Refused(f"{shown}: no such file; correct the URI")
    if isinstance(filesystem, fs.LocalFileSystem):
        return Path(path)
    key = hashlib.sha256(f"{shown} {info.size} {info.mtime_ns}".encode()).hexdigest()[:20]
    folder = make_folder(own_temporary_folder("stillhouse-files") / key, "the machine's temporary folder")
    copy = folder / Path(path).name
    with locked(folder / ".lock"):
        if not copy.exists():
            try:
                with filesystem.open_input_stream(path) as file:
                    write_whole(copy, file.read())
            except OSError as error:
                raise Refused(_unreadable(shown, error)) from error
    return copy


def _unreadable(shown: str, error: OSError) -> str:
    reason = error.strerror or one_line(error)
    return (
        f"{shown} cannot be read ({reason}); check that it is there, and that this machine has the store's credentials"
    )
