"""Somebody's own network, loss and images, from a folder outside: trained, cached, swept, exported, reviewed.

Nothing of the project is changed for it, and each step is the command that a person types.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from kdcore.checkpoints import load_tensors
from ops.__main__ import main
from tests.own_code import write_own_code, write_own_images

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def own(tmp_path_factory, image_folder) -> Iterator[Path]:
    """The folder: code, images in its own form, a recipe, and a space to sweep."""
    folder = tmp_path_factory.mktemp("own")
    write_own_code(folder)
    write_own_images(image_folder, folder / "images")
    recipe = {
        "name": "own",
        "plugins": [str(folder / name) for name in ("own_losses.py", "own_nets.py", "own_images")],
        "output_dir": str(folder / "out"),
        "data": {"root": str(folder / "images"), "num_threads": 1, "loader": "reference", "held_out": 0.25},
        "views": {"size": 16, "crop": "resized", "scale": [0.3, 1.0], "num_views": 2},
        "student": {"model": "own_nets:build"},
        "teacher": {"model": "own_nets:build", "args": {"width": 8}},
        "cache": {"dir": str(folder / "cache"), "dtype": "float32"},
        "method": [{"term": "logit_l1", "weight": 1.0}],
        "optimizer": {"opt": "sgd", "lr": 0.05},
        "train": {"epochs": 2, "batch_size": 8, "micro_batch": 4, "select": "held_out"},
        "scaling": {"num_workers": 1},
        "tracking": {"system_metrics": False, "every_steps": 2},
    }
    teacher = {**recipe, "name": "teacher", "method": [{"term": "ce", "weight": 1.0}], "train": recipe["train"]}
    teacher["student"] = recipe["teacher"]
    teacher["scaling"] = {"num_workers": 0}
    del teacher["teacher"], teacher["cache"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    (folder / "space.yaml").write_text(yaml.safe_dump({"name": "swept", "space": {"method.0.scale": [0.5, 1.0]}}))
    yield folder
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_from_a_folder_outside(own, ray_cluster, capsys):
    """Teacher, export, cache, student from it and online, sweep, review: without a change here."""
    recipe, exported = str(own / "recipe.yaml"), own / "exported"
    assert main(["train", str(own / "teacher.yaml")]) == 0
    assert main(["export", str(own / "out" / "teacher"), "-o", str(exported)]) == 0
    teacher = f"teacher.model=local-dir:{exported}"
    args = "teacher.args={}"
    assert main(["cache", "build", recipe, teacher, args]) == 0
    assert main(["cache", "verify", recipe, teacher, args]) == 0
    assert main(["train", recipe, teacher, args, "teacher.source=cache"]) == 0
    assert main(["train", recipe, teacher, args, "name=online"]) == 0
    first, second = (load_tensors(own / "out" / name / "student.safetensors") for name in ("own", "online"))
    assert all(torch.equal(first[name], second[name]) for name in first)

    facts = json.loads((own / "out" / "own" / "facts.json").read_text())
    assert set(facts["plugins"]) == {"own_losses", "own_nets", "own_images"}
    capsys.readouterr()
    alone = ["teacher.source=cache", "scaling.num_workers=0"]  # in the processes of its trials
    assert main(["sweep", recipe, "--space", str(own / "space.yaml"), teacher, args, *alone]) == 0
    assert "2" in capsys.readouterr().out
    assert main(["evaluate", str(own / "out" / "own"), "scaling.num_workers=0"]) == 0
    assert main(["export", str(own / "out" / "own"), "-o", str(own / "student")]) == 0
    capsys.readouterr()
    assert main(["lineage", str(own / "student")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "5 of 5 links verified" in shown  # export, run, cache, the teacher's export, its run
    page = own / "review.html"
    assert main(["review", "stillhouse", "--store", str(own / "out"), "-o", str(page)]) == 0
    assert "logit_l1" in page.read_text()
