"""The files of a checkpoint, and whether they are whole: known without torch, for processes that only drive a run."""

from __future__ import annotations

import zipfile

from pyarrow.fs import FileSystem, FileType

STATE, STUDENT = "state.pt", "student.safetensors"


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
