"""`demo`: the main job in a few minutes. A teacher, the student alone, the same student distilled, and a table."""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.forecast import forecast
from cluster.nodes.resources import ray_session
from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute
from cluster.recipe.reading import load_recipe
from cluster.tracking.folder import RunFolder
from cluster.training.check import check_names, check_run
from cluster.training.launch import RunResult
from kdcore.errors import Refused
from kdcore.reporting import optional
from ops.catalog import RECIPES
from ops.console import console, duration, part_of, percent, say, table
from ops.demo.digits import write_digits
from ops.export.latency import log_to_mlflow, measure_networks
from ops.train import mlflow_hint, watched
from pipelines.files import require_folder_place

LATENCY_SECONDS = 1.0
MEASURED_SECONDS = 2.0  # of the steps of a recipe
LONG_SECONDS = 3600.0  # above which a hint names settings that take less


@dataclass(frozen=True)
class Networks:
    """The requested networks. A name of None: the recipe's; weights of None: see `for_teacher` and `for_student`."""

    teacher: str | None = None
    teacher_weights: str | None = None
    student: str | None = None
    student_weights: str | None = None

    def check(self, data: str | None) -> None:
        """Refuse weights without a network, and networks for the digits, whose recipes have their own."""
        for role, name, weights in (
            ("teacher", self.teacher, self.teacher_weights),
            ("student", self.student, self.student_weights),
        ):
            if name and not data:
                raise Refused(f"--{role} names a network for your own images; give --data FOLDER too")
            if weights and not name:
                raise Refused(f"--{role}-weights {weights}: name the network they belong to: --{role} NAME")

    def for_teacher(self) -> list[str]:
        """Return the teacher recipe's overrides that train the requested teacher, by default from timm's weights."""
        if self.teacher is None:
            return []
        start = weights_of(self.teacher_weights) if self.teacher_weights else ["student.pretrained=true"]
        return [f"student.model={self.teacher}", *start]

    def for_student(self) -> list[str]:
        """Return the student recipes' overrides that train the requested student, by default from scratch."""
        name = [f"student.model={self.student}"] if self.student else []
        return [*name, *(weights_of(self.student_weights) if self.student_weights else [])]


def weights_of(file: str) -> list[str]:
    """Return the overrides that start training from a file of weights, of any classes; 'timm': from timm's own."""
    if file == "timm":
        return ["student.pretrained=true"]
    return [f"student.checkpoint={Path(file).absolute()}", "student.new_head=true"]


def demo(
    data: str | None,
    teacher: str | None,
    teacher_weights: str | None,
    student: str | None,
    student_weights: str | None,
    seeds: int,
    output: str,
    overrides: Sequence[str] = (),
) -> int:
    """Run the three jobs, the two students once per seed, and print the table.

    overrides: of every recipe.
    """
    if seeds < 1:
        raise Refused(f"--seeds {seeds}: at least one")
    networks = Networks(teacher, teacher_weights, student, student_weights)
    networks.check(data)
    require_folder_place(Path(output), "--output")
    digits = Path(output) / "digits"
    folder, root = ("folder", Path(data)) if data else ("demo", digits)
    given = [f"data.root={root.absolute()}", f"output_dir={Path(output).absolute()}", *overrides]

    def recipe(name: str, *more: str) -> RunConfig:
        return absolute(load_recipe(RECIPES / folder / f"{name}.yaml", [*given, *more]), Path.cwd())

    first = recipe("teacher", *networks.for_teacher())
    theirs = [f"teacher.model={first.student.model}", f"teacher.checkpoint={RunFolder.of(first).weights}"]
    theirs += networks.for_student()
    untaught = recipe("distilled", *theirs, "teacher.checkpoint=null", "teacher.random=true")
    RunFolder.of(first).refuse_another(first)
    if not data:
        say("writing the digits")
        write_digits(digits)
    for check in (check_names, check_run):  # on both, before the first takes its time
        check(first)
        check(untaught)
    if data and RunFolder.of(first).state() != "finished":
        for line in outlook(first, untaught, seeds):
            say(line)
    results: dict[str, list[RunResult]] = {"teacher": [], "student alone": [], "student distilled": []}
    with ray_session(first):
        results["teacher"].append(run(first))
        for seed in range(seeds):
            for title, name in (("student alone", "alone"), ("student distilled", "distilled")):
                results[title].append(run(recipe(name, *theirs, f"seed={seed}", f"name={name}-seed{seed}")))
    measured = networks_of(recipe("distilled", *theirs), Path(results["student distilled"][0].run_dir))
    rows = [
        row(title, runs, measured.get("teacher" if title == "teacher" else "student"), measured.get("teacher"))
        for title, runs in results.items()
    ]
    console.print(table(title_of(first, seeds), COLUMNS, rows))
    say(verdict(results))
    if len(measured) == 2:
        say(comparison(measured))
    say(mlflow_hint(first))
    return 0


def outlook(teacher: RunConfig, distilled: RunConfig, seeds: int) -> Iterator[str]:
    """Yield what will be trained from which weights, how long that takes, and what would be better."""
    seen, theirs = forecast(teacher, MEASURED_SECONDS), forecast(distilled, MEASURED_SECONDS)
    for role, config, one in (("teacher", teacher, seen), ("students", distilled, theirs)):
        start = "timm's own weights" if config.student.pretrained else config.student.checkpoint
        how = f"fine-tuned from {start}" if start else "trained from scratch"
        yield (
            f"{role}: {config.student.model}, {how}, on {one.num_images:,} images in {one.total_steps:,} steps: about "
            f"{duration(one.seconds)}{' each' if role == 'students' else ''}"
        )
    if not (teacher.student.pretrained or teacher.student.checkpoint):
        yield (
            "a teacher that has seen ImageNet learns a folder better and in a few epochs: --teacher NAME takes timm's "
            "weights, --teacher NAME --teacher-weights FILE a file's"
        )
    total = seen.seconds + 2 * seeds * theirs.seconds
    hint = "; views.size=128 and train.epochs=3 shorten it" if total > LONG_SECONDS else ""
    yield f"together about {duration(total)}, timed here for some seconds; after Ctrl-C the same command goes on{hint}"


# For a table 80 columns wide; ms: per image, one at a time.
COLUMNS = ["", "top-1", "agreement", "parameters", "ratio", "ms", "wall s"]

Network = dict[str, Any]  # a row of `benchmark`


def run(config: RunConfig) -> RunResult:
    """Run one job with its progress on the console."""
    command = shlex.join(["python", "-m", "ops", "train", str(RunFolder.of(config).recipe)])
    return watched(config, command)


def title_of(config: RunConfig, seeds: int) -> str:
    """Return the title of the table: data, workers, cores, seeds."""
    images = f"{config.data.name}, {config.scaling.num_workers} workers, {os.cpu_count()} cores"
    return f"{images}, {seeds} seed{'s' if seeds > 1 else ''} (mean, and half the range)" if seeds > 1 else images


def networks_of(config: RunConfig, run_dir: Path) -> dict[str, Network]:
    """Return {network: its cost here, one image at a time in torch}, of student and teacher where measurable."""
    rows = measure_networks(config, RunFolder(run_dir).weights, [1], ["torch"], LATENCY_SECONDS)
    if run_id := RunFolder(run_dir).read_run_id():
        with optional("their cost on the run's page is", say):
            log_to_mlflow(config, run_id, rows)
    return {row["network"]: row for row in rows}


def comparison(networks: dict[str, Network]) -> str:
    """Return a sentence on how much smaller and faster the student is than the teacher."""
    student, teacher = networks["student"], networks["teacher"]
    return (
        f"the student has {part_of(teacher['parameters'], student['parameters'])} of the teacher's parameters and "
        f"answers {teacher['p50_ms'] / student['p50_ms']:.1f} times as fast, one image at a time"
    )


def row(title: str, runs: list[RunResult], network: Network | None, teacher: Network | None) -> list[str]:
    """Return the table's row for one recipe's runs. network, teacher: None where they could not be measured."""
    compared = "val/agreement" in runs[0].metrics
    return [
        title,
        mean_and_half_range([r.metrics["val/top1"] for r in runs], percent),
        mean_and_half_range([r.metrics["val/agreement"] for r in runs], percent) if compared else "-",
        f"{network['parameters']:,}" if network else "-",
        part_of(teacher["parameters"], network["parameters"]) if network and teacher and compared else "-",
        f"{network['p50_ms']:.2f}" if network else "-",
        mean_and_half_range([r.wall_seconds for r in runs], "{:.0f}".format),
    ]


def mean_and_half_range(values: list[float], show: Any) -> str:
    """Return the mean; where there are several values, with half their range below it, for a narrow column."""
    mean = show(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean}\n±{show((max(values) - min(values)) / 2)}"


def verdict(results: dict[str, list[RunResult]]) -> str:
    """Return a sentence on whether distillation helped, which claims no more than the seeds show."""
    alone, distilled = ([r.metrics["val/top1"] for r in results[f"student {how}"]] for how in ("alone", "distilled"))
    gain = statistics.mean(distilled) - statistics.mean(alone)
    said = f"distillation changed the student's top-1 by {gain * 100:+.2f} points"
    if len(alone) == 1:
        return f"{said} (one seed: run with --seeds 3 to see the noise)"
    apart = min(distilled) > max(alone)
    return f"{said}; the worst distilled seed is {'above' if apart else 'not above'} the best of those alone"
