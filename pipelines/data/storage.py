"""Where the encoded bytes of samples lie, and how they are fetched: any ids, in any order, from any thread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.data.images import refusing_broken


class Storage(Protocol):
    """The bytes of the samples of one source, by sample id; its methods may be called from several threads."""

    def read(self, ids: NDArray[np.int64]) -> list[bytes]:
        """Return the encoded images; Refused, with the name, where one is not what the index says."""

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """Return where each sample lies, in words for an error."""


class Files:
    """One file an image. root: the folder; paths: of the files, relative to it; num_bytes: their sizes."""

    def __init__(self, root: str, paths: pa.Array, num_bytes: NDArray[np.int64]) -> None:
        self._root = Path(root)
        self._paths = paths
        self._num_bytes = num_bytes

    def read(self, ids: NDArray[np.int64]) -> list[bytes]:
        """Return the content of the files."""
        sizes = self._num_bytes[ids].tolist()
        return [_read_file(path, size) for path, size in zip(self.names(ids), sizes, strict=True)]

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """Return the paths of the files."""
        return [str(self._root / path) for path in self._paths.take(pa.array(ids)).to_pylist()]


def _read_file(path: str, num_bytes: int) -> bytes:
    """Return the content of a file with as few system calls as can be; Refused where it has another size."""
    with refusing_broken(path):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.read(file, num_bytes + 1)
            while 0 < len(content) < num_bytes and (more := os.read(file, num_bytes + 1 - len(content))):
                content += more
        finally:
            os.close(file)
    if len(content) != num_bytes:
        raise Refused(
            f"{path} cannot be read as an image (its size is no longer the {num_bytes} bytes that were indexed); "
            "repair or remove it, then build the index again"
        )
    return content
