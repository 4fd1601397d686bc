"""A run's folder: what is in it, whose run it holds, and what is refused by name."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import safetensors.torch
import torch

from cluster.images import image_facts, open_data
from cluster.recipe.reading import parse
from cluster.tracking.fields import fields_of, flat_fields
from cluster.tracking.folder import RunFolder
from cluster.training.launch import RunResult, launch
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from tests.conftest import small_recipe

KD = [{"term": "ce", "weight": 1.0}, {"term": "kd", "weight": 1.0, "temperature": 4.0}]
RESULT = {
    "name": "run",
    "run_dir": "x",
    "mlflow_run_id": "a",
    "metrics": {},
    "steps": 1,
    "train_seconds": 1.0,
    "images_per_second": 1.0,
    "wall_seconds": 1.0,
}


def write_teacher(path, seed: int):
    torch.manual_seed(seed)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict()}, path)
    return path


@pytest.fixture
def make(recipe):
    def config(teacher, **changes):
        teacher = {"model": "cifar_resnet8", "checkpoint": str(teacher)}
        return parse(recipe(teacher=teacher, method=KD, scaling__num_workers=0, **changes))

    return config


def test_the_state_of_a_run(make, tmp_path):
    config = make(write_teacher(tmp_path / "t.safetensors", 1))
    folder = RunFolder.of(config)
    assert folder.state() == "new"
    folder.claim(config)
    assert folder.state() == "unfinished"
    folder.write_result(RESULT)
    assert folder.state() == "unfinished", "its student is missing"
    folder.weights.touch()
    assert folder.state() == "finished"
    assert RunResult.read(folder) == RunResult(**RESULT | {"run_dir": str(folder.path)})


def test_a_metric_of_a_result_may_be_no_number(tmp_path):
    """A validation's loss that was not finite: the file has null, and whoever reads it NaN."""
    folder = RunFolder(tmp_path)
    folder.write_result(RESULT | {"metrics": {"val/top1": 0.5, "val/nll": math.inf}})
    found = RunResult.read(folder).metrics
    assert found["val/top1"] == 0.5
    assert math.isnan(found["val/nll"])


@pytest.mark.parametrize(("seed", "is_same"), [(0, True), (1, False)])
def test_a_terms_seed_that_is_not_given_is_the_runs(recipe, seed, is_same):
    """A run of seed 0 goes on whose recipe was written when a term's own seed was 0 unless given."""

    def make(**fields):
        method = [KD[0], {"term": "crd", "weight": 0.8, **fields}]
        return parse(recipe(teacher={"model": "cifar_resnet8", "random": True}, method=method, seed=seed))

    folder = RunFolder.of(make())
    folder.claim(make(seed=0))
    folder.refuse_another(make(seed=0))
    if is_same:
        folder.refuse_another(make())
    else:
        with pytest.raises(Refused, match=r"another recipe \(method.1.seed: 0 there, 1 now\)"):
            folder.refuse_another(make())


def test_another_teacher_is_another_run(make, tmp_path):
    """The file's content counts, not its name or format: the same tensors elsewhere are the same teacher."""
    config = make(write_teacher(tmp_path / "t.safetensors", 1))
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.refuse_another(make(write_teacher(tmp_path / "moved.pt", 1)))
    write_teacher(tmp_path / "t.safetensors", 2)
    with pytest.raises(Refused, match=r"started from other weights \(weights.teacher.checkpoint \w{16}... there"):
        folder.refuse_another(config)
    folder.write_result(RESULT)
    with pytest.raises(Refused, match="restore the file, choose another name"):
        launch(config)


def test_the_students_first_weights_count_too(make, tmp_path):
    teacher = write_teacher(tmp_path / "t.safetensors", 1)
    student = {"model": "cifar_resnet8", "checkpoint": str(write_teacher(tmp_path / "s.safetensors", 3))}
    config = make(teacher, student=student)
    RunFolder.of(config).claim(config)
    write_teacher(tmp_path / "s.safetensors", 4)
    with pytest.raises(Refused, match=r"other weights \(weights.student.checkpoint"):
        RunFolder.of(config).refuse_another(config)


def test_the_order_of_a_teachers_classes_counts_too(recipe, tmp_path):
    """The list may lie elsewhere, but says the same."""
    teacher = write_teacher(tmp_path / "t.safetensors", 1)

    def make(indices):
        given = {"model": "cifar_resnet8", "checkpoint": str(teacher), "class_indices": str(indices)}
        return parse(recipe(teacher=given, method=KD))

    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text("[0, 1, 2]")
    shutil.copy(first, second)
    folder = RunFolder.of(make(first))
    folder.claim(make(first))
    folder.refuse_another(make(second))
    second.write_text("[1, 0, 2]")
    with pytest.raises(Refused, match=r"started from other weights \(weights.teacher.class_indices \w{16}... there"):
        folder.refuse_another(make(second))


def test_a_checkpoint_of_another_teacher_is_not_continued(make, tmp_path):
    """Where the folder's own record is lost, the checkpoint's is left."""
    from pyarrow.fs import LocalFileSystem

    from cluster.assembly import assemble
    from cluster.rank import Rank
    from cluster.training.checkpoint import checkpoint_facts
    from cluster.training.loop import new_state

    config = make(write_teacher(tmp_path / "t.safetensors", 1))
    run = assemble(config, Rank(0, 1, torch.device("cpu")))
    new_state(run).snapshot(checkpoint_facts(run)).write(LocalFileSystem(), str(tmp_path / "saved"))
    new_state(run).restore(tmp_path / "saved", checkpoint_facts(run))
    write_teacher(tmp_path / "t.safetensors", 2)
    run = assemble(config, Rank(0, 1, torch.device("cpu")))
    with pytest.raises(Refused, match=r"its weights.teacher.checkpoint is \w{16}..., this run's is"):
        new_state(run).restore(tmp_path / "saved", checkpoint_facts(run))


def test_a_run_from_before_weights_were_recorded_goes_on(make, tmp_path):
    config = make(write_teacher(tmp_path / "t.safetensors", 1))
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.facts.unlink()
    folder.refuse_another(config)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            json.dumps(RESULT, indent=1)[:60],
            r"result.json is not whole JSON .*; delete that file and run",
        ),
        ("", r"result.json is not whole JSON"),
        ("[1, 2]", r"holds a list, not an object"),
        (json.dumps({"name": "run"}), r"has no 'run_dir', so it is not the result of a run of `train`"),
    ],
)
def test_a_result_that_is_not_whole_is_refused(make, tmp_path, content, complaint):
    config = make(write_teacher(tmp_path / "t.safetensors", 1))
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.result.write_text(content)
    folder.weights.touch()
    with pytest.raises(Refused, match=complaint):
        launch(config)


def test_a_folder_that_cannot_be_made_is_refused(recipe):
    config = parse(recipe() | {"output_dir": "/proc/nope", "scaling": {"num_workers": 0}})
    with pytest.raises(Refused, match=r"output_dir: the folder /proc/nope cannot be made"):
        launch(config)


def test_flattened_lists():
    """Lists of mappings are numbered; other lists are values."""
    tree = {"a": {"b": 1}, "method": [{"term": "ce"}, {"term": "kd"}], "sizes": [1, 2], "none": []}
    assert flat_fields(tree) == {"a.b": 1, "method.0.term": "ce", "method.1.term": "kd", "sizes": [1, 2], "none": []}
    weights = {"tench, Tinca tinca": 2.0, "b's": 1.0}
    assert flat_fields({"a": {"class_weights": weights, "b": {}}}) == {"a.class_weights": weights}


def test_a_run_goes_on_where_only_the_machine_changed(image_folder, tmp_path):
    """Other threads, another loader, images that have moved: the same run. Other images are refused."""
    config = parse(small_recipe(image_folder, tmp_path / "out"))
    folder = RunFolder.of(config)
    folder.claim(config, image_facts(open_data(config)))
    changes = {"data__num_threads": 2, "data__loader": "reference", "data__prefetch": 4}
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    folder.refuse_another(parse(small_recipe(moved, tmp_path / "out", **changes)))
    other = shutil.copytree(moved, tmp_path / "other")
    next((other / "val" / "class0").iterdir()).unlink()
    with pytest.raises(Refused, match=r"different \(validation.val\); give data.root="):
        folder.refuse_another(parse(small_recipe(other, tmp_path / "out")))
    next((moved / "train" / "class0").iterdir()).unlink()
    with pytest.raises(Refused, match=r"holds a run on the images in .*different \(training\); give data.root="):
        folder.refuse_another(parse(small_recipe(moved, tmp_path / "out")))
    with pytest.raises(Refused, match="another recipe"):
        folder.refuse_another(parse(small_recipe(image_folder, tmp_path / "out", data__crop_pct=0.9)))


def test_a_run_from_before_validation_images_were_recorded_moves(image_folder, tmp_path):
    config = parse(small_recipe(image_folder, tmp_path / "out"))
    RunFolder.of(config).claim(config, {"data": open_data(config)["train"].fingerprint})
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    RunFolder.of(config).refuse_another(parse(small_recipe(moved, tmp_path / "out")))


def test_the_number_of_workers_may_change_where_a_micro_batch_does_not(recipe):
    """A worker's share of the batch is one where none is given: batch norm, and some losses, would change with it."""

    def make(micro_batch, **scaling):
        return parse(recipe(train__micro_batch=micro_batch, scaling=scaling))

    folder = RunFolder.of(make(None))
    folder.claim(make(None, num_workers=4))
    folder.refuse_another(make(None, num_workers=4))
    said = r"takes 2 images, and now it would take 4; give scaling\.num_workers=4, as it was, choose another name"
    with pytest.raises(Refused, match=said):
        folder.refuse_another(make(None, num_workers=2))
    folder.write_recipe(make(None, num_workers=1))
    folder.refuse_another(make(None, num_workers=0))
    folder.write_recipe(make(4, num_workers=1))
    folder.refuse_another(make(4, num_workers=2, min_workers=1))


SECTIONS_THAT_MAY_CHANGE = {"about", "scaling", "tracking", "checkpoint"}
FIELDS_THAT_MAY_CHANGE = {
    "output_dir",
    "plugins",
    "data.root",
    "data.loader",
    "data.decode",
    "data.num_threads",
    "data.prefetch",
    "data.evaluation_batch",
    "data.copies_dir",
    "data.copies_bytes",
    "data.check",
    "data.max_pixels",
    "cache.dir",
    "cache.copies_dir",
    "cache.batch_size",
    "cache.rows_per_shard",
    "cache.trust",
    "student.checkpoint",
    "student.class_indices",
    "teacher.checkpoint",
    "teacher.class_indices",
}


def test_which_fields_may_change_between_two_starts(recipe, monkeypatch):
    """Every other field decides what is computed: where it is changed, the run is refused by its name."""
    teacher, cache = {"model": "cifar_resnet8", "source": "cache"}, {"dir": "cache"}
    known = parse(recipe(teacher=teacher, cache=cache, views__num_views=2, method=KD))
    ours, folder, fields = known.model_copy(), RunFolder.of(known), fields_of(known)
    folder.claim(known)
    monkeypatch.setattr(RunFolder, "read_recipe", lambda *_: known)
    monkeypatch.setattr(RunFolder, "_refuse_other_data", lambda *_: None)  # the images have moved
    may_change, refusals = set(), {}
    for name in fields:
        changed = fields | {name: "another"}
        monkeypatch.setattr(
            "cluster.tracking.same_run.fields_of", lambda one, changed=changed: changed if one is ours else fields
        )
        try:
            folder.refuse_another(ours)
            may_change.add(name)
        except Refused as refused:
            refusals[name] = str(refused)
    assert [name for name, said in refusals.items() if f"another recipe ({name}: " not in said] == []
    in_sections = {name for name in fields if name.split(".")[0] in SECTIONS_THAT_MAY_CHANGE}
    assert {name.split(".")[0] for name in in_sections} == SECTIONS_THAT_MAY_CHANGE
    assert may_change == FIELDS_THAT_MAY_CHANGE | in_sections
