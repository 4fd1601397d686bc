"""Class folders called like markup: the review page draws its figures and runs nothing, the model card shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from plotly import graph_objects as go

from ops.__main__ import main
from ops.export.markdown import as_block, as_code, as_text
from ops.review.figures import figure
from tests.conftest import small_recipe, write_image_folder

CHROMIUM = Path("/usr/bin/chromium")
NAMES = ("<!--", "<script>window.hacked=1", "<img src=x onerror=window.hacked=1>")
HOSTILE = (
    *NAMES,
    "</script>",
    "a|b",
    "`x`",
    "``",
    "*b* _i_ **s**",
    "[l](javascript:x)",
    "![i](x)",
    "&lt;",
    "# h",
    "$x$",
)


def shown(text: str) -> str:
    """What a reader of Markdown sees."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert not re.search(r"<(?!/?(p|code|pre|table|thead|tbody|tr|td|th|h1)\b)", html), html
    plain = re.sub(r"<[^>]*>", "", html)
    for entity, character in {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&amp;": "&"}.items():
        plain = plain.replace(entity, character)
    return plain.strip()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_markdown_stands_for_itself(name: str) -> None:
    assert shown(f"before {as_text(name)} after") == f"before {name} after"
    assert shown(f"before {as_code(name)} after") == f"before {name} after"
    assert shown(f"| a |\n|---|\n| {as_text(name)} |").split("\n")[-1].strip() in (name, "")


def test_a_block_of_code_is_ended_by_nothing_within() -> None:
    text = "a: |\n  ```\n  <script>\n````\nb: 1"
    assert shown(as_block(text, "yaml")) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_figure_has_no_markup_of_a_page(name: str) -> None:
    made = figure("k", name, "note", [go.Scatter(x=[1], y=[2], name=name)])
    assert "<" not in made.json
    assert json.loads(made.json)["data"][0]["name"] == name


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on images of such classes, with its model card and its review page."""
    folder = tmp_path_factory.mktemp("pages")
    images = write_image_folder(folder / "images", train=8, val=4)
    for split in ("train", "val"):
        for number, name in enumerate(NAMES):
            (images / split / f"class{number}").rename(images / split / name)
    recipe = small_recipe(images, folder / "out", scaling={"num_workers": 0}, views__size=32, train__epochs=1)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    assert main(["evaluate", str(folder / "out" / "run")]) == 0
    assert main(["export", str(folder / "out" / "run"), "-o", str(folder / "exported"), "--images", "4"]) == 0
    words = ["review", "stillhouse", "--store", str(folder / "out"), "-o", str(folder / "page.html")]
    assert main([*words, "--compare", "run", "run"]) == 0
    return folder


@pytest.mark.slow
def test_the_model_card_shows_the_names(written: Path) -> None:
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render((written / "exported/README.md").read_text())
    known = "h1 h2 p table thead tbody tr th td details summary pre code ul li br"
    assert set(re.findall(r"<(?!/)(\w+)", html)) <= set(known.split())
    for name in NAMES:
        assert name.replace("<", "&lt;").replace(">", "&gt;") in html


@pytest.fixture
def tab() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is absent: no browser to look at the page with")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


@pytest.mark.slow
def test_the_review_page_in_a_browser(written: Path, tab: Any) -> None:
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto((written / "page.html").as_uri())
    figures = tab.locator("script[data-figure]").count()
    assert figures > 0
    tab.wait_for_function(f"document.querySelectorAll('svg.main-svg').length >= {figures}", timeout=60_000)
    assert tab.evaluate("window.hacked") is None
    assert complaints == []
