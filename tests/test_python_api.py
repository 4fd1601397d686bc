"""The Python that the READMEs show runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import small_recipe

ROOT = Path(__file__).parents[1]


def run_block(page: str, section: str = "", **names: Any) -> dict[str, Any]:
    """Run the Python of a page, or of a section of it, with these names known to it; return what it has defined."""
    text = (ROOT / page).read_text()
    text = text[text.index(section) :].partition("\n## ")[0] if section else text
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(compile(block, page, "exec"), names)
    return names


@pytest.fixture
def here(tmp_path, image_folder, monkeypatch) -> Path:
    """A working directory with images and a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(image_folder)
    recipe = small_recipe(tmp_path / "images", tmp_path / "out", data__held_out=0.25, data__loader="reference")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def test_kdcore_alone():
    """The student changes, and its teacher does not."""
    batch = (torch.randn(4, 3, 64, 64), torch.arange(4), torch.arange(4))
    names = run_block("kdcore/README.md", loader=[batch, batch])
    assert names["step"].terms.keys() == {"ce", "kd"}
    assert all(p.grad is None for p in names["teacher"].parameters())


def test_pipelines_alone(here, capsys):
    run_block("pipelines/README.md")
    assert capsys.readouterr().out.count("torch.Size([8, 3, 32, 32])") == 3


def test_a_run(here):
    names = run_block("cluster/README.md", "## From Python")
    assert names["result"].steps == 4
    assert (here / "out" / "run" / "student.safetensors").is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_a_notebook(here, ray_cluster):
    """Trains, then sweeps; both give objects. In one process and in those of trials: the installed one has workers."""
    recipe = yaml.safe_load((here / "recipe.yaml").read_text())
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"scaling": {"num_workers": 0}}))
    names = run_block("ops/README.md", "## From a notebook")
    assert names["result"].run_dir == str(here / "out" / "run")
    assert len(names["found"]) == 2
    assert names["found"][0].point.keys() == {"optimizer.lr"}
    assert names["found"][0].mean >= names["found"][1].mean
