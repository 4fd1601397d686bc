"""Networks by name: a person's function, torchvision, the hub, a folder; and what a network must have."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from kdcore import named_models
from kdcore.batch import Batch
from kdcore.configs import ModelConfig
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.local_dir import LocalDir
from kdcore.models import build_backbone, build_model, classifier_of, input_statistics
from kdcore.named_models import module_of, names_if_unknown, short_name
from kdcore.online_teacher import OnlineTeacher
from kdcore.taps import FeatureTaps
from kdcore.terms import parse_term
from tests.counted_names import CountedName, counted_names

CLASSES = ("ant", "bee", "cat")


pytestmark = pytest.mark.usefixtures("own_nets")


def build(model: str, classes: tuple[str, ...] = CLASSES, **fields) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(model=model, **fields), classes)


def write_folder(folder: Path, network: nn.Module, architecture: str, classes: tuple[str, ...], **more) -> str:
    folder.mkdir()
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    found = {"architecture": architecture, "num_classes": len(classes), "label_names": list(classes), **more}
    (folder / "config.json").write_text(json.dumps(found))
    return f"local-dir:{folder}"


def test_forms_of_names():
    assert module_of("my_package.nets:build") == "my_package.nets"
    assert module_of("nets:Nets.build") == "nets"
    for other in ("resnet50", "resnet50.a1_in1k", "torchvision:resnet18", "local-dir:out", "hf-hub:timm/x"):
        assert module_of(other) is None
    names = ("resnet50", "a.b:build", "local-dir:/x/out", "hf-hub:timm/r18", "torchvision:r")
    assert [short_name(name) for name in names] == ["resnet50", "build", "out", "r18", "r"]


def test_a_network_in_plain_torch():
    """It trains, is tapped at any module, and its one linear layer with K outputs is its classifier."""
    network = build("own_nets:build", args={"width": 6})
    assert network.num_classes == 3
    assert classifier_of(network) is network.out
    assert input_statistics(network) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = torch.randn(4, 3, 16, 16)
    logits, features = FeatureTaps(network, ["body", "classifier_input"])(images)
    assert torch.equal(logits, network(images))
    assert features["classifier_input"].shape == (4, 12)
    with pytest.raises(Refused, match="Small has no forward_features and forward_head, so no tap 'forward_features'"):
        FeatureTaps(network, ["forward_features"])
    with pytest.raises(Refused, match="Small has no tap 'bodi'; did you mean body"):
        FeatureTaps(network, ["bodi"])


def test_a_network_in_plain_torch_that_timm_lists(monkeypatch):
    """What is registered with timm, and says nothing of itself, is as good as the same function by its name."""
    own = named_models.builder_of("own_nets:build")

    def own_small(pretrained, pretrained_cfg, pretrained_cfg_overlay, cache_dir, **args):
        return own(**args)

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "own_small", own_small)
    network = build("own_small", args={"width": 6})
    assert network.num_classes == 3
    assert classifier_of(network) is network.out
    assert input_statistics(network) == input_statistics(build("own_nets:build", args={"width": 6}))


def test_it_is_distilled_and_teaches():
    """Gradients reach it as a student; as a teacher its features and classifier are read."""
    student, teacher = build("own_nets:build"), build("own_nets:build", args={"width": 8})
    terms = [
        parse_term({"term": "kd", "weight": 1.0, "temperature": 2.0}),
        parse_term({"term": "fitnet", "weight": 1.0, "pairs": [{"student": "body", "teacher": "body"}]}),
    ]
    needs = terms[0].needs() | terms[1].needs()
    distiller = Distiller(
        student, terms, image_size=(16, 16), num_samples=4, teacher=OnlineTeacher(teacher, needs), num_epochs=1
    )
    batch = Batch(torch.randn(4, 3, 16, 16), torch.arange(4) % 3, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    distiller(batch).loss.backward()
    assert all(p.grad is not None for p in student.parameters())


def test_torchvision():
    import torchvision

    network = build("torchvision:resnet18")
    torch.manual_seed(0)
    own = torchvision.models.resnet18(num_classes=3)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), own.state_dict().values(), strict=True))
    assert classifier_of(network) is network.fc
    assert classifier_of(build("torchvision:mobilenet_v3_small")).out_features == 3
    with pytest.raises(Refused, match="unknown model 'torchvision:resnet19'; did you mean resnet18"):
        build("torchvision:resnet19")


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("mobilenet_v3_small", 1024)])
def test_a_headless_network_of_torchvision_gives_its_features(tmp_path, name, width):
    """torchvision itself would give its last layer no outputs. The classifier in a file is left out."""
    whole, images = build(f"torchvision:{name}", tuple(map(str, range(1000)))).eval(), torch.ones(2, 3, 32, 32)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    found = []
    for keys in ("names", "positions"):
        weights = {"checkpoint": str(tmp_path / "weights.pt"), "checkpoint_keys": keys}
        network = build_backbone(ModelConfig(model=f"torchvision:{name}", **weights)).eval()
        assert network.num_classes == 0
        found.append(network(images))
    assert found[0].shape == (2, width)
    assert torch.equal(found[0], found[1])
    assert torch.equal(classifier_of(whole)(found[0]), whole(images))


def test_a_squeezenet_has_no_linear_classifier():
    with pytest.raises(Refused, match=r"SqueezeNet has no get_classifier\(\), and not one linear layer with 3 outputs"):
        classifier_of(build("torchvision:squeezenet1_1"))


def test_a_folder_brings_weights_arguments_and_preprocessing(tmp_path):
    network = build("cifar_resnet8", args={"widths": [4, 4, 8, 16]})
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
    args = {"widths": [4, 4, 8, 16]}
    model = write_folder(tmp_path / "out", network, "cifar_resnet8", CLASSES, model_args=args, pretrained_cfg=cfg)
    again = build(model)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), network.eval()(images))
    assert input_statistics(again) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert ModelConfig(model=model).resolved().model == "cifar_resnet8"


def test_a_folder_brings_its_preprocessing_whatever_is_read_of_it(tmp_path):
    """Its features are those of the pixels that its logits were trained on; what the recipe says wins."""
    network = build("cifar_resnet8")
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]}
    model = write_folder(tmp_path / "out", network, "cifar_resnet8", CLASSES, pretrained_cfg=cfg)
    whole, headless = build(model), build_backbone(ModelConfig(model=model))
    assert input_statistics(headless) == input_statistics(whole) == ((0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    own = ModelConfig(model=model, args={"pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5]}})
    for made in (build_backbone(own), build_model(own, CLASSES)):
        assert input_statistics(made) == ((0.5, 0.5, 0.5), (0.9, 0.8, 0.7))


def test_a_folder_is_asked_for_the_classes_of_the_data(tmp_path):
    """In the data's order, fewer too; never for others."""
    network = build("cifar_resnet8").eval()
    model = write_folder(tmp_path / "out", network, "cifar_resnet8", CLASSES)
    images = torch.randn(2, 3, 32, 32)
    found = build(model, ("cat", "ant")).eval()(images)
    assert torch.equal(found, network(images)[:, [2, 0]])
    with pytest.raises(Refused, match=r"answers for 3 classes \(ant, bee, cat, ...\), and 'dog' of the data is not"):
        build(model, ("cat", "dog"))


def test_a_folder_decides_no_code(tmp_path):
    """What it is made by must be named by a person."""
    network = build("own_nets:build")
    named_models.BUILDER_MODULES.clear()
    model = write_folder(tmp_path / "out", network, "own_nets:build", CLASSES)
    with pytest.raises(Refused, match=r"does not decide what code runs; name that code .*plugins: \[own_nets\]"):
        build(model)
    evil = write_folder(tmp_path / "evil", network, "os:abort", CLASSES)
    with pytest.raises(Refused, match="does not decide what code runs"):
        build(evil)
    named_models.BUILDER_MODULES.add("own_nets")
    assert type(build(model)).__name__ == "Small"


def test_folders_that_are_none(tmp_path):
    with pytest.raises(Refused, match=r"config\.json: no such file; name a folder that `export` has written"):
        build(f"local-dir:{tmp_path}")
    model = write_folder(tmp_path / "out", build("own_nets:build"), "own_nets:build", CLASSES)
    with pytest.raises(Refused, match=r"has weights of its own; set model.checkpoint=null"):
        build(model, checkpoint="x.safetensors")
    (tmp_path / "out" / "config.json").write_text('{"num_classes": 3}')
    with pytest.raises(Refused, match=r"is not timm's .*architecture"):
        build(model)
    reused = write_folder(tmp_path / "simkd", build("own_nets:build"), "resnet18", CLASSES, classifier="reused")
    with pytest.raises(Refused, match="holds a SimKD student"):
        build(reused)


def test_the_hub(tmp_path, monkeypatch):
    """timm reads a repository that is on this machine; without it and without a network, one line says so."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(Refused, match="'hf-hub:me/net': timm cannot fetch its weights"):
        build("hf-hub:me/net", pretrained=True)
    with pytest.raises(Refused, match="a repository is OWNER/NAME"):
        build("hf-hub:net")
    repository = tmp_path / "hub" / "models--me--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (repository / "snapshots").mkdir()
    network = build("cifar_resnet8")
    write_folder(repository / "snapshots" / "0123abc", network, "cifar_resnet8", CLASSES, pretrained_cfg={})
    found = build("hf-hub:me/net", pretrained=True)
    pairs = zip(found.state_dict().values(), network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_timms_networks_are_left_as_they_are():
    assert build("resnet18").pretrained_cfg == timm.create_model("resnet18").pretrained_cfg


def test_every_name_of_timm_stands_in_its_text(monkeypatch):
    """What is refused before timm is imported is unknown to timm, too."""
    registered = [*timm.list_models(), *timm.list_models(pretrained=True)]  # some by other tests' plug-ins
    its_own = [name for name in registered if timm.models.model_entrypoint(name).__module__.startswith("timm.")]
    names = [*its_own, *timm.models._registry._deprecated_models]
    assert names_if_unknown("resnet81") is None  # timm itself is asked
    monkeypatch.delitem(sys.modules, "timm")
    assert len(names) > 2000
    assert [name for name in names if names_if_unknown(name) is not None] == []
    assert "resnet18" in names_if_unknown("resnet81")


def test_the_outputs_of_a_folder_are_looked_up_once_each(tmp_path):
    names = counted_names(300)
    folder = LocalDir(tmp_path, "resnet18", {}, 300, tuple(map(str, names)), {})
    assert folder.output_indices(names[::-1], "") == list(range(300))[::-1]
    assert CountedName.compared < 3000
