"""A run is checked by shapes alone where that will do: its networks are built once, where they train."""

from __future__ import annotations

import pytest
import torch

from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.training import check
from cluster.training.check import check_run
from cluster.training.launch import launch
from cluster.training.replay import replay_step
from kdcore.errors import Refused
from kdcore.terms import REGISTRY
from tests.cluster.runs import Branching

TEACHER = {"model": "cifar_resnet8", "random": True}
FEATURES = [{"term": "feature_mse", "weight": 1, "pairs": [{"student": "layer2", "teacher": "layer2"}]}]


@pytest.fixture
def devices(monkeypatch) -> list[str]:
    """The devices that a run is tried on, in order."""
    tried: list[str] = []
    checked_parts = check.checked_parts

    def noting(config, device: torch.device):
        tried.append(device.type)
        return checked_parts(config, device)

    monkeypatch.setattr(check, "checked_parts", noting)
    return tried


@pytest.mark.parametrize("changes", [{}, {"teacher": TEACHER}, {"teacher": TEACHER, "method": FEATURES}])
def test_no_network_is_built(recipe, devices, changes):
    assert check_run(parse(recipe(**changes)))
    assert devices == ["meta"]


def test_nor_for_what_lacks_a_name(recipe, devices):
    wrong = [FEATURES[0] | {"pairs": [{"student": "layer2", "teacher": "layer9"}]}]
    with pytest.raises(Refused, match="layer9"):
        check_run(parse(recipe(teacher=TEACHER, method=wrong)))
    assert devices == ["meta"]


def test_what_networks_complain_of_is_said_by_the_cpu(recipe, devices):
    with pytest.raises(Refused, match="InceptionV3 cannot take 2 images of 64x64"):
        check_run(parse(recipe(student={"model": "inception_v3"}, views__size=64)))
    assert devices == ["meta", "cpu"]


def test_a_network_that_asks_for_values_has_them(recipe, devices):
    check_run(parse(recipe(student={"model": f"{Branching.__module__}:Branching"})))
    assert devices == ["meta", "cpu"]


def test_a_replay_is_refused_as_the_run_is(recipe, monkeypatch):
    """A loss that gives nothing was a traceback."""
    monkeypatch.setattr(REGISTRY["ce"], "loss", lambda term, inputs: None)
    with pytest.raises(Refused, match="term ce: it gives a NoneType"):
        replay_step(parse(recipe()), 0, torch.device("cpu"), lambda done, to_do: None)


def test_a_hub_keeps_no_checkpoints(recipe, devices):
    """Said before anything is made or fetched, and not as a failed connection's traceback."""
    config = parse(recipe(checkpoint__storage="hf://owner/name"))
    with pytest.raises(
        Refused, match=r"^checkpoint.storage=hf://owner/name: a hub keeps .* such as s3://bucket/folder"
    ):
        launch(config)
    assert RunFolder.of(config).state() == "new"
    assert devices == []
