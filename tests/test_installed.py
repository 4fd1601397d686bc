"""Installed from a checkout, the project is one name beside other distributions, and its command is its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ops import installed
from tests.wheel import ROOT, build_wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of installed packages: ours as a wheel has it, and another distribution's `ops` and `cluster`."""
    folder = tmp_path_factory.mktemp("installed")
    site = folder / "site"
    with zipfile.ZipFile(build_wheel(folder)) as file:
        file.extractall(site)
    for other in ("ops", "cluster"):
        (site / other).mkdir()
        (site / other / "__init__.py").write_text("raise SystemError('the other distribution was imported')")
    return site


def python(site: Path, code: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site.parent,
        env={**env, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_is_one_name(site):
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"stillhouse", "ops", "cluster"}
    entry = next(site.glob("*.dist-info")) / "entry_points.txt"
    assert "stillhouse = stillhouse:main" in entry.read_text()
    listed = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ops").rglob("*.yaml")}
    assert {path for path in listed if not (site / "stillhouse" / path).is_file()} == set()


@pytest.mark.slow
def test_the_command_and_the_packages_are_ours(site):
    code = "import sys; sys.argv = ['stillhouse', 'recipes', 'kd']; import stillhouse; sys.exit(stillhouse.main())"
    assert "term: kd" in python(site, code)
    shown = "print(kdcore.__file__, load('kd', 'data.root=x').name)"
    code = f"import stillhouse; from ops.notebook import load; import kdcore; {shown}"
    file, name = python(site, code).split()
    assert Path(file).is_relative_to(site)
    assert name == "kd"


def test_in_a_checkout_nothing_is_moved():
    before = list(sys.path)
    installed._go_first()
    assert sys.path == before
