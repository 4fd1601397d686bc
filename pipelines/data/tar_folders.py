"""The class folders in tars of an image folder: which layer of folders they are, decided once for a split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdcore.errors import Refused
from pipelines.data.listing import names_of, names_of_others

Folders = list[tuple[str, ...]]  # the names on the way to each


def class_folders(folders: pa.Array, split: str, where: Callable[[int], str]) -> tuple[pa.Array, pa.Array]:
    """Return (class folder, way from there) of the images in these folders; "" where there is none.

    The way ends in a slash, for the image's name to follow. where: names the image of a row, for an error. Refused for
    images of another split among them.
    """
    distinct = folders.dictionary_encode()
    parts: Folders = [tuple(filter(None, folder.split("/"))) for folder in distinct.dictionary.to_pylist()]
    above = _layers_above(parts, split, lambda number: where(_first(distinct.indices, number)))
    classes = [names[above] if len(names) > above else "" for names in parts]
    ways = ["".join(f"{name}/" for name in names[above + 1 :]) for names in parts]
    text = pa.large_string()
    return pa.array(classes, text).take(distinct.indices), pa.array(ways, text).take(distinct.indices)


def _first(indices: pa.Array, number: int) -> int:
    return int(pc.index(indices, pa.scalar(number, indices.type)).as_py())


def _layers_above(folders: Folders, split: str, where: Callable[[int], str]) -> int:
    """Return the number of layers above the class folders: down to the split's own folder, if all images lie in one.

    where: names an image in a folder of that number. A folder of the split's name next to others is a class, unless it
    has folders of its own.
    """
    own, others = set(names_of(split)), names_of_others(split)
    layer = 0
    while True:
        names = [parts[layer] if len(parts) > layer else "" for parts in folders]
        found = set(names)
        if len(found) == 1 and found <= own:
            return layer + 1
        divided = any(len(parts) > layer + 1 for parts, name in zip(folders, names, strict=True) if name == split)
        if divided or (found & others and (found <= others or found & own)):
            wrong = int(np.flatnonzero([name not in own for name in names])[0])
            beside = next((f"beside the folder {name!r} of the split" for name in sorted(found & own)), None)
            raise Refused(
                f"{where(wrong)} lies {beside or f'in the folder {names[wrong]!r} of another split'}; write tars of "
                f"only the folder {split!r}, or rename the folder if it is a class"
            )
        if len(found) > 1 or found == {""}:
            return 0
        layer += 1
