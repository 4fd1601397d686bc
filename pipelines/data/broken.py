"""Which images are accepted into an index, and what becomes of the others: refused by name, or left out and listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.data.images import MAX_PIXELS, inspect_image
from pipelines.data.storage import Storage

OnBroken = Literal["refuse", "skip"]
Check = Literal["headers", "decode"]
CHECKS: tuple[Check, ...] = get_args(Check)
MAX_SHARE = 0.01  # the most of a split's images that may be left out


class BrokenImages(Refused):
    """Images of a split that are not accepted. messages: what is wrong with each."""

    def __init__(self, message: str = "", messages: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.messages = tuple(messages)


@dataclass(frozen=True)
class Acceptance:
    """Which images are accepted.

    on_broken: whether others are refused, or left out; check: how an image is looked at, by its headers or by decoding
    it whole; max_pixels: the most that an image may have.
    """

    on_broken: OnBroken = "refuse"
    check: Check = "headers"
    max_pixels: int = MAX_PIXELS

    @property
    def key(self) -> list[object]:
        """What decides which images are accepted; empty for the default."""
        return [] if self == Acceptance(self.on_broken) else [self.check, self.max_pixels]


USUAL = Acceptance()


@dataclass(frozen=True)
class Inspected:
    """What was found about some images. facts [N,3]: height, width, crc32; broken: {row: why} of those refused."""

    facts: NDArray[np.int64]
    broken: dict[int, str]

    @property
    def whole(self) -> NDArray[np.int64]:
        """The rows that are images."""
        return np.setdiff1d(np.arange(len(self.facts)), list(self.broken))


def inspect_images(contents: list[bytes], names: list[str], acceptance: Acceptance) -> Inspected:
    """Look at each of these encoded images."""
    facts = np.zeros((len(contents), 3), dtype=np.int64)
    broken = {}
    for row, (content, name) in enumerate(zip(contents, names, strict=True)):
        try:
            facts[row] = inspect_image(content, name, acceptance.max_pixels, acceptance.check == "decode")
        except Refused as error:
            broken[row] = str(error)
    return Inspected(facts, broken)


def inspect_stored(storage: Storage, rows: NDArray[np.int64], acceptance: Acceptance) -> Inspected:
    """Look at stored images, some of which may be unreadable."""
    try:
        contents = list(map(bytes, storage.read(rows)))
        found = inspect_images(contents, [""] * len(rows), acceptance)  # only broken ones need names
        return inspect_images(contents, storage.names(rows), acceptance) if found.broken else found
    except Refused:
        pass  # one of them is unreadable: which?
    facts, broken = np.zeros((len(rows), 3), dtype=np.int64), {}
    for row in range(len(rows)):
        one = rows[row : row + 1]
        try:
            found = inspect_images(list(map(bytes, storage.read(one))), storage.names(one), acceptance)
        except Refused as error:
            found = Inspected(facts[:1], {0: str(error)})
        facts[row] = found.facts[0]
        if found.broken:
            broken[row] = found.broken[0]
    return Inspected(facts, broken)


def check_broken(messages: list[str], num_images: int, on_broken: OnBroken, root: str) -> None:
    """Refuse broken images, by `BrokenImages`: any of a split, or, where they are skipped, more than a hundredth."""
    if messages and on_broken == "refuse":
        more = f"; likewise for {len(messages) - 1} more files" if len(messages) > 1 else ""
        raise BrokenImages(messages[0] + more, messages)
    if len(messages) > MAX_SHARE * num_images:
        raise BrokenImages(
            f"{len(messages)} of the {num_images} images in {root} are broken, more than the {MAX_SHARE:.0%} that "
            f"data.on_broken=skip leaves out; repair them: {messages[0]}",
            messages,
        )
