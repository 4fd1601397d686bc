"""Runs as MLflow holds them: which belong together, also over changes of what a recipe can say."""

from dataclasses import replace
from typing import Any

import pytest
from mlflow.entities import Dataset, DatasetInput, RunData, RunInfo, RunInputs, RunTag
from mlflow.entities import Run as MlflowRun

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.tracking.description import weights_tags
from cluster.tracking.fields import flat_fields
from cluster.tracking.folder import RunFolder
from ops.defaults import with_defaults
from ops.history import DECISION, PARENT, Run, grouped, siblings, with_shared_roots, with_shared_weights
from pipelines.files import write_json

METHOD = [
    {"term": "ce", "weight": 1.0},
    {"term": "feature_mse", "weight": 1.0, "pairs": [{"student": "layer1", "teacher": "layer2"}]},
]


@pytest.fixture
def config(recipe) -> RunConfig:
    """A recipe with a teacher, a cache and terms: with every kind of section."""
    teacher, cache = {"model": "cifar_resnet8"}, {"dir": "/cache"}
    return parse(recipe(teacher=teacher, cache=cache, method=METHOD, views__num_views=2))


def logged(config: RunConfig, without: tuple[str, ...] = (), **changes: Any) -> dict[str, str]:
    """What MLflow holds of a recipe, as it was before some fields were invented."""
    fields = {key: str(value) for key, value in flat_fields(config.model_dump(mode="json")).items()} | changes
    return {key: value for key, value in fields.items() if not f"{key}.".startswith(tuple(f"{w}." for w in without))}


def run(recipe: dict[str, str], name: str = "r") -> Run:
    return Run(name, "0", name, "FINISHED", 0.0, recipe, {}, {"val/top1": 0.5})


LATER = {
    "a field": ("train.ema_warmup",),
    "a field that is None by default": ("train.clip_norm",),
    "a list": ("views.ratio",),
    "a field of a term": ("method.1.warmup_epochs",),
    "a section": ("schedule",),
    "several": ("train.ema_warmup", "teacher.source", "cache.trust", "schedule"),
}


@pytest.mark.parametrize("fields", LATER.values(), ids=LATER)
def test_a_field_that_came_later_splits_no_group(config, fields):
    """A run from before it and one that has it at its default are repetitions of one another; one with another value
    is not."""
    older, newer = run(logged(config, without=fields)), run(logged(config, seed="1"), "newer")
    assert older.recipe.keys() < newer.recipe.keys()
    assert [len(group.runs) for group in grouped([older, newer])] == [2]
    assert len(siblings(older, [older, newer]).runs) == 2
    field = next(field for field in newer.recipe if f"{field}.".startswith(f"{fields[0]}."))
    assert [len(group.runs) for group in grouped([older, run(newer.recipe | {field: "77"})])] == [1, 1]


def test_what_was_written_with_defaults_is_the_resolved_recipe(config):
    """The schema's defaults are put in as they are logged, in every kind of section."""
    written = flat_fields(config.model_dump(mode="json", exclude_unset=True))
    assert len(written) < 30
    assert with_defaults({key: str(value) for key, value in written.items()}) == logged(config)


def test_what_is_not_known_here_is_left_as_it_is():
    """A term or a field of another version of the project, or of a plug-in."""
    recipe = {"method.0.term": "of_another_version", "method.0.gamma": "2", "train.epochs": "3", "train.former": "x"}
    found = with_defaults(recipe)
    assert recipe.items() <= found.items()
    assert found["train.precision"] == "auto"
    assert not [name for name in found if name.startswith("method.0.") and name not in recipe]


ELSEWHERE = {
    "output_dir": "/other/out",
    "data.loader": "reference",
    "data.num_threads": "8",
    "data.copies_dir": "/other/copies",
    "cache.dir": "/other/cache",
    "scaling.num_workers": "4",
}


def test_how_a_run_was_carried_out_splits_no_group(config):
    """Two starts of one run may differ in it, so two seeds of one recipe may: another machine's had no gain."""
    here, elsewhere = run(logged(config)), run(logged(config, seed="1", **ELSEWHERE), "elsewhere")
    assert elsewhere.recipe.keys() >= ELSEWHERE.keys()
    assert [len(group.runs) for group in grouped([here, elsewhere])] == [2]
    assert len(siblings(here, [here, elsewhere]).runs) == 2
    other = run(logged(config, seed="1", **{"data.crop_pct": "0.9"}), "other")
    assert [len(group.runs) for group in grouped([here, other])] == [1, 1]


def test_workers_that_make_another_micro_batch_make_another_recipe(config):
    """Where none was given; batch norm and some losses see fewer images then."""

    def shared(micro_batch: str, *workers: str) -> list[int]:
        fields = [{"train.micro_batch": micro_batch, "scaling.num_workers": number} for number in workers]
        runs = [run(logged(config, seed=str(n), **one), str(n)) for n, one in enumerate(fields)]
        return sorted(len(group.runs) for group in grouped(runs))

    assert shared("None", "0", "1", "2", "2") == [2, 2]
    assert shared("4", "0", "1", "2", "2") == [4]


def test_where_a_teachers_cache_lies_splits_no_group(config):
    recipe = logged(config)
    runs = [run(recipe | {"seed": seed, "teachers.0.cache_dir": f"/cache-{seed}"}, seed) for seed in "01"]
    assert [len(group.runs) for group in grouped(runs)] == [2]


def test_code_of_ones_own_is_what_it_is(config):
    """Wherever it lies; the same file with other losses in it makes another recipe."""

    def with_code(seed: str, place: str, source: str) -> Run:
        found = run(logged(config, seed=seed, plugins=f"['{place}/losses.py']"), f"{seed}{source}")
        return replace(found, tags={"plugins": f"losses {source}"})

    runs = [with_code("0", "/here", "ab12"), with_code("1", "/there", "ab12"), with_code("2", "/here", "cd34")]
    assert [[run.seed for run in group.runs] for group in grouped(runs)] == [["0", "1"], ["2"]]


def taught_by(place: str, fingerprint: str, seed: int, field: str = "teacher.checkpoint") -> Run:
    recipe = {"teacher.model": "resnet18", field: place, "seed": str(seed)}
    tags = {"weights.teacher.checkpoint": fingerprint} if fingerprint else {}
    return Run(f"{place}-{seed}", "0", f"{place}-{seed}", "FINISHED", 0.0, recipe, tags, {})


@pytest.mark.parametrize(
    ("prefix", "field"), [("", "teacher.checkpoint"), ("local-dir:", "teacher.model")], ids=["file", "folder"]
)
def test_the_same_weights_in_several_places(prefix, field):
    """One recipe, as on another machine; others in the same place, as of a teacher that was trained again, are not."""
    known = [("/a", "f0"), ("/b", "f0"), ("/a", "f1"), ("/c", "f1")]
    runs = [taught_by(prefix + place, weights, seed, field) for seed, (place, weights) in enumerate(known)]
    runs.append(taught_by(f"{prefix}/a", "", 4, field))  # from before they were told
    shared = with_shared_weights(runs)
    assert [run.recipe[field].removeprefix(prefix) for run in shared] == ["/a", "/a", "/a (f1)", "/a (f1)", "/a"]
    assert [[run.seed for run in group.runs] for group in grouped(shared)] == [["0", "1", "4"], ["2", "3"]]


def test_mlflow_has_the_fingerprints_of_weights(config):
    """Of each network by its place in the recipe, as its other fields are."""
    first, second = ({"model": "resnet18", "name": name, "random": True} for name in ("first", "second"))
    data = config.model_dump(mode="json") | {"teacher": None, "teachers": [first, second], "cache": None}
    several = parse(data | {"method": [{"term": "kd", "weight": 1.0, "temperature": 4.0}]})
    found = {"student": {"checkpoint": "ab"}, "teachers.second": {"checkpoint": "cd", "class_indices": "ef"}}
    assert weights_tags(several, found) == {
        "weights.student.checkpoint": "ab",
        "weights.teachers.1.checkpoint": "cd",
        "weights.teachers.1.class_indices": "ef",
    }
    folder = RunFolder.of(config)
    assert folder.weights_fingerprints() == {}
    write_json(folder.facts, {"weights": found})
    assert folder.weights_fingerprints() == found


def on(root: str, images: str, seed: int) -> Run:
    recipe = {"data.root": root, "seed": str(seed)}
    return Run(f"{root}-{seed}", "0", f"{root}-{seed}", "FINISHED", 0.0, recipe, {}, {}, images)


def test_the_same_images_in_several_folders():
    """Known by a digest that two runs share; each seed may have its own, for it decides what is held out."""
    runs = [on("/a", "d0", 0), on("/a", "d1", 1), on("/b", "d1", 1), on("/b", "d2", 2), on("/c", "d2", 2)]
    more = [on("/other", "d9", 0), on("/a", "", 3), on("/unknown", "", 0)]
    roots = [run.recipe["data.root"] for run in with_shared_roots([*runs, *more])]
    assert roots == ["/a"] * 5 + ["/other", "/a", "/unknown"]
    assert [len(group.runs) for group in grouped(with_shared_roots(runs))] == [5]


def test_other_images_in_the_same_folder():
    """They were changed there, and back: every run goes with those of its images, also of a seed that is new."""
    known = ["old0", "old1", "new1", "new0", "new2", "old1", "old3", "newer3", "newer1"]
    roots = [run.recipe["data.root"] for run in with_shared_roots([on("/a", d, int(d[-1])) for d in known])]
    old, new, newer = "/a", "/a (new1)", "/a (newer3)"
    assert roots == [old, old, new, new, new, old, old, newer, newer]
    elsewhere = [on("/a", "old0", 0), on("/b", "old0", 0), on("/b", "new0", 0), on("/c", "new0", 0)]
    roots = [run.recipe["data.root"] for run in with_shared_roots(elsewhere)]
    assert roots == ["/a", "/a", "/b (new0)", "/b (new0)"]


def test_other_images_of_one_folder_are_no_change_of_it():
    """A recipe that keeps other images out reads others, and so does another split."""
    runs = [on("/a", "d0", 0), on("/a", "d1", 0)]
    runs[1].recipe["data.held_out"] = "0.2"
    assert [run.recipe["data.root"] for run in with_shared_roots(runs)] == ["/a", "/a"]


def test_the_digest_is_mlflows(config):
    info = RunInfo("id", "0", "user", "FINISHED", 0, 1, "active")
    dataset = DatasetInput(Dataset("images", "a1b2", "stillhouse", "{}"), [])
    record = MlflowRun(info, RunData([], [], [RunTag("method", "ce")]), RunInputs([dataset], []))
    assert Run.of(record).images == "a1b2"
    assert Run.of(MlflowRun(info, RunData([], [], []))).images == ""


def trial(seed: int, status: str, decision: str, started: float = 0.0) -> Run:
    found = run({"seed": str(seed)}, f"trial-{seed}-{decision}")
    return replace(found, status=status, tags={PARENT: "sweep", DECISION: decision}, started=started)


@pytest.mark.parametrize(
    ("others", "stops"),
    [
        ([], ""),
        ([trial(1, "FINISHED", "finished")], ""),
        ([trial(1, "KILLED", "9 of the 12 runs are better")], "1 of 2 seeds stopped"),
        ([trial(1, "KILLED", "worse"), trial(1, "FINISHED", "finished")], ""),
        ([trial(1, "KILLED", "worse"), trial(2, "KILLED", "worse")], "2 of 3 seeds stopped"),
        ([trial(1, "FAILED", "failed"), trial(2, "KILLED", "failed")], ""),
        ([replace(trial(1, "KILLED", ""), tags={})], ""),  # interrupted: it goes on
    ],
)
def test_a_group_knows_which_of_its_seeds_a_sweep_has_stopped(others, stops):
    (group,) = grouped([trial(0, "FINISHED", "finished"), *others])
    assert group.stops == stops
    assert {run.seed for run in group.runs} == {"0"} | {run.seed for run in others if run.status == "FINISHED"}
