"""What only reports on a run never ends it: a line says what is left out."""

from pathlib import Path

import pytest

import kdcore.cost
from cluster.recipe.reading import parse
from cluster.tracking import pictures
from cluster.training.launch import launch


def test_a_run_goes_on_without_its_pictures_and_costs(recipe, monkeypatch):
    def fail(*args: object) -> None:
        raise RuntimeError("broken")

    for module, name in ((pictures, "first_batch"), (kdcore.cost, "multiply_adds")):
        monkeypatch.setattr(module, name, fail)
    said: list[str] = []
    result = launch(parse(recipe(scaling__num_workers=0)), watch=lambda state, messages: said.extend(messages))
    assert result.steps == 12
    assert (Path(result.run_dir) / "student.safetensors").exists()
    assert [line for line in said if "left out" in line] == [
        "the picture of the first batch is left out (RuntimeError: broken)",
        "the student's multiply-adds are left out (RuntimeError: broken)",
    ]


@pytest.mark.parametrize("name", ["test_vit3"])
def test_a_network_that_hands_a_parameter_to_a_submodule_trains_to_its_end(recipe, name):
    """pytorch#134242: the counter of multiply-adds ended such runs after their last step."""
    changes = {"views__size": 160, "student": {"model": name}, "train__max_steps": 1, "scaling__num_workers": 0}
    assert launch(parse(recipe(**changes))).steps == 1
