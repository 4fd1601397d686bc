"""Recipes and overrides from hell: each is a run, or one line that names the field; in milliseconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute
from cluster.recipe.reading import configure, load_recipe, parse, to_yaml
from cluster.recipe.strict_yaml import read_yaml
from kdcore.errors import Refused
from kdcore.terms.logits import KD
from ops import catalog

LONGEST = 1500  # characters of a refusal


@cache
def recipe() -> dict[str, Any]:
    return catalog.read("kd")


def fields_of(model: type[BaseModel], above: str = "") -> list[str]:
    """Dotted keys of a model and of the sections below it."""
    found = []
    for name, field in model.model_fields.items():
        found.append(above + name)
        inner = [part for part in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_section(part)]
        found += [key for part in inner for key in fields_of(part, f"{above}{name}.")]
    return found


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


ODD_KEYS = (
    "",
    ".",
    "a..b",
    "data.root.x",
    "name.0",
    "base",
    "method.x.weight",
    "method.-1",
    "method.0",
    "method.1.term",
)
KEYS = [*fields_of(RunConfig), *ODD_KEYS, "method." + "9" * 5000, "data." + "x" * 3000, "x." * 3000, "student.args.w.0"]


def laughs(levels: int = 9) -> str:
    """A billion values in a line, by aliases of aliases."""
    lines = ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "{" + ", ".join(lines) + "}"


OVERRIDES, WORDS, FILES = 1200, 300, 500  # how many of each are tried
VALUES = [
    *("[1", "@x", "%x", "`x", "\t", "? x", "*x", "<<: 1", "{<<: [1]}", "=", "x: y: z", "'", '"', "|\n a", "- a\n- b"),
    *("!!python/object/apply:os.system [id]", "!x y", "!!binary aGk=", "!!set {a}", "!!int x", "!!int ''", "!!bool x"),
    *("!!float y", "!!null x", "!!omap [a: 1]", "!!map x", "2020-01-01", "2020-13-45", "1:30", "010", "!!timestamp 1"),
    *("&a [*a]", "&a {b: *a}", "{a: &x [1], b: *x}", "[" * 5000, "{a: " * 3000, "- " * 2000, laughs()),
    *(".inf", "-.inf", ".nan", "inf", "nan", "1e400", "[.nan, .inf]", "[{term: kd, weight: 1, temperature: .nan}]"),
    *("9" * 5000, "'" + "9" * 30 + "'", "0x" + "f" * 5000, "10000000000000000000000", "-1", "0", "1", "-0.0", "0.5"),
    *(
        "true",
        "null",
        "''",
        '"\\0"',
        '"\\ud800"',
        "{}",
        "[]",
        "{1: 2}",
        "{[1]: 2}",
        "[1]",
        "[{term: [1]}]",
        "[[5, 32]]",
    ),
    *("../../etc/passwd", "/dev/zero", "s3://", "s3://a:b@c", "://", "file://", "~nobody-here/x", "http://[::1"),
    *("x" * 100_000, "[" + "1," * 20_000 + "1]", "sqlite:///:memory:", "[[5, 32]]"),
]
scalars = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=20))
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3)
)
values = st.one_of(
    st.sampled_from(VALUES),
    st.text(max_size=30),
    nested.map(lambda value: yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()),
)


def is_short(refusal: str) -> bool:
    return "\n" not in refusal and len(refusal) < LONGEST


def is_a_run_or_a_refusal(overrides: list[str]) -> None:
    """A configuration that is written and read back as itself, or a refusal of a bounded length with a place."""
    try:
        config = configure(recipe(), overrides, "kd")
    except Refused as error:
        refusal = str(error)
    else:
        assert to_yaml(parse(read_yaml(to_yaml(config), "text"))) == to_yaml(config)
        return
    keys = [override.partition("=")[0].removesuffix("+") for override in overrides]  # key+=value appends
    parts = [part for key in keys for part in key[:40].split(".") if part]
    assert is_short(refusal), refusal
    assert (
        "override" in refusal or "unknown key" in refusal or "term" in refusal or any(part in refusal for part in parts)
    ), refusal


@settings(max_examples=OVERRIDES, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(KEYS), values)
@example("views.size", "[" * 5000)
@example("teacher.args", "&a {b: *a}")
def test_every_override_is_a_run_or_a_refusal(key: str, value: str) -> None:
    is_a_run_or_a_refusal([f"{key}={value}"])


@settings(max_examples=WORDS, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=40))
@example("plugins+=")
def test_every_word_is_an_override_or_a_refusal(word: str) -> None:
    is_a_run_or_a_refusal([word])


@settings(max_examples=FILES, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=60) | st.sampled_from([value.encode() for value in VALUES]))
def test_every_file_is_a_recipe_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(Refused) as caught:
        load_recipe(path)
    assert is_short(str(caught.value)), str(caught.value)


@pytest.mark.parametrize("base", [5, "''", "[[a]]", "~nobody-here/a.yaml", "/dev/zero", "x" * 300, "any.yaml", "."])
def test_a_base_that_is_none(tmp_path: Path, base: object) -> None:
    (tmp_path / "any.yaml").write_text(f"base: {base}\n")
    with pytest.raises(Refused, match=r"any\.yaml|recipe|home"):
        load_recipe(tmp_path / "any.yaml")


def test_bases_that_double_at_every_file_are_read_once_each(tmp_path: Path) -> None:
    """30 files that start from the next one twice: a billion reads."""
    for number in range(30):
        base = f"base: [{number + 1}.yaml, {number + 1}.yaml]\n" if number < 29 else "name: x\n"
        (tmp_path / f"{number}.yaml").write_text(base)
    with pytest.raises(Refused, match="data is missing"):
        load_recipe(tmp_path / "0.yaml")


def test_the_home_of_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="~nobody-here/x: there is no such user's home"):
        absolute(configure(recipe(), ["data.root=~nobody-here/x"], "kd"), tmp_path)


def test_a_file_that_is_no_recipe_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(Refused, match="so it is not a recipe"):
        load_recipe(tmp_path / "big.yaml")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_built_in_python_is_finite_too(value: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        KD(weight=1.0, temperature=value)


def test_a_long_value_is_cut_in_its_refusal() -> None:
    with pytest.raises(Refused, match=r"train\.epochs: .*\[\.\.\.\]") as caught:
        configure(recipe(), [f"train.epochs={'x' * 100_000}"], "kd")
    assert len(str(caught.value)) < 400


def test_prefetch_of_one_is_refused_where_it_is_written() -> None:
    with pytest.raises(Refused, match=r"data\.prefetch: .* greater than or equal to 2"):
        configure(recipe(), ["data.prefetch=1"], "kd")


def test_the_readme_says_how_many() -> None:
    said = f"{OVERRIDES + WORDS:,} overrides and {FILES} files, no traceback"
    assert said in (Path(__file__).parents[2] / "README.md").read_text()
