"""One of several runs in one process, exact to its recipe, which can be stopped and continued at any step.

Files are its only state, so a machine that is lent for minutes is enough. Needs no Ray, DALI or MLflow.

Not here: which runs share batches, and whose turn it is (`ops.reproduce.lanes`).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from typing import Any

import torch
from pyarrow.fs import LocalFileSystem
from torch import Tensor

from cluster.assembly import assemble
from cluster.images import image_facts
from cluster.passes import evaluate
from cluster.precision import autocast
from cluster.rank import Rank, set_up_torch
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import check_may_be_trained
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import cut_journal
from cluster.training.checkpoint import checkpoint_facts, name_of
from cluster.training.checkpoint_files import STUDENT
from cluster.training.finite import NotFinite
from cluster.training.graphs import GraphedPasses, new_stream
from cluster.training.loop import TrainingLoop, ends_epoch, new_state
from kdcore.batch import Batch
from kdcore.checkpoints import to_safetensors
from kdcore.distiller import StepOutput
from kdcore.errors import Refused
from kdcore.reused import deployed_parameters
from pipelines.files import finite_or_null, make_folder, read_json, sync, write_json, write_text, write_whole

FAILED = "failed.json"
VALIDATION_BATCH = 1000  # the images are small: large batches take fewer calls


class Lane:
    """One run. Its folder holds the checkpoint it resumes from; once it is finished, result.json and the weights."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.rank, self.folder = config, Rank(0, 1, device), RunFolder.of(config)
        check_may_be_trained(config)
        self.folder.refuse_another(config)
        set_up_torch(config.train.deterministic)
        self.run = assemble(config, self.rank)
        self.folder.claim(config, image_facts(self.run.indexes), has_checkpoint=bool(self.checkpoints()))
        self.split = "held_out" if "held_out" in self.run.indexes else "val"
        if config.train.select not in ("last", self.split):
            raise Refused(
                f"{config.name}: train.select={config.train.select}, but runs side by side are judged by {self.split}; "
                f"take {self.split} or last, or use `train`"
            )
        if config.train.last_batch == "keep":
            raise Refused(
                f"{config.name}: train.last_batch=keep, but runs side by side take whole batches, all of one size; "
                "take drop, or use `train`"
            )
        self.state = new_state(self.run)
        self.compute = GraphedPasses(self.run, self.state.distiller)
        self.loop = TrainingLoop(self.run, self.state, self.compute)
        size = config.data.evaluation_batch or VALIDATION_BATCH
        self.validation = self.run.loader(self.split, self.run.evaluation_plan(self.split), size)
        self.curve: list[dict[str, float]] = []  # a row for every evaluation
        self.total_loss = torch.zeros((), dtype=torch.float64, device=device)  # of the steps since the last evaluation
        self.restore()
        self.stream = new_stream(device)

    @property
    def done(self) -> bool:
        """Whether the run has taken its last step."""
        return self.loop.is_done

    @property
    def views(self) -> tuple[Any, ...]:
        """Equal for runs whose next batches are the same, to the bit, and whose networks compute in the same way."""
        train, index, step = self.config.train, self.run.indexes["train"], self.state.step
        sizes = train.batch_size, self.run.micro_batch, self.run.steps_per_epoch
        views = self.run.plan.fingerprint, self.run.plan.policy.num_views  # how they look, and which comes when
        batches = index.fingerprint, *views, self.run.statistics, *sizes, step
        seen = self.run.for_teacher.plan.fingerprint
        return *batches, seen, str(self.rank.device), train.precision, self.run.channels_last

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Take one optimiser step on its micro-batches, with the teacher's answers; return its mean loss.

        At the end of an epoch, and of the run, the student is evaluated.
        """
        losses: list[Tensor] = []

        def observe(number: int, batch: Batch, output: StepOutput) -> None:
            losses.append(output.loss.detach())

        with torch.cuda.stream(self.stream):  # None: no stream, on a CPU
            self.loop.step(iter(batches), observe)
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
            self.total_loss += loss
            if ends_epoch(self.state.step, self.run, self.config.train.evaluate_every_epochs):
                self.end_epoch()
        return loss

    def end_epoch(self) -> None:
        """Evaluate the student and add a row to the curve."""
        self.loop.watch.verify_weights()
        metrics = self.evaluate()
        step, interval = self.state.step, self.run.steps_per_epoch * self.config.train.evaluate_every_epochs
        loss, epoch = float(self.total_loss) / (step % interval or interval), step / self.run.steps_per_epoch
        self.curve.append({"epoch": epoch, "train_loss": loss, "top1": metrics["top1"], "nll": metrics["nll"]})
        self.log(
            {"train/loss": loss, "train/epoch": epoch} | {f"{self.split}/{name}": metrics[name] for name in metrics}
        )
        self.total_loss.zero_()
        if self.config.train.select != "last":
            self.state.offer_best(metrics["top1"], metrics)

    def log(self, metrics: dict[str, float]) -> None:
        """Write metrics of the last step into the run's journal, from which they can be delivered to its trackers."""
        row = finite_or_null({"step": self.state.step, "time": time.time(), **metrics})
        with self.folder.metrics.open("a") as journal:
            journal.write(json.dumps(row, allow_nan=False) + "\n")

    def evaluate(self, teacher_logits: Tensor | None = None) -> dict[str, float]:
        """Return the student's metrics on every validation image, or on every held-out image."""
        with autocast(self.config, self.rank):
            return evaluate(
                self.state.evaluated,
                self.validation,
                len(self.run.indexes[self.split]),
                self.rank,
                teacher_logits,
            )

    def save(self) -> None:
        """Write the checkpoint under its name whole or not at all, then remove the older one."""
        self.loop.watch.verify_weights()
        target = self.folder.path / name_of(self.state.step)
        if not target.exists():
            unfinished = self.folder.path / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            make_folder(unfinished, "output_dir")
            with torch.cuda.stream(self.stream):
                self.state.snapshot(checkpoint_facts(self.run)).write(LocalFileSystem(), str(unfinished))
                progress = {"curve": self.curve, "total_loss": float(self.total_loss)}
            write_text(unfinished / "progress.json", json.dumps(progress))
            (unfinished / STUDENT).unlink()  # the same weights again; the state should be small
            unfinished.rename(target)
            sync(self.folder.path)
        for older in self.checkpoints():
            if older != target:
                shutil.rmtree(older)

    def checkpoints(self) -> list[Any]:
        """Return the folders of checkpoints, oldest first."""
        return sorted(self.folder.path.glob("step-*"))

    def restore(self) -> None:
        """Restore the newest checkpoint, if there is one; what was logged after it will be logged again."""
        facts = checkpoint_facts(self.run)  # looked at now, though there be nothing to restore: of the weights as read
        if saved := self.checkpoints():
            self.state.restore(saved[-1], facts)
            progress = read_json(saved[-1] / "progress.json", "delete that folder: the run then begins again")
            self.curve = progress["curve"]
            self.total_loss.fill_(progress["total_loss"])
        if self.folder.metrics.exists():
            cut_journal(self.folder.metrics, self.state.step)

    def fail(self, error: NotFinite) -> None:
        """Record in the folder why the run will not be continued."""
        write_json(self.folder.path / FAILED, {"name": self.config.name, "step": self.state.step, "error": str(error)})

    def finish(self, about: dict[str, Any]) -> None:
        """Write the student's weights, then the result; remove the checkpoint."""
        with torch.cuda.stream(self.stream):
            teacher, logits = self.run.teacher_on(self.split, self.validation) or (None, None)
            final = self.evaluate(logits)
            if teacher is not None:
                self.log({f"{self.split}/teacher_{name}": value for name, value in teacher.items()})
            weights = self.state.deployed()
        result = {
            **about,
            "name": self.config.name,
            "seed": self.config.seed,
            "split": self.split,
            "deployed_parameters": deployed_parameters(self.state.evaluated),
            "steps": self.state.step,
            "train_seconds": self.state.train_seconds,
            "curve": self.curve,
            "final": final,
            "teacher": teacher,
            "recipe": self.config.model_dump(mode="json", include={"student", "method", "optimizer", "train"}),
        }
        write_whole(self.folder.weights, to_safetensors(weights))
        self.folder.write_result(result)
        for checkpoint in self.checkpoints():
            shutil.rmtree(checkpoint)
