"""Runs of one recipe and seed on several machines, which round differently: which of them count.

Not here: how far they differ (`ops.reproduce.paper3_results`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def machine_of(run: dict[str, Any]) -> str:
    """Return the hardware of a finished run."""
    return machine_in(run["facts"])


def machine_in(facts: dict[str, Any]) -> str:
    """Return the hardware that computed, from facts: the GPUs, or the CPU where there is none."""
    return ", ".join(facts["gpus"] or [facts["machine"]])


def most_used(runs: Sequence[dict[str, Any]]) -> str | None:
    """Return the machine of most finished runs, the first on a tie; None without finished runs."""
    found = Counter(machine_of(run) for run in runs if run["finished"])
    return max(found, key=lambda machine: found[machine]) if found else None


def runs_that_count(
    found: Mapping[str, Sequence[dict[str, Any]]], compared: Iterable[tuple[str, str]]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[dict[str, Any]]]]:
    """Return, of each row, one run per seed, and the others. found: {row: runs}; compared: pairs of rows.

    A row's runs are those of the machine that has run most of it. Ties of all rows go to one machine: the one with
    which the fewest runs are compared across machines; of several such, the first found.
    """
    pairs = list(compared)
    machines = dict.fromkeys(machine_of(run) for runs in found.values() for run in runs if run["finished"])
    choices = [{row: one_of_each(runs, machine) for row, runs in found.items()} for machine in machines or [None]]

    def num_across(choice: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]) -> int:
        of_seeds = {row: machine_of_seeds(counted) for row, (counted, _) in choice.items()}
        return sum(pairs_across(of_seeds[row], of_seeds[other]) for row, other in pairs)

    best = min(choices, key=num_across)
    return {row: counted for row, (counted, _) in best.items()}, {row: others for row, (_, others) in best.items()}


def machine_of_seeds(runs: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Return {seed: machine} of one row's finished runs."""
    return {run["seed"]: machine_of(run) for run in runs if run["finished"]}


def one_of_each(
    runs: Sequence[dict[str, Any]], preferred: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return one run of each name, which counts, and the others.

    The one that counts is from the machine that has run most of them, so that a row is of one machine if possible.
    preferred: the machine to take on a tie.
    """
    numbers = Counter(machine_of(run) for run in runs if run["finished"])

    def rank(run: dict[str, Any]) -> tuple[int, bool]:
        machine = machine_of(run) if run["finished"] else None
        return (numbers[machine] if machine else 0), machine == preferred

    counted: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=rank, reverse=True):
        counted.setdefault(run["name"], run)
    others = [run for run in runs if run is not counted[run["name"]]]
    return sorted(counted.values(), key=lambda run: run["name"]), sorted(others, key=lambda run: run["name"])


def pairs_across(these: dict[int, str], those: dict[int, str]) -> int:
    """Return the number of seeds that two rows ran on different machines. these, those: {seed: machine} of each."""
    return sum(these[seed] != those[seed] for seed in these.keys() & those.keys())
