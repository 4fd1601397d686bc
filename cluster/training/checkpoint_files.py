"""Where a run's checkpoints lie, their files, and whether these are whole.

All this is known without torch, for processes that only drive a run.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from cluster.error_text import last_line
from kdcore.errors import Refused
from kdcore.located import is_uri
from pipelines.places import connect

STATE, STUDENT = "state.pt", "student.safetensors"


def checkpoint_place(storage: str, name: str) -> tuple[FileSystem, str]:
    """Return the file system of a run's checkpoints, and the path of the run's folder there.

    storage: a path or a URI, as `RunConfig.storage`. Refused for a URI of an unknown kind. OSError where a store does
    not answer: that passes, and a worker that ends by it is started again.
    """
    if is_uri(storage):
        filesystem, path = connect(storage, "checkpoint.storage")
    else:
        filesystem, path = LocalFileSystem(), str(Path(storage).absolute())
    return filesystem, f"{path.rstrip('/')}/{name}"


@contextmanager
def refusing_silence(storage: str) -> Iterator[None]:
    """Refuse, in this context, a place of checkpoints that does not answer: for those that ask before a run begins."""
    try:
        yield
    except OSError as error:
        raise Refused(
            f"checkpoint.storage: {storage} cannot be read ({error.strerror or last_line(error)}); give a place that "
            "can be, with the credentials it needs"
        ) from error


def _is_file(filesystem: FileSystem, path: str) -> bool:
    return filesystem.get_file_info(path).type == FileType.File


def is_whole(filesystem: FileSystem, path: str) -> bool:
    """Return whether a checkpoint's files are there and end as they should: the state is an archive, its index last."""
    if not all(_is_file(filesystem, f"{path}/{name}") for name in (STATE, STUDENT)):
        return False
    with filesystem.open_input_file(f"{path}/{STATE}") as file:
        try:
            return zipfile.is_zipfile(file)
        except ValueError:  # Arrow's, of a file that is shorter than an index
            return False
