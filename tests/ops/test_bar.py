"""The bar of a run at the widths that terminals have: what matters most is always there, and nothing is broken."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ops import console as console_module
from ops.bar import clock, fitted
from ops.console import RunView

STATE = {
    "phase": "training",
    "step": 120,
    "total_steps": 372,
    "train/loss": 2.2349,
    "train/top1": 0.153,
    "speed/images_per_second": 1185.2,
    "data/wait_share": 0.46,
}
SHOWN = {
    60: ["120/372", "eta", "loss 2.235"],
    80: ["120/372", "eta", "loss 2.235", "top-1 15.3%"],
    100: ["120/372", "eta", "loss 2.235", "top-1 15.3%", "1,185 images/s"],
    120: ["120/372", "eta", "loss 2.235", "top-1 15.3%", "1,185 images/s", "data wait 46%"],
    200: ["resnet34-resnet18-a-long-name: training", "120/372", "data wait 46%", "so far", "━━━"],
}


def screen(monkeypatch: pytest.MonkeyPatch, width: int, *states: dict) -> str:
    """What a terminal of a width shows of a run at last."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, highlight=False)
    monkeypatch.setattr(console_module, "console", terminal)
    view = RunView("resnet34-resnet18-a-long-name")
    for state in states:
        view(state, [])
    with terminal.capture() as captured:
        terminal.print(view.bar.get_renderable())
    return captured.get().rstrip("\n")


@pytest.mark.parametrize("width", SHOWN)
def test_what_matters_most_is_shown_at_every_width(width, monkeypatch):
    line = screen(monkeypatch, width, STATE)
    assert "\n" not in line
    assert len(line) < width
    places = [line.index(text) for text in SHOWN[width]]
    assert places == sorted(places) or width == 200


@pytest.mark.parametrize("width", [40, *SHOWN])
def test_a_run_that_starts_says_what_it_does(width, monkeypatch):
    line = screen(monkeypatch, width, {"phase": "building networks"})
    assert "\n" not in line
    assert line.startswith("resnet34-resnet18-a-long-name"[: width // 3])
    assert "so far" in line


def test_texts_are_left_out_from_the_end():
    assert fitted("name", ["1/2", "eta 0:01", "loss 2"], 40) == ("name", ["1/2", "eta 0:01", "loss 2"])
    assert fitted("name", ["1/2", "eta 0:01", "loss 2"], 25) == ("name", ["1/2", "eta 0:01"])
    assert fitted("a very long name", ["1/2"], 14) == ("a very l…", ["1/2"])


def test_seconds_are_read_as_a_clock():
    assert [clock(seconds) for seconds in (None, 5, 65.9, 3661)] == ["-:--", "0:05", "1:05", "1:01:01"]
