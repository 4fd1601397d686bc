"""The shape of the tree: who may import whom, what things are called, what is packaged and pinned."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each package imports itself and what stands to its right in ops -> cluster -> pipelines -> kdcore.
OWN = {
    "kdcore": {"kdcore"},
    "pipelines": {"pipelines", "kdcore"},
    "cluster": {"cluster", "pipelines", "kdcore"},
    "ops": {"ops", "cluster", "pipelines", "kdcore"},
}
KDCORE = {"torch", "timm", "torchvision.models", "huggingface_hub", "safetensors", "numpy", "pydantic"}
PIPELINES = KDCORE | {"torchvision", "nvidia.dali", "pyarrow", "PIL"}
CLUSTER = PIPELINES | {"ray", "mlflow"}
THIRD_PARTY = {"kdcore": KDCORE, "pipelines": PIPELINES, "cluster": CLUSTER}  # ops: anything declared
EXCEPTIONS = {
    "pipelines/data/describe.py": {"rich"},  # the progress bar of an index that takes minutes to build
    "pipelines/data/tables.py": {"scipy"},  # MATLAB's file of classes in ImageNet's development kit
    "cluster/nodes/start.py": {"psutil"},  # what a Ray that did not start has left
    "cluster/recipe/strict_yaml.py": {"yaml"},
    "cluster/tracking/tensorboard_tracker.py": {"tensorboardX"},  # its event files
}
FOUNDATIONS = {"cluster.recipe", "cluster.teachers", "cluster.nodes"}  # the wings that cluster's own modules stand on
# Wings, the folders within a package: each imports of its siblings only these.
WINGS = {
    "kdcore.networks": set(),
    "kdcore.terms": set(),
    "kdcore.quality": {"kdcore.terms"},
    "pipelines.views": set(),
    "pipelines.data": {"pipelines.views"},
    "pipelines.loaders": {"pipelines.data", "pipelines.views"},
    "pipelines.cache": set(),
    "cluster.recipe": set(),
    "cluster.teachers": {"cluster.recipe"},
    "cluster.nodes": {"cluster.recipe"},
    "cluster.tracking": {"cluster.recipe"},
    "cluster.training": {*FOUNDATIONS, "cluster.tracking"},
    "cluster.cache": {*FOUNDATIONS, "cluster.training"},
    "cluster.sweep": {*FOUNDATIONS, "cluster.cache", "cluster.tracking", "cluster.training"},
    "ops.cifar100": set(),
    "ops.command_line": set(),
    "ops.installed": set(),
    "ops.sweep": set(),
    "ops.evaluation": set(),
    "ops.doctor": set(),
    "ops.capacity": {"ops.command_line"},
    "ops.export": {"ops.command_line", "ops.evaluation"},
    "ops.demo": {"ops.export"},
    "ops.review": {"ops.evaluation", "ops.export"},
    "ops.reproduce": {"ops.cifar100", "ops.command_line", "ops.review"},
    "ops.benchmarks": {"ops.capacity", "ops.cifar100", "ops.demo", "ops.doctor", "ops.evaluation", "ops.reproduce"},
}
# Modules of cluster below its other wings that import one nonetheless.
ABOVE_WINGS = {
    "cluster.forecast": {"cluster.training"},  # it times a run's own steps
}
# What a benchmark measures itself against, where somebody has it.
PEERS = {"ops/benchmarks/image_subjects.py": {"webdataset", "streaming", "litdata"}}
REQUIREMENTS = ("requirements.txt", "requirements-uv.txt")


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, wherever in the file, by its full dotted name."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path)}:{node.lineno}: write imports in full"
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(found)


@cache
def providers() -> Mapping[str, list[str]]:
    """{what can be imported here: the distributions that bring it}."""
    return packages_distributions()


def top(module: str) -> str:
    return module.partition(".")[0]


def is_within(module: str, allowed: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in allowed)


def third_party(path: Path) -> set[str]:
    return {m for m in imports(path) if top(m) not in OWN and top(m) not in sys.stdlib_module_names}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def normalised(requirement: str) -> str:
    """The distribution's name in a requirement, as the registries compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


@cache
def declared() -> set[str]:
    found = project()["project"]
    extras = found["optional-dependencies"].values()
    return {normalised(one) for group in (found["dependencies"], *extras) for one in group}


@pytest.mark.parametrize("package", OWN)
def test_imports_go_in_one_direction(package):
    assert sources(package)
    wrong = [
        f"{place(path)}: {module}"
        for path in sources(package)
        for module in imports(path)
        if (top(module) in OWN or top(module) == "tests") and top(module) not in OWN[package]
    ]
    assert not wrong


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_each_package_keeps_to_its_libraries(package):
    wrong = [
        f"{place(path)}: {module}"
        for path in sources(package)
        for module in sorted(third_party(path))
        if not is_within(module, THIRD_PARTY[package] | EXCEPTIONS.get(place(path), set()))
    ]
    assert not wrong


@pytest.mark.parametrize("path", EXCEPTIONS)
def test_exceptions_are_still_needed(path):
    package = top(path.replace("/", "."))
    for library in EXCEPTIONS[path]:
        assert any(is_within(module, {library}) for module in third_party(ROOT / path))
        assert not is_within(library, THIRD_PARTY[package])


@pytest.mark.parametrize("package", [*OWN, "tests"])
def test_every_library_in_use_is_declared(package):
    undeclared = {
        f"{place(path)}: {module}"
        for path in sources(package)
        for module in third_party(path)
        if top(module) not in {"tests", "conftest"} | PEERS.get(place(path), set())
        and not declared() & {normalised(one) for one in providers().get(top(module), [])}
    }
    assert not undeclared


def unit(module: str) -> str:
    """The wing, or the module directly within a package, that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2])


def arrows(package: str) -> dict[str, set[str]]:
    """{unit of a package: the units of it that it imports}."""
    found: dict[str, set[str]] = {}
    for path in sources(package):
        here = unit(place(path).removesuffix(".py").replace("/", "."))
        there = {unit(module) for module in imports(path) if top(module) == package and "." in module}
        found.setdefault(here, set()).update(there - {here})
    return found


@pytest.mark.parametrize("package", OWN)
def test_wings_import_in_one_direction(package):
    wings = {wing for wing in WINGS if top(wing) == package}
    folders = {f"{package}.{path.name}" for path in (ROOT / package).iterdir() if (path / "__init__.py").is_file()}
    assert wings == folders
    found = arrows(package)
    assert {
        wing: sorted((found[wing] & wings) - WINGS[wing]) for wing in wings if (found[wing] & wings) - WINGS[wing]
    } == {}


def test_clusters_own_modules_import_only_the_wings_below_them():
    wings, found = {wing for wing in WINGS if top(wing) == "cluster"}, arrows("cluster")
    above = wings - FOUNDATIONS
    assert {module: found[module] & above for module in found.keys() - wings if found[module] & above} == ABOVE_WINGS


@pytest.mark.parametrize("package", OWN)
def test_no_circle_of_imports_within_a_package(package):
    """Wings and single modules alike."""
    order = graphlib.TopologicalSorter(arrows(package))
    order.prepare()  # raises CycleError, naming the circle


def test_no_module_is_named_like_a_top_level_library():
    libraries = set(sys.stdlib_module_names) | set(providers()) - OWN.keys()
    names = {
        place(path): path.parent.name if path.stem == "__init__" else path.stem for p in OWN for path in sources(p)
    }
    assert not [path for path, name in names.items() if name in libraries]


@pytest.mark.parametrize("package", OWN)
def test_the_packages_are_this_trees(package):
    """Other distributions bring packages of these names; installed over ours, they would be imported unnoticed."""
    assert Path(importlib.import_module(package).__file__).parent == ROOT / package
    assert set(providers().get(package, [])) <= {"stillhouse"}


def test_every_package_is_listed_for_packaging():
    listed = project()["tool"]["setuptools"]["packages"]
    found = {place(path.parent).replace("/", ".") for p in OWN for path in sources(p) if path.name == "__init__.py"}
    installed = {"stillhouse"} | {f"stillhouse.{name}" for name in found - {"ops.installed"}}
    assert sorted(listed) == sorted(installed)


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for package in OWN for path in sources(package)}
    assert not [place(folder) for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize("package", [*OWN, "tests"])
def test_a_file_of_more_than_300_lines_is_two(package):
    assert not [place(path) for path in sources(package) if len(path.read_text().splitlines()) > 300]


def test_no_lock_file_with_addresses_is_kept():
    assert "uv.lock" in (ROOT / ".gitignore").read_text().splitlines()


def pins(name: str) -> list[str]:
    """The entries of a requirements file, each on one line and without comments."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_pin_is_exact_and_has_hashes(name):
    entry = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?==[\w.!+]+( ; [^\\#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*")
    assert pins(name)
    assert not [line[:80] for line in pins(name) if not entry.fullmatch(line)]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_name_no_address(name):
    assert "://" not in (ROOT / name).read_text()
    assert not [line for line in pins(name) if line.startswith("-")]


def test_every_declared_dependency_is_pinned():
    pinned = {normalised(line) for line in pins("requirements.txt")}
    assert not declared() - pinned
