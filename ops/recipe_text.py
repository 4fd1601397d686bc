"""A recipe as a YAML file to copy and edit: every field that it sets, below the field's description as a comment.

Sections and lists of mappings are written in blocks, one field a line; other values in YAML's flow style. The comments
are those of the models, kept in fields.json by `python -m ops.reference`: the models themselves import torch, which
printing a recipe does not wait for.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ops.yaml_text import written

WIDTH = 120
INDENT = "  "
FIELDS = Path(__file__).with_name("fields.json")
RECIPE, METHOD, ABOUT = "recipe", "method", "about"  # sections; the last is already text for people

Meanings = Mapping[str, str]  # of the fields of a section or a term, in the order in which it declares them


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a recipe's mapping as YAML with comments, which reads back as the same mapping."""
    return "\n".join(_Lines(json.loads(FIELDS.read_text())).section(recipe, RECIPE, "")).strip() + "\n"


class _Lines:
    """Yields the lines of a recipe, each comment only at the first field that it belongs to.

    fields: {"sections": {dotted name: Meanings}, "terms": {name: Meanings}}.
    """

    def __init__(self, fields: Mapping[str, Mapping[str, Meanings]]) -> None:
        self.sections, self.terms = fields["sections"], fields["terms"]
        self.explained: set[str] = set()

    def section(self, values: Mapping[str, Any], path: str, indent: str) -> Iterator[str]:
        """Yield the lines of a section by its dotted name, its fields in the order in which it declares them."""
        for name in in_order(values, self.sections[path]):
            value, below = values[name], name if path == RECIPE else f"{path}.{name}"
            if path != ABOUT:
                yield from self.comment(self.sections[path][name], indent)
            if below == METHOD:
                yield f"{indent}{name}:"
                for term in value:
                    yield from self.term(term, indent + INDENT)
            elif below in self.sections and value is not None and path != ABOUT:
                yield f"{indent}{name}:"
                yield from self.section(value, below, indent + INDENT)
            else:
                yield from lines_of_value(name, value, indent)
            if path == RECIPE:
                yield ""

    def term(self, values: Mapping[str, Any], indent: str) -> Iterator[str]:
        """Yield the lines of one term of the method's list."""
        yield f"{indent}- term: {written(values['term'])}"
        meanings = self.terms[values["term"]]
        for name in in_order(values, meanings):
            if name != "term":
                yield from self.comment(meanings[name], indent + INDENT)
                yield from lines_of_value(name, values[name], indent + INDENT)

    def comment(self, text: str, indent: str) -> list[str]:
        """Return a field's description as comment lines; none where the file has it already."""
        if text in self.explained:
            return []
        self.explained.add(text)
        return wrapped(text, f"{indent}# ")


def in_order(values: Mapping[str, Any], meanings: Meanings) -> list[str]:
    """Return the names of the fields that have values, in the order in which they are declared."""
    return sorted(values, key=list(meanings).index)


def lines_of_value(name: str, value: Any, indent: str) -> Iterator[str]:
    """Yield the lines of a key and a value that is not a section: one line where it fits."""
    if isinstance(value, list) and value and all(isinstance(item, str | Mapping) for item in value):
        yield f"{indent}{name}:"
        for item in value:
            yield from broken(f"{indent}{INDENT}- ", item, indent + 2 * INDENT)
    else:
        yield from broken(f"{indent}{name}: ", value, indent + INDENT)


def broken(head: str, value: Any, indent: str) -> Iterator[str]:
    """Yield a value after its key or dash; text and mappings that are too long for one line are continued."""
    line = head + written(value)
    if len(line) <= WIDTH:
        yield line
    elif isinstance(value, str):
        yield head + ">-"
        yield from wrapped(value, indent)
    else:
        yield head.rstrip()
        yield from textwrap.indent(
            yaml.safe_dump(value, width=WIDTH - len(indent), sort_keys=False), indent
        ).splitlines()


def wrapped(text: str, prefix: str) -> list[str]:
    """Return a paragraph's lines, each after the prefix."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False, break_on_hyphens=False
    )
