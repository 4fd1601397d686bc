"""Networks from recipes: names, weights by name and by position, classes kept, and what is refused with which words."""

from __future__ import annotations

import json
import pickle

import pytest
import safetensors.torch
import timm
import torch
from pydantic import ValidationError
from torch import nn

from kdcore.checkpoints import load_tensors
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model, classifier_of, count_parameters, input_statistics, keep_classes

CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def trained() -> nn.Module:
    """A network of four classes whose weights stand in files."""
    torch.manual_seed(3)
    return timm.create_model("cifar_resnet8", num_classes=4)


def save(model: nn.Module, path) -> str:
    safetensors.torch.save_file(model.state_dict(), path)
    return str(path)


def refuse(complaint: str):
    return pytest.raises(Refused, match=complaint)


def test_a_network_has_one_output_per_class():
    model = build_model(ModelConfig(model="cifar_resnet8"), CLASSES)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert model.num_classes == 3


def test_args_reach_the_network():
    model = build_model(ModelConfig(model="test_vit", args={"img_size": 32}), CLASSES)
    assert model.pos_embed.shape == (1, 5, 64)


def test_weights_are_loaded_by_name(trained, tmp_path):
    path = save(trained, tmp_path / "weights.safetensors")
    model = build_model(ModelConfig(model="cifar_resnet8", checkpoint=path), "abcd")
    assert model.state_dict().keys() == trained.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), trained.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_torch_files_are_read_as_training_scripts_write_them(trained, tmp_path, wrap):
    torch.save(wrap(trained.state_dict()), tmp_path / "weights.pt")
    loaded = load_tensors(tmp_path / "weights.pt")
    assert loaded.keys() == trained.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.state_dict().items())


class Payload:
    """What unpickling would run."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_no_pickled_object_is_loaded(tmp_path):
    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump(Payload(), file)
    torch.save({"state_dict": Payload()}, tmp_path / "evil2.pt")
    with refuse(r"evil.pt: not a file of tensors .*convert it to .safetensors"):
        load_tensors(tmp_path / "evil.pt")
    with refuse(r"evil2.pt: no tensors at its top level"):
        load_tensors(tmp_path / "evil2.pt")


@pytest.mark.parametrize("name", ["noise.pt", "noise.safetensors", "empty.pt", "empty.safetensors"])
def test_a_file_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"no tensors here, just words" * 9)
    with refuse(f"{name}: not a file of tensors"):
        load_tensors(tmp_path / name)


def test_a_file_without_tensors_says_what_it_holds(tmp_path):
    torch.save({"net": {"weights": {"fc": torch.zeros(1)}}, "epoch": 3}, tmp_path / "odd.pt")
    with refuse(r"odd.pt: no tensors at its top level.*dict \['net', 'epoch'\]"):
        load_tensors(tmp_path / "odd.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with refuse("list.pt: no tensors.*but list"):
        load_tensors(tmp_path / "list.pt")


def test_weights_are_loaded_by_position_where_names_differ(trained, tmp_path):
    foreign = {f"features.{i}.{name.split('.')[-1]}": t for i, (name, t) in enumerate(trained.state_dict().items())}
    torch.save(foreign, tmp_path / "foreign.pt")
    config = ModelConfig(model="cifar_resnet8", checkpoint=str(tmp_path / "foreign.pt"), checkpoint_keys="positions")
    model = build_model(config, "abcd")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())
    with refuse("the same order and shapes: take checkpoint_keys: positions"):
        build_model(config.model_copy(update={"checkpoint_keys": "names"}), "abcd")


def by_position(tmp_path, tensors):
    torch.save(tensors, tmp_path / "odd.pt")
    config = ModelConfig(model="cifar_resnet8", checkpoint=str(tmp_path / "odd.pt"), checkpoint_keys="positions")
    return build_model(config, "abcd")


def test_positions_must_agree_in_number_suffix_and_shape(trained, tmp_path):
    state = trained.state_dict()
    number = len(state)
    with refuse(f"{number - 1} tensors, but cifar_resnet8 has {number}"):
        by_position(tmp_path, dict(list(state.items())[:-1]))
    swapped = dict([("a.bias", state["fc.bias"]), *list(state.items())[1:]])
    with refuse(r"at one position 'a.bias' and 'conv1.weight'"):
        by_position(tmp_path, swapped)
    with refuse(r"1 tensors differ, the first is 'conv1.weight' \(network: \[16, 3, 3, 3\], file: \[16, 3, 5, 5\]\)"):
        by_position(tmp_path, state | {"conv1.weight": torch.zeros(16, 3, 5, 5)})


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    path = save(trained, tmp_path / "w.safetensors")
    config = ModelConfig(model="cifar_resnet8", checkpoint=path)
    with refuse(
        r"cifar_resnet8 with 3 classes: 2 tensors differ, the first is 'fc.weight' "
        r"\(network: \[3, 64\], file: \[4, 64\]\); its classifier has 4 outputs, for other classes"
    ):
        build_model(config, CLASSES)
    safetensors.torch.save_file(trained.state_dict() | {"head.bias": torch.zeros(1)}, path)
    with refuse(r"1 tensors differ, the first is 'head.bias' \(network: absent, file: \[1\]\)"):
        build_model(config, "abcd")


def test_class_indices_keep_rows_of_the_classifier_in_the_datas_order(trained, tmp_path):
    (tmp_path / "indices.json").write_text(json.dumps({"eel": 0, "cat": 3, "dog": 1, "not in the data": 2}))
    config = ModelConfig(
        model="cifar_resnet8",
        checkpoint=save(trained, tmp_path / "w.safetensors"),
        class_indices=str(tmp_path / "indices.json"),
        args={"num_classes": 4},
    )
    model = build_model(config, CLASSES)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), trained.eval()(images)[:, [3, 1, 0]])
    assert model.num_classes == 3


def test_without_num_classes_the_indices_count_in_the_models_usual_classifier(tmp_path):
    (tmp_path / "indices.json").write_text(json.dumps({"cat": 99, "dog": 0, "eel": 5}))
    config = ModelConfig(model="cifar_resnet8", class_indices=str(tmp_path / "indices.json"))
    assert classifier_of(build_model(config, CLASSES)).out_features == 3
    (tmp_path / "indices.json").write_text(json.dumps({"cat": 100, "dog": 0, "eel": 5}))
    with refuse("class index 100 is not one of the classifier's 100 rows"):
        build_model(config, CLASSES)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"cat": 0, "eel": 1}', r"no index for the class folder 'dog' \(1 missing\)"),
        ('["cat", "dog", "eel"]', r"not a JSON file \{class folder: index\}"),
        ('{"cat": 0, "dog": -1, "eel": 2}', r"not a JSON file .*greater than or equal to 0"),
        ("cat: 0", r"not a JSON file .*Invalid JSON"),
        ('{"cat": 0, "dog": 2, "eel": 2}', r"'dog' and 'eel' the same index 2, and an output stands for one class"),
        ('{"cat": 0, "dog": 2, "eel": 1, "dog": 3}', r"gives the class folder 'dog' an index twice"),
    ],
)
def test_class_indices_that_say_something_else_are_refused(tmp_path, text, complaint):
    (tmp_path / "indices.json").write_text(text)
    with refuse(f"indices.json.*{complaint}"):
        build_model(ModelConfig(model="cifar_resnet8", class_indices=str(tmp_path / "indices.json")), CLASSES)


@pytest.mark.parametrize("name", ["cifar_resnet8", "test_vit", "test_convnext", "test_efficientnet"])
def test_kept_classes_give_the_old_logits(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=6).eval()
    size = timm.data.resolve_model_data_config(model)["input_size"][1]
    images = torch.randn(1, 3, size, size)
    expected = model(images)[:, [5, 2]]
    keep_classes(model, [5, 2])
    torch.testing.assert_close(model(images), expected)
    assert model.get_classifier() is classifier_of(model)
    assert classifier_of(model).weight.requires_grad


def test_kept_classes_stay_in_the_classifiers_number_format_and_without_bias_if_it_has_none():
    model = timm.create_model("cifar_resnet8", num_classes=6).double()
    model.fc = nn.Linear(64, 6, bias=False, dtype=torch.float64)
    keep_classes(model, [1])
    assert model.fc.weight.dtype == torch.float64
    assert model.fc.bias is None


@pytest.mark.parametrize("indices", [[0, 6], [-1, 2]])
def test_rows_that_the_classifier_lacks_are_refused(indices):
    model = timm.create_model("cifar_resnet8", num_classes=6)
    with refuse(f"class index ({indices[0]}|{indices[1]}) is not one of the classifier's 6 rows"):
        keep_classes(model, indices)


def test_a_network_without_one_linear_classifier_is_refused():
    with refuse("CifarResNet: its classifier is a Identity, not one linear layer"):
        classifier_of(timm.create_model("cifar_resnet8", num_classes=0))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"model": "cifar_resnet81"}, r"unknown model 'cifar_resnet81'; did you mean .*cifar_resnet\d"),
        ({"model": "resnet20"}, r"unknown model 'resnet20'; did you mean .*32 pixels are cifar_resnet20"),
        ({"model": "zqzqzqzqzqzq"}, r"unknown model 'zqzqzqzqzqzq'; timm.list_models\(\) lists the names"),
        ({"model": "cifar_resnet8", "checkpoint": "no/such.pt"}, "no/such.pt: no such file, named by the model 'cifar"),
        ({"model": "cifar_resnet8", "class_indices": "none.json"}, "none.json: no such file"),
        (
            {"model": "cifar_resnet8", "args": {"num_classes": 7}},
            "args has 'num_classes', which the recipe sets elsewhere",
        ),
        ({"model": "cifar_resnet8", "args": {"checkpoint_path": "x"}}, "args has 'checkpoint_path'"),
    ],
)
def test_recipes_that_cannot_be_built_are_refused_before_anything_is_built(fields, complaint):
    config = ModelConfig(**fields)
    with refuse(complaint):
        config.check()
    with refuse(complaint):
        build_model(config, CLASSES)


def test_two_sources_of_weights_are_refused(trained, tmp_path):
    """By what resolves it, whether or not the file is there: a recipe may name one that nobody has made."""
    path = save(trained, tmp_path / "w.safetensors")
    for file in (path, "gone.safetensors"):
        with refuse(
            "a checkpoint, not both: model.checkpoint=null for the weights that are downloaded, model.pretrained=fa"
        ):
            ModelConfig(model="cifar_resnet8", checkpoint=file, pretrained=True).check()


def test_a_file_that_is_not_there_may_be_left_out():
    with refuse("give model.checkpoint=FILE; model.checkpoint=null for a network that needs no file"):
        ModelConfig(model="cifar_resnet8", checkpoint="gone.safetensors").check()


def test_an_argument_that_the_network_does_not_take_is_refused():
    with refuse(r"'cifar_resnet8' does not take args \{'colour': 'red'\} \(TypeError: .*colour"):
        build_model(ModelConfig(model="cifar_resnet8", args={"colour": "red"}), CLASSES)


def test_an_unknown_key_of_the_recipe_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        ModelConfig(model="cifar_resnet8", weights="w.pt")


def test_the_statistics_are_those_of_the_networks_weights():
    assert input_statistics(timm.create_model("test_vit")) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    mean, std = input_statistics(timm.create_model("cifar_resnet8"))
    assert mean == (0.5071, 0.4865, 0.4409)
    assert std == (0.2673, 0.2564, 0.2762)
    with pytest.raises(AssertionError, match="ImageNet's statistics"):
        input_statistics(nn.Linear(2, 2))


def test_parameters_are_counted_trained_or_not():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False)
    assert count_parameters(net) == 3 * 4 * 9 + 4 + 2 * 4
