"""The columns of the page's tables: one list for each, which header, body and sorting all read.

To add a column, add it to a list here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.score_text import is_rate
from cluster.scores import says_more
from ops.console import part_of
from ops.review.groups import Row

FLAGS_SHOWN = 3
CLASS_MEAN = "val/class_mean_top1"
STOPPED = "by a sweep, for their scores: the others were its best, so their mean is ranked last and not compared"
DIFFERS = "differs from most recipes here in more than the studied fields"


@dataclass(frozen=True)
class Badge:
    """A word in a box. kind: its class in the page's style."""

    text: str
    kind: str
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a table. value: what a column of numbers is sorted by; None where there is none.

    beside: shown smaller, after the text; link: where the text leads.
    """

    text: str
    value: float | None = None
    beside: str = ""
    badges: Sequence[Badge] = ()
    link: str = ""


def always(items: Sequence[Any]) -> bool:
    """Return True: a table has the column whatever its items are."""
    return True


@dataclass(frozen=True)
class Column:
    """A column. cell: what it shows of an item; note: the header's tooltip.

    shown: whether the table has the column, given all of its items.
    """

    name: str
    header: str
    cell: Callable[[Any], Cell]
    note: str = ""
    is_number: bool = True
    is_strong: bool = False
    shown: Callable[[Sequence[Any]], bool] = always


@dataclass(frozen=True)
class Table:
    """A sortable table of the page; the first column names its rows."""

    key: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def table(key: str, columns: Sequence[Column], items: Sequence[Any]) -> Table:
    """Return a table of items with the columns that they need."""
    shown = [column for column in columns if column.shown(items)]
    return Table(key, shown, [[column.cell(item) for column in shown] for item in items])


def recipe_columns(metric: str) -> list[Column]:
    """Return the columns of the table of recipes, each a group of runs."""
    return [
        Column("recipe", "recipe", recipe_cell, is_number=False),
        Column("runs", "n", runs_cell, "finished runs, one a seed; of several with the same seeds the latest counts"),
        Column(
            "score",
            metric,
            lambda row: score_cell(row, metric),
            "mean and standard deviation over seeds",
            is_strong=True,
        ),
        Column(
            "gain",
            "gain",
            lambda row: gain_cell(row, metric),
            f"{'points ' if is_rate(metric) else ''}above the student alone, with its 95 % interval",
        ),
        mean_column(
            "val/agreement", "agreement", "{:.2f}%", "share of images on which student and teacher answer alike", 100
        ),
        mean_column("model/parameters", "parameters", "{:,.0f}", "of the deployed network"),
        Column(
            "ratio",
            "ratio",
            ratio_cell,
            "the student's parameters relative to its only teacher's; empty where the latter are not logged",
            shown=lambda rows: any(ratio_cell(row).text for row in rows),
        ),
        mean_column(
            "model/latency_ms",
            "ms/image",
            "{:.2f}",
            "of one image at a time in torch, as `demo` or `benchmark` measured it",
            only_where_some=True,
        ),
        mean_column("model/gmacs", "GMACs", "{:.4g}", "multiply-adds for one image"),
        mean_column("model/megabytes", "MB", "{:.2f}", "of the deployed weights"),
        mean_column("speed/mean_images_per_second", "images/s", "{:,.0f}", "in training"),
        mean_column("cost/train_seconds", "train s", "{:,.0f}"),
        mean_column("cost/device_hours", "device-h", "{:.3g}", "training hours of all workers together"),
        mean_column("data/cache_bytes", "cache MB", "{:,.1f}", scale=1e-6, only_where_some=True),
    ]


def run_columns(metric: str, labels: Mapping[str, str], links: Mapping[str, str]) -> list[Column]:
    """Return the columns of the table of runs. labels: {run id: its recipe's name}; links: {run id: its page}."""
    return [
        Column("run", "run", lambda run: Cell(run.name, link=links[run.run_id]), is_number=False),
        Column("recipe", "recipe", lambda run: Cell(labels.get(run.run_id, run.method)), is_number=False),
        Column("seed", "seed", lambda run: Cell(run.seed, float(run.seed) if run.seed else None)),
        Column("state", "state", lambda run: Cell(run.outcome), is_number=False),
        run_column(metric),
        run_column("val/top5", only_where_some=True),
        *([run_column(CLASS_MEAN, only_where_some=True)] if metric != CLASS_MEAN else []),
        run_column("val/nll"),
        Column("seconds", "train s", lambda run: number(run.metrics.get("cost/train_seconds"), "{:,.0f}")),
    ]


def mean_column(
    metric: str, header: str, form: str, note: str = "", scale: float = 1, only_where_some: bool = False
) -> Column:
    """Return a column of a recipe's mean over seeds. only_where_some: left out where no recipe has the metric."""
    return Column(
        metric,
        header,
        lambda row: number(row.mean(metric), form, scale),
        note,
        shown=(lambda rows: any(row.mean(metric) is not None for row in rows)) if only_where_some else always,
    )


def run_column(metric: str, only_where_some: bool = False) -> Column:
    """Return a column of a run's own value of a metric. only_where_some: left out where it adds nothing for any run."""
    form, scale = ("{:.2f}%", 100) if is_rate(metric) else ("{:.4f}", 1)
    return Column(
        metric,
        metric,
        lambda run: number(run.metrics.get(metric), form, scale),
        shown=(lambda runs: any(says_more(metric, run.metrics) for run in runs)) if only_where_some else always,
    )


def number(value: float | None, form: str, scale: float = 1) -> Cell:
    """Return a number's cell; an empty one where there is none."""
    return Cell("") if value is None else Cell(form.format(value * scale), value)


def ratio_cell(row: Row) -> Cell:
    """Return a recipe's compression: the student's parameters relative to the teacher's; empty if one is unknown."""
    student, teacher = row.mean("model/parameters"), row.mean("model/teacher_parameters")
    return Cell(part_of(teacher, student), teacher / student) if student and teacher else Cell("")


def recipe_cell(row: Row) -> Cell:
    """Return a recipe's name, with what it differs in besides the studied fields."""
    badges = [Badge(row.group.stops, "flag", STOPPED)] if row.group.stops else []
    badges += [Badge(f"also differs: {flag}", "flag", DIFFERS) for flag in row.flags[:FLAGS_SHOWN]]
    if more := row.flags[FLAGS_SHOWN:]:
        badges.append(Badge(f"and in {len(more)} more", "flag", "; ".join(more)))
    return Cell(row.label, badges=badges)


def runs_cell(row: Row) -> Cell:
    """Return the number of runs behind a recipe's score, and of those set aside."""
    return Cell(str(row.score["n"]), row.score["n"], f"{row.set_aside} set aside" if row.set_aside else "")


def score_cell(row: Row, metric: str) -> Cell:
    """Return a recipe's mean, with the standard deviation over seeds after it."""
    mean, deviation = row.score["mean"], row.score["stdev"]
    form, scale, unit = ("{:.2f}", 100, "%") if is_rate(metric) else ("{:.4f}", 1, "")
    beside = f"± {form.format(scale * deviation)}" if deviation is not None else ""
    return Cell(form.format(scale * mean) + unit, mean, beside)


def gain_cell(row: Row, metric: str) -> Cell:
    """Return a recipe's gain over the student alone, with its interval and whether that contains 0."""
    gain = row.gain
    if gain is None:
        return Cell("")
    form, scale = ("{:+.2f}", 100) if is_rate(metric) else ("{:+.4f}", 1)
    beside = f"[{', '.join(form.format(scale * bound) for bound in gain.interval)}]" if gain.interval else ""
    badges = [Badge("noise", "noise")] if gain.within_noise else []
    return Cell(form.format(scale * gain.value), gain.value, beside, badges)
