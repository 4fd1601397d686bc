"""What a submitted job takes along: the files of this tree that git tracks, and those that the user names.

They are laid out in a folder of their own, with a note of their commit; their size is checked first.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.provenance import NOTE_FILE, Provenance, git
from kdcore.errors import Refused

MAX_BYTES = 100 * 2**20  # the most that a head's dashboard takes at once; it answers more with 413
# Names of files that hold secrets, anywhere in the tree: as in a .gitignore.
SECRETS = (
    ".env", ".env.*", "*.env", ".netrc", ".npmrc", ".pypirc", ".pgpass", ".git-credentials", "credentials",
    "*credentials*.json", ".aws/", ".ssh/", ".ray/", ".config/", ".kube/", ".docker/", "*.pem", "*.key", "*.p12",
    "*.pfx", "*.jks", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "token", "*_token", "*-token",
    "*.token", "*token*.txt", "*token*.json", "secret", "secrets", "*.secret", "*secret*.txt", "*secret*.json",
    "*secret*.y*ml", "*password*.txt", "passwords", "password",
)  # fmt: skip
# What stays behind of a tree without a repository; of one with a repository, the tests, although git tracks them.
EXCLUDES = (
    ".git/",
    ".venv/",
    "tests/",
    "/outputs/",
    "/data/",
    "/scratch/",
    "mlruns/",
    "mlflow.db",
    "__pycache__/",
    ".*_cache/",
)


@dataclass(frozen=True)
class Parcel:
    """The files to send, relative to the tree, with their sizes; secrets: those left out for their names."""

    tree: Path
    files: dict[str, int]
    secrets: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())

    def summary(self) -> str:
        """Return how much is sent, in words."""
        return f"{len(self.files):,} files, {self.num_bytes / 2**20:.1f} MiB"

    def refuse_too_large(self, limit: int = MAX_BYTES) -> None:
        """Refuse a parcel that no head would take, naming its largest files."""
        if self.num_bytes <= limit:
            return
        largest = sorted(self.files, key=lambda name: -self.files[name])[:3]
        named = ", ".join(f"{name} ({self.files[name] / 2**20:.1f} MiB)" for name in largest)
        raise Refused(
            f"the job would upload {self.summary()}, more than the {limit / 2**20:.0f} MiB that Ray's head accepts; "
            f"the largest: {named}; leave them out, or put them where every node sees them"
        )

    def lay_out(self, folder: Path, provenance: Provenance | None = None) -> None:
        """Put the files, and the note of their provenance if given, into an empty folder.

        No .gitignore: Ray would leave out what it names, even what was asked for. Refused where there is no room.
        """
        try:
            for name in self.files:
                if ".." in Path(name).parts:
                    raise Refused(f"{name} lies outside {self.tree}, which is what the job gets; copy it there")
                if Path(name).name != ".gitignore":
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.tree / name, folder / name)
            if provenance is not None:
                (folder / NOTE_FILE).write_text(provenance.note())
        except OSError as error:
            raise Refused(
                f"the job's files cannot be copied to {folder} ({error}); make room there, or set TMPDIR to a folder "
                "that has it"
            ) from error


def pack_parcel(tree: Path, include: Sequence[str] = ()) -> Parcel:
    """Return the parcel of a tree for a job. include: further files and folders in it that git does not track.

    Refused for one that is not there, or lies outside.
    """
    names = tracked_files(tree)
    if names is None:
        names = walked_files(tree)
    named = [name for extra in include for name in files_below(tree, extra)]
    kept = [name for name in names if not _matches_part(name, EXCLUDES)]
    return _without_secrets(tree, list(dict.fromkeys([*kept, *named])))


def pack_package(folder: Path) -> Parcel:
    """Return the parcel of a package's folder: all of it, since it is not ours to choose, but secrets and caches."""
    return _without_secrets(
        folder, [name for name in files_below(folder, str(folder)) if ".git" not in Path(name).parts]
    )


def _without_secrets(tree: Path, wanted: Sequence[str]) -> Parcel:
    secrets = [name for name in wanted if _matches_part(name, SECRETS)]
    files = {name: (tree / name).stat().st_size for name in wanted if name not in secrets and (tree / name).is_file()}
    return Parcel(tree, files, tuple(secrets))


def tracked_files(tree: Path) -> list[str] | None:
    """Return the files of a tree that git tracks, relative to it; None where no repository tracks any.

    Refused where git cannot read the repository: the tree holds what no job should get.
    """
    listed = git(tree, "ls-files", "-z")
    return [os.fsdecode(name) for name in listed.split(b"\0") if name] if listed else None


def walked_files(tree: Path) -> list[str]:
    """Return the files of a tree without a repository, except those in excluded folders."""
    found: list[str] = []
    for folder, folders, files in os.walk(tree):
        place = Path(folder).relative_to(tree)
        folders[:] = [name for name in folders if not _matches_part(str(place / name), EXCLUDES)]
        found += [(place / name).as_posix() for name in files]
    return sorted(found)


def files_below(tree: Path, named: str) -> Iterable[str]:
    """Yield the files of a named file or folder, relative to the tree."""
    name = place_in(tree, named)
    if not Path(named).exists():
        raise Refused(f"--include {named}: no such file or folder")
    if name is None:
        raise Refused(f"--include {named} lies outside {tree}, which is what the job gets; copy it there")
    place = tree / name
    found = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return [path.relative_to(tree).as_posix() for path in found if "__pycache__" not in path.parts]


def place_in(tree: Path, path: str | Path) -> str | None:
    """Return the place of a file or folder in a tree, relative to it and without `..`; None where it lies outside."""
    place = Path(os.path.normpath(Path(path).absolute()))
    return place.relative_to(tree).as_posix() if place.is_relative_to(tree) else None


def _matches_part(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a part of a path matches; a pattern that begins with a slash means only the first part."""
    parts = Path(name).parts
    rooted = [pattern for pattern in patterns if pattern.startswith("/")]
    anywhere = [pattern for pattern in patterns if not pattern.startswith("/")]
    return _matches(parts[0], rooted) or any(_matches(part, anywhere) for part in parts)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern.strip("/")) for pattern in patterns)
