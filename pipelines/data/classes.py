"""Whether the labels of two splits mean the same."""

from __future__ import annotations

from kdcore.errors import Refused
from pipelines.data.listing import as_seen
from pipelines.data.source import Source


def check_same_classes(train: Source, validation: Source) -> None:
    """Refuse two splits that do not have the same classes: their labels would mean different things."""
    if train.classes == validation.classes:
        return
    missing = sorted(set(train.classes) - set(validation.classes))
    surplus = sorted(set(validation.classes) - set(train.classes))
    for name in missing:
        twin = next((other for other in surplus if as_seen(other) == as_seen(name)), None)
        if twin is not None:
            raise Refused(
                f"the class {name!a} of the training split is {twin!a} in the validation split of {validation.root}: "
                "the same to the eye, in another form of Unicode or with spaces; rename one"
            )
    if missing and surplus and all(map(str.isdecimal, (*train.classes, *validation.classes))):
        # Numbers without names are digits of one width, which is that of the split's highest.
        ours, theirs = {int(name) for name in train.classes}, {int(name) for name in validation.classes}
        if ours == theirs:
            raise Refused(
                f"{_splits(train, validation)} write their classes in digits of different width, such as "
                f"{missing[0]!r} and {surplus[0]!r}; write them alike"
            )
        missing = [name for name in missing if int(name) not in theirs]
        surplus = [name for name in surplus if int(name) not in ours]
    if missing or surplus:
        number = len(missing) + len(surplus)
        first, where = (missing[0], "training") if missing else (surplus[0], "validation")
        raise Refused(
            f"{_splits(train, validation)} differ in {number} {'class' if number == 1 else 'classes'}; the first, "
            f"{first!r}, is in the {where} split only: add it to the other, or remove it"
            + (", or name all classes in a classes.txt beside the CSVs" if train.multi_label else "")
        )
    raise Refused(
        f"{_splits(train, validation)} number the same {len(train.classes)} classes in two orders; give both the "
        "same list of classes"
    )


def _splits(train: Source, validation: Source) -> str:
    """Name the places of two splits, once if they are the same."""
    return f"the splits in {' and '.join(dict.fromkeys([str(train.root), str(validation.root)]))}"
