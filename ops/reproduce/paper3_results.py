"""The results of the experiments of `reproduce paper3`: one file each, with every number that the page shows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.recipe.config import RunConfig
from ops import catalog
from ops.facts import spread, write
from ops.rank_correlation import FEWEST, drawn_correlations, partial_spearman, percentiles, spearman
from ops.reproduce.experiments import EXPERIMENTS, Claim, Experiment
from ops.reproduce.machines import machine_of, machine_of_seeds, most_used, pairs_across, runs_that_count
from ops.reproduce.paper3_page import caveats
from ops.reproduce.paper3_recipes import configure, recipe_digest
from ops.reproduce.paper3_state import State
from ops.reproduce.slices import has_diverged, runs_of
from ops.review.seed_noise import paired

SCORES = "layers/layers.json"  # in the state: what `layers` measured of the teacher


def collect(name: str, state: Path, folder: Path, overrides: Sequence[str] = ()) -> Path:
    """Write paper3_<name>.json to the folder: every run of an experiment, and what they show together.

    Ended runs of the same recipes that the file already has stay in it; where the state has the same run of the same
    machine, the state's counts. Of one run on two machines, one counts, and their difference is reported.
    """
    experiment = EXPERIMENTS[name]
    published = published_runs(name, folder, overrides)
    found = {row: joined(published[row], here(name, row, state, overrides)) for row in experiment.rows}
    runs, others = runs_that_count(found, [(row, other) for row in found for other in compared_with(experiment, row)])
    top1 = {row: by_seed(of_row) for row, of_row in runs.items()}
    machines = {row: machine_of_seeds(of_row) for row, of_row in runs.items()}
    num_diverged = {row: sum(map(has_diverged, of_row)) for row, of_row in runs.items()}
    rows = {
        row: {
            "recipe": experiment.rows[row].recipe,
            "top1": spread(list(top1[row].values())) if top1[row] else None,
            "differences": (compared := differences(experiment, row, top1, machines, num_diverged)),
            "claim": judged(row, experiment.rows[row].claim, compared, num_diverged),
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
    """Return each row's ended runs in the folder's result file, of the recipes as they are now."""
    experiment, path = EXPERIMENTS[name], folder / f"paper3_{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    return {
        row: [
            run
            for run in (*rows.get(row, {}).get("runs", []), *rows.get(row, {}).get("elsewhere", []))
            if (run["finished"] or has_diverged(run))
            and run["recipe_digest"] == recipe_digest(experiment, one, overrides)
        ]
        for row, one in experiment.rows.items()
    }


def here(name: str, row: str, state: Path, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row's runs in the state, finished or not, as the result file has them; none of another recipe."""
    experiment, of_row = EXPERIMENTS[name], EXPERIMENTS[name].rows[row]
    digest = recipe_digest(experiment, of_row, overrides)

    def configured(seed: int) -> RunConfig:
        return configure(name, experiment, of_row, row, seed, State(state), overrides)

    return [{**short(run), "recipe_digest": digest} for run in runs_of(state, f"{name}-{row}", configured)]


def joined(published: list[dict[str, Any]], these: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs of both, one of each name and machine: these before published ones.

    An unfinished run is left out where there is a finished one of its name.
    """
    runs = {(run["name"], machine_of(run)): run for run in (*published, *these) if run["finished"]}
    others = {run["name"]: run for run in (*published, *these) if not run["finished"]}
    names = {name for name, _ in runs}
    return [*runs.values(), *(run for name, run in others.items() if name not in names)]


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
    experiment: Experiment,
    row: str,
    top1: dict[str, dict[int, float]],
    machines: dict[str, dict[int, str]],
    num_diverged: Mapping[str, int],
) -> dict[str, Any]:
    """Return {other row: the paired difference to it}: to the baseline, and to the row that the claim names.

    Each with the number of its pairs of runs on two kinds of machine, which round differently, and the number of runs
    of both rows that it lacks because they diverged, if any.
    """
    found = {other: difference(top1[row], top1[other]) for other in compared_with(experiment, row)}
    lacking = {other: {"diverged": count} for other in found if (count := num_diverged[row] + num_diverged[other])}
    return {
        other: {**one, "across_machines": pairs_across(machines[row], machines[other]), **lacking.get(other, {})}
        for other, one in found.items()
        if one is not None
    }


def compared_with(experiment: Experiment, row: str) -> list[str]:
    """Return the rows that a row is compared with: the baseline, and the one that its claim names."""
    claim = experiment.rows[row].claim
    others = dict.fromkeys([experiment.baseline(row), *([claim.against] if claim else [])])
    return [other for other in others if other != row and other in experiment.rows]


def repeated(runs: dict[str, list[dict[str, Any]]], machine: str) -> list[dict[str, Any]]:
    """Return how far the same runs differ between a machine and another: for each row, and for all rows together.

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

    With one seed, and with equal differences, there is no interval.
    """
    values = [these[seed] - those[seed] for seed in sorted(these.keys() & those.keys())]
    if not values:
        return None
    found = paired(values)
    low, high = found.interval or (None, None)
    return {"n": len(values), "mean": found.value, "low": low, "high": high}


def judged(
    row: str, claim: Claim | None, found: dict[str, Any], num_diverged: Mapping[str, int]
) -> dict[str, str] | None:
    """Return what a row tests, and the verdict of its runs. found: its `differences`; num_diverged: runs by row."""
    if claim is None:
        return None
    difference = found.get(claim.against)
    verdict = verdict_of(difference, claim.sign)
    if difference is not None:
        verdict += caveats(difference)
    elif num_diverged[row] + num_diverged[claim.against]:
        verdict = "diverged: no seed is left to compare"
    return {"text": claim.text, "against": claim.against, "sign": claim.sign, "verdict": verdict}


def verdict_of(found: dict[str, Any] | None, sign: str) -> str:
    """Return what an interval says about a claim: holds, contradicted, within seed noise, or not decided yet."""
    if found is None:
        return "not run"
    if found["low"] is None:
        return "one seed decides nothing" if found["n"] == 1 else "equal differences decide nothing"
    low, high = (found["low"], found["high"]) if sign == "above" else (-found["high"], -found["low"])
    return "holds" if low > 0 else "contradicted" if high < 0 else "within seed noise"


def short(run: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a run that the result file keeps."""
    if not run["finished"]:
        begun = {"name": run["name"], "finished": False, "epoch": run["last"]["epoch"] if run["last"] else 0.0}
        return begun | ({"failed_step": run["failed_step"]} if has_diverged(run) else {})
    kept = {key: run[key] for key in ("name", "seed", "finished", "steps", "train_seconds", "deployed_parameters")}
    teacher = run["teacher"]["top1"] if run["teacher"] else None
    final = {"top1": run["final"]["top1"], "images": run["final"]["images"], "teacher_top1": teacher}
    return {**kept, "facts": run["facts"], **final, "best_epoch": run["best"]["top1"]}


def places(runs: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """Return {hardware and commit: number of runs finished there}."""
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

    For predictors other than Q, also by how much it exceeds Q's; for those other than depth, also the partial one given
    depth. Over the layers that have been run, with the seeds that all of them have. Empty with fewer layers than an
    interval needs.
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
        if name != "depth":
            found[name]["given_depth"] = partial_spearman(predictor, accuracy.mean(axis=1), predictors["depth"])
        if name != "Q":
            above = found[name]["spearman"] - found["Q"]["spearman"]
            low, high = percentiles(drawn[name] - drawn["Q"])
            found[name]["above_q"] = {"difference": above, "low": low, "high": high}
    return found
