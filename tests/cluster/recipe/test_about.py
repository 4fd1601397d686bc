"""What a recipe says about itself is checked, kept with the run, and no part of the run's identity."""

from __future__ import annotations

import pytest

from cluster.recipe.about import AboutConfig, ExpectedConfig
from cluster.recipe.reading import load_recipe, parse, to_yaml
from cluster.training.launch import continued
from kdcore.errors import Refused
from ops.history import Run, grouped

ABOUT = {
    "title": "A small test.",
    "paper": "nobody et al.",
    "expected": {"top1": 71.7, "stdev": 0.05, "teacher": 73.31, "alone": 69.76, "note": "rounded"},
    "differs": ["it is small, to be fast", "it has three classes"],
}


def test_it_is_read_and_written_whole(recipe, tmp_path):
    config = parse(recipe(about=ABOUT))
    path = tmp_path / "written.yaml"
    path.write_text(to_yaml(config))
    assert load_recipe(path) == config
    assert load_recipe(path).about == AboutConfig.model_validate(ABOUT)


def test_an_expected_result_in_words():
    assert str(ExpectedConfig.model_validate(ABOUT["expected"])) == (
        "71.70 ± 0.05 top-1 (teacher 73.31, student alone 69.76); rounded"
    )
    assert str(ExpectedConfig(top1=69.06)) == "69.06 top-1"
    assert str(ExpectedConfig(note="compare with `alone`")) == "no published number; compare with `alone`"
    assert str(ExpectedConfig()) == "no published number"


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"titel": "x"}, "unknown key 'about.titel'; did you mean title"),
        ({"expected": {"top1": 0.717}}, r"about\.expected\.top1: Input should be greater than 1"),
        ({"expected": "71.7 top-1"}, r"about\.expected: Input should be a mapping"),
        ({"differs": "one text"}, r"about\.differs: Input should be a list"),
    ],
)
def test_a_mistake_is_refused_by_name(recipe, about, message):
    """A fraction in place of percent is one; so is one text in place of a list of differences."""
    with pytest.raises(Refused, match=message):
        parse(recipe(about=about))


def test_a_run_goes_on_when_only_its_words_change(recipe):
    config = parse(recipe(about=ABOUT))
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "recipe.yaml").write_text(to_yaml(config))
    assert continued(parse(recipe(about=ABOUT | {"title": "Other words.", "differs": []}))) is None
    assert continued(parse(recipe())) is None
    with pytest.raises(Refused, match="holds a run of another recipe"):
        continued(parse(recipe(about=ABOUT, seed=1)))


def test_runs_are_repetitions_whatever_is_said_about_them():
    """Also in a store whose runs carry what is said among their parameters."""
    recipes = [{"seed": str(seed), "about.title": title} for seed, title in enumerate(("one", "another"))]
    runs = [Run(f"r{i}", "0", "r", "FINISHED", i, recipe, {}, {}) for i, recipe in enumerate(recipes)]
    assert [len(group.runs) for group in grouped(runs)] == [2]
