"""What has come of the experiments of `reproduce paper3`: a result file each, with every number that the page shows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ops import catalog
from ops.facts import spread, write
from ops.rank_correlation import FEWEST, drawn_correlations, percentiles, spearman
from ops.reproduce.experiments import EXPERIMENTS, Claim, Experiment
from ops.reproduce.machines import machine_of, machine_of_seeds, most_used, pairs_across, runs_that_count
from ops.reproduce.paper3_recipes import recipe_digest
from ops.reproduce.slices import runs_of
from ops.review.seed_noise import paired

SCORES = "layers/layers.json"  # in the state: what `layers` has measured of the teacher


def collect(name: str, state: Path, folder: Path, overrides: Sequence[str] = ()) -> Path:
    """Write paper3_<name>.json into the folder: every run of an experiment, and what they say together.

    Finished runs that the file has already, of the same recipes, stay in it; where the state has the same run of the
    same machine, the state's counts. Of one run on two machines, one counts, and how far they are apart is said.
    """
    experiment = EXPERIMENTS[name]
    published = published_runs(name, folder, overrides)
    found = {row: joined(published[row], here(name, row, state, overrides)) for row in experiment.rows}
    runs, others = runs_that_count(found, [(row, other) for row in found for other in compared_with(experiment, row)])
    top1 = {row: by_seed(of_row) for row, of_row in runs.items()}
    machines = {row: machine_of_seeds(of_row) for row, of_row in runs.items()}
    rows = {
        row: {
            "recipe": experiment.rows[row].recipe,
            "top1": spread(list(top1[row].values())) if top1[row] else None,
            "differences": (compared := differences(experiment, row, top1, machines)),
            "claim": judged(experiment.rows[row].claim, compared),
            "runs": runs[row],
            **({"elsewhere": others[row]} if others[row] else {}),
        }
        for row in experiment.rows
    }
    content: dict[str, Any] = {"setting": setting(name, runs, overrides), "run_on": places(runs), "rows": rows}
    if any(others.values()) and (machine := most_used(runs[next(iter(experiment.rows))])):
        content["repeated"] = repeated(found, machine)
    if experiment.of_layers and (scores := layer_scores(state, folder)):
        content["scores"] = scores
        content["correlation"] = correlations(scores, top1)
    return write(f"paper3_{name}", content, folder)


def published_runs(name: str, folder: Path, overrides: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Return the finished runs of each row that the folder's result file has, of the recipes as they are now."""
    experiment, path = EXPERIMENTS[name], folder / f"paper3_{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    return {
        row: [
            run
            for run in (*rows.get(row, {}).get("runs", []), *rows.get(row, {}).get("elsewhere", []))
            if run["finished"] and run["recipe_digest"] == recipe_digest(experiment, one, overrides)
        ]
        for row, one in experiment.rows.items()
    }


def here(name: str, row: str, state: Path, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row's runs in the state, finished or not, as the result file has them."""
    digest = recipe_digest(EXPERIMENTS[name], EXPERIMENTS[name].rows[row], overrides)
    return [{**short(run), "recipe_digest": digest} for run in runs_of(state, f"{name}-{row}")]


def joined(published: list[dict[str, Any]], these: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs of both, one of each name and machine: these before published ones.

    One that is not finished is left out where a finished one of its name is there.
    """
    runs = {(run["name"], machine_of(run)): run for run in published}
    runs |= {(run["name"], machine_of(run)): run for run in these if run["finished"]}
    names = {name for name, _ in runs}
    return [*runs.values(), *(run for run in these if not run["finished"] and run["name"] not in names)]


def layer_scores(state: Path, folder: Path) -> dict[str, Any]:
    """Return the quality of the teacher's layers: as measured in the state, else as published; empty without either."""
    if (state / SCORES).exists():
        return dict(json.loads((state / SCORES).read_text()))
    path = folder / "paper3_layers.json"
    return dict(json.loads(path.read_text()).get("scores", {})) if path.exists() else {}


def by_seed(runs: list[dict[str, Any]]) -> dict[int, float]:
    """Return {seed: top-1 on every validation image after the last epoch} of the finished runs."""
    return {run["seed"]: run["top1"] for run in runs if run["finished"]}


def differences(
    experiment: Experiment, row: str, top1: dict[str, dict[int, float]], machines: dict[str, dict[int, str]]
) -> dict[str, Any]:
    """Return {other row: the paired difference to it}: to the baseline, and to the row that the claim names.

    Each with how many of its pairs are of runs on two kinds of machine, which round differently.
    """
    found = {other: difference(top1[row], top1[other]) for other in compared_with(experiment, row)}
    return {
        other: {**one, "across_machines": pairs_across(machines[row], machines[other])}
        for other, one in found.items()
        if one is not None
    }


def compared_with(experiment: Experiment, row: str) -> list[str]:
    """Return the rows to which a row's difference is told: the baseline, and the one that its claim names."""
    claim = experiment.rows[row].claim
    others = dict.fromkeys([experiment.baseline(row), *([claim.against] if claim else [])])
    return [other for other in others if other != row and other in experiment.rows]


def repeated(runs: dict[str, list[dict[str, Any]]], machine: str) -> list[dict[str, Any]]:
    """Return how far the same runs on a machine and on another are apart: of each row, and of all rows together.

    An entry names the row (None for all), the machines, the mean of each, and the paired difference of the first to the
    other.
    """
    pairs: dict[str, dict[tuple[str | None, str, int], tuple[float, float]]] = {}
    for row, found in runs.items():
        finished = [run for run in found if run["finished"]]
        own = {run["seed"]: run["top1"] for run in finished if machine_of(run) == machine}
        for run in finished:
            if machine_of(run) != machine and run["seed"] in own:
                of_other = pairs.setdefault(machine_of(run), {})
                of_other[row, row, run["seed"]] = own[run["seed"]], run["top1"]
    for of_other in pairs.values():
        if len({row for row, _, _ in of_other}) > 1:
            of_other |= {(None, row, seed): pair for (_, row, seed), pair in of_other.items()}
    entries = []
    for other, of_other in pairs.items():
        for name in dict.fromkeys(name for name, _, _ in of_other):
            both = [pair for (one, _, _), pair in of_other.items() if one == name]
            ours, theirs = (dict(enumerate(values)) for values in zip(*both, strict=True))
            means = [sum(values.values()) / len(both) for values in (ours, theirs)]
            apart = difference(ours, theirs)
            entries.append({"row": name, "machines": [machine, other], "means": means, "difference": apart})
    return entries


def difference(these: dict[int, float], those: dict[int, float]) -> dict[str, Any] | None:
    """Return n, mean and 95 % interval (paired t) over the seeds that both have; None without a common seed.

    With one seed there is no interval.
    """
    values = [these[seed] - those[seed] for seed in sorted(these.keys() & those.keys())]
    if not values:
        return None
    if len(values) == 1:
        return {"n": 1, "mean": values[0], "low": None, "high": None}
    found = paired(values)
    assert found.interval is not None, "several pairs have one"
    return {"n": len(values), "mean": found.value, "low": found.interval[0], "high": found.interval[1]}


def judged(claim: Claim | None, found: dict[str, Any]) -> dict[str, str] | None:
    """Return what a row tests, and what its runs say of it. found: its `differences`."""
    if claim is None:
        return None
    difference = found.get(claim.against)
    verdict = verdict_of(difference, claim.sign)
    across = ", across machines" if difference and difference["across_machines"] else ""
    return {"text": claim.text, "against": claim.against, "sign": claim.sign, "verdict": verdict + across}


def verdict_of(found: dict[str, Any] | None, sign: str) -> str:
    """Return what an interval says of a claim: holds, contradicted, within seed noise, or not decided yet."""
    if found is None:
        return "not run"
    if found["low"] is None:
        return "one seed decides nothing"
    low, high = (found["low"], found["high"]) if sign == "above" else (-found["high"], -found["low"])
    return "holds" if low > 0 else "contradicted" if high < 0 else "within seed noise"


def short(run: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a run."""
    if not run["finished"]:
        return {"name": run["name"], "finished": False, "epoch": run["last"]["epoch"] if run["last"] else 0.0}
    kept = {key: run[key] for key in ("name", "seed", "finished", "steps", "train_seconds", "deployed_parameters")}
    teacher = run["teacher"]["top1"] if run["teacher"] else None
    final = {"top1": run["final"]["top1"], "images": run["final"]["images"], "teacher_top1": teacher}
    return {**kept, "facts": run["facts"], **final, "best_epoch": run["best"]["top1"]}


def places(runs: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """Return {hardware and commit: how many runs were finished there}."""
    finished = [run for found in runs.values() for run in found if run["finished"]]
    return dict(Counter(f"{machine_of(run)}, commit {(run['facts']['commit'] or '-')[:12]}" for run in finished))


def setting(name: str, runs: dict[str, list[dict[str, Any]]], overrides: Sequence[str]) -> dict[str, Any] | None:
    """Return what all runs share, by the recipe of the first finished one; None where there is none."""
    finished = [(row, run) for row, found in runs.items() for run in found if run["finished"]]
    if not finished:
        return None
    experiment, (row, run) = EXPERIMENTS[name], finished[0]
    recipe = catalog.load(experiment.rows[row].recipe, [*experiment.changes, *experiment.rows[row].changes, *overrides])
    return {
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
        "image_size": recipe.views.height,
        "teacher_image_size": recipe.teacher.image_size if recipe.teacher else None,
        "lr": recipe.optimizer.lr,
        "optimizer": recipe.optimizer.opt,
        "validation_images": run["images"],
        "teacher_top1": next((one["teacher_top1"] for _, one in finished if one["teacher_top1"] is not None), None),
    }


def correlations(scores: dict[str, Any], top1: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Return Spearman's correlation with the students' accuracy, and its 95 % interval, by predictor.

    Of those other than Q, by how much it is above Q's, too. Over the layers that have been run, with the seeds that all
    of them have. Empty with fewer layers than an interval needs.
    """
    taps = [tap for tap, found in top1.items() if tap in scores and found]
    seeds = sorted(set[int]().union(*(top1[tap] for tap in taps)).intersection(*(top1[tap] for tap in taps)))
    if not seeds or len(taps) < FEWEST:
        return {}
    accuracy = np.array([[top1[tap][seed] for seed in seeds] for tap in taps])
    predictors = {
        "Q": np.array([scores[tap]["q"] for tap in taps]),
        "separation": np.array([scores[tap]["separation"] for tap in taps]),
        "depth": np.array([float(list(scores).index(tap)) for tap in taps]),
    }
    found: dict[str, Any] = {"layers": len(taps), "seeds": len(seeds)}
    drawn = dict(zip(predictors, drawn_correlations(list(predictors.values()), accuracy), strict=True))
    for name, predictor in predictors.items():
        low, high = percentiles(drawn[name])
        found[name] = {"spearman": spearman(predictor, accuracy.mean(axis=1)), "low": low, "high": high}
        if name != "Q":
            above = found[name]["spearman"] - found["Q"]["spearman"]
            low, high = percentiles(drawn[name] - drawn["Q"])
            found[name]["above_q"] = {"difference": above, "low": low, "high": high}
    return found
