"""Teachers without a head: features alone are read, and students are judged by theirs."""

import json
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.cache.verify import verify
from cluster.passes import every_image_once
from cluster.probing import Probe, classifier_knows_classes
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.teachers.stored import declared
from cluster.training.launch import check_run
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_backbone, build_model

CPU = torch.device("cpu")
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
FOUNDATION = {
    "dinov2": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 28}, 28),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 32}, 32),
    "siglip": ("vit_base_patch16_siglip_224", {**SMALL, "img_size": 32}, 32),
}
RKD = {"term": "fitnet", "weight": 1.0, "pairs": [{"student": "layer2", "teacher": "layer2"}]}


@pytest.fixture
def recipes(recipe, tmp_path):
    """A function that gives a recipe with a convolutional teacher without a head."""

    def make(**changes: Any):
        own = {
            "teacher": {"model": "cifar_resnet8", "random": True, "head": "none"},
            "method": [RKD],
            "views__num_views": 2,
            "cache": {"dir": str(tmp_path / "cache"), "features": "float32", "batch_size": 4},
            "scaling__num_workers": 0,
            "data__held_out": 0.25,
            "data__loader": "reference",
        }
        return parse(recipe(**own | changes))

    return make


@pytest.mark.parametrize("kind", FOUNDATION)
def test_foundation_models_teach_by_features(recipes, kind):
    """Tokens, class tokens and pooled features of DINOv2-, DINOv3- and SigLIP-like networks, with random weights."""
    model, args, size = FOUNDATION[kind]
    teacher = {"model": model, "args": args, "random": True, "head": "none"}
    taps = [{"student": "classifier_input", "teacher": "classifier_input"}]
    method = [{"term": "rkd", "weight": 1.0, "pairs": taps}, {"term": "ce", "weight": 1.0}]
    config = recipes(teacher=teacher, method=method, views__size=size)
    check_run(config)
    run = assemble(config, Rank(0, 1, CPU))
    assert not run.teachers.single.has_head
    loss = run.distiller()(next(iter(run.train_batches(0)))).loss
    assert torch.isfinite(loss)
    assert run.teacher_on("val", run.evaluation_loader("val")) is None


def test_a_head_in_the_file_is_left_out(tmp_path):
    """The weights of a classifier make a backbone; those of another network do not."""
    torch.manual_seed(0)
    whole = timm.create_model("resnet18", num_classes=5)
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    model = ModelConfig(model="resnet18", checkpoint=str(tmp_path / "weights.safetensors"))
    features = build_backbone(model).eval()(torch.ones(1, 3, 32, 32))
    whole.reset_classifier(0)
    assert torch.equal(features, whole.eval()(torch.ones(1, 3, 32, 32)))
    with pytest.raises(Refused, match="does not fit resnet34"):
        build_backbone(model.model_copy(update={"model": "resnet34"}))


def test_a_head_in_a_file_of_other_names_is_left_out(tmp_path):
    """Matched by position, it is there while the file is read."""
    torch.manual_seed(0)
    whole = timm.create_model("resnet18")
    renamed = {f"{n}.{name.rpartition('.')[2]}": tensor for n, (name, tensor) in enumerate(whole.state_dict().items())}
    torch.save(renamed, tmp_path / "weights.pt")
    model = ModelConfig(model="resnet18", checkpoint=str(tmp_path / "weights.pt"), checkpoint_keys="positions")
    network = build_backbone(model).eval()
    whole.reset_classifier(0)
    assert network.num_classes == 0
    assert torch.equal(network(torch.ones(1, 3, 32, 32)), whole.eval()(torch.ones(1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": [{"term": "kd", "weight": 1.0, "temperature": 2.0}]},
            "kd reads more than features of the teacher .* rkd or sp$",
        ),
        ({"student__classifier": "reused", "method": [{"term": "simkd", "weight": 1.0}]}, "head is none"),
    ],
)
def test_what_reads_a_head_is_refused(recipes, changes, message):
    with pytest.raises(Refused, match=message) as refused:
        recipes(**changes)
    assert "\n" not in str(refused.value)


def test_no_output_stands_for_a_class(recipes, tmp_path):
    path = tmp_path / "classes.json"
    path.write_text("{}")
    teacher = {"model": "cifar_resnet8", "random": True, "head": "none", "class_indices": str(path)}
    with pytest.raises(Refused, match="head is none, so no output stands for a class; leave class_indices out"):
        check_run(recipes(teacher=teacher))


def test_it_is_another_teacher(recipes):
    """In a cache's identity; one with a head is known as ever."""
    config = recipes()
    assert declared(config.teacher)["head"] == "none"
    assert "head" not in declared(config.teacher.model_copy(update={"head": "own"}))


def test_cached_features_train_the_same_student(recipes, tmp_path):
    torch.manual_seed(3)
    weights = tmp_path / "teacher.safetensors"
    network = build_model(ModelConfig(model="cifar_resnet8"), ["a", "b"])
    safetensors.torch.save_file(network.state_dict(), weights)
    teacher = {"model": "cifar_resnet8", "checkpoint": str(weights), "head": "none"}
    build(recipes(teacher=teacher))
    assert all(found.wrong == 0 for found in verify(recipes(teacher=teacher), 8, CPU))
    losses = []
    for source in ("online", "cache"):
        run = assemble(recipes(teacher={**teacher, "source": source}), Rank(0, 1, CPU))
        distiller = run.distiller().train()
        losses.append([float(distiller(batch).loss.detach()) for batch in run.train_batches(0)])
        assert run.teacher_on("val", run.evaluation_loader("val")) is None
    assert losses[0] == losses[1]


@pytest.fixture
def of_folder(tmp_path):
    """A function that writes a folder's statistics and gives the teacher without a head that it stands for."""
    torch.manual_seed(3)
    folder = tmp_path / "folder"
    folder.mkdir()
    network = build_model(ModelConfig(model="cifar_resnet8"), ["a", "b"])
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")

    def write(statistics: dict[str, list[float]]) -> dict[str, Any]:
        stated = {"architecture": "cifar_resnet8", "num_classes": 2, "pretrained_cfg": statistics}
        (folder / "config.json").write_text(json.dumps(stated))
        return {"model": f"local-dir:{folder}", "head": "none"}

    return write


OWN = {"mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]}


def test_a_cache_says_how_its_teacher_is_normalised(recipes, of_folder):
    """Where a folder does not say what its architecture does; what it then says anew makes it another teacher."""
    teacher = of_folder(OWN)
    assert OWN.items() <= build(recipes(teacher=teacher)).plan.identity["teacher"].items()
    cached = recipes(teacher={**teacher, "source": "cache"})
    assemble(cached, Rank(0, 1, CPU))
    of_folder({})
    with pytest.raises(Refused, match=r"teacher.mean is \[0.1, 0.2, 0.3\] there and \[0.5"):
        assemble(cached, Rank(0, 1, CPU))


def test_a_cache_that_does_not_say_so_is_of_the_architectures_statistics(recipes, of_folder):
    """As all were built before folders without a head were normalised as they say."""
    teacher = of_folder({})
    assert not OWN.keys() & build(recipes(teacher=teacher)).plan.identity["teacher"].keys()
    cached = recipes(teacher={**teacher, "source": "cache"})
    assemble(cached, Rank(0, 1, CPU))
    of_folder(OWN)
    with pytest.raises(Refused, match=r"teacher.mean is None there and \[0.1, 0.2, 0.3\] here"):
        assemble(cached, Rank(0, 1, CPU))


def test_features_are_judged(recipes):
    """The student's by neighbours and a probe; a copy of the teacher shares all of its neighbours."""
    run = assemble(recipes(), Rank(0, 1, CPU))
    assert not classifier_knows_classes(run.config, 3)
    probe = Probe(run, ["val", "held_out"])
    assert len(probe.bank) == 36
    found = probe.metrics(run.student, linear=True)
    names = ("knn_top1", "probe_top1", "neighbour_agreement")
    assert found.keys() == {f"{split}/{name}" for split in ("val", "held_out") for name in names}
    assert found["val/probe_top1"] > 0.6  # three colours
    theirs = probe.teacher_metrics()
    assert theirs.keys() == {"val", "held_out"}
    student = run.student.eval()

    def features(batch):
        return student.forward_head(student.forward_features(batch.images), pre_logits=True)

    probe.theirs = {"val": probe.embed(features, "val")}
    assert probe.metrics(student)["val/neighbour_agreement"] == 1.0


def test_a_teacher_with_a_classifier_is_judged_by_what_that_reads(recipes):
    """Where it is asked for: beside a run, which can compare answers, it is not."""
    run = assemble(recipes(teacher={"model": "cifar_resnet8", "random": True}), Rank(0, 1, CPU))
    assert Probe(run, ["val"]).teacher is None
    probe = Probe(run, ["val"], of_any_teacher=True)
    assert probe.metrics(run.teachers.single.model)["val/neighbour_agreement"] == 1.0
    assert probe.metrics(run.student).keys() == {"val/knn_top1", "val/neighbour_agreement"}
    assert probe.teacher_metrics().keys() == {"val"}


def test_a_teacher_is_judged_in_its_own_size(recipes):
    """Its features are those of the images as it sees them, not of the student's."""
    teacher = {"model": "cifar_resnet8", "random": True, "head": "none", "image_size": 32}
    run = assemble(recipes(teacher=teacher), Rank(0, 1, CPU))
    probe = Probe(run, ["val"])
    loader = run.for_teacher.evaluation_loader("val")
    (batch,) = loader.load(every_image_once(15, run.rank, 15))
    assert batch.images.shape == (15, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(probe.theirs["val"], run.teachers.single.model(batch.images))
    assert "val/neighbour_agreement" in probe.metrics(run.student)


def test_a_teacher_with_a_head_beside_one_without(recipes):
    """Among several: the average is of those with a head."""
    members = [
        {"name": "classes", "model": "cifar_resnet8", "random": True},
        {"name": "features", "model": "cifar_resnet8", "random": True, "head": "none"},
    ]
    method = [{"term": "kd", "weight": 1.0, "temperature": 2.0}, {**RKD, "teacher": "features"}]
    config = recipes(teacher=None, teachers=members, method=method)
    run = assemble(config, Rank(0, 1, CPU))
    metrics, _ = run.teacher_on("val", run.evaluation_loader("val"))
    assert "classes_top1" in metrics
    assert "features_top1" not in metrics
    torch.testing.assert_close(
        run.distiller()(next(iter(run.train_batches(0)))).teacher_logits.shape, torch.Size([4, 3])
    )
    with pytest.raises(Refused, match="teacher features is read by no term"):
        recipes(teacher=None, teachers=members, method=method[:1])
