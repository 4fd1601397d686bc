"""What the READMEs and CONTRIBUTING name exists, and every command that they show would be taken."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.sweep.config import SweepConfig
from ops import catalog
from ops.__main__ import main
from ops.command_line.parser import COMMANDS, build_parser

ROOT = Path(__file__).parents[1]
PACKAGES = ("kdcore", "pipelines", "cluster", "ops")
PAGES = (
    *("README.md", "CONTRIBUTING.md", "cluster/deploy/README.md"),
    *(f"{package}/README.md" for package in PACKAGES),
)
TREE = re.compile(rf"(?<![\w/.~-])((?:{'|'.join(PACKAGES)}|tests)/[\w./-]+)(?:::(\w+))?")
MODULE = re.compile(rf"(?<![\w/.-])((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?![\w/-])")
LINK = re.compile(r"\]\(([^)#]+)\)")
COMMAND = re.compile(r"python -m ops (.*)$")
RECIPE = "kd"  # stands for RECIPE


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def code_lines(page: str) -> Iterator[str]:
    """Yield every line of indented code, those that end in a backslash joined with the next."""
    for line in text_of(page).replace("\\\n", " ").splitlines():
        if line.startswith("    "):
            yield line.strip()


def spans(page: str) -> Iterator[str]:
    yield from (" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text_of(page)))


def exists(module: str) -> bool:
    """Return whether a dotted name is a module, or something that a module has."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if (ROOT / name.replace(".", "/")).is_dir() or (ROOT / f"{name.replace('.', '/')}.py").is_file():
            found = importlib.import_module(name)
            for attribute in parts[end:]:
                if not hasattr(found, attribute):
                    return False
                found = getattr(found, attribute)
            return True
    return False


def words_of(command: str) -> list[str]:
    """Return the words behind `python -m ops`, without comments and what stands in brackets or for more."""
    words = shlex.split(re.sub(r"\[[^]]*\]|\.\.\.", "", command), comments=True)
    return [RECIPE if word == "RECIPE" else word for word in words]


def commands(page: str) -> Iterator[list[str]]:
    for line in (*code_lines(page), *spans(page)):
        words = words_of(found[1]) if (found := COMMAND.search(line)) else []
        if words not in ([], ["COMMAND"]):
            yield words


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_links_lead_somewhere(page):
    wrong = [path for path, _ in TREE.findall(text_of(page)) if not (ROOT / path.rstrip(".")).exists()]
    wrong += [link for link in LINK.findall(text_of(page)) if not (ROOT / page).parent.joinpath(link).exists()]
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_are_there(page):
    named = [(path, test) for path, test in TREE.findall(text_of(page)) if test]
    assert not [f"{path}::{test}" for path, test in named if f"def {test}(" not in (ROOT / path).read_text()]


@pytest.mark.parametrize("page", PAGES)
def test_modules_exist(page):
    assert not [name for name in MODULE.findall(text_of(page)) if not exists(name)]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_taken(page):
    """Each is parsed as it stands; its recipe and `key=value` are read as the command reads them."""
    parser = build_parser()
    for words in commands(page):
        assert words[0] in COMMANDS, f"{page}: python -m ops {shlex.join(words)}"
        if len(words) == 1:
            continue  # a command is spoken of
        args = parser.parse_args(words)
        if words[0] == "submit":
            args = parser.parse_args(args.job)
        if getattr(args, "recipe", None):
            catalog.load(args.recipe, args.overrides)


@pytest.mark.parametrize("page", ["cluster/README.md", "cluster/deploy/README.md"])
def test_jobs_that_are_shown_would_be_sent(page, monkeypatch):
    """What `submit` refuses before it asks the cluster is not shown as an example, nor given to Ray's own command."""
    sent = []
    monkeypatch.setattr("ops.submit.submit_job", lambda address, command, *rest: sent.append(command) or 0)
    shown = [words for words in commands(page) if words[0] == "submit" and len(words) > 1]
    for line in code_lines(page):
        if "ray job submit" in line and (found := COMMAND.search(line)):
            shown.append(["submit", "--address", "http://HEAD:8265", "--", *words_of(found[1])])
    assert shown
    for words in shown:
        assert main(words) == 0, shlex.join(words)
    assert all(command[:4] == ["python", "-m", "ops", "train"] for command in sent)


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_are_run_can_be_run(page):
    for name in re.findall(r"python -m (ops\.[\w.]+\w)", text_of(page)):
        assert 'if __name__ == "__main__":' in (ROOT / f"{name.replace('.', '/')}.py").read_text(), name


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_exist(page):
    targets = re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)
    shown = [*code_lines(page), *spans(page)]
    assert not [line for line in shown if (found := re.match(r"make ([a-z-]+)", line)) and found[1] not in targets]


@pytest.mark.parametrize("page", PAGES)
def test_sweeps_that_are_shown_are_sweeps(page):
    for block in re.findall(r"```yaml\n(.*?)```", text_of(page), re.DOTALL):
        SweepConfig.model_validate(yaml.safe_load(block))


def test_the_table_has_every_command():
    build_parser()
    rows = re.findall(r"^\| `(\w+)", text_of("README.md"), re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


def test_the_top_page_is_short():
    assert len(text_of("README.md").splitlines()) <= 160


@pytest.mark.parametrize("package", PACKAGES)
def test_a_packages_page_names_its_wings(package):
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    rows = re.findall(rf"^\| `{package}\.(\w+)`", text_of(f"{package}/README.md"), re.MULTILINE)
    assert sorted(rows) == sorted(folders)


@pytest.mark.parametrize(
    ("name", "there"), [("kdcore.batch", True), ("kdcore.batch.Needs", True), ("kdcore.batch.Want", False)]
)
def test_what_exists_means(name, there):
    assert exists(name) is there
