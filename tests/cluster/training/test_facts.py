"""What must be as it was for a checkpoint to be continued: images, weights, and what one forward pass holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import Assembly, assemble
from cluster.images import image_facts, open_data
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.training.checkpoint import checkpoint_facts, read_state, whole_checkpoints
from cluster.training.launch import has_checkpoint, task_of
from cluster.training.loop import new_state
from cluster.training.replay import replay_step
from cluster.training.saving import LocalSaver
from cluster.training.worker import train_worker
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from pipelines.leases import Fence

CPU = torch.device("cpu")
Make = Callable[..., dict[str, Any]]


def begin(recipe: dict[str, Any], world_size: int = 1) -> Assembly:
    return assemble(parse(recipe), Rank(0, world_size, CPU))


def save(run: Assembly, folder: Path, without: str = "") -> None:
    """Write a checkpoint of a run's first weights, as an earlier version did that did not know one of the facts."""
    facts = {name: fact for name, fact in checkpoint_facts(run).items() if name != without}
    new_state(run).snapshot(facts).write(LocalFileSystem(), str(folder))


def restore(run: Assembly, folder: Path) -> None:
    new_state(run).restore(folder, checkpoint_facts(run))


def test_another_micro_batch_is_another_run(recipe: Make, tmp_path: Path) -> None:
    """Which the number of workers makes, unless one is given; an earlier checkpoint does not know it."""
    save(begin(recipe(train__micro_batch=None)), tmp_path / "saved")
    restore(begin(recipe(train__micro_batch=None)), tmp_path / "saved")
    shared = begin(recipe(train__micro_batch=None), world_size=2)
    said = r"its micro_batch is 8, this run's is 4; start again with .*scaling\.num_workers as it was"
    with pytest.raises(Refused, match=said):
        restore(shared, tmp_path / "saved")
    save(begin(recipe(train__micro_batch=None)), tmp_path / "early", without="micro_batch")
    restore(shared, tmp_path / "early")
    save(begin(recipe(train__micro_batch=4)), tmp_path / "given")
    restore(begin(recipe(train__micro_batch=4), world_size=2), tmp_path / "given")


def test_a_replay_takes_the_runs_own_micro_batch(recipe: Make) -> None:
    """Also of a step before the first checkpoint, of which the run's folder alone tells."""
    config = parse(recipe(train__micro_batch=None, scaling__num_workers=2))
    RunFolder.of(config).claim(config)
    other = parse(recipe(train__micro_batch=None, scaling__num_workers=1))
    with pytest.raises(Refused, match=r"takes 4 images, and now it would take 8; give scaling\.num_workers=2"):
        replay_step(other, 0, CPU, lambda done, to_do: None)
    other = parse(recipe(train__micro_batch=8, scaling__num_workers=1))
    RunFolder.of(config).write_recipe(parse(recipe(train__micro_batch=2)))
    with pytest.raises(Refused, match=r"give train\.micro_batch=2"):
        replay_step(other, 0, CPU, lambda done, to_do: None)


def test_a_finished_run_shows_its_result_to_any_number_of_workers(recipe: Make) -> None:
    config = parse(recipe(train__micro_batch=None, scaling__num_workers=2))
    folder = RunFolder.of(config)
    folder.claim(config)
    other = parse(recipe(train__micro_batch=None, scaling__num_workers=1))
    with pytest.raises(Refused, match=r"give scaling\.num_workers=2"):
        folder.refuse_another(other)
    folder.write_result({})
    folder.weights.touch()
    folder.refuse_another(other)


def test_the_images_of_a_checkpoint_stay_known_whatever_lies_there_now(
    recipe: Make, image_folder: Path, tmp_path: Path
) -> None:
    """A start that is refused for other images changes nothing: the right ones, at another place, are recognised."""
    root, kept = (shutil.copytree(image_folder, tmp_path / name) for name in ("images", "kept"))
    config = parse(recipe(data__root=str(root), scaling__num_workers=0))
    folder = RunFolder.of(config)
    assert not has_checkpoint(config)
    folder.claim(config, image_facts(open_data(config)), has_checkpoint(config))
    run = assemble(config, Rank(0, 1, CPU))
    state = new_state(run)
    state.step = 1
    LocalSaver(run).save(state)
    assert has_checkpoint(config)
    shutil.copy(root / "val" / "class1" / "003.png", root / "val" / "class0" / "000.png")
    found = image_facts(open_data(config))
    assert found["validation"] != image_facts(run.indexes)["validation"]
    folder.claim(config, found, has_checkpoint(config))
    folder.refuse_another(parse(recipe(data__root=str(kept), scaling__num_workers=0)))


@pytest.mark.parametrize("split", ["val", "held_out"])
def test_other_images_to_judge_by_are_another_run(split: str, recipe: Make, image_folder: Path, tmp_path: Path) -> None:
    """The best weights are chosen by scores, which would be compared across two sets."""
    root = shutil.copytree(image_folder, tmp_path / "images")
    changes = {"data__root": str(root), "data__held_out": 0.2}
    run = begin(recipe(**changes))
    save(run, tmp_path / "saved")
    save(run, tmp_path / "early", without="validation")
    place = Path(run.indexes[split].names(torch.arange(1).numpy())[0])
    shutil.copy(root / "val" / "class1" / "003.png", place)
    changed = begin(recipe(**changes))
    assert image_facts(changed.indexes)["data"] == image_facts(run.indexes)["data"]
    with pytest.raises(Refused, match=rf"its validation\.{split} is \w{{16}}\.\.\., this run's is"):
        restore(changed, tmp_path / "saved")
    restore(changed, tmp_path / "early")


@pytest.fixture
def taught(recipe: Make, tmp_path: Path) -> Make:
    """A function that writes a teacher, and gives a recipe of a run that learns from it."""

    def make(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        file = tmp_path / "teacher.safetensors"
        safetensors.torch.save_file(build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c")).state_dict(), file)
        method = [{"term": "kd", "weight": 1.0, "temperature": 4.0}]
        teacher = {"model": "cifar_resnet8", "checkpoint": str(file)}
        return recipe(teacher=teacher, method=method, scaling__num_workers=0, data__loader="reference")

    return make


def test_a_teacher_that_is_overwritten_meanwhile_stays_the_runs(taught: Make, tmp_path: Path) -> None:
    """What was read into memory trains on, and its checkpoints say so, whatever the file has become."""
    run = begin(taught(1))
    facts = checkpoint_facts(run)
    state, saver = new_state(run), LocalSaver(run)
    for step in (1, 2):
        if step == 2:
            taught(2)
        state.step = step
        saver.save(state)
    (tmp_path / "teacher.safetensors").write_bytes(b"not written to its end yet")
    state.step = 3
    saver.save(state)
    found = whole_checkpoints(run.config)
    assert [one.step for one in found] == [2, 3]
    for one in found:
        assert read_state(Path(one.path))["facts"] == facts


def test_a_worker_that_finds_another_teacher_than_the_driver_is_refused(taught: Make) -> None:
    """As one that is started again before the first checkpoint would, or one on another node."""
    config = parse(taught(1))
    RunFolder.of(config).claim(config, image_facts(open_data(config)))
    task = task_of(config, Fence("", "", 0))
    taught(2)
    with pytest.raises(Refused, match=r"the file of teacher\.checkpoint is not the one that the run began with"):
        train_worker(task)
