"""Where a field is looked up: the command, the comments of recipes, the schema for editors, the reference page."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, Field

from ops import catalog, reference, schema
from ops.__main__ import main
from ops.recipe_text import recipe_text
from ops.schema import default_text, entries, sections, terms, type_text


def shown(capsys: Any, *words: str) -> str:
    assert main(["fields", *words]) == 0
    return capsys.readouterr().out


def test_every_section_and_term_is_listed(capsys):
    lines = shown(capsys).splitlines()
    listed = {line.split()[1] for line in lines if line.startswith("│ ") and line.split()[1] != "│"}
    assert listed == sections().keys() | terms().keys()
    assert not sections().keys() & terms().keys(), "a name would mean two things"


def test_a_section(capsys):
    text = shown(capsys, "views")
    assert text.startswith("views: How training images are augmented")
    for field in ("size", "switch_probability", "num_views"):
        assert f"│ {field} " in text
    assert "│ resized | padded | center " in text
    assert "│ [0.08, 1] " in text


def test_a_term(capsys):
    text = shown(capsys, "kd")
    assert "Hinton" in text
    assert re.search(r"│ temperature +│ number > 0 +│ required +│", text)
    assert re.search(r"│ weight +│ number >= 0 +│ required +│", text)


def test_a_term_is_shown_with_the_formula_of_its_loss(capsys):
    text = shown(capsys, "wttm")
    assert "`wttm`: " in text
    assert "power_sum" in text
    assert "Source: " in text


def test_one_field(capsys):
    text = shown(capsys, "views.size")
    assert text.count("│ views.size ") == 1
    assert "│ integer >= 1, <= 16384 or " in text
    assert "│ [integer, integer] " in text
    assert shown(capsys, "about.expected.top1").count("│ about.expected.top1 ") == 1


def test_a_bare_name_finds_all_fields_of_that_name(capsys):
    text = shown(capsys, "seed")
    found = [line.split()[1] for line in text.splitlines() if line.startswith("│ ") and line.split()[1] != "│"]
    assert {"seed", "crd.seed", "sweep.seed"} <= set(found)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("veiws", "did you mean views"),
        ("temprature", "no section, term or field is called that; did you mean temperature"),
        ("views.sise", "views has no field 'sise'; did you mean size, sizes?"),
        ("wtm.gamma", "no section or term is called 'wtm'; did you mean wttm"),
        ("qqq", "`python -m ops fields` lists them"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(wanted, message, capsys):
    assert main(["fields", wanted]) == 2
    assert message in capsys.readouterr().err


class Section(BaseModel):
    required: int = Field(ge=1, lt=8)
    """Kept by a subclass that declares the field again."""
    optional: float | None = None
    pairs: tuple[tuple[int, float], ...] = ()
    table: dict[str, Any] = Field(default_factory=lambda: {"b": 1, "a": (2.5, 1 / 3)})


class Narrower(Section):
    required: int = Field(ge=4)


def test_types_defaults_and_meanings_are_read_from_the_model():
    fields = Section.model_fields
    types = [type_text(field.annotation, field.metadata) for field in fields.values()]
    assert types == ["integer >= 1, < 8", "number", "list of [integer, number]", "{text: value}"]
    assert [default_text(field) for field in fields.values()][:3] == [None, "not given", "[]"]
    assert yaml.safe_load(default_text(fields["table"]) or "") == {"b": 1, "a": [2.5, 1 / 3]}
    assert entries(Narrower)[0].meaning == "Kept by a subclass that declares the field again."
    assert entries(Narrower)[0].type == "integer >= 4"


@pytest.mark.parametrize("name", terms())
def test_every_term_and_its_fields_are_explained(name):
    """The term by a sentence of more than its name, each field by one below it or below its base's."""
    term = terms()[name]
    assert len(re.sub(r"`\w+`", "", schema.summary(term)).split()) > 2
    assert [entry.name for entry in entries(term) if not entry.meaning.endswith(".") or len(entry.meaning) < 10] == []


def test_every_type_has_words():
    assert all(entry.type for model in [*sections().values(), *terms().values()] for entry in entries(model))


def test_a_printed_recipe_says_what_its_fields_mean():
    text = catalog.text("kd")
    (line,) = (number for number, line in enumerate(text.splitlines()) if line.strip() == "batch_size: 256")
    assert text.splitlines()[line - 1] == "  # Images of one optimiser step over all workers."
    assert text.count("# What the loss is multiplied by") == 1, "each description once"


def test_text_in_a_recipe_comes_back_as_it_was():
    """Colons, quotes, hashes, dashes and long lines."""
    texts = [
        "a: b",
        "# no comment",
        "- no item",
        'it\'s "quoted"',
        "word " * 60 + "end",
        "{x}",
        "null",
        "1e-3",
        "ä ± ö",
    ]
    recipe = catalog.read("kd") | {"about": {"title": texts[4], "differs": texts, "expected": {"note": texts[3]}}}
    assert yaml.safe_load(recipe_text(recipe)) == recipe


@pytest.fixture(scope="module")
def validator() -> Any:
    made = schema.json_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def test_editors_take_every_recipe(validator):
    """The files as they lie there, with what they leave to their base, and the recipes made of them."""
    files = [path for path in catalog.RECIPES.rglob("*.yaml") if path.stem != catalog.SHARED]
    assert len(files) > 30
    for path in files:
        validator.validate(yaml.safe_load(path.read_text()))
    for name in catalog.names():
        validator.validate(catalog.read(name))


@pytest.mark.parametrize(
    "change",
    [
        {"trian": {}},
        {"train": {"epoch": 3}},
        {"views": {"crop": "random"}},
        {"method": [{"term": "kd", "weight": 1}]},
        {"method": [{"term": "kdd", "weight": 1}]},
        {"method": [{"term": "kd", "weight": 1, "temperature": 4, "gamma": 1}]},
        {"optimizer": {"lr": 0}},
        {"about": {"expected": {"top1": 0.76}}},
    ],
)
def test_editors_mark_mistakes(validator, change):
    recipe = catalog.read("kd")
    validator.validate(recipe)
    assert not validator.is_valid(recipe | change)
    assert validator.is_valid({"base": "kd.yaml", "name": "mine"})
    assert not validator.is_valid({"name": "mine"})


def test_the_schema_is_printed_with_meanings(capsys):
    printed = json.loads(shown(capsys, "--json-schema"))
    assert printed == schema.json_schema()
    assert printed["$defs"]["ViewPolicy"]["properties"]["size"]["description"].startswith("The side of")
    assert main(["fields", "kd", "--json-schema"]) == 2


def test_the_reference_page_is_fresh():
    assert reference.PAGE.read_text() == reference.generate(), "run make pages"
    assert reference.FIELDS.read_text() == reference.meanings(), "run make pages"


def test_the_reference_page_has_everything():
    page = reference.generate()
    for name, model in (sections() | terms()).items():
        assert f"### {name}\n" in page
        assert all(f"| `{field}` |" in page for field in model.model_fields)
    assert "| `views` " not in page.partition("### views\n")[2].partition("### ")[0]
