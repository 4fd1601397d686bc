"""`fields`: what a recipe may contain, looked up by section, term or field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from kdcore.errors import Refused, did_you_mean
from ops.console import console, say
from ops.schema import RECIPE, Entry, Model, entries, explanation, json_schema, sections, summary, terms


def fields(name: str | None, as_json_schema: bool) -> int:
    """Print the fields of a section or a term, or one field; without a name, the names to look up."""
    if as_json_schema:
        if name is not None:
            raise Refused(f"fields {name} --json-schema: the schema is that of a whole recipe; leave {name} out")
        print(json.dumps(json_schema(), indent=1))
        return 0
    known = sections() | terms()
    if name is None:
        show_names("sections of a recipe and of a sweep", sections())
        show_names("terms of a method", terms())
        say("fields of one: python -m ops fields NAME; one field: python -m ops fields NAME.FIELD, or its bare name")
    elif name in known:
        show_fields(name, known[name])
    else:
        console.print(field_table(named(name, known)))
    return 0


def named(wanted: str, known: Mapping[str, Model]) -> list[tuple[str, Entry]]:
    """Return (full name, entry) of the field with this full name, or of all fields with this bare name.

    Refused with the nearest names where there is none.
    """
    owner, _, field = wanted.rpartition(".")
    if owner and owner not in known:
        raise Refused(f"{wanted}: no section or term is called {owner!r}{nearest(owner, known)}")
    owners = {owner: known[owner]} if owner else known
    all_fields = [(name, entry) for name, model in owners.items() for entry in entries(model)]
    found = [(full_name(name, entry), entry) for name, entry in all_fields if entry.name == field]
    if found:
        return found
    if owner:
        hint = nearest(field, {entry.name for _, entry in all_fields})
        raise Refused(f"{wanted}: {owner} has no field {field!r}{hint}")
    hint = nearest(wanted, {*known, *(entry.name for _, entry in all_fields)})
    raise Refused(f"{wanted}: no section, term or field is called that{hint}")


def full_name(owner: str, entry: Entry) -> str:
    """Return a field's name in an override; for a term's field, with the term's name in place of its list index."""
    return entry.name if owner == RECIPE else f"{owner}.{entry.name}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' with the nearest of the known names, or else the command that lists them all."""
    return f"; {did_you_mean(name, sorted(known), '`python -m ops fields` lists them', cutoff=0.5)}"


def show_names(title: str, models: Mapping[str, Model]) -> None:
    """Print every name with one line about it."""
    made = Table(title=title, title_justify="left", show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, model in models.items():
        made.add_row(name, Text(summary(model)))
    console.print(made)


def show_fields(name: str, model: Model) -> None:
    """Print what a section or a term is, then all of its fields."""
    say(f"{name}: {explanation(model)}\n")
    console.print(field_table([(entry.name, entry) for entry in entries(model)]))


def field_table(rows: Iterable[tuple[str, Entry]]) -> Table:
    """Return a table of fields: name, type, default, meaning."""
    made = Table()
    for column, width in {"field": None, "type": 26, "default": 20, "meaning": None}.items():
        made.add_column(column, overflow="fold", no_wrap=column == "field", max_width=width)
    for name, entry in rows:
        made.add_row(name, Text(entry.type), Text(entry.default_text), Text(entry.meaning))
    return made
