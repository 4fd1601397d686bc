"""Several teachers in a recipe: each online or from its own cache, averaged or read one by one, named as one is."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.assembly import assemble
from cluster.cache.builder import Builder
from cluster.cache.job import build
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.rehearsal import rehearse_run
from cluster.sweep.caches import Caches
from cluster.sweep.config import SweepConfig
from cluster.sweep.space import run_config, shared_recipe
from cluster.tracking.description import network_pair, run_tags
from cluster.tracking.folder import RunFolder
from cluster.training.launch import check_run
from cluster.training.teacher_check import Answers, complaint
from cluster.weights import starting_weights
from kdcore.checkpoints import load_tensors
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from ops.__main__ import main
from ops.export.lineage import teachers_of
from ops.export.model_card import teacher_rows

CPU = torch.device("cpu")
KD = {"term": "kd", "weight": 1.0, "temperature": 4.0}
WKD_L = {"term": "wkd_l", "weight": 1.0, "temperature": 4.0, "sharpness": 1.0}
FITNET = {"term": "fitnet", "weight": 1.0, "pairs": [{"student": "layer2", "teacher": "layer2"}], "teacher": "second"}


def teacher(folder, seed: int, classes: int = 3) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = build_model(ModelConfig(model="cifar_resnet8"), [str(number) for number in range(classes)])
    with torch.no_grad():
        model.get_classifier().weight.mul_(8)  # answers that differ from picture to picture
    path = folder / f"teacher{seed}-{classes}.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return {"model": "cifar_resnet8", "checkpoint": str(path)}


@pytest.fixture
def recipes(recipe, tmp_path) -> Callable[..., RunConfig]:
    """A function that gives a recipe of two teachers; sources: where each answers from."""
    first, second = teacher(tmp_path, 1), teacher(tmp_path, 2)

    def make(*sources: str, **changes: Any) -> RunConfig:
        where = dict(zip(("first", "second"), sources or ("online", "online"), strict=True))
        own = {
            "teachers": [
                {"name": "first", "source": where["first"], **first},
                {"name": "second", "source": where["second"], "weight": 0.5, **second},
            ],
            "views__num_views": 2,
            "cache": {"dir": str(tmp_path / "cache"), "dtype": "float32", "features": "float32", "batch_size": 4},
            "scaling__num_workers": 0,
            "method": [{"term": "ce", "weight": 0.5}, KD, FITNET],
        }
        return parse(recipe(**own | changes))

    return make


def trained(config: RunConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of a run's steps, and its student's weights at the end."""
    run = assemble(config, Rank(0, 1, CPU))
    distiller = run.distiller().train()
    optimizer = torch.optim.SGD(distiller.parameters(), 0.05)
    losses = []
    for batch in run.train_batches(0):
        output = distiller(batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
    return losses, run.student.state_dict()


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_classifier_of_one(recipes, name):
    """SimKD's student takes the classifier and the map of the teacher that its term names, online and cached."""
    method = [{"term": "simkd", "weight": 1.0, "teacher": name}, KD]
    make = partial(recipes, student__classifier="reused", method=method)
    expected_losses, expected = trained(make())
    weights = dict(zip(("first", "second"), (load_tensors(one.checkpoint) for one in make().teachers), strict=True))
    assert torch.equal(expected["head.classifier.weight"], weights[name]["fc.weight"])
    for one in make("cache", "cache").cache_recipes:
        build(one)
    for sources in (("cache", "cache"), ("cache", "online"), ("online", "cache")):
        losses, found = trained(make(*sources))
        assert losses == expected_losses
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("term", [{"term": "nd", "weight": 1.0}, WKD_L])
def test_statistics_of_one(recipes, term):
    """A term has the means, or the similarity, that its own teacher gives the classes: as if that were the only one."""
    make = partial(recipes, method=[{**term, "teacher": "second"}, KD])
    expected_losses, expected = trained(make())
    config = make()
    run, alone = (assemble(one, Rank(0, 1, CPU)) for one in (config, config.teacher_recipes[1]))
    name = {"nd": "class_means", "wkd_l": "costs"}[term["term"]]
    here, there = (one.distiller().extras[term["term"]].get_buffer(name) for one in (run, alone))
    assert torch.equal(here, there)
    assert len(here.unique()) > 1
    rehearse_run(assemble(config, Rank(0, 1, CPU)))
    for one in make("cache", "cache").cache_recipes:
        build(one)
    for sources in (("cache", "cache"), ("online", "cache")):
        losses, found = trained(make(*sources))
        assert losses == expected_losses
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("ensemble", [{}, {"average": "probabilities", "weighting": "confidence"}])
def test_online_and_cached_train_the_same_student(recipes, ensemble):
    """Equal weights to the last bit, whether both answer beside the student, one, or none."""
    expected_losses, expected = trained(recipes(ensemble=ensemble))
    for one in recipes("cache", "cache").cache_recipes:
        build(one)
    for sources in (("cache", "cache"), ("cache", "online"), ("online", "cache")):
        losses, weights = trained(recipes(*sources, ensemble=ensemble))
        assert losses == expected_losses
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert len(set(expected_losses)) > 1


def test_an_ensemble_of_one_is_its_teacher(recipes):
    """`teacher:` is the short form of a list of one."""
    several = recipes(method=[KD])
    one = several.teachers[0].model_dump(exclude={"weight", "warmup_epochs", "decay_from_epoch", "cache_dir"})
    short = {name: value for name, value in one.items() if name != "name"}
    alone = trained(recipes(teachers=[], teacher=short, method=[KD]))
    listed = trained(recipes(teachers=[one], method=[KD]))
    assert alone[0] == listed[0]


def test_weights_sweep_without_a_teacher(recipes, monkeypatch):
    """All points of a search over the weights read the two caches of its first; then no teacher is built."""
    base_recipe = recipes(method=[KD], data__held_out=0.25)
    axis = {"teachers.1.weight": [0.0, 0.5, 2.0]}
    sweep = SweepConfig.model_validate({"name": "weights", "space": axis})
    base = shared_recipe(base_recipe, sweep)
    runs = [run_config(base, {"teachers.1.weight": value}, "run", 0) for value in (0.0, 0.5, 2.0)]
    caches = Caches(sweep, runs)
    builds = caches.builds()
    assert [one.cache.dir.rsplit("/", 1)[1] for one in builds] == ["first", "second"]
    for one in builds:
        build(one)
    assert caches.missing() == []

    def no_teacher(*arguments):
        raise AssertionError("a teacher was asked")

    monkeypatch.setattr("cluster.teachers.assembly.build_teacher", no_teacher)
    found = [trained(caches.reading(run))[0] for run in runs]
    assert len({tuple(losses) for losses in found}) == 3


def test_a_cache_belongs_to_its_teacher(recipes, tmp_path):
    """A cache of one teacher serves the ensemble; that of another is refused, by its weights."""
    alone = recipes("cache", "cache", method=[KD]).teacher_recipes[0]
    build(alone)
    swapped = recipes("cache", "online", method=[KD]).model_dump(mode="json")
    swapped["teachers"][0]["checkpoint"] = recipes().teachers[1].checkpoint
    with pytest.raises(Refused, match=r"teacher.*weights"):
        assemble(parse(swapped), Rank(0, 1, CPU))


def test_validation_names_each(recipes):
    """The average is judged, and each teacher's top-1 stands beside it."""
    for one in recipes("cache", "cache").cache_recipes:
        build(one)
    found = []
    for sources in (("online", "online"), ("cache", "online")):
        run = assemble(recipes(*sources), Rank(0, 1, CPU))
        metrics, logits = run.teacher_on("val", run.evaluation_loader("val"))
        assert metrics.keys() >= {"top1", "first_top1", "second_top1"}
        assert logits.shape == (15, 3)
        found.append((metrics, logits))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)


def test_all_are_named_and_known_by_their_weights(recipes):
    config = recipes()
    assert network_pair(config) == "cifar_resnet8+cifar_resnet8 > cifar_resnet8"
    assert run_tags(config)["teacher"] == "cifar_resnet8+cifar_resnet8"
    assert starting_weights(config).keys() == {"teachers.first", "teachers.second"}
    run = assemble(config, Rank(0, 1, CPU))
    rows = teacher_rows(run)
    assert [row["name"] for row in rows] == ["first", "second"]
    assert len({row["fingerprint"] for row in rows}) == 2
    assert [one["weights"] for one in teachers_of(run)] == [row["fingerprint"] for row in rows]
    answers = Answers(images=100, top1=0.1, chance=0.3, reordered=None)
    assert "cifar_resnet8+cifar_resnet8 is right on" in str(complaint(answers, config, ("a", "b", "c"), "val"))


def test_the_weights_of_each_are_the_runs(recipes, tmp_path):
    """Moved files go on; other weights of one teacher do not."""
    config = recipes()
    folder = RunFolder.of(config)
    folder.claim(config)
    data = config.model_dump(mode="json")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((tmp_path / "teacher2-3.safetensors").read_bytes())
    data["teachers"][1]["checkpoint"] = str(moved)
    folder.refuse_another(parse(data))
    data["teachers"][1]["checkpoint"] = teacher(tmp_path, 3)["checkpoint"]
    with pytest.raises(Refused, match=r"started from other weights \(weights.teachers.second.checkpoint"):
        folder.refuse_another(parse(data))
    data["teachers"][1]["weight"] = 0.7
    with pytest.raises(Refused, match=r"another recipe \(teachers.1.weight: 0.5 there, 0.7 now\)"):
        folder.refuse_another(parse(data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"model": "cifar_resnet8", "random": True}}, "teacher and teachers are both given"),
        ({"method": [{**KD, "teacher": "frist"}]}, "kd: there is no teacher called 'frist'; did you mean first"),
        ({"method": [{**FITNET, "teacher": None}]}, "fitnet reads more than logits, .* teacher: first"),
        ({"method": [{**KD, "teacher": "first"}]}, "teacher second is read by no term; leave it out, or name it"),
        ({"student__classifier": "reused"}, r"have one simkd term name it: \{term: simkd, teacher: first\}"),
        (
            {"student__classifier": "reused", "method": [{"term": "simkd", "weight": 1.0}]},
            r"map and classifier from one teacher, as they cannot be averaged; .* \{term: simkd, teacher: first\}",
        ),
        (
            {
                "student__classifier": "reused",
                "method": [{"term": "simkd", "weight": 1.0, "teacher": name} for name in ("first", "second")],
            },
            "takes map and classifier from one teacher",
        ),
        ({"method": [{"term": "nd", "weight": 1.0}]}, "nd reads more than logits, .* teacher: first"),
        ({"method": [WKD_L]}, "wkd_l reads more than logits, .* teacher: first"),
    ],
)
def test_what_several_cannot_be(recipes, changes, message):
    with pytest.raises(Refused, match=message) as refused:
        recipes(**changes)
    assert "\n" not in str(refused.value)


def test_what_members_cannot_be(recipes, tmp_path):
    members = recipes().model_dump(mode="json")["teachers"]
    first, second = members

    def refused(message: str, *wrong: dict[str, Any]) -> None:
        with pytest.raises(Refused, match=message):
            recipes(teachers=list(wrong), method=[KD])

    refused("first has image_size=32, but one of several", {**first, "image_size": 32, "source": "online"}, second)
    refused("two teachers are called 'first'; rename one", first, {**second, "name": "first"})
    refused("every teacher has weight 0", {**first, "weight": 0}, {**second, "weight": 0})
    refused("no teacher has a weight at the run's beginning", *({**one, "warmup_epochs": 1} for one in members))
    refused("second: its weight decays from epoch 2 on, but the run has 2", first, {**second, "decay_from_epoch": 2})
    with pytest.raises(Refused, match=r"cifar_resnet8 has 5 outputs for 3 classes|does not fit cifar_resnet8 with 3"):
        check_run(recipes(teachers=[first, {**second, **teacher(tmp_path, 4, classes=5)}]))
    with pytest.raises(Refused, match=r"no teacher called 'first'; the recipe has no 'teachers:'"):
        recipes(teachers=[], teacher=teacher(tmp_path, 1), method=[{**KD, "teacher": "first"}])


def test_the_commands(recipes, tmp_path, capsys):
    """build, verify and plan take the teachers one after the other; show lists both."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipes("cache", "cache").model_dump(mode="json")))
    assert main(["cache", "build", str(path)]) == 0
    assert main(["cache", "verify", str(path)]) == 0
    assert main(["cache", "plan", str(path), "--seconds", "0.1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("recommended:") == 2
    assert shown.count("checksums agree") == 2
    assert main(["show", str(path), "teachers.0.source=online", "teachers.1.source=online"]) == 0
    assert "taps of the teacher second" in " ".join(capsys.readouterr().out.split())
    assert main(["layers", str(path)]) == 2
    assert "has several teachers (first, second)" in " ".join(capsys.readouterr().err.split())


def test_a_builder_takes_one(recipes):
    needs = [Builder(one, CPU).needs for one in recipes().teacher_recipes]
    assert [sorted(one.teacher_taps) for one in needs] == [[], ["layer2"]]
