"""A recipe is read strictly, and refuses early with the remedy."""

import pytest
from pydantic import ValidationError

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import load_recipe, parse, to_yaml
from cluster.recipe.rules import check_may_be_trained, micro_batch_size
from kdcore.errors import Refused
from kdcore.terms.logits import KD

REFUSED = {
    "unknown key": ({"train__epoch": 3}, r"unknown key 'train.epoch'; did you mean epochs"),
    "unknown section": ({"optimiser": "x"}, r"unknown key 'optimiser'; did you mean optimizer"),
    "batch": ({"train__micro_batch": 3}, r"train.batch_size 8 is not a multiple of train.micro_batch 3; take 6"),
    "workers": ({"scaling__num_workers": 4}, r"2 micro-batches of 4, fewer than scaling.num_workers 4"),
    "teacher": ({"method": [{"term": "kd", "weight": 1.0, "temperature": 4}]}, r"kd needs a teacher; add a 'teacher:'"),
    "a far term": ({"method": [{"term": "cka", "weight": 1.0}]}, "unknown term 'cka'; known are at, bce, .*, wttm$"),
    "momentum": (
        {"schedule": {"sched": "onecycle"}, "optimizer__momentum": 0.0},
        "optimizer.momentum=0, but schedule.sched=onecycle sets the momentum of every step, from 0.95 to 0.85 and",
    ),
    "betas": (
        {"schedule": {"sched": "onecycle"}, "optimizer": {"opt": "adamw", "lr": 0.1, "args": {"betas": [0.5, 0.9]}}},
        r"optimizer.args.betas=\[0.5, 0.9\], but .*; give betas=\[0.95, ...\], which only keeps the others",
    ),
    "term": ({"method": [{"term": "kdd", "weight": 1.0}]}, r"unknown term 'kdd'; did you mean kd"),
    "term's field": (
        {"method": [{"term": "ce", "weight": 1.0, "smoothing": 0.1}]},
        r"unknown key 'method.0.smoothing'; did you mean label_smoothing\?",
    ),
    "field of a term's pair": (
        {"method": [{"term": "feature_mse", "weight": 1, "pairs": [{"studnt": "a", "teacher": "b"}]}]},
        r"unknown key 'method.0.pairs.0.studnt'; did you mean student\?",
    ),
    "field within a section": ({"about": {"expected": {"top": 71}}}, r"'about.expected.top'; did you mean top1\?"),
    "no temperature": (
        {"method": [{"term": "kd", "weight": 1.0}], "teacher": {"model": "resnet18"}},
        r"method.*temperature",
    ),
    "all weights 0": ({"method": [{"term": "ce", "weight": 0.0}]}, r"every term has weight 0"),
    "decay": (
        {"method": [{"term": "ce", "weight": 1.0, "decay_from_epoch": 2}]},
        r"term 'ce': its weight decays from epoch 2 on, but the run has 2 epochs; lower decay_from_epoch",
    ),
    "held out": ({"train__select": "held_out"}, r"data.held_out is 0; keep back .*train.select=last"),
    "mean without std": ({"data__mean": [0.5, 0.5, 0.5]}, r"data.mean and data.std belong together"),
    "second derivative, compiled": (
        {"method": [{"term": "kdiga", "weight": 1.0}], "teacher": {"model": "resnet18"}, "train__compile": True},
        r"train.compile: the term kdiga takes a gradient of a gradient",
    ),
    "odd pairs": (
        {"views__mixup_alpha": 0.2, "train__batch_size": 9, "train__micro_batch": 3},
        r"micro-batch must be even",
    ),
    "mixed images": (
        {
            "method": [{"term": "ce", "weight": 1.0}, {"term": "crd", "weight": 0.8, "negatives": "all"}],
            "teacher": {"model": "resnet18"},
            "views__mixup_alpha": 0.2,
        },
        r"crd does not work with mixed images; set views.mixup_alpha",
    ),
    "range": ({"train__epochs": 0}, r"train.epochs: .*greater than or equal to 1 \(got 0\)"),
    "name": ({"name": "a/b"}, r"name: "),
}


def test_momentum_that_one_cycle_leaves_alone(recipe):
    """The other schedules keep any, and Adam's second beta stays with the cycle of its first."""
    cycle, adam = {"sched": "onecycle"}, {"opt": "adamw", "lr": 0.1, "args": {"betas": [0.95, 0.9]}}
    for sched in ("cosine", "constant"):
        check_may_be_trained(parse(recipe(schedule={"sched": sched}, optimizer__momentum=0.0)))
    check_may_be_trained(parse(recipe(schedule=cycle)))
    check_may_be_trained(parse(recipe(schedule=cycle, optimizer=adam)))


@pytest.mark.parametrize("case", REFUSED)
def test_refused(recipe, case):
    changes, message = REFUSED[case]
    with pytest.raises(Refused, match=message) as caught:
        check_may_be_trained(parse(recipe(**changes)))
    assert "\n" not in str(caught.value)


def test_round_trip(recipe, tmp_path):
    """What is written resolved reads back as the same configuration."""
    config = parse(recipe(teacher__model="resnet18", method=[{"term": "kd", "weight": 0.5, "temperature": 4}]))
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(config))
    assert load_recipe(path) == config
    assert config.method[0] == KD(weight=0.5, temperature=4)


def test_frozen(recipe):
    config = parse(recipe())
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3


def test_bases_and_overrides(recipe, tmp_path):
    """Later bases win over earlier ones, the file over its bases, overrides over all; mappings merge, lists do not."""
    import yaml

    (tmp_path / "first.yaml").write_text(yaml.safe_dump(recipe()))
    (tmp_path / "second.yaml").write_text("train: {epochs: 5}\nname: second\n")
    (tmp_path / "top.yaml").write_text("base: [first.yaml, second.yaml]\nname: top\nmethod: [{term: ce, weight: 2}]\n")
    config = load_recipe(tmp_path / "top.yaml", ["train.batch_size=16", "method.0.weight=0.5"])
    assert (config.name, config.train.epochs, config.train.batch_size, config.train.micro_batch) == ("top", 5, 16, 4)
    assert [term.weight for term in config.method] == [0.5]


def test_an_override_that_is_not_yaml(recipe, tmp_path):
    import yaml

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    with pytest.raises(Refused, match=r"override 'student.args=\{widths: \[1' is not YAML") as caught:
        load_recipe(tmp_path / "recipe.yaml", ["student.args={widths: [1"])
    assert "\n" not in str(caught.value)


def test_an_override_below_a_section_that_is_null(recipe, tmp_path):
    import yaml

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(teacher=None)))
    config = load_recipe(tmp_path / "recipe.yaml", ["teacher.model=resnet18"])
    assert config.teacher is not None
    assert config.teacher.model == "resnet18"


def test_file_errors(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: [1\n")
    with pytest.raises(Refused, match="is not YAML"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(Refused, match=r"no such recipe; did you mean recipe.yaml\?"):
        load_recipe(tmp_path / "recip.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(Refused, match="a recipe is a mapping"):
        load_recipe(tmp_path / "list.yaml")


def test_override_without_value(recipe, tmp_path):
    (tmp_path / "r.yaml").write_text("name: x\n")
    with pytest.raises(Refused, match=r"write key=value"):
        load_recipe(tmp_path / "r.yaml", ["train.epochs"])


def test_workers_share_the_batch(recipe):
    config: RunConfig = parse(recipe(train__micro_batch=None))
    assert micro_batch_size(config, 2) == 4
    assert micro_batch_size(config, 1) == 8
    with pytest.raises(Refused, match="8 cannot be shared by 3 workers"):
        micro_batch_size(config, 3)
