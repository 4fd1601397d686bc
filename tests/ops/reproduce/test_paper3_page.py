"""`reproduce paper3`: what its numbers say of its claims, and a page in which every number is a result's."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from ops.benchmarks import tables
from ops.reproduce import paper3_page, paper3_results
from ops.reproduce.experiments import EXPERIMENTS, LAYERS, Claim
from ops.reproduce.identities import write_identities
from ops.reproduce.paper3 import Slice
from ops.reproduce.paper3_state import State

ROWS = ["alone", "feature_only", "simkd"]
OTHER = "2 cores x86_64, 5 GiB"


def facts() -> dict[str, Any]:
    return {"machine": "3 cores x86_64, 7 GiB", "gpus": ["GPU of a test"], "commit": "abcdef0123456789"}


def run_of(row: str, seed: int, top1: float, machine: str | None = None) -> dict[str, Any]:
    """A finished run as `slices.runs_of` gives it. machine: another one, without a GPU."""
    return {
        "name": f"regime-{row}-seed{seed}",
        "seed": seed,
        "finished": True,
        "steps": 1750,
        "train_seconds": 301.5,
        "deployed_parameters": 310116,
        "facts": facts() if machine is None else facts() | {"machine": machine, "gpus": []},
        "final": {"top1": top1, "images": 1000},
        "best": {"epoch": 40.0, "top1": top1 + 0.003},
        "teacher": {"top1": 0.94137},
    }


@pytest.mark.parametrize(
    ("values", "sign", "verdict"),
    [
        ([0.10, 0.11, 0.12], "above", "holds"),
        ([0.10, 0.11, 0.12], "below", "contradicted"),
        ([-0.10, -0.11, -0.12], "below", "holds"),
        ([-0.10, 0.11, 0.02], "above", "within seed noise"),
        ([0.10], "above", "one seed decides nothing"),
        ([0.05, 0.05, 0.05], "above", "equal differences decide nothing"),
        ([], "above", "not run"),
    ],
)
def test_what_an_interval_says_of_a_claim(values, sign, verdict):
    these = {seed: 0.5 + value for seed, value in enumerate(values)}
    top1 = {"row": {**these, 7: 0.9}, "other": dict.fromkeys(these, 0.5)}  # a seed that the other has not run
    measured = paper3_results.difference(top1["row"], top1["other"])
    differences = {"other": {**measured, "across_machines": 0}} if measured else {}
    found = paper3_results.judged("row", Claim("a claim", "other", sign), differences, {"row": 0, "other": 0})
    assert found == {"text": "a claim", "against": "other", "sign": sign, "verdict": verdict}


def test_pairs_of_two_machines_are_counted_and_said():
    top1 = {"kd": {0: 0.70, 1: 0.72, 2: 0.72}, "alone": {0: 0.60, 1: 0.61, 2: 0.62}}
    cpu, gpu = ("3 cores", "3 cores, a GPU")
    machines = {"kd": {0: gpu, 1: cpu, 2: gpu, 9: gpu}, "alone": {0: cpu, 1: cpu, 2: cpu}}
    none = dict.fromkeys(EXPERIMENTS["regime"].rows, 0)
    found = paper3_results.differences(EXPERIMENTS["regime"], "kd", top1, machines, none)
    assert found["alone"]["across_machines"] == 2
    claim = EXPERIMENTS["regime"].rows["kd"].claim
    assert paper3_results.judged("kd", claim, found, none)["verdict"] == "holds, across machines"


def test_differences_are_paired():
    """By hand: differences of 0.1, 0.2 and 0.3, Student's t of 2 degrees of freedom at 97.5 % is 4.302653."""
    these, those = {0: 0.5, 1: 0.7, 2: 0.6}, {0: 0.4, 1: 0.5, 2: 0.3}
    found = paper3_results.difference(these, those)
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(0.2)
    assert found["high"] - found["mean"] == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert found["mean"] - found["low"] == pytest.approx(4.302653 * 0.1 / 3**0.5)


def test_published_runs_are_not_run_again(tmp_path, monkeypatch):
    """A second machine, whose state is empty, does what is left; what has changed its recipe is run again."""
    known = {row: [run_of(row, seed, 0.4 + seed / 100) for seed in (0, 1)] for row in ROWS}
    monkeypatch.setattr(paper3_results, "runs_of", lambda state, name, _: known.get(name.removeprefix("regime-"), []))
    results = tmp_path / "results"
    first = json.loads(paper3_results.collect("regime", tmp_path, results).read_text())
    monkeypatch.setattr(paper3_results, "runs_of", lambda *_: [])
    again = json.loads(paper3_results.collect("regime", tmp_path / "other", results).read_text())
    assert again["rows"] == first["rows"]
    assert again["setting"] == first["setting"]
    assert again["setting"]["epochs"] == 50
    monkeypatch.setattr(State, "published", lambda self, overrides: tmp_path)
    chosen = Slice("regime", State(tmp_path / "other"), [], ROWS, range(3))
    assert chosen.runs_to_do == [(row, 2) for row in ROWS]
    assert Slice("regime", State(tmp_path), ["train.epochs=3"], ROWS, range(3)).runs_to_do == chosen.runs
    monkeypatch.setattr(paper3_results, "runs_of", lambda state, name, _: [run_of(ROWS[0], 1, 0.9)] * (ROWS[0] in name))
    newer = json.loads(paper3_results.collect("regime", tmp_path, results).read_text())
    assert [run["top1"] for run in newer["rows"][ROWS[0]]["runs"]] == [0.4, 0.9]


def test_a_row_that_is_run_on_a_second_machine(tmp_path, monkeypatch):
    """One machine's runs count, those of which there are more; how far both are apart is on the page."""
    first = {"alone": [0.40, 0.41, 0.42], "kd": [0.50, 0.51, 0.53], "simkd": [0.60, 0.61, 0.62]}
    known = {row: [run_of(row, seed, top1) for seed, top1 in enumerate(found)] for row, found in first.items()}
    monkeypatch.setattr(paper3_results, "runs_of", lambda state, name, _: known.get(name.removeprefix("regime-"), []))
    results = tmp_path / "results"
    paper3_results.collect("regime", tmp_path, results)

    monkeypatch.setattr(State, "published", lambda self, overrides: tmp_path)
    slices = [Slice("regime", State(tmp_path), [], ["kd"], range(4), again=again) for again in (False, True)]
    assert [chosen.runs_to_do for chosen in slices] == [[("kd", 3)], [("kd", seed) for seed in range(4)]]

    known["kd"] = [run_of("kd", seed, top1, "2 cores") for seed, top1 in enumerate([0.49, 0.48, 0.47, 0.46])]
    known["simkd"] = [run_of("simkd", 1, 0.66, "2 cores")]
    found = json.loads(paper3_results.collect("regime", tmp_path / "other", results).read_text())
    assert found["rows"]["kd"]["top1"]["values"] == [0.49, 0.48, 0.47, 0.46]  # of four seeds, not three
    assert [run["top1"] for run in found["rows"]["kd"]["elsewhere"]] == [0.50, 0.51, 0.53]
    assert found["rows"]["simkd"]["top1"]["values"] == [0.60, 0.61, 0.62]
    assert found["rows"]["kd"]["differences"]["alone"]["across_machines"] == 3
    assert found["rows"]["simkd"]["differences"]["alone"]["across_machines"] == 0
    by_row = {one["row"]: one for one in found["repeated"]}
    assert by_row["kd"]["means"] == pytest.approx([0.51333333, 0.48])
    assert by_row["kd"]["difference"]["mean"] == pytest.approx(0.03333333)
    assert by_row["simkd"]["difference"] == {"n": 1, "mean": pytest.approx(-0.05), "low": None, "high": None}
    assert by_row[None]["difference"]["n"] == 4
    assert by_row[None]["difference"]["mean"] == pytest.approx((0.01 + 0.03 + 0.06 - 0.05) / 4)
    page = paper3_page.section("regime", EXPERIMENTS["regime"], found)
    assert "| kd | 3 | 51.33 on GPU of a test | 48.00 on 2 cores | +3.33 [" in page
    again = json.loads(paper3_results.collect("regime", tmp_path / "third", results).read_text())
    assert again["rows"] == found["rows"]


def test_rows_run_on_two_machines_are_compared_on_one(tmp_path, monkeypatch):
    """Of a baseline that was run as often on both, those runs count with which the other rows are compared on one."""
    found = {
        "alone": [run_of("alone", seed, 0.40, machine) for machine in (None, OTHER) for seed in (0, 1)],
        "kd": [run_of("kd", seed, 0.50 + 0.01 * seed, OTHER) for seed in (0, 1)],
        "wttm": [run_of("wttm", seed, 0.45, machine) for machine in (None, OTHER) for seed in (0, 1)],
    }
    monkeypatch.setattr(paper3_results, "runs_of", lambda state, name, _: found.get(name.removeprefix("regime-"), []))
    content = json.loads(paper3_results.collect("regime", tmp_path, tmp_path / "results").read_text())
    for row in found:
        assert [run["facts"]["machine"] for run in content["rows"][row]["runs"]] == [OTHER, OTHER]
        assert all(one["across_machines"] == 0 for one in content["rows"][row]["differences"].values())
    assert len(content["rows"]["alone"]["elsewhere"]) == 2
    assert content["repeated"][0]["machines"][0] == OTHER


def diverged(row: str, seed: int) -> dict[str, Any]:
    return {"name": f"regime-{row}-seed{seed}", "finished": False, "last": None, "best": None, "failed_step": 417}


def test_runs_that_diverged_are_reported(tmp_path, monkeypatch):
    """In the row, its difference and its verdict; on another machine, too, until the run has finished there."""
    top1 = {"alone": [0.40, 0.41, 0.43], "feature_only": [0.60, 0.61], "kd": []}
    known = {row: [run_of(row, seed, value) for seed, value in enumerate(values)] for row, values in top1.items()}
    known["feature_only"].append(diverged("feature_only", 2))
    known["kd"] = [diverged("kd", seed) for seed in range(3)]
    monkeypatch.setattr(paper3_results, "runs_of", lambda state, name, _: known.get(name.removeprefix("regime-"), []))
    results = tmp_path / "results"
    found = json.loads(paper3_results.collect("regime", tmp_path, results).read_text())
    row = found["rows"]["feature_only"]
    assert (row["top1"]["n"], row["differences"]["alone"]["n"], row["differences"]["alone"]["diverged"]) == (2, 2, 1)
    assert found["rows"]["kd"]["claim"]["verdict"] == "diverged: no seed is left to compare"
    assert "diverged" not in found["rows"]["alone"]
    page = paper3_page.section("regime", EXPERIMENTS["regime"], found)
    line = next(line for line in page.splitlines() if line.startswith("| feature_only |"))
    assert "| 2 (1 of 3 diverged) | 60.50" in line
    assert " over alone, without 1 diverged run |" in line
    assert f"| {row['claim']['verdict']} (" in line
    assert row["claim"]["verdict"].endswith(", without 1 diverged run")
    assert "| kd | 0 (3 of 3 diverged) | - |" in page
    assert "Diverged: regime-feature_only-seed2 (step 417), regime-kd-seed0 (step 417)," in page
    table = tables.regime_table(found)
    assert "| feature_only | 2 (1 of 3 diverged) | 60.50% ± 0.71% |" in table
    assert "| kd | 0 (3 of 3 diverged) | - |" in table

    monkeypatch.setattr(paper3_results, "runs_of", lambda *_: [])
    again = json.loads(paper3_results.collect("regime", tmp_path / "other", results).read_text())
    assert again["rows"] == found["rows"]
    known = {"feature_only": [run_of("feature_only", 2, 0.65)]}
    monkeypatch.setattr(paper3_results, "runs_of", lambda state, name, _: known.get(name.removeprefix("regime-"), []))
    mended = json.loads(paper3_results.collect("regime", tmp_path / "other", results).read_text())
    assert mended["rows"]["feature_only"]["top1"]["values"] == [0.60, 0.61, 0.65]
    assert "diverged" not in mended["rows"]["feature_only"]["differences"]["alone"]
    assert paper3_page.num_finished(mended["rows"]["feature_only"]["runs"]) == "3"


def test_layers_are_ranked_over_the_seeds_that_all_have():
    """The student alone is none of them; by hand: the order of five layers by accuracy is that of their depth."""
    scores = {tap: {"q": q, "separation": -q} for tap, q in zip("abcde", (0.1, 0.4, 0.2, 0.3, 0.5), strict=True)}
    top1 = {tap: {0: 0.1 * place} for place, tap in enumerate("abcde")}
    top1 |= {"alone": {0: 0.9, 1: 0.9}, "b": {0: 0.1, 1: 0.99}}
    found = paper3_results.correlations(scores, top1)
    assert (found["layers"], found["seeds"]) == (5, 1)
    assert found["depth"]["spearman"] == pytest.approx(1)
    assert found["Q"]["spearman"] == pytest.approx(1 - 6 * (0 + 4 + 1 + 1 + 0) / (5 * 24))
    assert found["separation"]["spearman"] == pytest.approx(-found["Q"]["spearman"])
    assert found["Q"]["given_depth"] == 0, "depth says all of this accuracy"
    assert "given_depth" not in found["depth"]
    assert paper3_results.correlations(scores, {tap: top1[tap] for tap in "abcd"}) == {}, "too few for an interval"
    assert paper3_results.correlations(scores, {}) == {}


NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?")


def test_every_number_of_the_page_is_in_a_result_file(tmp_path, monkeypatch):
    """Beyond what the page says without results: each is the text of a value of a file, as a number or in percent."""
    rng = np.random.default_rng(0)
    for name, experiment in EXPERIMENTS.items():
        runs = {row: [run_of(row, seed, rng.uniform(0.2, 0.6)) for seed in range(3)] for row in experiment.rows}
        monkeypatch.setattr(paper3_results, "runs_of", lambda state, row, _, runs=runs, n=name: runs[row[len(n) + 1 :]])
        setting = {
            "epochs": 53, "batch_size": 127, "image_size": 61, "teacher_image_size": 223, "lr": 0.0071,
            "optimizer": "adamw", "validation_images": 997, "teacher_top1": 0.94137,
        }  # fmt: skip
        monkeypatch.setattr(paper3_results, "setting", lambda *_, made=setting: made)
        if experiment.of_layers:
            (tmp_path / "layers").mkdir(exist_ok=True)
            names = ("q", "separation", "information", "efficiency")
            scores = {tap: {name: rng.uniform() for name in names} for tap in LAYERS}
            (tmp_path / "layers" / "layers.json").write_text(json.dumps(scores))
        paper3_results.collect(name, tmp_path, tmp_path / "results")
        if name == "regime":  # two of its rows on a second machine, too
            again = {row: [run_of(row, seed, rng.uniform(0.2, 0.6), OTHER) for seed in range(3)] for row in ROWS[1:]}
            monkeypatch.setattr(
                paper3_results, "runs_of", lambda state, row, _, of=again: of.get(row.removeprefix("regime-"), [])
            )
            paper3_results.collect(name, tmp_path, tmp_path / "results")
    write_identities(tmp_path / "results")
    page = paper3_page.write_page(tmp_path).read_text()
    plain = paper3_page.generate({name: {} for name in (*EXPERIMENTS, "identities")})
    contents = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")]
    known = set().union(*(texts(content) for content in contents))
    said = set(NUMBER.findall(without_names(page))) - set(NUMBER.findall(plain))
    assert len(said) > 200
    assert said - known == set()
    for name in EXPERIMENTS:
        assert (tmp_path / "figures" / f"paper3_{name}.svg").stat().st_size > 1000


def without_names(page: str) -> str:
    """Without names of rows, files and commits, which are no measurements."""
    rows = {row for experiment in EXPERIMENTS.values() for row in experiment.rows}
    words = [*rows, facts()["commit"][:12], facts()["machine"], *facts()["gpus"], OTHER]
    for word in sorted(words, key=len, reverse=True):
        page = page.replace(word, "")
    return re.sub(r"\(figures/[^)]*\)", "", page)


def texts(content: Any) -> set[str]:
    """Every form in which the page may show a value of a result file."""
    if isinstance(content, dict):
        return set().union(*(texts(value) for key, value in content.items() if key != "recipe_digest"))
    if isinstance(content, list):
        return {str(len(content))}.union(*(texts(value) for value in content))
    if isinstance(content, str):
        return set(NUMBER.findall(content))
    if isinstance(content, bool) or content is None:
        return set()
    forms = ("{:.4f}", "{:g}", "{:.0f}", "{:+.2f}", "{:.1e}")
    return {form.format(content) for form in forms} | {f"{100 * content:.2f}", f"{100 * content:+.2f}"}


def test_without_results_nothing_is_claimed():
    page = paper3_page.generate({name: {} for name in (*EXPERIMENTS, "identities")})
    assert page.count("\nNot run.\n") == len(EXPERIMENTS) + 1
    assert "verdict" not in page


def test_the_page_is_fresh():
    folder = paper3_page.BENCHMARKS
    results = {name: paper3_page.result(folder, name) for name in (*EXPERIMENTS, "identities")}
    assert (folder / paper3_page.PAGE).read_text() == paper3_page.generate(results), "run make pages"


def test_identities_hold(tmp_path):
    found = json.loads(write_identities(tmp_path).read_text())["identities"]
    assert [one["error"] < 1e-5 for one in found] == [True] * 4
    assert found[3]["error"] == 0
