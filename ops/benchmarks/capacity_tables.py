"""The tables of CAPACITY.md: what clusters would take, and how near the simulation comes to runs with failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.filesize import decimal

from ops.console import duration

ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "nodes": lambda one: f"{one['nodes']:,}",
    "batch": lambda one: f"{one['workload']['batch_size']:,}",
    "steps": lambda one: f"{one['workload']['total_steps']:,}",
    "images/s": lambda one: f"{one['estimate']['images_per_second']:,.0f}",
    "scaling efficiency": lambda one: f"{one['estimate']['scaling_efficiency']:.1%}",
    "forward and backward, ms a step": lambda one: f"{1e3 * one['estimate']['compute_seconds']:.1f}",
    "ring all-reduce, ms a step": lambda one: f"{1e3 * one['estimate']['all_reduce_seconds']:.1f}",
    "images read, a node and second": lambda one: decimal(int(node_rate(one) * one["workload"]["image_bytes"])),
    "cache read, a node and second": lambda one: decimal(int(node_rate(one) * one["workload"]["cached_bytes"])),
    "memory of a GPU": lambda one: decimal(one["sizes"]["memory_bytes"]),
    "of which kept for the backward pass": lambda one: decimal(one["sizes"]["activation_bytes"]),
    "checkpoint": lambda one: decimal(one["sizes"]["checkpoint_bytes"]),
    "a failure every": lambda one: duration(one["estimate"]["mtbf_seconds"]),
    "failures of a run": lambda one: plus_minus(one["estimate"]["num_failures"], "{:.2f}"),
    "a checkpoint every, as the recipe has it": lambda one: duration(one["estimate"]["interval_seconds"]),
    "best, by Young": lambda one: duration(one["estimate"]["young_seconds"]),
    "best, by Daly": lambda one: duration(one["estimate"]["daly_seconds"]),
    "goodput": lambda one: plus_minus(one["estimate"]["goodput"], "{:.1%}"),
    "goodput with Daly's interval": lambda one: plus_minus(one["estimate"]["best_goodput"], "{:.1%}"),
    "minutes": lambda one: plus_minus(one["estimate"]["wall_seconds"], "{:.1f}", 60),
    "GPU hours": lambda one: f"{one['estimate']['gpu_hours']:.1f}",
}


def node_rate(one: dict[str, Any]) -> float:
    """Return the images per second of a node."""
    return float(one["estimate"]["images_per_second"] / one["nodes"])


def plus_minus(spread: dict[str, Any], form: str, unit: float = 1.0) -> str:
    """Return mean and standard deviation in a unit."""
    return f"{form.format(spread['mean'] / unit)} ± {form.format((spread['stdev'] or 0) / unit)}"


def clusters_table(found: dict[str, Any]) -> str:
    """Return what the recipe takes on each number of GPUs, and everything that is assumed."""
    names = list(found["clusters"])
    lines = [f"| {found['recipe']} | {' | '.join(f'{int(name):,} GPUs' for name in names)} |"]
    lines.append("|---|" + "--:|" * len(names))
    lines += [
        f"| {row} | {' | '.join(text(one) for one in found['clusters'].values())} |" for row, text in ROWS.items()
    ]
    assumed = [f"{name.replace('_', ' ')} {value:,.10g}" for name, value in found["assumed"].items()]
    return "\n".join(lines) + f"\n\nAssumed, none of it measured: {'; '.join(assumed)}.\n"


def kills_table(found: dict[str, Any]) -> str:
    """Return wall seconds of runs whose workers were killed, next to the predicted ones."""
    lines = ["| workers | kills (predicted) | measured, s | predicted, s | error | with its own seconds | load |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for number, one in found["workers"].items():
        lines += [f"| {number}, seed {run['seed']} | {' | '.join(cells(run))} |" for run in one["runs"]]
    lines += [
        "",
        "| workers | n | measured, s | expected, s | simulated, s | absolute error | with its own seconds |",
    ]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for number, one in found["workers"].items():
        expected = one["expected"]
        lines.append(
            f"| {number} | {one['wall_seconds']['n']} | {plus_minus(one['wall_seconds'], '{:.0f}')} | "
            f"{expected['closed_form_seconds']:.0f} | {plus_minus(expected['simulated_seconds'], '{:.0f}')} | "
            f"{plus_minus(one['absolute_error'], '{:.1%}')} | "
            f"{plus_minus(one['absolute_error_with_own_seconds'], '{:.1%}')} |"
        )
    settings, facts = found["settings"], found["facts"]
    return "\n".join(lines) + (
        f"\n\n{settings['steps']} steps, a checkpoint every {settings['checkpoint_every_steps']}, a failure every "
        f"{settings['mtbf_seconds']:g} s on average; {facts['machine']}.\n"
    )


def elastic_table(found: dict[str, Any]) -> str:
    """Return wall seconds of elastic runs that lose a node and get another, next to the predicted ones."""
    lines = ["| seed | node lost at, s | measured, s | predicted, s | error | with its own seconds | load |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for run in found["runs"]:
        measured = run["measured"]
        texts = [f"{measured['lost']:.0f}", f"{measured['wall_seconds']:,.0f}", f"{run['predicted_seconds']:.0f}"]
        texts += [f"{run['error']:+.1%}", f"{run['error_with_own_seconds']:+.1%}", f"{measured['load']:.0f}"]
        lines.append(f"| {run['seed']} | {' | '.join(texts)} |")
    settings, plain, once = found["settings"], found["plain"], found["once"]
    errors = [plus_minus(found[name], "{:.1%}") for name in ("absolute_error", "absolute_error_with_own_seconds")]
    restarts = " and ".join(f"{seconds:.0f}" for seconds in once["restart_seconds"])
    slower = once["step_seconds_alone"] / once["step_seconds"]
    lines += [
        "",
        f"n = {len(found['runs'])}: absolute error {errors[0]}, with its own seconds {errors[1]}.",
        f"{settings['steps']} steps, a checkpoint every {settings['checkpoint_every_steps']}, another node",
        f"{settings['repair_seconds']:g} s after the loss.",
        f"Measured beforehand: {plain['wall_seconds']:.0f} s without a loss, restarts of {restarts} s,",
        f"a step of one worker {slower:.2f} times as long as one of two (2 in the simulation);",
        f"{found['facts']['machine']}.",
    ]
    return "\n".join(lines) + "\n"


def cells(run: dict[str, Any]) -> list[str]:
    """Return a killed run's row."""
    measured = run["measured"]
    return [
        f"{len(measured['killed'])} ({run['predicted_failures']})",
        f"{measured['wall_seconds']:,.0f}",
        f"{run['predicted_seconds']:.0f}",
        f"{run['error']:+.1%}",
        f"{run['error_with_own_seconds']:+.1%}",
        f"{measured['load']:.0f}",
    ]
