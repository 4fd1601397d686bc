"""A folder on a disk or in an object store, behind one set of calls: anything that `pyarrow.fs` knows."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from kdcore.credentials import without_credentials
from kdcore.errors import Refused, one_line
from kdcore.located import LFS_POINTER, is_uri, refuse_pointer
from pipelines.files import write_whole

_OF_WINDOWS = frozenset({"thumbs.db", "desktop.ini"})
_S3_REMEDY = (
    "check the bucket's name, and give what this machine lacks to reach it: the store's region or address (?region= or "
    "?endpoint_override=HOST:PORT behind the URI, or AWS_ENDPOINT_URL), and credentials (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY)"
)
_SCHEMES = ("s3://", "gs://", "abfs://", "hdfs://", "file://")  # the most common, for an error


def is_hidden(path: str) -> bool:
    """Return whether a file, or a folder that it lies in, is hidden from users, and so not there for a source.

    Hidden is what begins with a dot, and what Windows keeps next to pictures.
    """
    parts = [part for part in path.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part.lower() in _OF_WINDOWS for part in parts)


def filesystem_of(location: str, setting: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI and the path on it; Refused, naming the setting, where that cannot be had."""
    try:
        return connect(location, setting)
    except OSError as error:
        if location.startswith("s3://"):
            raise Refused(f"{setting}={location}: {error}; {_S3_REMEDY}") from error
        raise Refused(no_place(location, setting, error)) from error


def connect(location: str, setting: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI and the path on it; Refused, naming the setting, for one that is unknown.

    OSError where a store does not answer, for a process that is started again then.
    """
    if location.startswith("hf://"):  # pyarrow knows it by huggingface_hub, which raises errors of its own
        raise Refused(
            f"{setting}={location}: files of a hub are not read in place; download them with huggingface_hub's "
            "snapshot_download, and give the folder that it returns"
        )
    try:
        filesystem, path = fs.FileSystem.from_uri(location.rstrip("/"))
    except ValueError as error:  # pyarrow's own included
        raise Refused(no_place(location, setting, error)) from error
    return filesystem, path.rstrip("/") or path  # the URI `s3://bucket/folder/?region=...` does not end in a slash


def shown_location(location: str) -> str:
    """Return a URI as it is shown to users: without credentials and options."""
    return without_credentials(location).partition("?")[0].rstrip("/")


def no_place(location: str, setting: str, error: Exception) -> str:
    """Return the error text for a setting that names no place: why, and what to give."""
    if is_uri(location) and " " in location:
        return f"{setting}={location}: a URI has no spaces; write each as %20"
    return f"{setting}={location}: {error}; give a folder, or a URI that pyarrow.fs knows ({', '.join(_SCHEMES)})"


@dataclass(frozen=True)
class Found:
    """A file as a listing shows it. name: relative to the place; mtime_ns: when it was written."""

    name: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Place:
    """A folder.

    location: its absolute path, or its URI with all options; root: the same as shown to users; path: its name on the
    file system.
    """

    location: str
    root: str
    filesystem: fs.FileSystem
    path: str

    @staticmethod
    def of(location: str | Path, setting: str) -> Place:
        """Return the place of a path or URI. setting: what names it, for an error."""
        if is_uri(str(location)):
            filesystem, path = filesystem_of(str(location), setting)
            if not isinstance(filesystem, fs.LocalFileSystem):
                return Place(str(location), shown_location(str(location)), filesystem, path)
            location = path
        root = str(Path(location).resolve())
        return Place(root, root, fs.LocalFileSystem(), root)

    @property
    def is_local(self) -> bool:
        """Whether its files can be opened by the system itself."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def name_of(self, name: str) -> str:
        """Return the name of a file of this place as shown to users."""
        return f"{self.root}/{name}"

    def list_files(self, folder: str = "") -> list[Found]:
        """Return the visible files that lie directly in a folder of this place, by name; none where it is absent."""
        prefix = f"{folder}/" if folder else ""
        found = [
            Found(prefix + info.base_name, info.size, info.mtime_ns or 0)
            for info in self._infos(folder)
            if info.type == fs.FileType.File
        ]
        return sorted(found, key=lambda file: file.name)

    def list_folders(self, folder: str = "") -> list[str]:
        """Return the names of the visible folders that lie directly in a folder of this place; none if it is absent."""
        return sorted(info.base_name for info in self._infos(folder) if info.type == fs.FileType.Directory)

    def _infos(self, folder: str) -> list[fs.FileInfo]:
        """Return what is visible directly in a folder of this place; nothing where it is absent."""
        selected = fs.FileSelector(f"{self.path}/{folder}".rstrip("/"), allow_not_found=True)
        with self._refusing(folder):
            infos = self.filesystem.get_file_info(selected)
        return [info for info in infos if not is_hidden(info.base_name)]

    def list_below(self, folder: str) -> list[Found]:
        """Return the visible files that lie in a folder of this place, at any depth; none where it is absent."""
        top = f"{self.path}/{folder}"
        with self._refusing(folder):
            infos = self.filesystem.get_file_info(fs.FileSelector(top, allow_not_found=True, recursive=True))
        found = [
            Found(info.path[len(self.path) + 1 :], info.size, info.mtime_ns or 0)
            for info in infos
            if info.type == fs.FileType.File and not is_hidden(info.path[len(top) :])
        ]
        return sorted(found, key=lambda file: file.name)

    def has(self, name: str) -> bool:
        """Return whether a file of this name is there."""
        with self._refusing(name):
            return bool(self.filesystem.get_file_info(f"{self.path}/{name}").type == fs.FileType.File)

    def has_folder(self, name: str) -> bool:
        """Return whether a folder of this name is there."""
        with self._refusing(name):
            return bool(self.filesystem.get_file_info(f"{self.path}/{name}").type == fs.FileType.Directory)

    def open(self, name: str) -> pa.NativeFile:
        """Return a file opened for reading anywhere in it."""
        with self._refusing(name):
            file = self.filesystem.open_input_file(f"{self.path}/{name}")
            if self.is_local:  # of a store, that would be a request; and Git has left nothing there
                refuse_pointer(file.read(len(LFS_POINTER)), self.name_of(name))
                file.seek(0)
            return file

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""
        with self._refusing(name), self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
            content = bytes(file.read())
        refuse_pointer(content, self.name_of(name))
        return content

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file, whole or not at all."""
        if self.is_local:
            write_whole(Path(self.path) / name, memoryview(content))
            return
        with self._refusing(name, "written"), self.filesystem.open_output_stream(f"{self.path}/{name}") as file:
            file.write(content)

    def put(self, source: Path, name: str) -> None:
        """Write a copy of a file of this machine, of any size, whole or not at all."""
        if self.is_local:
            with source.open("rb") as file:
                write_whole(Path(self.path) / name, lambda copy: shutil.copyfileobj(file, copy))
            return
        target = f"{self.path}/{name}"
        with self._refusing(name, "written"):
            self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            fs.copy_files(str(source), target, fs.LocalFileSystem(), self.filesystem, use_threads=False)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._refusing(name, "removed"):
            self.filesystem.delete_file(f"{self.path}/{name}")

    def _refusing(self, name: str, done: str = "read") -> _Refusing:
        return _Refusing(self.name_of(name).rstrip("/"), done)


@dataclass(frozen=True)
class _Refusing:
    """A context that turns what the file system raises into a Refused that names the file.

    done: what is done with it: read, written or removed.
    """

    name: str
    done: str

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or one_line(error, length=None)
            remedy = "it is there, and that this machine may read it"
            if self.done != "read":
                remedy = "the place is there, and that this machine may write to it"
            raise Refused(f"{self.name} cannot be {self.done} ({reason}); check that {remedy}") from error
