"""The training loop of one rank: the only one there is, for every method.

Not here: what a step computes (`kdcore.distiller`), what a batch is (`pipelines`), how ranks are started
(`cluster.training.launch`).
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import safetensors.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cluster.assembly import Assembly, assemble, autocast, facts, image_size
from cluster.config import RunConfig
from cluster.passes import evaluate
from cluster.rank import Rank, seed_micro_batch, set_up_torch
from cluster.recipe import parse
from cluster.tracking import pictures
from cluster.tracking.delivery import RUN_ID
from cluster.tracking.run import Tracker
from cluster.training.checkpoint import Snapshot, TrainState
from cluster.training.progress import Reporter
from cluster.training.recovery import located
from kdcore.batch import Batch
from kdcore.cost import deployment_cost
from kdcore.distiller import StepOutput, unique_names
from kdcore.optim import Schedule, build_optimizer


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Trains to the last step, from the latest checkpoint if there is one; gives the run's final metrics (rank 0's)."""
    config, rank = parse(payload["config"]), Rank.of_this_worker()
    set_up_torch(config.train.deterministic)
    reporter = Reporter(payload["board"], rank.number, config.name)
    reporter.begin()
    reporter.update(phase="building networks")
    run = assemble(config, rank, listed=True)
    distiller = run.distiller()
    state = TrainState(distiller, build_optimizer(config.optimizer, distiller), make_ema(config, distiller.student))
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as directory:
            state.restore(Path(directory), facts(run))
        reporter.say(f"continuing at step {state.step} of {run.total_steps}, workers: {rank.world_size}")
    schedule = Schedule(config.schedule, state.optimizer, config.train.epochs, run.steps_per_epoch)
    model = data_parallel(config, distiller)
    step_model = torch.compile(model) if config.train.compile else model
    recorder = Recorder(config, run, state.step, reporter)
    validation, checkpoints = Validation(run, recorder), Checkpoints(run)

    batches = recorder.timed(run.train_batches(state.step))
    with located(lambda: f"rank {rank.number}, step {state.step + 1} of {run.total_steps}", reporter.fail):
        for step in range(state.step, run.total_steps):
            started = time.perf_counter()
            schedule.set_step(step)
            model.train()
            for number in run.micro_batches:
                seed_micro_batch(config.seed, step, number)
                batch = next(batches)
                last = number == run.micro_batches[-1]
                with contextlib.nullcontext() if last or rank.world_size == 1 else model.no_sync():
                    with autocast(config, rank):
                        output = step_model(batch)
                    # The ranks' gradients are averaged: weigh them so that the sum is the mean over the global batch.
                    (output.loss * (len(batch) * rank.world_size / config.train.batch_size)).backward()
                recorder.count(step, number, batch, output)
            if config.train.clip_norm:
                nn.utils.clip_grad_norm_(distiller.parameters(), config.train.clip_norm)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            if state.ema:
                state.ema.update(distiller.student, step + 1)
            state.step = step + 1
            state.train_seconds += time.perf_counter() - started
            recorder.after_step(state)
            if is_due(state.step, run, config.train.evaluate_every_epochs):
                validation.run(state)
            if checkpoint_is_due(state.step, run):
                checkpoints.save(state)
    if not validation.latest:  # continued after its last step
        validation.run(state)
    return recorder.finish(state, validation)


def data_parallel(config: RunConfig, distiller: nn.Module) -> Any:
    """The distiller with its gradients averaged over the ranks.

    Left to itself, DDP regroups its buckets after the first step that a process takes; with 4 ranks and more, the order
    of a sum depends on where in a bucket a gradient lies, so a continued run would add up in another order than an
    undisturbed one. Searching for unused parameters is what keeps the first grouping.
    """
    options = {"broadcast_buffers": False, "find_unused_parameters": config.train.deterministic}
    return ray.train.torch.prepare_model(distiller, move_to_device=False, parallel_strategy_kwargs=options)


def make_ema(config: RunConfig, student: nn.Module) -> ModelEmaV3 | None:
    """timm's moving average of the student, if the recipe wants one."""
    if config.train.ema_decay is None:
        return None
    return ModelEmaV3(student, decay=config.train.ema_decay, use_warmup=config.train.ema_warmup)


def is_due(step: int, run: Assembly, every_epochs: int) -> bool:
    """Whether an epoch to be evaluated, or the run, ends with this step."""
    return step == run.total_steps or step % (every_epochs * run.steps_per_epoch) == 0


def checkpoint_is_due(step: int, run: Assembly) -> bool:
    if run.config.scaling.num_workers == 0:
        return False  # Ray Train writes none of a run in this process, and `Checkpoints` would wait for it
    every = run.config.checkpoint.every_steps or run.steps_per_epoch
    return step == run.total_steps or step % every == 0


class Checkpoints:
    """Has rank 0's state written in the background and hands it to Ray Train; every rank takes part.

    The loop waits only for a copy in the host's memory, and for the writing of the one before if that is not done:
    there is never more than one copy.
    """

    def __init__(self, run: Assembly) -> None:
        self.run = run
        self.written = threading.Event()
        self.written.set()

    def save(self, state: TrainState) -> None:
        checkpoint, write, name = None, None, f"step-{state.step:08d}"
        if self.run.rank.first:
            self.written.wait()
            self.written.clear()
            checkpoint = Checkpoint(f"{self.run.config.storage}/{self.run.config.name}/{name}")
            write = partial(self.write, state.snapshot(facts(self.run)))
        ray.train.report(
            {"step": state.step},
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=False,
        )

    def write(self, snapshot: Snapshot, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Called by Ray Train in a thread; what it raises ends the worker."""
        try:
            snapshot.write(checkpoint.filesystem, checkpoint.path)
        finally:
            self.written.set()
        return checkpoint


class Validation:
    """Evaluates the student between epochs; the teacher once, at the start."""

    def __init__(self, run: Assembly, recorder: Recorder) -> None:
        self.run_, self.recorder = run, recorder
        self.splits = [split for split in ("val", "held_out") if split in run.indexes]
        self.loaders = {split: run.evaluation_loader(split) for split in self.splits}
        self.teacher_logits: dict[str, Tensor] = {}
        self.latest: dict[str, float] = {}
        for split in self.splits:
            if answers := run.teacher_on(split, self.loaders[split]):
                metrics, self.teacher_logits[split] = answers
                recorder.log_teacher(split, metrics)

    def run(self, state: TrainState) -> None:
        """Metrics of the student (or its moving average) on every split; offers its weights as the best."""
        run, student = self.run_, state.evaluated
        run.rank.share_buffers(student)
        for split in self.splits:
            with autocast(run.config, run.rank):
                metrics = evaluate(
                    student, self.loaders[split], len(run.indexes[split]), run.rank, self.teacher_logits.get(split)
                )
            self.latest |= {f"{split}/{name}": value for name, value in metrics.items() if name != "images"}
        if run.config.train.select != "last":
            state.offer_best(self.latest[f"{run.config.train.select}/top1"])
        self.recorder.log_validation(state.step, self.latest)


class Recorder:
    """Counts while the loop runs, and tells MLflow, the progress board and the run's folder about it."""

    def __init__(self, config: RunConfig, run: Assembly, first_step: int, reporter: Reporter) -> None:
        self.config, self.run, self.reporter, self.first_step = config, run, reporter, first_step
        self.tracker = None
        if run.rank.first:
            reporter.wait_for_driver()
            self.tracker = Tracker(config, (config.run_dir / RUN_ID).read_text(), first_step)
        self.term_names = list(unique_names([term for term in config.method if term.weight > 0]))
        self.totals = torch.zeros(3 + len(self.term_names), dtype=torch.float64, device=run.rank.device)
        self.wait_seconds = self.window_wait = 0.0
        self.window_start, self.window_steps = time.perf_counter(), 0
        self.latest: dict[str, float] = {}
        self.record = None
        if config.tracking.record_batches:
            self.record = (config.run_dir / f"batches-{run.rank.number}.jsonl").open("a")

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the time the loop waits for them."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def count(self, step: int, number: int, batch: Batch, output: StepOutput) -> None:
        """Adds one micro-batch to the sums; no host synchronisation."""
        hits = (output.student_logits.argmax(dim=1) == batch.hard_labels).sum()
        values = [torch.ones_like(output.loss), output.loss.detach(), hits / len(batch), *output.terms.values()]
        self.totals += torch.stack([value.double() for value in values])
        if step == self.first_step == 0 and number == 0 and self.tracker:
            path = pictures.first_batch(batch, self.run.statistics, self.config.run_dir / "first_batch.png")
            self.tracker.artifact(path)
        if self.record:
            row = {"step": step, "micro_batch": number, "view": batch.view, "sample_ids": batch.sample_ids.tolist()}
            self.record.write(json.dumps({**row, "loss": float(output.loss.detach())}) + "\n")
            self.record.flush()

    def after_step(self, state: TrainState) -> None:
        """At the end of every interval: means over ranks into MLflow and onto the board."""
        self.window_steps += 1
        if state.step % self.config.tracking.every_steps and state.step != self.run.total_steps:
            return
        totals = self.run.rank.add_up(self.totals).tolist()
        now = time.perf_counter()
        seconds, wait = now - self.window_start, self.wait_seconds - self.window_wait
        count, loss, hits, *terms = totals
        self.latest = {
            "train/loss": loss / count,
            "train/top1": hits / count,
            **{f"train/{name}": value / count for name, value in zip(self.term_names, terms, strict=True)},
            "train/lr": state.optimizer.param_groups[0]["lr"],
            "train/epoch": state.step / self.run.steps_per_epoch,
            "data/wait_share": wait / seconds,
            "system/images_per_second": self.window_steps * self.config.train.batch_size / seconds,
        }
        if self.tracker:
            self.tracker.log(state.step, self.latest)
        self.reporter.update(phase="training", step=state.step, total_steps=self.run.total_steps, **self.latest)
        self.totals.zero_()
        self.window_start, self.window_wait, self.window_steps = now, self.wait_seconds, 0

    def log_teacher(self, split: str, metrics: dict[str, float]) -> None:
        """The teacher's own accuracy, said before any training."""
        self.teacher = {f"{split}/teacher_{name}": value for name, value in metrics.items() if name != "images"}
        if self.tracker:
            self.tracker.log(self.first_step, self.teacher)
        self.reporter.say(
            f"teacher on {split}, {metrics['images']} images: top-1 {metrics['top1']:.2%}, top-5 {metrics['top5']:.2%}"
        )
        self.window_start = time.perf_counter()

    def log_validation(self, step: int, metrics: dict[str, float]) -> None:
        if self.tracker:
            self.tracker.log(step, metrics)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if "top1" in name or "agree" in name)
        self.reporter.say(f"step {step}: {shown}")
        self.window_start, self.window_wait, self.window_steps = time.perf_counter(), self.wait_seconds, 0

    def costs(self, state: TrainState) -> dict[str, float]:
        """What the run took, and what its student will take."""
        run, seconds = self.run, state.train_seconds
        deployment = deployment_cost(state.evaluated, image_size(self.config))
        costs = {
            "system/train_seconds": seconds,
            "system/device_hours": seconds * run.rank.world_size / 3600,
            "system/mean_images_per_second": state.step * self.config.train.batch_size / max(seconds, 1e-9),
            **{f"model/{name}": value for name, value in deployment.items()},
        }
        return costs | ({"data/cache_bytes": run.stored.manifest.num_bytes} if run.stored else {})

    def finish(self, state: TrainState, validation: Validation) -> dict[str, Any]:
        """Writes the deployed weights, the curves and the result."""
        if self.record:
            self.record.close()
        result = {
            "metrics": {**self.latest, **validation.latest, **getattr(self, "teacher", {})},
            "steps": state.step,
            "train_seconds": state.train_seconds,
            "images_per_second": state.step * self.config.train.batch_size / max(state.train_seconds, 1e-9),
            "best_score": state.best_score if self.config.train.select != "last" else None,
        }
        if self.tracker:
            weights = self.config.run_dir / "student.safetensors"
            safetensors.torch.save_file(state.deployed(self.config.train.select != "last"), weights)
            self.tracker.artifact(weights)
            self.tracker.artifact(pictures.curves(self.tracker.path, self.config.run_dir / "curves.png"))
            self.tracker.log(state.step, self.costs(state))
            self.tracker.close()
        return result
