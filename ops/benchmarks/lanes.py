"""Several runs side by side in one process, each exact to its recipe, stopped and continued at any step.

A batch of 64 images of 32 pixels does not fill a GPU. Here every run has a CUDA stream of its own, its forward and
backward pass is one CUDA graph, and the runs take turns by the step. Data, networks, losses, optimiser, schedule,
evaluation and checkpoint are the product's; only its loop, which lives in a cluster's worker, is replaced by
`Lane.step`, and a test holds the two against each other. Files are the only state, so that a machine that is lent for
minutes is enough. Needs no Ray, DALI or MLflow.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import safetensors.torch
import torch
from pyarrow.fs import LocalFileSystem
from torch import Tensor

from cluster.assembly import assemble, autocast, facts
from cluster.checkpoint import TrainState
from cluster.config import RunConfig
from cluster.passes import evaluate
from cluster.rank import Rank, seed_micro_batch, set_up_torch
from kdcore.batch import Batch
from kdcore.distiller import Distiller, StepOutput
from kdcore.optim import Schedule, build_optimizer
from kdcore.reused import deployed_parameters
from pipelines.files import write_whole

EAGER_STEPS = 3  # before a graph is captured: libraries choose and load their kernels in the first steps


class Lane:
    """One run. Its folder holds the checkpoint it goes on from; once it is finished, result.json and the weights."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        check_plain(config)
        self.config, self.folder, self.rank = config, config.run_dir, Rank(0, 1, device)
        set_up_torch(config.train.deterministic)
        self.run = assemble(config, self.rank)
        distiller = self.run.distiller()
        self.state = TrainState(distiller, build_optimizer(config.optimizer, distiller), ema=None)
        self.schedule = Schedule(config.schedule, self.state.optimizer, config.train.epochs, self.run.steps_per_epoch)
        self.split = "held_out" if "held_out" in self.run.indexes else "val"
        self.validation = self.run.evaluation_loader(self.split)
        self.curve: list[dict[str, float]] = []  # a row for every epoch
        self.losses = torch.zeros(2, dtype=torch.float64, device=device)  # of this epoch: sum, number
        self.restore()
        self.batches = self.run.train_batches(self.state.step)
        self.compute = Compute(distiller, lambda: autocast(config, self.rank))
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(device))
        distiller.train()

    @property
    def done(self) -> bool:
        return self.state.step == self.run.total_steps

    def step(self) -> Tensor:
        """One optimiser step; its loss. At the end of an epoch, and of the run, the student is evaluated."""
        with torch.cuda.stream(self.stream):  # None: no stream, on a CPU
            state = self.state
            self.schedule.set_step(state.step)
            seed_micro_batch(self.config.seed, state.step, 0)
            loss = self.compute(next(self.batches)).loss.detach()
            state.optimizer.step()
            self.losses += torch.stack([loss.double(), torch.ones_like(loss, dtype=torch.float64)])
            state.step += 1
            if self.done or state.step % self.run.steps_per_epoch == 0:
                self.end_epoch()
        return loss

    def end_epoch(self) -> None:
        metrics = self.evaluate()
        total, count = self.losses.tolist()
        epochs = self.state.step / self.run.steps_per_epoch
        self.curve.append(
            {"epoch": epochs, "train_loss": total / count, "top1": metrics["top1"], "nll": metrics["nll"]}
        )
        self.losses.zero_()

    def evaluate(self, teacher_logits: Tensor | None = None) -> dict[str, float]:
        """The student's metrics on every validation image, or on every one held out where the recipe holds some out."""
        with autocast(self.config, self.rank):
            metrics = evaluate(
                self.state.evaluated, self.validation, len(self.run.indexes[self.split]), self.rank, teacher_logits
            )
        self.state.distiller.train()
        return metrics

    def save(self) -> None:
        """Writes the checkpoint under its name whole or not at all, then removes the older one."""
        target = self.folder / f"step-{self.state.step:08d}"
        if not target.exists():
            unfinished = self.folder / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            with torch.cuda.stream(self.stream):
                self.state.snapshot(self.facts()).write(LocalFileSystem(), str(unfinished))
                progress = {"curve": self.curve, "losses": self.losses.tolist()}
            (unfinished / "progress.json").write_text(json.dumps(progress))
            (unfinished / "student.safetensors").unlink()  # the weights once more; state travels, and should be small
            unfinished.rename(target)
        for older in self.folder.glob("step-*"):
            if older != target:
                shutil.rmtree(older)

    def restore(self) -> None:
        """Takes up the newest checkpoint, where there is one. ValueError where it is another recipe's."""
        saved = sorted(self.folder.glob("step-*"))
        if saved:
            self.state.restore(saved[-1], self.facts())
            progress = json.loads((saved[-1] / "progress.json").read_text())
            self.curve = progress["curve"]
            self.losses.copy_(torch.tensor(progress["losses"], dtype=torch.float64))

    def facts(self) -> dict[str, Any]:
        """What must be the same to go on."""
        kept = {"seed", "views", "student", "method", "optimizer", "schedule", "train"}
        recipe = self.config.model_dump_json(include=kept)
        return facts(self.run) | {"recipe": hashlib.sha256(recipe.encode()).hexdigest()[:16]}

    def finish(self, about: dict[str, Any]) -> None:
        """Writes the student's last weights, then the result; removes the checkpoint."""
        with torch.cuda.stream(self.stream):
            teacher, logits = self.run.teacher_on(self.split, self.validation) or (None, None)
            final, weights = self.evaluate(logits), self.state.deployed(select_best=False)
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
        write_whole(self.folder / "student.safetensors", safetensors.torch.save(weights))
        write_whole(self.folder / "result.json", json.dumps(result, indent=1).encode())
        for checkpoint in self.folder.glob("step-*"):
            shutil.rmtree(checkpoint)


class Compute:
    """The forward and backward pass of a distiller: `compute(batch)` gives its output and leaves the gradients.

    On a GPU, after a few steps, as a CUDA graph that reads the batch from tensors of its own. A graph replays what was
    captured, so it is taken only once nothing that the host decides changes any more: the terms' warm-ups are over, and
    no term looks at sample numbers or epochs.
    """

    def __init__(self, distiller: Distiller, context: Callable[[], Any]) -> None:
        self.distiller, self.context = distiller, context
        self.warmup_epochs = max(term.warmup_epochs for term in distiller.terms.values())
        self.steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Batch | None = None
        self.output: StepOutput | None = None

    def __call__(self, batch: Batch) -> StepOutput:
        self.steps += 1
        if self.graph is None and self.graphable(batch):
            self.capture(batch)
        if self.graph is None:
            return self.eager(batch)
        assert self.inputs is not None, "made by the capture"
        assert self.output is not None, "made by the capture"
        for name in ("images", "labels"):
            getattr(self.inputs, name).copy_(getattr(batch, name))
        self.graph.replay()
        return self.output

    def eager(self, batch: Batch) -> StepOutput:
        # Gradients that a backward pass finds are added to; where it finds none, it brings its own.
        self.distiller.zero_grad(set_to_none=True)
        with self.context():
            output: StepOutput = self.distiller(batch)
        output.loss.backward()
        return output

    def graphable(self, batch: Batch) -> bool:
        constant = batch.epoch >= self.warmup_epochs and not self.distiller.needs.sample_ids
        return batch.images.is_cuda and self.steps > EAGER_STEPS and constant

    def capture(self, batch: Batch) -> None:
        """Records the pass on the current stream; nothing is computed yet. Its gradients keep their memory, and every
        replay writes them anew."""
        self.inputs = replace(batch, images=batch.images.clone(), labels=batch.labels.clone())
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            self.output = self.eager(self.inputs)


def check_plain(config: RunConfig) -> None:
    """ValueError for what the product's loop does and `Lane` does not."""
    train, cached = config.train, config.teacher is not None and config.teacher.cached
    absent = {
        "train.micro_batch": train.micro_batch is not None and train.micro_batch != train.batch_size,
        "train.clip_norm": train.clip_norm is not None,
        "train.ema_decay": train.ema_decay is not None,
        "train.select": train.select != "last",
        "teacher.source": cached,
    }
    if unknown := [name for name, used in absent.items() if used]:
        raise ValueError(f"{config.name}: {unknown[0]} is not for runs side by side; leave it out, or use `train`")


def take_turns(
    waiting: Iterator[Lane],
    side_by_side: int,
    seconds: float,
    finished: Callable[[Lane], None],
    save_every: float = 120.0,
) -> None:
    """Steps up to `side_by_side` lanes by turns until all are done or the time is over, then saves them. A lane that is
    done makes place for the next one that waits, which is built only then."""
    started = saved = time.monotonic()
    lanes: list[Lane] = []
    while time.monotonic() - started < seconds:
        while len(lanes) < side_by_side and (lane := next(waiting, None)):
            lanes.append(lane)
        if not lanes:
            return
        before = time.monotonic()
        for lane in lanes:
            if not lane.done:
                lane.step()
        for lane in lanes:
            lane.state.train_seconds += (time.monotonic() - before) / len(lanes)
        for lane in [lane for lane in lanes if lane.done]:
            lane.save()
            finished(lane)
            lanes.remove(lane)
        if time.monotonic() - saved > save_every:
            saved = time.monotonic()
            for lane in lanes:
                lane.save()
    for lane in lanes:
        lane.save()
