"""The walk-through of ops/README.md: every line of it is run, in an empty folder; the sweep, which needs Ray, apart."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import huggingface_hub._commit_api
import pytest

from ops.__main__ import main
from ops.export.files import NEEDED
from tests.ops.hub import TOKEN, hub_server

PAGE = Path(__file__).parents[2] / "ops" / "README.md"
FILES = {"python": "shapes.py", "yaml": "space.yaml"}  # what its blocks are kept as
LEFT = ("views.png", "outputs/teacher", "outputs/alone", "outputs/kd", "seen.png", "review.html", "student/model.onnx")


def walk_through() -> str:
    """The section's text."""
    return PAGE.read_text().split("## A walk-through\n")[1].split("\n## ")[0]


def lines() -> list[list[str]]:
    """The words of every line of indented code, those that end in a backslash joined with the next."""
    outside = re.sub(r"```.*?```", "", walk_through(), flags=re.DOTALL).replace("\\\n", " ")
    return [shlex.split(line) for line in outside.splitlines() if line.startswith("    ")]


def is_sweep(words: list[str]) -> bool:
    return "sweep" in words


def run(words: list[str]) -> None:
    """Run `python -m ops ...` in this process, and any other line as it stands."""
    assert words[0] == "python"
    if words[1:3] == ["-m", "ops"]:
        assert main(words[3:]) == 0, shlex.join(words)
    else:
        subprocess.run([sys.executable, *words[1:]], check=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, which has the files that the section's blocks are kept as."""
    monkeypatch.chdir(tmp_path)
    for kind, content in re.findall(r"```(\w+)\n(.*?)```", walk_through(), re.DOTALL):
        Path(FILES[kind]).write_text(content)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_line_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(lines()) == 15
    with hub_server() as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub._commit_api, "is_xet_available", lambda: False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        for words in lines():
            if not is_sweep(words):
                run(words)
        assert all(Path(name).exists() for name in LEFT)
        assert set(hub.repositories["me/shapes"].files) == set(NEEDED)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_sweep_is_run(ray_cluster: None) -> None:
    """Behind what it needs: the images and the teacher, of fewer epochs than `test_every_line_is_run` gives it."""
    needed = [words for words in lines() if "shapes.py" in words or "teacher" in words]
    (sweep,) = filter(is_sweep, lines())
    assert len(needed) == 2
    for words in (*needed, sweep):
        run(["train.epochs=2" if word.startswith("train.epochs=") else word for word in words])
    assert Path("outputs/answers/manifest.json").exists()
    assert len(list(Path("outputs/temperatures").glob("*/result.json"))) == 2
