"""What is printed: names of classes, files and splits as they are, whatever they would mean to rich."""

from __future__ import annotations

import logging

import pytest

from ops.console import complain, console, print_traceback, say, table
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


COMMANDS = {"\x1b[2J": r"\x1b[2J", "\x1b]0;title\x07": r"\x1b]0;title\x07", "\x9b31m\x7f\r\x08": r"\x9b31m\x7f\x0d\x08"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_name_does_not_command_the_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.print(table(f"title {name}", [f"heading {name}"], [[f"cell {name}"]]))
    say(f"line {name}")
    complain(f"error {name}")
    try:
        raise ValueError(f"fault {name}")
    except ValueError:
        print_traceback()
    assert logging.lastResort is not None  # what prints a command's warnings
    logging.lastResort.handle(logging.makeLogRecord({"msg": "warning %s", "args": (name,)}))
    shown = "".join(capsys.readouterr())
    for place in ("title", "heading", "cell", "line", "error", "fault", "warning"):
        assert f"{place} {COMMANDS[name]}" in shown
    assert not set(shown) & {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))} - set("\n\t")


def test_lines_stay_lines_and_a_text_in_a_table_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("a:\n\tb")
    complain("an error\n  of two lines")
    console.print(table("", ["", ""], [["new\nline", "1\n±2"]]))
    shown = capsys.readouterr()
    assert shown.out.startswith("a:\n")
    assert shown.err == "stillhouse: an error of two lines\n"
    assert r"new\x0aline" in shown.out
    assert "1 │" in shown.out


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_shows_the_name_of_a_split(name: str) -> None:
    packing, indexing = _PackView(name), IndexProgress(show=False, what=name)
    with indexing.of(1):
        for bar, text in ((packing._bar, f"packing {name}"), (indexing._bar, f"indexing {name}")):
            with console.capture() as shown:
                console.print(bar.get_renderable())
            assert text in shown.get()
