"""What the review page says about an experiment, as plain values.

Groups of runs, their differences, and what sets them apart besides the studied fields.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

from cluster.metric_names import mode_of
from cluster.score_text import is_rate
from cluster.tracking.folder import RunFolder
from kdcore.errors import Refused
from kdcore.named_models import LOCAL_DIR
from ops.export.lineage import read_lineage
from ops.history import Group, Run
from ops.review.seed_noise import Difference, difference, sentence
from ops.spread import spread

# Fields in which compared methods may differ; SimKD's student is a part of its method.
STUDIED = ("method", "student.classifier", "student.factor")
ALONE = ("ce", "bce")  # methods that read only the labels
ALONE_LABEL = "student alone"
FIELDS_NAMED = 3  # of those in which two rows of one task differ
TAUGHT = ("teacher", "teachers", "cache")  # sections that a student alone need not have
Task = frozenset[tuple[str, str]]  # fields and their values, as `is_task` picks them
TEACHERS_FIELD = re.compile(r"teachers?(\.\d+)?\.(checkpoint|model)")


@dataclass(frozen=True)
class Row:
    """A group of runs on the page.

    key: its name in figures; by_seed: its scores; set_aside: number of its runs that later ones repeat; gain: over the
    student alone of its task; flags: other fields in which it differs from most groups; is_teacher: other groups learn
    from it; is_alone: it is a student alone, over which others gain.
    """

    key: str
    label: str
    group: Group
    by_seed: dict[str, float]
    score: dict[str, Any]
    gain: Difference | None
    flags: list[str]
    set_aside: int = 0
    is_teacher: bool = False
    is_alone: bool = False

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over the repetitions that have it."""
        values = self.group.values(metric)
        return spread(values)["mean"] if values else None


def rows_of(groups: Sequence[Group], metric: str, studied: Sequence[str] = STUDIED) -> list[Row]:
    """Return a row for every group that has the metric, the best first. Refused if it is unknown which is better."""
    groups = [group for group in groups if group.values(metric)]
    if not groups:
        return []
    teachers = teachers_among(groups)
    students = [group for group in groups if group not in teachers]
    usual = usual_fields(students, studied)
    baselines = baselines_of(students, metric, usual)
    made = []
    for number, (group, label) in enumerate(zip(groups, labels_of(groups), strict=True)):
        alone = baselines.get(task_of(group))
        compared = alone is not None and group is not alone and not group.stops
        gain = difference(group.by_seed(metric), alone.by_seed(metric)) if alone and compared else None
        is_teacher, flags = group in teachers, flags_of(group, usual)
        if is_teacher:
            label, flags = f"the teacher: {group.fields.get('student.model')}", []
        elif group is alone:
            label = alone_label(task_of(group), list(baselines))
        by_seed, score, set_aside = group.by_seed(metric), spread(group.values(metric)), group.set_aside(metric)
        made.append(
            Row(f"g{number}", label, group, by_seed, score, gain, flags, set_aside, is_teacher, is_alone=group is alone)
        )
    sign = -1 if mode_of(metric) == "max" else 1
    return sorted(made, key=lambda row: (bool(row.group.stops), sign * row.score["mean"]))


def teachers_among(groups: Sequence[Group]) -> list[Group]:
    """Return the groups whose students teach other groups, by the files of weights that those groups name."""
    fields = {item for group in groups for item in group.fields.items() if TEACHERS_FIELD.fullmatch(item[0])}
    named = {weights_of_teacher(value) for _, value in fields}
    return [group for group in groups if any(weights_of(run) in named for run in group.runs)]


def weights_of_teacher(value: str) -> str:
    """Return the file of weights that a teacher's checkpoint or model names; for an export, that of its run."""
    if value.startswith(LOCAL_DIR):
        with contextlib.suppress(Refused):  # an export without a lineage, or one that is not on this machine
            run_dir = read_lineage(Path(value.removeprefix(LOCAL_DIR)))["run_dir"]
            return str(RunFolder(Path(run_dir)).weights)
    return value


def weights_of(run: Run) -> str:
    """Return the file to which a run has written its student's weights."""
    return str(RunFolder(Path(run.recipe.get("output_dir", "")) / run.name).weights)


def shown(value: str | None) -> str:
    """Return a field's value for display: a file's name without its folder, and 'none' for what is not given."""
    if value is None or value == "":
        return "none"
    return PurePath(value).name if value.startswith("/") else value


def task_of(group: Group) -> Task:
    """Return which network a group trains on which data: between groups of one task, a difference is a gain."""
    return frozenset(item for item in group.fields.items() if is_task(item[0]))


def is_task(field: str) -> bool:
    """Return whether a field, or a section, says which network is trained, or on which data."""
    return is_within(field, ("data.root", "student")) and not is_within(field, STUDIED)


def is_within(field: str, names: Sequence[str]) -> bool:
    """Return whether a field is one of these, or in a section that is."""
    return any(f"{field}.".startswith(f"{name}.") for name in names)


def is_taught(group: Group) -> bool:
    """Return whether the group's recipe has a teacher, even if only in a cache."""
    return any("." in field and is_within(field, TAUGHT) for field in group.fields)


def usual_fields(groups: Sequence[Group], studied: Sequence[str]) -> dict[str, str]:
    """Return {field: its most common value} of fields not studied; a teacher's, among groups that have a teacher."""
    fields = {field for group in groups for field in group.fields if not is_within(field, studied)}
    taught = [group for group in groups if is_taught(group)] or groups
    asked = {field: taught if is_within(field, TAUGHT) else groups for field in fields}
    return {
        field: Counter(group.fields.get(field, "") for group in asked[field]).most_common(1)[0][0] for field in fields
    }


def flags_of(group: Group, usual: Mapping[str, str]) -> list[str]:
    """Return texts such as 'train.batch_size 32, not 64', for every field in which a group differs from most.

    For a section that only the group has, or that only it lacks, 'cache given' or 'cache absent'. A student alone gets
    no flag for having no teacher.
    """
    flags = []
    skipped = () if is_taught(group) else TAUGHT
    changed = [
        field
        for field, value in sorted(usual.items())
        if group.fields.get(field, "") != value and not is_within(field, skipped)
    ]
    for section, fields in groupby(changed, key=lambda field: field.partition(".")[0]):
        pairs = {field: (group.fields.get(field, ""), usual[field]) for field in fields}
        if len(pairs) > 1 and not any(theirs for _, theirs in pairs.values()):
            flags.append(f"{section} given")
        elif len(pairs) > 1 and not any(ours for ours, _ in pairs.values()):
            flags.append(f"{section} absent")
        else:
            flags += [f"{field} {shown(ours)}, not {shown(theirs)}" for field, (ours, theirs) in pairs.items()]
    return flags


def baseline(groups: Sequence[Group], metric: str, usual: Mapping[str, str]) -> Group | None:
    """Return the student alone: labels only, with the fewest flags and then the most runs; ce before bce."""
    alone = [group for group in groups if group.method in ALONE and not group.stops]
    return (
        min(alone, key=lambda g: (ALONE.index(g.method), len(flags_of(g, usual)), -len(g.values(metric))))
        if alone
        else None
    )


def baselines_of(groups: Sequence[Group], metric: str, usual: Mapping[str, str]) -> dict[Task, Group]:
    """Return {task: its student alone} of the tasks that have one, and of several tasks only where it has company."""
    tasks: dict[Task, list[Group]] = {}
    for group in groups:
        tasks.setdefault(task_of(group), []).append(group)
    found = {task: baseline(same, metric, usual) for task, same in tasks.items() if len(same) > 1 or len(tasks) == 1}
    return {task: alone for task, alone in found.items() if alone is not None}


def alone_label(task: Task, tasks: Sequence[Task]) -> str:
    """Return the label of a task's student alone; of several tasks, with what not all share: its network, say."""
    own = sorted(task - frozenset.intersection(*tasks))
    details = ", ".join(f"{field.removeprefix('student.')} {shown(value)}" for field, value in own)
    return f"{ALONE_LABEL}: {details}" if details else ALONE_LABEL


def labels_of(groups: Sequence[Group]) -> list[str]:
    """Return each group's method and, where several have the same one, what sets it apart from them."""
    varied = {
        method: varied_fields([group.runs[0] for group in groups if group.method == method])
        for method in {group.method for group in groups}
    }
    labels = []
    for group in groups:
        fields = varied[group.method]
        details = ", ".join(f"{field_name(field, group)} {shown(group.fields.get(field))}" for field in fields)
        labels.append(f"{group.method}: {details}" if details else group.method)
    return labels


def field_name(field: str, group: Group | Run) -> str:
    """Return a field's name for display: `method.1.temperature` of a term kd is kd.temperature."""
    first, _, rest = field.partition(".")
    number, _, last = rest.partition(".")
    if first != "method" or not last:
        return field
    return f"{group.fields.get(f'method.{number}.term', number)}.{last}"


def sentences(rows: Sequence[Row], metric: str) -> list[str]:
    """Return sentences on the results: the best recipe against the second, and every gain over the student alone."""
    percent = is_rate(metric)
    gains = [
        sentence(row.label, f"the {ALONE_LABEL}", row.gain, percent) + caveat(row)
        for row in rows
        if row.gain is not None
    ]
    best = [row for row in rows if not (row.is_alone or row.is_teacher or row.group.stops)][:2]
    if len(best) < 2 or task_of(best[0].group) != task_of(best[1].group):
        return gains
    found = difference(best[0].by_seed, best[1].by_seed)
    return [sentence(best[0].label, best[1].label, found, percent) + caveat(*best), *gains]


def caveat(*rows: Row) -> str:
    """Return a sentence on what a comparison within one task does not hold fixed."""
    named = {flag.split(" ", 1)[0] for row in rows for flag in row.flags}
    fields = sorted(field for field in named if not is_task(field))
    return f" They differ in more than the method: {enumerated(fields)}." if fields else ""


def enumerated(words: Sequence[str]) -> str:
    """Return words as 'a, b, c and 4 more'."""
    more = len(words) - FIELDS_NAMED
    return ", ".join(words[:FIELDS_NAMED]) + (f" and {more} more" if more > 0 else "")


def varied_fields(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return {field: its values, in order} of the fields in which runs differ.

    Of fields that always change together, such as two weights that add up to 1, only one: the last term's, and the
    method's before others.
    """
    fields = dict.fromkeys(field for run in runs for field in run.fields)
    columns = {field: tuple(run.fields.get(field, "-") for run in runs) for field in fields}
    varied = {field: column for field, column in columns.items() if len(set(column)) > 1}
    kept: dict[str, tuple[str, ...]] = {}
    for field in sorted(varied, key=lambda field: (field.startswith("method."), field), reverse=True):
        if not any(change_together(varied[field], other) for other in kept.values()):
            kept[field] = varied[field]
    return {field: sorted(set(kept[field]), key=sort_key) for field in sorted(kept)}


def change_together(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether each value of one column belongs to one value of the other, and vice versa."""
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


def sort_key(text: str) -> tuple[int, float, str]:
    """Return a key that sorts numbers by size, before words by letter."""
    value = parse_number(text)
    return (0, value, text) if value is not None else (1, 0.0, text)


def parse_number(text: str) -> float | None:
    """Return the number that a text is; None for any other text."""
    try:
        return float(text)
    except ValueError:
        return None


def recipe_differences(one: Run, other: Run) -> list[tuple[str, str, str]]:
    """Return (field, its value in one, in the other) of all fields that differ, including the seed."""
    mine, theirs = ({**run.fields, "seed": run.seed} for run in (one, other))
    return [
        (field_name(field, one if field in mine else other), mine.get(field, "-"), theirs.get(field, "-"))
        for field in sorted(mine.keys() | theirs.keys())
        if mine.get(field) != theirs.get(field)
    ]
