"""What is printed: names of classes, files and splits as they are, whatever they would mean to rich."""

from __future__ import annotations

import pytest

from ops.console import console, say, table
from ops.data import _PackView
from pipelines.data.describe import IndexProgress

NAMES = ("[/b]", "cat [copy].jpg", "[red]", ":cat:", r"end\ ".strip())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.print(table(f"title {name}", [f"heading {name}"], [[f"cell {name}"]]))
    say(f"line {name}")
    shown = capsys.readouterr().out
    for place in ("title", "heading", "cell", "line"):
        assert f"{place} {name}" in shown


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_shows_the_name_of_a_split(name: str) -> None:
    packing, indexing = _PackView(name), IndexProgress(show=False, what=name)
    with indexing.of(1):
        for bar, text in ((packing._bar, f"packing {name}"), (indexing._bar, f"indexing {name}")):
            with console.capture() as shown:
                console.print(bar.get_renderable())
            assert text in shown.get()
