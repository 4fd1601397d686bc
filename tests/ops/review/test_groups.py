"""Which groups of runs are the teacher and the student alone, and what telling them apart costs."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kdcore.errors import Refused
from ops.history import DECISION, Run, grouped, with_shared_roots
from ops.review import groups as module
from ops.review.columns import recipe_cell
from ops.review.groups import labels_of, rows_of, sentences, varied_fields
from ops.review.page import CURVES, usual_metric

METRIC = "val/top1"


def made(name: str, method: str, score: float = 0.5, **fields: str) -> Run:
    """A finished run of one seed, in the folder /out; a dot in a field's name is written as two underscores."""
    terms = {f"method.{number}.term": term for number, term in enumerate(method.split("+"))}
    shared = {"output_dir": "/out", "data.root": "/images", "student.model": "small"}
    given = {key.replace("__", "."): value for key, value in fields.items()}
    recipe = {"name": name, "seed": "0", **shared, **terms, **given}
    return Run(name, "1", name, "FINISHED", 0.0, recipe, {"method": method}, {METRIC: score})


def labels(*runs: Run) -> dict[str, str]:
    """{name of the run: label of its row}."""
    return {row.group.runs[0].name: row.label for row in rows_of(grouped(runs), METRIC)}


def test_a_student_that_starts_from_another_is_not_taught_by_it():
    start = "/out/alone/student.safetensors"
    runs = [made("alone", "ce"), made("kd", "ce+kd", 0.6), made("tuned", "ce+kd", student__checkpoint=start)]
    rows = rows_of(grouped(runs), METRIC)
    assert labels(*runs)["alone"] == "student alone"
    assert [row.gain is None for row in rows if row.group.runs[0].name == "kd"] == [False]


@pytest.mark.parametrize("name", ["teacher", "teachers__1"])
def test_a_teacher_is_known_by_its_weights(name):
    taught = {f"{name}__model": "large", f"{name}__checkpoint": "/out/large/student.safetensors"}
    runs = [made("large", "ce", student__model="large"), made("alone", "ce"), made("kd", "ce+kd", **taught)]
    assert labels(*runs) == {"large": "the teacher: large", "alone": "student alone", "kd": "ce+kd"}


def test_a_teacher_is_known_by_its_export(tmp_path):
    """The export tells whose weights it holds; one that is not here is nobody's."""
    told = {"run": "large", "run_dir": "/out/large", "weights": "0", "teachers": []}
    (tmp_path / "lineage.json").write_text(json.dumps(told))
    runs = [made("large", "ce", student__model="large"), made("alone", "ce")]
    known = made("kd", "ce+kd", teacher__model=f"local-dir:{tmp_path}")
    assert labels(*runs, known)["large"] == "the teacher: large"
    unknown = made("kd", "ce+kd", teacher__model=f"local-dir:{tmp_path}/none")
    assert labels(*runs, unknown)["large"] == "ce: student.model large"


def test_the_best_method_is_compared_with_methods():
    teacher = made("large", "ce", 0.9)  # a network of the student's own kind
    taught = {"teacher__model": "small", "teacher__checkpoint": "/out/large/student.safetensors"}
    rows = rows_of(grouped([teacher, made("kd", "ce+kd", 0.7, **taught), made("dkd", "ce+dkd", 0.6, **taught)]), METRIC)
    assert rows[0].is_teacher
    assert sentences(rows, METRIC)[0].startswith("ce+kd")
    assert "the teacher" not in sentences(rows, METRIC)[0]


def test_that_the_student_alone_has_no_teacher_is_no_other_difference():
    taught = {"teacher__model": "large", "teacher__checkpoint": "/out/large/student.safetensors", "cache__dir": "/c"}
    runs = [made("large", "ce", student__model="large"), made("alone", "ce"), made("kd", "ce+kd", 0.6, **taught)]
    rows = rows_of(grouped(runs), METRIC)
    assert [row.flags for row in rows] == [[], [], []]
    assert not any("more than the method" in text for text in sentences(rows, METRIC))
    odd = made("odd", "ce+dkd", **taught | {"teacher__model": "larger"})
    flags = {row.label: row.flags for row in rows_of(grouped([*runs, odd]), METRIC) if row.flags}
    assert flags == {"ce+dkd": ["teacher.model larger, not large"]}


def test_students_need_not_be_as_their_teachers_are():
    """However many those are: three of them, trained at another rate, are not what is usual."""
    terms = ("kd", "dkd", "dist")
    teachers = [made(f"large{term}", "ce", train__lr="2", train__epochs=str(len(term))) for term in terms]
    runs = [
        made(term, f"ce+{term}", train__lr="1", teacher__checkpoint=f"/out/large{term}/student.safetensors")
        for term in terms[:2]
    ]
    third = made("third", "ce+dist", train__lr="3", teacher__checkpoint="/out/largedist/student.safetensors")
    flags = {row.label: row.flags for row in rows_of(grouped([*teachers, *runs, third]), METRIC)}
    assert not any(flag.startswith("train.lr") for label in ("ce+kd", "ce+dkd") for flag in flags[label])
    assert "train.lr 3, not 1" in flags["ce+dist"]


class CountedFields(dict):
    """Fields of which every reading is counted."""

    reads = 0

    def get(self, key, default=None):
        type(self).reads += 1
        return super().get(key, default)


def test_fields_are_read_once_a_run(monkeypatch):
    """However many recipes there are: 100 took half a minute where each column was read anew for every run."""
    monkeypatch.setattr(CountedFields, "reads", 0)
    names = {f"train.field{number}": "same" for number in range(30)}
    runs = [SimpleNamespace(fields=CountedFields({**names, "train.lr": str(number)})) for number in range(20)]
    assert varied_fields(runs) == {"train.lr": sorted(map(str, range(20)), key=float)}
    assert CountedFields.reads == 20 * 31


def test_recipes_of_one_method_are_told_apart_at_once(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "varied_fields", lambda runs: calls.append(len(runs)) or {"train.lr": []})
    runs = [made(f"run{number}", "ce+kd", train__lr=str(number)) for number in range(5)]
    assert labels_of(grouped(runs)) == [f"ce+kd: train.lr {number}" for number in range(5)]
    assert calls == [5]


def test_costs_are_ranked_from_the_lowest():
    """The slowest recipe stood above all others, as the best."""
    runs = [made("slow", "ce+kd"), made("fast", "ce+dkd")]
    runs = [
        replace(run, metrics={"cost/train_seconds": seconds}) for run, seconds in zip(runs, (9.0, 3.0), strict=True)
    ]
    assert [row.label for row in rows_of(grouped(runs), "cost/train_seconds")] == ["ce+dkd", "ce+kd"]


def test_nothing_is_ranked_by_a_metric_of_which_nothing_is_known():
    runs = [replace(made("one", "ce+kd"), metrics={"train/gradient_norm": 1.0})]
    with pytest.raises(Refused, match=r"^train/gradient_norm: it is not known whether more or less of it is better"):
        rows_of(grouped(runs), "train/gradient_norm")
    assert rows_of(grouped(runs), "val/top9") == []


def test_what_recipes_are_compared_by_where_nothing_is_asked_for():
    """The first that weights could be chosen by; of images without labels, and of features, there was no page."""
    for name in ("val/top1", "val/mAP", "val/agreement", "val/knn_top1"):
        assert usual_metric([replace(made("one", "kd"), metrics={name: 0.5, "val/nll": 1.0})]) == name
    assert usual_metric([]) == "val/top1"


def test_the_titles_of_curves():
    assert CURVES["held_out/top1"] == ("held-out top-1", True)
    assert CURVES["val/mAP"] == ("validation mAP", True)
    assert CURVES["val/agreement"] == ("agreement with the teacher", True)


def test_the_seeds_that_a_sweep_has_left_are_compared_with_none():
    """They are its best: their recipe is ranked after those whose every seed went to its end, and has no gain."""
    one, other = made("kd-0", "ce+kd", 0.9), made("kd-1", "ce+kd", 0.5, seed="1")
    stopped = replace(other, status="KILLED", tags=other.tags | {DECISION: "9 of the 12 runs are better"})
    whole = [
        made(f"{term}-{seed}", term, score, seed=seed)
        for term, score in (("ce", 0.5), ("ce+dkd", 0.6))
        for seed in "01"
    ]
    rows = rows_of(grouped([*whole, one, stopped]), METRIC)
    assert [(row.label, row.gain is None) for row in rows] == [
        ("ce+dkd", False),
        ("student alone", True),
        ("ce+kd", True),
    ]
    assert rows[-1].group.stops == "1 of 2 seeds stopped"
    assert not any("kd " in text and "dkd" not in text for text in sentences(rows, METRIC))
    assert recipe_cell(rows[-1]).badges[0].text == "1 of 2 seeds stopped"
    rows = rows_of(grouped([*whole, one, other]), METRIC)
    assert (rows[0].label, rows[0].gain is None, recipe_cell(rows[0]).badges) == ("ce+kd", False, [])


def test_nothing_is_gained_over_a_student_alone_whose_seeds_were_stopped():
    alone, other = made("alone-0", "ce"), made("alone-1", "ce", seed="1")
    stopped = replace(other, status="KILLED", tags=other.tags | {DECISION: "worse"})
    rows = rows_of(grouped([alone, stopped, made("kd", "ce+kd", 0.6)]), METRIC)
    assert [(row.label, row.gain) for row in rows] == [("ce+kd", None), ("ce", None)]


def test_seeds_of_two_machines_have_a_gain():
    """Their images lie elsewhere, and more threads read them; both were taken for other recipes on other images."""
    runs = [
        made(f"{term}-{seed}", term, score, seed=seed, data__root=root, data__num_threads=threads)
        for term, score in (("ce", 0.5), ("ce+kd", 0.6))
        for seed, root, threads in (("0", "/images", "2"), ("1", "/data/images", "8"))
    ]
    rows = rows_of(grouped(with_shared_roots([replace(run, images="a1b2") for run in runs])), METRIC)
    assert [(row.label, row.flags, row.score["n"]) for row in rows] == [("ce+kd", [], 2), ("student alone", [], 2)]
    assert rows[0].gain.value == pytest.approx(0.1)


def test_images_that_were_changed_in_their_folder_are_others():
    """Runs on both were repetitions of one recipe, whose gain compared two sets of images."""
    runs = [
        replace(made(f"{term}-{seed}-{images}", term, score, seed=seed), images=f"{images}{seed}")
        for term, score, images in (("ce", 0.5, "old"), ("ce+kd", 0.6, "old"), ("ce+kd", 0.9, "new"))
        for seed in "01"
    ]
    rows = rows_of(grouped(with_shared_roots(runs)), METRIC)
    assert [(row.score["n"], row.set_aside, row.gain and round(row.gain.value, 6)) for row in rows] == [
        (2, 0, None),
        (2, 0, 0.1),
        (2, 0, None),
    ]
    assert rows[0].flags == ["data.root images (new0), not images"]


def test_each_network_gains_over_itself_alone():
    """One network's student alone stood for all, so that the others' recipes had no gain."""
    runs = [
        made(f"{model}-{term}-{seed}", term, score, seed=seed, student__model=model)
        for model, term, score in (
            ("small", "ce", 0.5),
            ("small", "ce+kd", 0.6),
            ("tiny", "ce", 0.2),
            ("tiny", "ce+kd", 0.4),
        )
        for seed in "01"
    ]
    rows = rows_of(grouped([*runs, made("other", "ce", 0.1, student__model="other")]), METRIC)
    assert [(row.label, row.is_alone, row.gain and round(row.gain.value, 6)) for row in rows] == [
        ("ce+kd: student.model small", False, 0.1),
        ("student alone: model small", True, None),
        ("ce+kd: student.model tiny", False, 0.2),
        ("student alone: model tiny", True, None),
        ("ce: student.model other", False, None),  # nothing is compared with it
    ]
    told = sentences(rows, METRIC)
    assert [text.partition(" is ")[0] for text in told] == ["ce+kd: student.model small", "ce+kd: student.model tiny"]
    assert not any("more than the method" in text for text in told)
