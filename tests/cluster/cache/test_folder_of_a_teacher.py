"""A cached teacher that is the network in a folder: compared where the folder is here, taken as stored elsewhere."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.rank import Rank
from cluster.recipe.reading import parse
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model

CPU = torch.device("cpu")
CLASSES = ("class0", "class1", "class2")


def write_teacher(folder, seed: int) -> None:
    torch.manual_seed(seed)
    network = build_model(ModelConfig(model="cifar_resnet8"), CLASSES)
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    facts = {"architecture": "cifar_resnet8", "num_classes": 3, "label_names": CLASSES}
    (folder / "config.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("home", [False, True])
def test_its_folder_may_be_elsewhere(recipe, tmp_path, monkeypatch, home):
    """A machine that had the cache alone was told that the cache belonged to something else."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "exported"
    write_teacher(folder, seed=1)

    def config(source: str):
        return parse(
            recipe(
                teacher={"model": "local-dir:~/exported" if home else f"local-dir:{folder}", "source": source},
                method=[{"term": "kd", "weight": 1.0, "temperature": 4.0}],
                views__num_views=1,
                cache={"dir": str(tmp_path / "cache"), "batch_size": 4},
                data__loader="reference",
                scaling__num_workers=0,
            )
        )

    build(config("online"))
    assert assemble(config("cache"), Rank(0, 1, CPU)).teachers.stored
    write_teacher(folder, seed=2)
    with pytest.raises(Refused, match=r"teacher\.weights"):
        assemble(config("cache"), Rank(0, 1, CPU))
    shutil.rmtree(folder)
    assert assemble(config("cache"), Rank(0, 1, CPU)).teachers.stored
