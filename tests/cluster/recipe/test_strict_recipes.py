"""One line where a recipe is not what was meant: the cases that ended in a traceback, or passed in silence."""

import pytest
import yaml

from cluster.recipe.reading import load_recipe, parse
from cluster.sweep.config import SweepConfig
from kdcore.errors import Refused
from ops import catalog


@pytest.fixture
def write(recipe, tmp_path):
    text = yaml.safe_dump(recipe())

    def make(before="", after="", name="recipe.yaml", encoding="utf-8"):
        path = tmp_path / name
        path.write_text(before + text + after, encoding)
        return path

    return make


@pytest.mark.parametrize("base", ["", "3", "[3]", "{a: b}", "true"])
def test_a_base_that_is_none(write, base):
    with pytest.raises(Refused, match=r"base is .*give a recipe's file or name"):
        load_recipe(write(f"base: {base}\n"))


def test_recipes_that_start_from_one_another(write):
    with pytest.raises(Refused, match="cannot start from one another"):
        load_recipe(write("base: recipe.yaml\n"))
    write("base: b.yaml\n", name="a.yaml")
    with pytest.raises(Refused, match="cannot start from one another"):
        load_recipe(write("base: a.yaml\n", name="b.yaml"))


def test_a_base_may_be_a_name(write):
    config = catalog.load(write("base: kd\n"))
    assert config.teacher == catalog.load("kd").teacher
    with pytest.raises(Refused, match="kdd: no such recipe; did you mean kd"):
        catalog.load(write("base: kdd\n"))


def test_two_files_may_share_a_base(write):
    write(name="common.yaml")
    write("base: common.yaml\n", name="a.yaml")
    write("base: common.yaml\n", name="b.yaml")
    assert load_recipe(write("base: [a.yaml, b.yaml]\n")).name == "run"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding(write, encoding):
    with pytest.raises(Refused, match="is not UTF-8"):
        load_recipe(write(after="about: {title: café}\n", encoding=encoding))


def test_a_key_twice(write):
    with pytest.raises(Refused, match="'name' appears twice"):
        load_recipe(write(after="name: second\n"))


def test_a_merge_key_is_no_key_twice(write):
    aliased = "about: &about {title: a}\n"
    assert load_recipe(write(before=aliased.replace("about: &about", "about: &a"))).about.title == "a"


@pytest.mark.parametrize("override", ["train.epochs=1:30", "train.epochs=010", "optimizer.lr=1:30.5"])
def test_numbers_of_other_bases(write, override):
    with pytest.raises(Refused, match="as another number, in base"):
        load_recipe(write(), [override])


@pytest.mark.parametrize("override", ["train.epochs=[1", "student.args={a: 1, a: 2}", "name=2020-13-45"])
def test_an_override_that_is_no_yaml(write, override):
    with pytest.raises(Refused, match="is not YAML"):
        load_recipe(write(), [override])


@pytest.mark.parametrize(
    "override", ["train.epochs=true", "seed=false", "optimizer.lr=yes", "method.0.weight=true", "views.size=true"]
)
def test_true_is_no_number(write, override):
    with pytest.raises(Refused, match="is not a number"):
        load_recipe(write(), [override])


def test_what_is_meant_is_read(write):
    config = load_recipe(write(), ["train.epochs=1_000", "optimizer.lr=1e-3", "train.channels_last=no", "seed=0"])
    assert (config.train.epochs, config.optimizer.lr, config.train.channels_last) == (1000, 0.001, False)


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db-wal", "index", "artifacts", "mlruns", "Index"])
def test_names_that_the_output_folder_keeps(recipe, name):
    with pytest.raises(Refused, match="is reserved in the output folder"):
        parse(recipe(name=name))
    with pytest.raises(ValueError, match="is reserved in the output folder"):
        SweepConfig(name=name, space={"optimizer.lr": [0.1, 0.2]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"term": "kd"}}, r"method: Input should be a list, such as \[A, B\] \(got"),
        (
            {"views": {"size": [24]}},
            r"views.size: Input should be a valid integer \(got \[24\]\); views.size.1 is missing$",
        ),
        ({"teacher": "resnet50"}, r"teacher: Input should be a mapping, such as {KEY: VALUE} \(got 'resnet50'\)"),
        ({"name": "my run/1"}, r"name: use letters, digits and . _ - only, and begin with a letter or digit \(got 'my"),
    ],
)
def test_what_is_wrong_is_said_without_python(recipe, changes, said):
    with pytest.raises(Refused, match=said):
        parse(recipe(**changes))
