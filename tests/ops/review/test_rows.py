"""The rows of `review`: which runs are one group, what is compared with what, and what is said of a difference."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ops.history import Group, Run, grouped
from ops.review.groups import change_together, labels_of, recipe_differences, rows_of, sentences, varied_fields
from ops.review.page import same_evaluations, shared_metrics


def run(name: str, seed: int, score: float, **fields: str) -> Run:
    usual = {"train.batch_size": "64", "student.model": "small", "teacher.model": "large"}
    recipe = {"name": name, "seed": str(seed), **usual} | fields
    terms = [value for key, value in recipe.items() if key.endswith(".term")]
    return Run(name, "0", name, "FINISHED", seed, recipe, {"method": "+".join(terms)}, {"val/top1": score})


def alone(seed: int, score: float, **fields: str) -> Run:
    return run(f"alone-{seed}", seed, score, **{"method.0.term": "ce"}, **fields)


def kd(seed: int, score: float, temperature: str = "4.0", **fields: str) -> Run:
    terms = {"method.0.term": "ce", "method.1.term": "kd", "method.1.temperature": temperature}
    return run(f"kd-{seed}", seed, score, **terms, **fields)


def test_runs_of_one_recipe_are_a_group():
    groups = grouped([alone(0, 0.5), kd(0, 0.6), alone(1, 0.6), kd(1, 0.7, temperature="2.0")])
    assert [len(group.runs) for group in groups] == [2, 1, 1]


def test_rows_are_sorted_and_gain_is_paired():
    rows = rows_of(grouped([alone(0, 0.50), alone(1, 0.60), kd(0, 0.61), kd(1, 0.72)]), "val/top1")
    assert [row.label for row in rows] == ["ce+kd", "student alone"]
    assert rows[0].gain.value == pytest.approx(0.115)
    assert rows[0].gain.within_noise is False
    assert rows[1].gain is None
    assert rows[0].score == {
        "n": 2,
        "mean": pytest.approx(0.665),
        "stdev": pytest.approx(statistics.stdev([0.61, 0.72])),
    }


def test_what_differs_beside_the_method_is_flagged():
    odd = kd(0, 0.9, temperature="8.0", **{"train.batch_size": "32"})
    rows = rows_of(grouped([alone(0, 0.5), kd(0, 0.6), kd(1, 0.7), odd]), "val/top1")
    assert {row.label: row.flags for row in rows if row.flags} == {
        "ce+kd: kd.temperature 8.0": ["train.batch_size 32, not 64"]
    }
    assert "They differ in more than the method: train.batch_size." in sentences(rows, "val/top1")[0]


def test_a_section_that_others_have_not_is_one_flag():
    cache = {"cache.dir": "c", "cache.logits": "sparse", "teacher.source": "cache"}
    rows = rows_of(grouped([alone(0, 0.5), kd(0, 0.6), kd(1, 0.7), kd(0, 0.65, **cache)]), "val/top1")
    flags = ["cache given", "teacher.source cache, not online"]
    assert [row.flags for row in rows if row.flags] == [flags]
    others = [alone(0, 0.5, **cache), kd(0, 0.6, **cache), kd(0, 0.65)]
    assert ["cache absent", "teacher.source online, not cache"] in [
        row.flags for row in rows_of(grouped(others), "val/top1")
    ]


def test_labels_say_what_sets_groups_apart():
    groups = [Group((kd(0, 0.5, temperature=t),)) for t in ("1.0", "4.0")]
    assert labels_of(groups) == ["ce+kd: kd.temperature 1.0", "ce+kd: kd.temperature 4.0"]


def test_another_network_has_no_gain():
    """A teacher's own run beside its students: labels only as well, but another network."""
    teacher = alone(0, 0.9, **{"student.model": "large"})
    rows = rows_of(grouped([teacher, alone(0, 0.5), alone(1, 0.5), kd(0, 0.6), kd(1, 0.7)]), "val/top1")
    assert [(row.label, row.gain is None) for row in rows] == [
        ("ce: student.model large", True),
        ("ce+kd", False),
        ("student alone", True),
    ]


def test_fields_that_change_together_are_one():
    assert change_together(("0.1", "0.4", "0.1"), ("0.9", "0.6", "0.9"))
    assert not change_together(("1", "1", "2"), ("3", "4", "3"))
    runs = [
        kd(0, 0.5, t, **{"method.0.weight": a, "method.1.weight": b})
        for t in "12"
        for a, b in (("0.1", "0.9"), ("0.4", "0.6"))
    ]
    assert varied_fields(runs) == {"method.1.temperature": ["1", "2"], "method.1.weight": ["0.6", "0.9"]}


def test_differences_between_two_recipes():
    assert recipe_differences(kd(0, 0.5), kd(1, 0.5, temperature="2.0")) == [
        ("kd.temperature", "4.0", "2.0"),
        ("seed", "0", "1"),
    ]


def test_a_seed_counts_once():
    """Score, spread and gain are of the same runs: of two that repeat each other the later one, which is said."""
    repeated = replace(alone(0, 0.9), name="again", started=5.0)
    rows = rows_of(grouped([alone(0, 0.5), alone(1, 0.6), kd(0, 0.7), kd(1, 0.8), repeated]), "val/top1")
    student = next(row for row in rows if row.label == "student alone")
    assert student.score["n"] == 2
    assert student.score["mean"] == pytest.approx(0.75)
    assert student.by_seed == {"0": 0.9, "1": 0.6}
    assert student.set_aside == 1
    kd_row = next(row for row in rows if row.label == "ce+kd")
    assert kd_row.gain.value == pytest.approx(kd_row.score["mean"] - student.score["mean"])
    assert (kd_row.gain.test, kd_row.set_aside) == ("paired t, n = 2 seeds", 0)


@pytest.mark.parametrize(
    ("views", "seeds"),
    [
        ((None, None, None), {"0": 0.7, "1": 0.9}),
        (("0", "None", "1"), {"0": 0.7, "1": 0.9}),
        (("5", "5", "5"), {"0": 0.7, "1": 0.9}),
        ((None, "5", None), {"0, views 0": 0.5, "0, views 5": 0.7, "1": 0.9}),
    ],
)
def test_views_of_another_seed_are_a_repetition(views, seeds):
    """As long as nothing else tells two runs of a seed apart; where all share their views, seeds are paired."""
    scores = ((0, 0.5), (0, 0.7), (1, 0.9))
    runs = [alone(*one, **({} if v is None else {"view_seed": v})) for one, v in zip(scores, views, strict=True)]
    (group,) = grouped([replace(run, started=number) for number, run in enumerate(runs)])
    assert group.by_seed("val/top1") == seeds
    assert group.values("val/top1") == list(seeds.values())
    assert group.set_aside("val/top1") == 3 - len(seeds)


def test_evaluations_are_compared_on_the_same_images_alone():
    """One name may be of two sets: another root's validation images, or what an earlier version wrote over them."""
    client = Artifacts(one={"val": "a", "other": "b", "third": "c"}, other={"val": "x", "other": "b"})
    pair = [replace(kd(0, 0.5), run_id=run_id) for run_id in ("one", "other")]
    same = same_evaluations(client, pair)
    assert {name: [found["run"] for found in both] for name, both in same.items()} == {"other": ["one", "other"]}
    metrics = {"evaluation/val/ece": 0.1, "evaluation/other/ece": 0.2, "val/top1": 0.5}
    one, other = (replace(run, metrics=metrics) for run in pair)
    assert shared_metrics(one, other, same) == [("evaluation/other/ece", 0.2, 0.2)]
    assert shared_metrics(one, other, {}) == [("val/top1", 0.5, 0.5)]


def test_what_images_are_called_hides_no_metric():
    metrics = {f"evaluation/teacher_images/{name}": 0.1 for name in ("top1", "images", "teacher_top1")}
    one, other = (replace(kd(seed, 0.5), metrics=metrics) for seed in (0, 1))
    assert shared_metrics(one, other, ["teacher_images"]) == [("evaluation/teacher_images/top1", 0.1, 0.1)]


class Artifacts:
    """What MLflow's client gives of runs that were evaluated on {images: their fingerprint}."""

    def __init__(self, **runs: dict[str, str]) -> None:
        self.runs = runs

    def list_artifacts(self, run_id: str, path: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(path=f"{path}/{name}") for images in self.runs[run_id] for name in files_of(images)]

    def download_artifacts(self, run_id: str, path: str, folder: str) -> str:
        made = Path(folder) / Path(path).name
        made.write_text(json.dumps({"run": run_id, "fingerprint": self.runs[run_id][made.stem]}))
        return str(made)


def files_of(images: str) -> tuple[str, str]:
    return f"{images}.json", f"{images}-cka.png"


def test_a_teacher_made_in_the_same_experiment_is_called_one(tmp_path):
    """By its weights, which others learn from; no path of the machine is in a label."""
    weights = str(tmp_path / "teacher" / "student.safetensors")
    shared = {"output_dir": str(tmp_path), "data.root": "/images", "student.model": "small"}
    teacher = made("teacher", "ce", {**shared, "student.model": "big", "student.checkpoint": str(tmp_path / "web.pth")})
    alone = made("alone", "ce", {**shared, "teacher.model": "big", "teacher.checkpoint": weights})
    distilled = made("kd", "ce+kd", {**shared, "teacher.model": "big", "teacher.checkpoint": weights})
    rows = rows_of(grouped([teacher, alone, distilled]), "val/top1")
    assert {row.label for row in rows} == {"the teacher: big", "student alone", "ce+kd"}
    said = sentences(rows, "val/top1")
    assert not any(str(tmp_path) in text for text in [*said, *(flag for row in rows for flag in row.flags)])
    assert any("with one run each, nothing can be said" in text for text in said)


def made(name: str, method: str, fields: dict[str, str]) -> Run:
    """A finished run of one seed."""
    terms = {f"method.{number}.term": term for number, term in enumerate(method.split("+"))}
    recipe = {"name": name, "seed": "0", **terms, **fields}
    return Run(name, "1", name, "FINISHED", 0.0, recipe, {"method": method}, {"val/top1": 0.5})
