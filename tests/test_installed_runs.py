"""Installed with pip into an environment of its own: a notebook's script, and the command, from somebody's folder.

Own network, loss and images; nothing of the checkout is on any path.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.own_code import write_own_code, write_own_images
from tests.wheel import ROOT, build_wheel, fresh_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NOTEBOOK = """
import stillhouse
import kdcore
from ops.notebook import build_cache, export, load, sweep, train

recipe, alone = load("recipe.yaml"), load("recipe.yaml", "scaling.num_workers=0")
(cache,) = build_cache(alone)
result = train(recipe)  # by a worker that Ray starts; all else but the sweep's trial is done here
points = sweep(alone, {"name": "scales", "space": {"method.0.scale": [0.5]}})
folder = export(result, "exported")
taught = [f"teacher.model=local-dir:{folder}", "teacher.args={}", "teacher.source=online"]
again = load("recipe.yaml", "name=again", "scaling.num_workers=0", *taught)
assert train(recipe).mlflow_run_id == result.mlflow_run_id  # finished: nothing is trained again
print("package", kdcore.__file__)
print("views", cache.plan.parts["train"].num_views)
print("top1", result.metrics["val/top1"], "points", sorted(point.point["method.0.scale"] for point in points))
print("again", train(again).steps)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """The folder of programs of an environment that the project is installed in."""
    folder = tmp_path_factory.mktemp("wheel")
    return fresh_environment(tmp_path_factory.mktemp("fresh") / "env", build_wheel(folder))


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_folder) -> Iterator[Path]:
    """A folder outside: own code, own images, and a recipe that knows them by relative paths."""
    folder = write_own_code(tmp_path_factory.mktemp("outside"))
    write_own_images(image_folder, folder / "images")
    recipe = {
        "name": "own",
        "plugins": ["./own_losses.py", "./own_nets.py", "./own_images"],
        "output_dir": "out",
        "data": {"root": "images", "num_threads": 1, "loader": "reference", "held_out": 0.25},
        "views": {"size": 16, "crop": "resized", "scale": [0.3, 1.0], "num_views": 2},
        "student": {"model": "own_nets:build"},
        "teacher": {"model": "own_nets:build", "args": {"width": 8}, "source": "cache"},
        "cache": {"dir": "cache", "dtype": "float32"},
        "method": [{"term": "logit_l1", "weight": 1.0}],
        "optimizer": {"opt": "sgd", "lr": 0.05},
        "train": {"epochs": 2, "batch_size": 8, "micro_batch": 4, "select": "held_out"},
        "scaling": {"num_workers": 1},
        "tracking": {"system_metrics": False, "every_steps": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "notebook.py").write_text(NOTEBOOK)
    yield folder
    shutil.rmtree(folder / "out", ignore_errors=True)


def run(place: Path, *command: str | Path) -> str:
    """Run a command in the folder outside, without anything of the checkout; return what it prints."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run([*map(str, command)], cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_notebook(programs, place):
    """Cache, run, sweep and export as objects; the export is a teacher; a worker with the person's own code."""
    said = run(place, programs / "python", "notebook.py").splitlines()
    found = dict(line.split(" ", 1) for line in said if line.split(" ", 1)[0] in ("package", "views", "top1", "again"))
    assert Path(found["package"]).is_relative_to(programs.parent)
    assert not Path(found["package"]).is_relative_to(ROOT)
    assert found["views"] == "2"
    assert found["top1"].endswith("points [0.5]")
    assert found["again"] == "8"
    assert {path.name for path in (place / "exported").iterdir()} >= {"model.onnx", "lineage.json", "README.md"}


def test_the_command(programs, place):
    """`stillhouse` does the same, and goes on with what the notebook has left; its runs are in its own process."""
    stillhouse = programs / "stillhouse"
    assert "logit_l1" in run(place, stillhouse, "show", "recipe.yaml")
    alone = "scaling.num_workers=0"  # workers of an installed project are the notebook's
    said = run(place, stillhouse, "train", "recipe.yaml", "name=typed", alone)
    assert "typed" in said
    assert "links verified" in " ".join(run(place, stillhouse, "lineage", "exported").split())
    run(place, stillhouse, "review", "stillhouse", "--store", "out", "-o", "review.html")
    assert "logit_l1" in (place / "review.html").read_text()
