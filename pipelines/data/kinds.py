"""Which kind of container holds a split: recognised by what is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdcore.errors import Refused
from pipelines.data.compressed import find_compressed
from pipelines.data.folder import is_folder, list_folder, list_store_folder, refuse_file, require_root
from pipelines.data.listing import Listing
from pipelines.data.pack import find_pack
from pipelines.data.parquet import find_parquet
from pipelines.data.tables import find_csv, find_flat_imagenet, list_csv, list_flat_imagenet
from pipelines.data.tars import find_tars, list_tars
from pipelines.places import Found, Place, is_hidden

Containers = tuple[Found, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of container.

    find: the files that hold a split, none where it is of another kind; list: the samples of such files, None for
    kinds whose index comes in another way (a pack has one, Parquet is packed, compressed tars are decompressed).
    """

    name: str
    find: Callable[[Place, str], Containers]
    list: Callable[[Place, str, Containers], Listing] | None


FOLDER = Kind("image folder", lambda place, split: (), list_folder)
STORE_FOLDER = Kind("image folder in an object store", lambda place, split: (), list_store_folder)
PACK = Kind("pack", find_pack, None)
PARQUET = Kind("Parquet", find_parquet, None)
COMPRESSED = Kind("compressed tars", find_compressed, None)
# In order: the first that matches wins. Plug-ins add theirs by `register`.
KINDS: list[Kind] = [
    PACK,
    Kind("tars", find_tars, list_tars),
    COMPRESSED,
    PARQUET,
    Kind("CSV", find_csv, list_csv),
    Kind("flat ImageNet validation folder", find_flat_imagenet, list_flat_imagenet),
]


def register(kind: Kind) -> None:
    """Add a kind of container, asked after the existing ones. Refused for a name that is taken."""
    if any(known.name == kind.name for known in (FOLDER, *KINDS)):
        raise Refused(f"two kinds of images are called {kind.name!r}; rename one")
    KINDS.append(kind)


def recognise(place: Place, split: str) -> tuple[Kind, Containers]:
    """Return the kind of container that holds a split, and its files.

    A folder of class folders is an image folder, whatever else it holds; a folder of no other kind is taken for one,
    and its errors say what it lacks. Refused for a place in an object store that holds no container.
    """
    if place.is_local:
        require_root(Path(place.root))
        if _has_class_folders(Path(place.root) / split):
            return FOLDER, ()
    for kind in KINDS:
        if files := kind.find(place, split):
            return kind, files
    if place.is_local:
        return FOLDER, ()
    if place.has_folder(split):
        return STORE_FOLDER, ()
    raise Refused(
        f"{place.root} holds no images, pack, tars or Parquet files of split {split!r}; put one there "
        f"(python -m ops data pack FOLDER -o {place.root}), or name the split that is there in "
        "data.train_split or data.val_split"
    )


def locate_split(location: str, split: str) -> tuple[str, str]:
    """Return the (root, split) that a location means: its split of this name, else the location as a split itself."""
    place = Place.of(location, "--data")
    if place.is_local:
        refuse_file(Path(place.root))
    if not place.is_local or (Path(place.root) / split).is_dir() or any(kind.find(place, split) for kind in KINDS):
        return location, split
    return str(Path(place.root).parent), Path(place.root).name


def _has_class_folders(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(not is_hidden(entry.name) and is_folder(entry) for entry in entries)
