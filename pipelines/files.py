"""Files that appear under their name whole or not at all, whatever is killed when, and refusals that name the file.

Files written at once are written here; journals, which grow line by line, lose a cut-off last line when they are read.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from kdcore.errors import Refused, one_line

# Schemes, as the first part of a path that was a URI.
_PARTS_OF_URIS = ("s3:", "gs:", "gcs:", "abfs:", "abfss:", "hdfs:", "viewfs:", "http:", "https:", "file:")
FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or its user's quota
_UNFINISHED = re.compile(r"(.+)\.[0-9a-f]{32}\.tmp")  # the names that `write_whole` writes to


def write_whole(path: Path, content: bytes | memoryview | Callable[[BinaryIO], object]) -> None:
    """Write content (or what content writes) next to its place, sync it to the disk and rename it.

    A writer that is killed leaves a file named *.tmp, which nothing reads. Refused, naming the file, where the disk
    does not take it; what was there before stays.
    """
    make_folder(path.parent, path.name)
    temporary = path.with_name(f"{path.name[:100]}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise Refused(not_written(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # unless it was renamed, whatever ended the writer


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk: a loss of power leaves it there."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that keep no lists
            raise
    finally:
        os.close(number)


def claim_name(whole: Path, path: Path) -> None:
    """Give a whole file another name, which only one process gets: FileExistsError where the name is taken.

    whole: has one name until now. By a hard link, which appears at once, also on NFS, and replaces nothing. On a file
    system without these, the first process to create the file has the name, and then fills it.
    """
    try:
        os.link(whole, path)
    except FileExistsError:
        # Where NFS's answer was lost, the request is sent again and finds the link that it has made itself.
        if whole.stat().st_nlink != 2:
            raise
    except OSError:
        with path.open("xb") as file:
            try:
                file.write(whole.read_bytes())
            except BaseException:
                path.unlink()
                raise


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock file against threads and processes; the system releases it when the process ends, however it ends.

    BlockingIOError where another holds it and wait is false.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def remove_unfinished(folder: Path, is_written: Callable[[str], object]) -> None:
    """Remove what a killed `write_whole` has left in a folder. Only where nothing is writing.

    is_written: whether a file of this name, cut as `write_whole` cuts it, is written there. All else is left alone.
    """
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    for file in files:
        found = _UNFINISHED.fullmatch(file.name)
        if found and is_written(found[1]):
            Path(file.path).unlink(missing_ok=True)


def is_lasting(error: BaseException | None) -> bool:
    """Return whether an error says that a disk is full, or may not be written to: trying again does not help."""
    lasting = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)
    return isinstance(error, OSError) and error.errno in lasting


def not_written(path: Path, error: OSError) -> str:
    """Return the error text for a file that the disk does not take: its place, the reason, and what to do."""
    if error.errno not in FULL:
        reason = error.strerror or one_line(error, length=None)
        return f"{path} cannot be written ({reason}); give a place that can be written to"
    with suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        return f"{path} cannot be written ({error.strerror}; {free:,} bytes are free there); free some, or take another"
    return f"{path} cannot be written ({error.strerror}); free some space there, or take another place"


def refuse_without_space(folder: Path, num_bytes: int, what: str) -> None:
    """Refuse to begin what would fill a disk before it ends. what: the files to come, as a plural."""
    if (free := shutil.disk_usage(folder).free) < num_bytes:
        raise Refused(
            f"{what} take {num_bytes:,} bytes more, and {folder} has {free:,} free; free some, or take another place"
        )


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    write_whole(path, text.encode())


def write_figure(path: Path, figure: Any, **options: Any) -> None:
    """Write a figure of matplotlib, whole or not at all, in the format that the path's suffix names.

    A letter that no installed font has, in a class's name for example, becomes a box.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        write_whole(path, lambda file: figure.savefig(file, format=path.suffix.lstrip("."), **options))


def write_json(path: Path, content: Any) -> None:
    """Write a value as strict JSON, whole or not at all; NaN and infinities, which JSON lacks, become null."""
    write_whole(path, json.dumps(finite_or_null(content), indent=1, allow_nan=False).encode())


def finite_or_null(content: Any) -> Any:
    """Return the value with None in place of every number in it that is not finite."""
    if isinstance(content, dict):
        return {key: finite_or_null(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_or_null(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path, remedy: str) -> Any:
    """Return the content of a JSON file.

    Refused, with the remedy, where it is absent, cut off, or something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    return parse_json(content, str(path), remedy)


def parse_json(content: bytes, name: str, remedy: str) -> Any:
    """Return the value of JSON. name: the file's, for an error. Refused where it is cut off, or something else."""
    try:
        return json.loads(content)
    except ValueError as error:  # a JSONDecodeError or a UnicodeDecodeError
        raise Refused(f"{name} is not whole JSON ({error}); {remedy}") from error


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Return the content of a JSON file that is an object. Refused as by `read_json`, and for another value."""
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise Refused(f"{path} holds a {type(content).__name__}, not an object; {remedy}")
    return content


def own_temporary_folder(name: str) -> Path:
    """Return this machine's default folder for this user's files of a kind, which only this user can write to.

    A folder of the bare name, as earlier versions made it, is still used by its owner. Refused where another user has
    put something in its place, who could exchange what lies there.
    """
    earlier = Path(tempfile.gettempdir()) / name
    if _is_own(earlier):
        return earlier
    own = make_folder(earlier.with_name(f"{name}-{os.getuid()}"), "the machine's temporary folder", mode=0o700)
    if not _is_own(own):
        raise Refused(f"{own} is another user's, or a link; remove it, or set TMPDIR to a folder of your own")
    return own


def _is_own(folder: Path) -> bool:
    """Return whether a path is a folder of this user, not a link; others then lose their right to write to it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if is_own and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        folder.chmod(stat.S_IMODE(status.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
    return is_own


def require_file_place(path: Path, setting: str) -> None:
    """Refuse, before the work for it is done, a place where no file can be written, such as that of a folder."""
    if path.is_dir():
        raise Refused(f"{setting}: {path} is a folder; give the name of a file in it, such as {path / 'NAME'}")
    require_folder_place(path.absolute().parent, setting)


def require_folder_place(path: Path, setting: str) -> None:
    """Refuse, before the work for it is done, a place where no folder can be: that of a file, or below one, or a URI's.

    Nothing is made.
    """
    _refuse_uri(path, setting)
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise Refused(f"{setting}: {there} is a file, not a folder; give another place")


def _refuse_uri(path: Path, setting: str) -> None:
    """Refuse a path that was made from a URI."""
    if scheme := next((part for part in path.parts if part in _PARTS_OF_URIS), None):
        raise Refused(f"{setting}: {path} was given as a URI ({scheme}//...); give a folder")


def make_folder(path: Path, setting: str, mode: int = 0o777) -> Path:
    """Return the folder, created with its parents if it is missing. mode: of a new one, less the process's mask.

    Refused, naming the setting, if that fails, and for a path that was made from a URI.
    """
    _refuse_uri(path, setting)
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"{setting}: the folder {path} cannot be made ({error.strerror}); give a place that can be written to"
        ) from error
    return path
