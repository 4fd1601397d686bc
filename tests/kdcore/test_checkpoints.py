"""Weights as people have them: OpenTAD#44, pytorch-classification#27, mlperf-automations#465, torchdistill."""

import argparse
import collections
import datetime
import json

import pytest
import safetensors.torch
import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV3

from kdcore.checkpoints import fit_names, load_tensors
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_backbone, build_model
from kdcore.remarks import warn_once

CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def trained():
    torch.manual_seed(3)
    return timm.create_model("cifar_resnet8", num_classes=3)


def build(path):
    warn_once.cache_clear()
    return build_model(ModelConfig(model="cifar_resnet8", checkpoint=str(path)), CLASSES)


def without_counters(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


FORMS = {
    "ddp": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compile": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "ddp of compile": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "lightning": lambda s: {
        "state_dict": {f"model.{k}": v for k, v in s.items()} | {"criterion.weight": torch.ones(3)},
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(lr=0.1),
    },
    "tutorial": lambda s: {
        "model_state_dict": s,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "epoch": 3,
    },
    "pytorch-cifar": lambda s: {"net": s, "acc": 93.1, "epoch": 199},
    "torchdistill": lambda s: {"model": s, "args": argparse.Namespace(a=1)},
    "torchvision": lambda s: {"model": s, "epoch": torch.tensor(3), "args": argparse.Namespace(a=1)},
    "old torchvision": without_counters,
    "thop": lambda s: s | {"total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)},
    "objects": lambda s: {"state_dict": s, "when": datetime.datetime(2026, 1, 1), "seen": collections.Counter("ab")},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_as_programs_write_them(trained, tmp_path, form):
    torch.save(FORMS[form](trained.state_dict()), tmp_path / "weights.pth.tar")
    made, own = build(tmp_path / "weights.pth.tar").state_dict(), trained.state_dict()
    assert all(torch.equal(made[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("ddp", "took the tensors under 'module.'"),
        ("lightning", "took the tensors under 'model.' (of 57, 56)"),
        ("old torchvision", "missing batch counts, which affect nothing, to 0"),
        ("thop", "left out a profiler's 2 counts"),
    ],
)
def test_what_was_done_is_said_in_one_line(trained, tmp_path, form, line, caplog):
    torch.save(FORMS[form](trained.state_dict()), tmp_path / "w.pth")
    build(tmp_path / "w.pth")
    build_again = ModelConfig(model="cifar_resnet8", checkpoint=str(tmp_path / "w.pth"))
    build_model(build_again, CLASSES)
    assert [record.message for record in caplog.records if line in record.message] == [caplog.records[0].message]


def test_timms_best_is_its_moving_average(trained, tmp_path, caplog):
    average = ModelEmaV3(trained)
    with torch.no_grad():
        average.module.fc.bias.fill_(7)
    saver = CheckpointSaver(
        trained,
        torch.optim.SGD(trained.parameters(), 0.1),
        args=argparse.Namespace(model="cifar_resnet8"),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=71.2)
    assert build(tmp_path / "model_best.pth.tar").fc.bias.tolist() == [7, 7, 7]
    assert "took 'state_dict_ema', the moving average, which is next to 'state_dict'" in caplog.text


def test_no_object_of_a_file_is_made(tmp_path):
    class Loud:
        made = 0

        def __setstate__(self, state):
            Loud.made += 1

    globals()["Loud"] = Loud
    Loud.__qualname__ = "Loud"
    thing = Loud()
    thing.note = "state"
    torch.save({"model": {"a": torch.ones(1)}, "thing": thing}, tmp_path / "w.pt")
    assert load_tensors(tmp_path / "w.pt").keys() == {"a"}
    assert Loud.made == 0


def test_a_choice_is_refused(trained, tmp_path):
    state = trained.state_dict()
    torch.save({"student": state, "teacher": state}, tmp_path / "two.pt")
    with pytest.raises(Refused, match="several networks, under 'student', 'teacher'"):
        build(tmp_path / "two.pt")
    torch.save({f"{who}.{k}": v for who in ("student", "teacher") for k, v in state.items()}, tmp_path / "both.pt")
    with pytest.raises(Refused, match=r"2 networks in it fit, under 'student.', 'teacher.'"):
        build(tmp_path / "both.pt")


def test_a_pointer_of_git_lfs_is_called_one(tmp_path):
    (tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    with pytest.raises(Refused, match=r"a Git LFS pointer.*git lfs pull"):
        build(tmp_path / "w.safetensors")


WNIDS = ["n01440764", "n01443537", "n01484850"]


@pytest.fixture
def big(tmp_path):
    """A network of 21 classes, whose weights lie in w.pt."""
    network = timm.create_model("cifar_resnet8", num_classes=21)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    return network


def test_a_head_of_more_classes_has_a_remedy_that_works(big, tmp_path):
    """For ImageNet's folders: rows of the classifier."""
    with pytest.raises(Refused, match=r"has 21 outputs: .*args: {num_classes: 21}, and class_indices"):
        build_model(ModelConfig(model="cifar_resnet8", checkpoint=str(tmp_path / "w.pt")), WNIDS)
    (tmp_path / "indices.json").write_text(json.dumps(dict(zip(WNIDS, (20, 3, 7), strict=True))))
    config = ModelConfig(
        model="cifar_resnet8",
        checkpoint=str(tmp_path / "w.pt"),
        args={"num_classes": 21},
        class_indices=str(tmp_path / "indices.json"),
    )
    assert torch.equal(build_model(config, WNIDS).fc.weight, big.fc.weight[[20, 3, 7]])


def test_a_head_of_other_classes_starts_afresh_where_that_is_said(big, tmp_path):
    """For one's own folders: a new classifier, and nothing else of the network."""
    with pytest.raises(Refused, match=r"has 21 outputs, for other classes.*: give new_head: true") as refused:
        build(tmp_path / "w.pt")
    assert "class_indices" not in str(refused.value)
    config = ModelConfig(model="cifar_resnet8", checkpoint=str(tmp_path / "w.pt"), new_head=True)
    torch.manual_seed(0)
    made = build_model(config, CLASSES).state_dict()
    torch.manual_seed(0)
    fresh = timm.create_model("cifar_resnet8", num_classes=3).state_dict()
    for name, tensor in big.state_dict().items():
        assert torch.equal(made[name], fresh[name] if name.startswith("fc.") else tensor), name


class Teacher(ModelConfig):
    section, may_start_fresh, fresh = "teacher", False, "fine-tune it first"


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (ModelConfig, "give new_head: true, and its classifier starts afresh$"),
        (Teacher, "fine-tune it first; or set teacher.head=none, with terms on features alone$"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_file_without_a_classifier(big, tmp_path, config, remedy, prefix):
    """Also of a wrapped network, as which it begins a fine-tuning and gives features as well."""
    body = {f"{prefix}{name}": tensor for name, tensor in big.state_dict().items() if not name.startswith("fc.")}
    torch.save(body, tmp_path / "body.pt")
    with pytest.raises(Refused, match=f"'fc.bias' .*; the file has no classifier: {remedy}"):
        build_model(config(model="cifar_resnet8", checkpoint=str(tmp_path / "body.pt")), CLASSES)
    backbone = build_backbone(config(model="cifar_resnet8", checkpoint=str(tmp_path / "body.pt"))).state_dict()
    assert all(torch.equal(backbone[name.removeprefix(prefix)], tensor) for name, tensor in body.items())
    torch.save({name: t for name, t in body.items() if "layer3" not in name}, tmp_path / "less.pt")
    with pytest.raises(Refused, match="name the network that the file belongs to"):
        build_model(config(model="cifar_resnet8", checkpoint=str(tmp_path / "less.pt")), CLASSES)


@pytest.mark.parametrize(
    "changed",
    [
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": {name: tensor + 1 for name, tensor in state.items()}, "model_ema": state},
        lambda state: {name: tensor for name, tensor in state.items() if not name.startswith("fc.")},
        lambda state: {**state, "fc.weight": torch.zeros(21843, 64), "fc.bias": torch.zeros(21843)},
        lambda state: {**state, "fc.weight": torch.zeros(1001, 64), "fc.bias": torch.zeros(1001)},
    ],
    ids=["data parallel", "moving average", "no classifier", "ImageNet-21k", "TensorFlow"],
)
def test_files_as_people_have_them_begin_a_fine_tuning(big, tmp_path, changed):
    state = big.state_dict()
    torch.save(changed(state), tmp_path / "other.pt")
    config = ModelConfig(model="cifar_resnet8", checkpoint=str(tmp_path / "other.pt"), new_head=True)
    made = build_model(config, CLASSES).state_dict()
    assert all(torch.equal(made[name], tensor) for name, tensor in state.items() if not name.startswith("fc."))
    assert made["fc.weight"].shape == (3, 64)


def test_names_of_another_program_are_matched_by_order_where_that_is_said(big, tmp_path):
    state = {f"net{number}.{name.rpartition('.')[2]}": t for number, (name, t) in enumerate(big.state_dict().items())}
    torch.save(state, tmp_path / "other.pt")
    config = ModelConfig(model="cifar_resnet8", checkpoint=str(tmp_path / "other.pt"), new_head=True)
    with pytest.raises(Refused, match="the same order and shapes: take checkpoint_keys: positions"):
        build_model(config, CLASSES)
    made = build_model(config.model_copy(update={"checkpoint_keys": "positions"}), CLASSES)
    assert torch.equal(made.conv1.weight, big.conv1.weight)


def test_the_background_of_tensorflows_classifiers_is_said(tmp_path):
    torch.save(timm.create_model("cifar_resnet8", num_classes=1001).state_dict(), tmp_path / "w.pt")
    with pytest.raises(Refused, match=r"num_classes: 1001.*0 is the background and i \+ 1 is ImageNet's i"):
        build_model(ModelConfig(model="cifar_resnet8", checkpoint=str(tmp_path / "w.pt")), WNIDS)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"new_head": True}, "new_head is for weights from a file, and there is none"),
        ({"new_head": True, "checkpoint": "w.pt", "class_indices": "i.json"}, "leave one of them out"),
    ],
)
def test_a_new_head_of_nothing_is_refused(big, tmp_path, monkeypatch, fields, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "i.json").write_text("{}")
    with pytest.raises(Refused, match=complaint):
        build_model(ModelConfig(model="cifar_resnet8", **fields), CLASSES)


def test_a_tensor_that_is_missing_stays_missing(trained):
    """Some counts of batches and not others: that is no old file."""
    state = trained.state_dict()
    gone = next(name for name in state if name.endswith("num_batches_tracked"))
    assert gone not in fit_names(state, {name: tensor for name, tensor in state.items() if name != gone}, "w.pt")


def test_a_pickled_network_is_called_one(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    torch.save({"net": torch.nn.Linear(2, 2), "epoch": 3}, tmp_path / "inside.pt")
    with pytest.raises(Refused, match=r"but a pickled network object; save the network's state_dict\(\)"):
        load_tensors(tmp_path / "whole.pt")
    with pytest.raises(Refused, match=r"but dict \['net', 'epoch'\], with a pickled network object under 'net'; save"):
        load_tensors(tmp_path / "inside.pt")


@pytest.mark.parametrize("kept", [-10, 40, 4])
def test_a_safetensors_file_that_is_cut_off_is_called_so(tmp_path, kept):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.randn(100)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        Refused,
        match=r"w.safetensors: not a file of tensors, but damaged or cut off.*header.*; fetch or write it again$",
    ):
        load_tensors(path)


@pytest.mark.parametrize(
    ("inside", "remedy"),
    [
        ("student.safetensors", "runs/a/student.safetensors"),
        ("model.safetensors", "runs/a/model.safetensors"),
        ("x", "FILE"),
    ],
)
def test_a_folder_as_a_checkpoint_is_called_one(tmp_path, monkeypatch, inside, remedy):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / inside).touch()
    config = ModelConfig(model="cifar_resnet8", checkpoint="runs/a/")
    with pytest.raises(
        Refused, match=f"runs/a/: a folder, where the model .* names a file; give .*checkpoint={remedy}$"
    ):
        config.check()


def test_a_list_of_class_indices_shows_what_is_meant(tmp_path):
    (tmp_path / "indices.json").write_text("[0, 3]")
    args = {"num_classes": 7}
    config = ModelConfig(model="cifar_resnet8", class_indices=str(tmp_path / "indices.json"), args=args)
    with pytest.raises(Refused, match=r'such as \{"ant": 0, "bee": 3\} \(Input should be an object\); write it so'):
        build_model(config, ["ant", "bee", "cow"])
