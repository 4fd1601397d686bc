"""Names that count how often they are compared, so that a test of many needs no clock."""

from __future__ import annotations


class CountedName(str):
    """A name. compared: how often any was compared, which a look-up in a dict does once."""

    compared = 0

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountedName.compared += 1
        return str.__eq__(self, other)


def counted_names(num: int) -> tuple[CountedName, ...]:
    """Return new names, in order, with none compared yet."""
    CountedName.compared = 0
    return tuple(CountedName(f"{number:05}") for number in range(num))
