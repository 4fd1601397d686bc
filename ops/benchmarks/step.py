"""What a training step costs on a CPU: next to a loop written by hand, to timm's task, and by its parts.

With the same networks, loss (cross-entropy and KD), optimiser (SGD with Nesterov momentum) and batch size:

bare        a loop written by hand, on one batch in memory
timm        `timm.task.LogitDistillationTask`, on the same batch
torchdistill  its `DistillationBox` with `KDLoss`, on the same batch, if that library is installed
online      this project's loop, drawing and reading its images, the teacher run in every step
cached      the same with the teacher's answers from a cache
alone       the same without a teacher
averaged    online, with a moving average of the student's weights
parallel    online, wrapped in DDP as a worker's network is, with one rank

Subjects take turns in one process with one thread; the processor time of a whole step counts. Weights are random: speed
does not depend on them.

    python -m ops.benchmarks.step
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import timm.task
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.rank import Rank, set_up_torch
from cluster.recipe.reading import parse
from cluster.training.loop import ForwardBackward, TrainingLoop, new_state
from cluster.training.worker import DATA_PARALLEL
from ops.benchmarks.families import write_images
from ops.console import console, say, table
from ops.facts import spread, version, write

CPU = torch.device("cpu")
TEMPERATURE, LEARNING_RATE, MOMENTUM = 4.0, 0.05, 0.9
# Name: student, teacher, pixels of an image's side, batch, steps per turn.
PAIRS = {
    "resnet56 > resnet20, 32 px": ("cifar_resnet20", "cifar_resnet56", 32, 64, 2),
    "resnet34 > resnet18, 128 px": ("resnet18", "resnet34", 128, 8, 1),
}
# What is compared: the first over the second.
RATIOS = (
    ("online", "bare"),
    ("online", "timm"),
    ("online", "torchdistill"),
    ("cached", "alone"),
    ("cached", "online"),
    ("averaged", "online"),
    ("parallel", "online"),
)
WHOLE = {"path": ".", "io": "output"}  # of torchdistill: the output of the whole network
OF_TIMMS = {"pretrained_cfg": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "in_chans": 3, "num_classes": 10}


@dataclass(frozen=True)
class Subject:
    """What is measured: a student, and a function that takes one step of its training."""

    student: nn.Module
    step: Callable[[], object]


def recipe_of(folder: Path, pair: str, **changes: Any) -> dict[str, Any]:
    """Return the recipe of a pair's student with KD. folder: has the images; changes: of whole sections."""
    student, teacher, size, batch, _ = PAIRS[pair]
    return {
        "name": "step",
        "output_dir": str(folder / "runs"),
        "data": {"root": str(folder / f"images-{size}"), "loader": "resident"},
        "views": {"size": size, "crop": "padded", "padding": 4, "num_views": 1},
        "student": {"model": student},
        "teacher": {"model": teacher, "checkpoint": str(folder / f"{teacher}.pt")},
        "cache": {"dir": str(folder / f"cache-{size}")},
        "method": [{"term": "ce", "weight": 1.0}, {"term": "kd", "weight": 1.0, "temperature": TEMPERATURE}],
        "optimizer": {"opt": "sgd", "lr": LEARNING_RATE, "momentum": MOMENTUM, "weight_decay": 0.0},
        "train": {"epochs": 10_000, "batch_size": batch},
        "scaling": {"num_workers": 0},
    } | changes


def product(recipe: dict[str, Any], parallel: bool = False) -> Subject:
    """Return the product's loop, including drawing and reading its batches. parallel: through DDP."""
    run = assemble(parse(recipe), Rank(0, 1, CPU), reuse_index=True)
    state = new_state(run)
    compute = None
    if parallel:
        model = DistributedDataParallel(state.distiller, **DATA_PARALLEL)
        compute = ForwardBackward(run, model, model.no_sync)
    loop, batches = TrainingLoop(run, state, compute), run.train_batches(0)
    return Subject(run.student, lambda: loop.step(batches))


def networks(recipe: dict[str, Any]) -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    """Return student, teacher, images and labels of a batch, channels-last, as the product builds them."""
    run = assemble(parse(recipe), Rank(0, 1, CPU), reuse_index=True)
    batch = next(iter(run.train_batches(0)))
    return run.student.train(), run.teachers.single.model, batch.images, batch.hard_labels


def bare(recipe: dict[str, Any]) -> Subject:
    """Return a loop written by hand."""
    student, teacher, images, labels = networks(recipe)
    optimizer = torch.optim.SGD(student.parameters(), LEARNING_RATE, MOMENTUM, nesterov=True)

    def step() -> None:
        with torch.no_grad():
            answers = teacher(images)
        logits = student(images)
        soft = F.log_softmax(logits / TEMPERATURE, dim=1), F.log_softmax(answers / TEMPERATURE, dim=1)
        kd = F.kl_div(*soft, reduction="batchmean", log_target=True) * TEMPERATURE**2
        (F.cross_entropy(logits, labels) + kd).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Subject(student, step)


def timms(recipe: dict[str, Any]) -> Subject:
    """Return timm's task for distillation of logits."""
    student, teacher, images, labels = networks(recipe)
    for network in (student, teacher):  # what timm's task reads from a network, and other libraries' networks lack
        for name, value in OF_TIMMS.items():
            if not hasattr(network, name):
                setattr(network, name, value)
    task = timm.task.LogitDistillationTask(
        student,
        teacher,
        nn.CrossEntropyLoss(),
        task_loss_weight=1.0,
        distill_loss_weight=1.0,
        temperature=TEMPERATURE,
        device=CPU,
        verbose=False,
    )
    optimizer = create_optimizer_v2(student, "sgd", lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=0.0)

    def step() -> None:
        task(images, labels)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(student, step)


def torchdistills(recipe: dict[str, Any]) -> Subject | None:
    """Return torchdistill's box of one stage; None where that library is not installed."""
    try:
        box_of = import_module("torchdistill.core.distillation").DistillationBox
    except ImportError:
        return None
    student, teacher, images, labels = networks(recipe)
    whole = {f"{network}_module_{what}": value for network in ("student", "teacher") for what, value in WHOLE.items()}
    loss = {"key": "KDLoss", "kwargs": {**whole, "temperature": TEMPERATURE, "alpha": 1.0, "beta": 1.0}}
    momentum = {"lr": LEARNING_RATE, "momentum": MOMENTUM, "nesterov": True}
    stage = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": momentum},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }
    box = box_of(teacher, student, {}, stage, CPU, None, False, 1)
    box.pre_epoch_process(epoch=0)
    return Subject(student, lambda: box.post_forward_process(box.forward_process(images, labels)))


def subjects(folder: Path, pair: str) -> dict[str, Subject]:
    """Return what is measured, by name; builds the cache."""
    recipe = recipe_of(folder, pair)
    write_images(folder / f"images-{PAIRS[pair][2]}", per_class=64, side=PAIRS[pair][2])
    write_teacher(recipe)
    cached = recipe | {"teacher": recipe["teacher"] | {"source": "cache"}}
    build(parse(recipe))
    theirs = torchdistills(recipe)
    return ({} if theirs is None else {"torchdistill": theirs}) | {
        "bare": bare(recipe),
        "timm": timms(recipe),
        "online": product(recipe),
        "cached": product(cached),
        "alone": product(recipe | {"method": recipe["method"][:1], "teacher": None, "cache": None}),
        "averaged": product(recipe | {"train": recipe["train"] | {"ema_decay": 0.999}}),
        "parallel": product(recipe, parallel=True),
    }


def write_teacher(recipe: dict[str, Any]) -> None:
    """Write weights drawn at random as those of the recipe's teacher."""
    drawn = recipe | {"teacher": {"model": recipe["teacher"]["model"], "random": True}, "cache": None}
    teacher = assemble(parse(drawn), Rank(0, 1, CPU)).teachers.single
    torch.save(teacher.model.state_dict(), recipe["teacher"]["checkpoint"])


def measure(subjects: dict[str, Subject], rounds: int, number: int) -> dict[str, list[float]]:
    """Return processor milliseconds per step of every subject, one per round; the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, subject in subjects.items():
            began = time.process_time()
            for _ in range(number):
                subject.step()
            if turn:
                found[name].append(1e3 * (time.process_time() - began) / number)
    return found


def main() -> None:
    """Measure both pairs in turns, and write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_up_torch(deterministic=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=0, world_size=1)
        for pair in args.pairs:
            found = measure(subjects(folder, pair), args.rounds, PAIRS[pair][-1])
            ratios = {
                f"{above} / {below}": [a / b for a, b in zip(found[above], found[below], strict=True)]
                for above, below in RATIOS
                if below in found
            }
            results[pair] = {
                "batch": PAIRS[pair][3],
                "cpu_ms": {name: spread(values) for name, values in found.items()},
                "ratios": ratios,
            }
            rows = [[name, f"{median(v):.3f}", f"{min(v):.3f} to {max(v):.3f}"] for name, v in ratios.items()]
            console.print(table(f"{pair}, n = {args.rounds}", ["CPU time of a step", "median", "range"], rows))
        dist.destroy_process_group()
    others = {"torchdistill": version("torchdistill")}
    say(f"written: {write('step', {'load': os.getloadavg()[0], 'others': others, 'pairs': results})}")


if __name__ == "__main__":
    main()
