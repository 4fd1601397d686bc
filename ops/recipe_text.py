"""A recipe as a YAML file to copy and edit: every field that it sets, below the field's description as a comment.

Sections and lists of mappings are written in blocks, one field a line; other values in YAML's flow style. The comments
come from the models, so that they cannot be of another version than the code.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from cluster.about import AboutConfig
from cluster.config import RunConfig
from kdcore.terms import REGISTRY
from ops.schema import METHOD, Model, meaning, section_of, written

WIDTH = 120
INDENT = "  "


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a recipe's mapping as YAML with comments, which reads back as the same mapping."""
    return "\n".join(_Lines().section(recipe, RunConfig, "")).strip() + "\n"


class _Lines:
    """Gives the lines of a recipe, each comment at the first field alone that it belongs to."""

    def __init__(self) -> None:
        self.explained: set[str] = set()

    def section(self, values: Mapping[str, Any], model: Model, indent: str) -> Iterator[str]:
        """Give the lines of a section or a term, its fields in the order in which the model declares them."""
        declared = list(model.model_fields)
        for name in sorted(values, key=declared.index):
            value, section = values[name], section_of(model.model_fields[name])
            if model is not AboutConfig:  # which is text for people already
                yield from self.comment(meaning(model, name), indent)
            if model is RunConfig and name == METHOD:
                yield f"{indent}{name}:"
                for term in value:
                    yield from self.term(term, indent + INDENT)
            elif section and value is not None and model is not AboutConfig:
                yield f"{indent}{name}:"
                yield from self.section(value, section, indent + INDENT)
            else:
                yield from lines_of_value(name, value, indent)
            if model is RunConfig:
                yield ""

    def term(self, values: Mapping[str, Any], indent: str) -> Iterator[str]:
        """Give the lines of one term of the method's list."""
        yield f"{indent}- term: {written(values['term'])}"
        others = {name: value for name, value in values.items() if name != "term"}
        yield from self.section(others, REGISTRY[values["term"]], indent + INDENT)

    def comment(self, text: str, indent: str) -> list[str]:
        """Return a field's description as comment lines; none where the file has it already."""
        if text in self.explained:
            return []
        self.explained.add(text)
        return wrapped(text, f"{indent}# ")


def lines_of_value(name: str, value: Any, indent: str) -> Iterator[str]:
    """Give the lines of a key and a value that is no section: in one line where it fits."""
    if isinstance(value, list) and value and all(isinstance(item, str | Mapping) for item in value):
        yield f"{indent}{name}:"
        for item in value:
            yield from broken(f"{indent}{INDENT}- ", item, indent + 2 * INDENT)
    else:
        yield from broken(f"{indent}{name}: ", value, indent + INDENT)


def broken(head: str, value: Any, indent: str) -> Iterator[str]:
    """Give a value behind its key or dash; text and mappings that are too long for a line are continued in others."""
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
    """Return a paragraph's lines, each behind the prefix."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False, break_on_hyphens=False
    )
