"""Texts from others (names of classes, folders, models) in a Markdown page: as text, never as markup."""

from __future__ import annotations

import re

_MARKUP = re.compile(r"([\\`*_\[\]<>#|~&!$@])")


def as_text(value: object) -> str:
    """Return a value as one line in which every character is literal, in a paragraph or in a table's cell."""
    return _MARKUP.sub(r"\\\1", " ".join(str(value).split()))


def as_code(value: object) -> str:
    """Return a value as inline code: between more backticks than it has in a row."""
    text = " ".join(str(value).split())
    ticks = _longer_than_within(text, 1)
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def as_block(text: str, language: str) -> str:
    """Return a text as a code block that nothing within it can end."""
    ticks = _longer_than_within(text, 3)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def _longer_than_within(text: str, least: int) -> str:
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
