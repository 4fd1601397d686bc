"""What a run reports while it trains: metrics, pictures, the deployed weights and the result.

Not here: how the lines get into MLflow (`cluster.tracking`), what is validated (`cluster.training.validation`), and the
loop itself (`cluster.training.loop`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cluster.assembly import Assembly
from cluster.probing import classifier_knows_classes
from cluster.recipe.config import RunConfig
from cluster.score_text import score_text
from cluster.scores import in_words, says_more
from cluster.teachers.running import SINGLE
from cluster.tracking import pictures
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import cut_journal, read_journal
from cluster.tracking.run import RunLog, is_opened_first
from cluster.training.checkpoint import TrainState
from cluster.training.costs import run_costs
from cluster.training.interval import Interval
from cluster.training.loop import StepRecord
from cluster.training.progress import Reporter
from cluster.training.selection import SCORES, patience_is_over
from cluster.training.teacher_causes import likelier_cause
from cluster.training.teacher_check import Answers, complaint, write_natural_indices
from kdcore.batch import Batch
from kdcore.checkpoints import to_safetensors
from kdcore.distiller import StepOutput
from kdcore.reporting import optional
from kdcore.terms.base import unique_names
from pipelines.files import write_whole
from pipelines.leases import Fence

LOGGED_METRICS = (*SCORES, "class_mean_top1")  # what the line about a validation says


class Recorder:
    """Counts while the loop runs, and tells MLflow, the progress board and the run's folder about it."""

    def __init__(
        self, config: RunConfig, run: Assembly, first_step: int, reporter: Reporter, fence: Fence | None = None
    ) -> None:
        self.config, self.run, self.reporter, self.first_step = config, run, reporter, first_step
        self.folder = RunFolder.of(config)
        self.log: RunLog | None = None
        if run.rank.first:
            if is_opened_first(config):
                reporter.wait_until_open()
            self.log = RunLog(config, first_step, fence, reporter.wait_until_open)
            self.list_broken_images()
        self.term_names = list(unique_names(config.method))
        train = run.indexes["train"]
        self.has_top1 = train.has_one_label and classifier_knows_classes(config, len(run.classes))
        self.interval = Interval(run.rank, 2 + len(self.term_names), skips=config.train.on_nonfinite == "skip")
        self.wait_seconds = self.window_wait = 0.0
        self.window_start, self.window_steps = time.perf_counter(), 0
        self.latest: dict[str, float] = {}
        self.teacher: dict[str, float] = {}
        self.has_told_causes = False  # of a teacher's bad answers
        self.record = None
        if config.tracking.record_batches:
            record = self.folder.batches(run.rank.number)
            cut_journal(record, first_step - 1)  # batches of steps that come again
            self.record = record.open("a")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *args: object) -> None:
        """Abandon the log of a run that an exception or Ctrl-C ends: the process that started it delivers the rest.

        In any other run, `stop` or `finish` has closed it.
        """
        if kind is None:
            return
        if self.record:
            self.record.close()
        if self.log:
            self.log.abandon()

    def check_fence(self) -> None:
        """Raise RunFailed on rank 0, which writes for all, where the run belongs to another driver by now."""
        if self.log:
            self.log.check_fence()

    def list_broken_images(self) -> None:
        """Record which images were left out because they are broken, and which have been replaced since."""
        sources = self.run.indexes.values()
        lines = dict.fromkeys(line for one in sources for line in (*one.broken, *one.replaced.values()))
        if lines and self.log:
            write_whole(self.folder.broken_images, "".join(f"{line}\n" for line in lines).encode())
            self.log.add_file(self.folder.broken_images)

    def num_replaced(self) -> int:
        """Return how many images all ranks show as black pictures, because they broke after they were indexed."""
        own = sum(len(one.replaced) for one in self.run.indexes.values())
        return int(self.run.rank.add_up(torch.tensor([own], device=self.run.rank.device)).item())

    @contextmanager
    def timing(self, state: TrainState) -> Iterator[None]:
        """Add the seconds of a step to the state's."""
        started = time.perf_counter()
        yield
        state.train_seconds += time.perf_counter() - started

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and count the time that the loop waits for them."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def count(self, step: int, number: int, batch: Batch, output: StepOutput) -> None:
        """Add one micro-batch to the sums, without waiting for the device."""
        hits = (output.student_logits.argmax(dim=1) == batch.hard_labels).sum()
        weight = len(batch) / self.config.train.batch_size  # whatever the number of workers, which a resume may change
        self.interval.add([output.loss.detach(), hits / len(batch), *output.terms.values()], weight)
        if step == self.first_step == 0 and number == 0 and self.log:
            with optional("the picture of the first batch is", self.reporter.say):
                shown = self.run.classes if self.run.indexes["train"].labelled else ()
                several = self.config.data.multi_label
                where, answers = self.folder.first_batch, output.teacher_logits
                pictures.first_batch(batch, self.run.statistics, where, shown, answers, several)
            if self.folder.first_batch.exists():
                self.log.add_file(self.folder.first_batch)
        if self.record:
            row = {
                "step": step,
                "micro_batch": number,
                "views": batch.views.tolist(),
                "sample_ids": batch.sample_ids.tolist(),
            }
            self.record.write(json.dumps({**row, "loss": float(output.loss.detach())}) + "\n")
            self.record.flush()

    def stop(self, state: TrainState) -> dict[str, Any]:
        """Close the log of a run that ends early; return where it stands."""
        if self.record:
            self.record.close()
        if self.log:
            self.log.close()
        return {"stopped": state.step}

    def interval_ends(self, step: int) -> bool:
        """Return whether the metrics are due after `step` optimiser steps."""
        return step % self.config.tracking.every_steps == 0 or step == self.run.total_steps

    def after_step(self, state: TrainState, record: StepRecord) -> None:
        """At the end of every interval, log the means over steps and ranks and show them on the board."""
        self.window_steps += 1
        self.interval.end_step(record.gradient_norm)
        if not self.interval_ends(state.step):
            if self.log:
                self.log.begin()
            return
        loss, top1, *terms, norm = self.interval.end()
        now = time.perf_counter()
        seconds, wait = now - self.window_start, self.wait_seconds - self.window_wait
        self.latest = {
            "train/loss": loss,
            **({"train/top1": top1} if self.has_top1 else {}),
            **{f"train/{name}": value for name, value in zip(self.term_names, terms, strict=True)},
            "train/gradient_norm": norm,
            **({"train/skipped_steps": state.skipped_steps} if self.config.train.on_nonfinite == "skip" else {}),
            **({"data/replaced_images": self.num_replaced()} if self.config.data.on_broken == "skip" else {}),
            "train/lr": record.rate,
            "train/epoch": state.step / self.run.steps_per_epoch,
            "data/wait_share": wait / seconds,
            "speed/images_per_second": self.images_until(state.step, self.window_steps) / seconds,
        }
        if self.log:
            self.log.log(state.step, self.latest)
        self.reporter.update(phase="training", step=state.step, total_steps=self.run.total_steps, **self.latest)
        self.window_start, self.window_wait, self.window_steps = now, self.wait_seconds, 0

    def latest_before(self) -> dict[str, float]:
        """Return the last metrics of training that an earlier process has logged, for a run continued after its end."""
        rows = [row for row in read_journal(self.folder.metrics) if "train/loss" in row] if self.log else []
        return {name: value for name, value in rows[-1].items() if name not in ("step", "time")} if rows else {}

    def images_until(self, step: int, num_steps: int) -> int:
        """Return the number of images seen in the last `num_steps` steps before `step`."""
        return self.run.batches.num_until(step) - self.run.batches.num_until(step - num_steps)

    def log_teacher(self, split: str, metrics: dict[str, float]) -> None:
        """Log the teacher's own accuracy, before any training."""
        found = {f"{split}/teacher_{name}": value for name, value in metrics.items() if name != "images"}
        self.teacher |= found
        if self.log:
            self.log.log(self.first_step, found)
        self.reporter.say(f"teacher on {split}, {metrics['images']} images: {in_words(metrics)}")
        self.window_start = time.perf_counter()

    def log_features(self, split: str, metrics: dict[str, float]) -> None:
        """Log what the features of a teacher without a head know, before any training."""
        self.teacher |= {f"{split}/teacher_{name}": value for name, value in metrics.items()}
        if self.log and metrics:
            self.log.log(self.first_step, {f"{split}/teacher_{name}": value for name, value in metrics.items()})
        shown = ", ".join(f"{name} {value:.2%}" for name, value in metrics.items())
        if shown:
            self.reporter.say(f"teacher on {split}, by its features: {shown}")

    def warn_of_teacher(self, split: str, answers: Answers) -> None:
        """Report what is wrong with the teacher's answers, if anything is, and once per run the likely causes."""
        if (found := complaint(answers, self.config, self.run.classes, split)) is None:
            return
        if not found.remedy:
            self.reporter.say(found.text)
            return
        text = f"WARNING: {found.text}"
        if not self.has_told_causes:
            if self.log:
                write_natural_indices(self.config, self.run.classes)
            text += f"; {found.remedy}"
            is_at_hand = SINGLE in self.run.teachers.online and not self.config.has_random_teacher
            if is_at_hand and not answers.in_natural_order:
                text += f"; {likelier_cause(self.run, split)}"
            self.has_told_causes = True
        self.reporter.say(text)

    def log_validation(self, step: int, metrics: dict[str, float]) -> None:
        if self.log:
            self.log.log(step, metrics)
        told = [name for name in metrics if name.rpartition("/")[2] in LOGGED_METRICS and says_more(name, metrics)]
        shown = ", ".join(f"{name} {score_text(name, metrics[name])}" for name in told)
        self.reporter.say(f"step {step}: {shown or 'nothing measures the student'}")
        self.window_start, self.window_wait, self.window_steps = time.perf_counter(), self.wait_seconds, 0

    def say_of_patience(self, state: TrainState) -> None:
        """Say that the run ends before its last epoch, on which images that was decided, and what is deployed."""
        train, total, best = self.config.train, self.run.total_steps, state.best_step
        if state.step == total or not patience_is_over(self.config.train, self.run.steps_per_epoch, state.step, best):
            return
        images = {"held_out": "held-out training images", "val": "the validation set, whose accuracy is optimistic"}
        self.reporter.say(
            f"step {state.step} of {total}: {train.patience_epochs} epochs without a better score on "
            f"{images[train.select]}; the run ends, and the weights of step {best} ({state.best_score:.2%}) "
            "are deployed"
        )

    def finish(self, state: TrainState, validated: dict[str, float]) -> dict[str, Any]:
        """Write the deployed weights; return the result, whose metrics are of these weights.

        validated: what the last validation found.
        """
        if self.record:
            self.record.close()
        self.say_of_patience(state)
        deployed = state.best_metrics if self.config.train.select != "last" else {}
        result = {
            "metrics": {**(self.latest or self.latest_before()), **validated, **self.teacher, **deployed},
            "steps": state.step,
            "train_seconds": state.train_seconds,
            "images_per_second": self.run.batches.num_until(state.step) / max(state.train_seconds, 1e-9),
            "best_score": state.best_score if self.config.train.select != "last" else None,
            "best_step": state.best_step if self.config.train.select != "last" else None,
        }
        if self.log:
            self.check_fence()
            weights = self.folder.weights
            write_whole(weights, to_safetensors(state.deployed()))
            self.log.add_file(weights)
            self.list_broken_images()
            self.log.log(
                state.step,
                run_costs(self.run, state, self.reporter.say) | {f"deployed/{name}": v for name, v in deployed.items()},
            )
            self.log.close()
        return result
