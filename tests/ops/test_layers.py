import json
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from torch import Tensor, nn

from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from kdcore.quality.score import Quality
from kdcore.terms import Pair, parse_term
from ops.__main__ import main
from ops.layers import plot, recommendation_yaml, render_table

QUALITY = {
    "layer1.0": Quality(0.125, 0.25, 1.0, samples=5000, dims=16384, effective_dims=12.25),
    "layer2.0": Quality(0.5, 0.09, 1.0, samples=5000, dims=8192, effective_dims=30.5),
}
PAIRS = (Pair(student="blocks.0", teacher="layer1.0"), Pair(student="blocks.3", teacher="layer2.0"))


def printed(table) -> list[str]:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_the_table_has_every_figure_of_every_tap_in_order():
    lines = printed(render_table(QUALITY, PAIRS[1:]))
    assert "5,000 images" in lines[0]
    first, second = (line for line in lines if "layer" in line and "quality" not in line)
    assert first.replace("│", " ").split() == ["layer1.0", "16,384", "12.2", "0.1250", "0.2500", "1.0000", "0.6250"]
    assert second.replace("│", " ").split()[-3:] == ["1.0000", "0.8000", "blocks.3"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_written_in_the_format_of_its_name(tmp_path, suffix):
    path = tmp_path / f"layers.{suffix}"
    plot(QUALITY, path, PAIRS[:1])
    head = path.read_bytes()
    assert head.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in head


def test_the_recommendation_is_a_method_that_a_recipe_accepts():
    method = yaml.safe_load(recommendation_yaml(PAIRS))["method"]
    features, labels = (parse_term(term) for term in method)
    assert (features.term, features.weight, features.pairs) == ("feature_only", 1, PAIRS)
    assert (labels.term, labels.weight) == ("ce", 1)
    assert features.needs().detach_head_at == "blocks.3"
    assert features.needs().teacher_taps == {"layer1.0", "layer2.0"}


def test_no_pair_is_refused():
    with pytest.raises(Refused, match="no pair"):
        recommendation_yaml(())


class Plain(nn.Module):
    """A network without a block: its activations are functions, no modules."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem, self.body, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(images).relu()).relu().mean((2, 3)))


@pytest.fixture
def of_other_classes(recipe, tmp_path) -> Path:
    """A recipe whose teacher answers with other classes than the data's."""
    torch.manual_seed(0)
    network = build_model(ModelConfig(model="cifar_resnet8"), [str(number) for number in range(21)])
    torch.save(network.state_dict(), tmp_path / "21.pt")
    teacher = {"model": "cifar_resnet8", "checkpoint": str(tmp_path / "21.pt")}
    kd = [{"term": "kd", "weight": 1.0, "temperature": 4.0}]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(teacher=teacher, method=kd, data__loader="reference")))
    return path


def test_a_teacher_of_other_classes_is_scored(of_other_classes, tmp_path, capsys):
    """As it is with its head taken off: the scores read features and the data's labels."""
    words = ["layers", str(of_other_classes), "--images", "30", "--output"]
    assert main([*words, str(tmp_path / "scored")]) == 0
    assert "scored without its classifier, which is absent or for other classes" in capsys.readouterr().out
    features = "method=[{term: fitnet, weight: 1, pairs: [{student: layer1, teacher: layer1}]}]"
    assert main([*words, str(tmp_path / "headless"), "teacher.head=none", features]) == 0
    assert "without its classifier" not in capsys.readouterr().out
    scored, headless = (json.loads((tmp_path / name / "layers.json").read_text()) for name in ("scored", "headless"))
    assert list(scored) == ["act1", "layer1.0", "layer2.0", "layer3.0"]
    assert scored == headless


def test_what_is_wrong_with_a_teacher_is_said_as_ever(of_other_classes, capsys):
    assert main(["layers", str(of_other_classes), "teacher.model=cifar_resnet14"]) == 2
    assert "21.pt does not fit cifar_resnet14 with 3 classes" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("who", "option"), [("teacher", "--taps"), ("student", "--student-taps")])
def test_a_network_without_blocks(of_other_classes, who, option, capsys):
    """Not scored over 0 taps, nor after the features of the other are collected."""
    network = f"{who}={{model: '{__name__}:Plain'}}"
    assert main(["layers", str(of_other_classes), network, "method=[{term: ce, weight: 1}]"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"no blocks are found in {__name__}:Plain; name the layers to score, in depth order: {option}" in said
    assert "(of stem, body, fc, ...)" in said
