"""One rank of a training run: the loop's steps with recording, validation and checkpoints around them.

Not here: what a step is (`cluster.training.loop`), what is recorded (`cluster.training.recorder`), and how ranks are
started (`cluster.training.launch`).
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import nn

from cluster.assembly import Assembly, assemble
from cluster.batches import Batches
from cluster.device_memory import refuse_full_gpu
from cluster.environment import require_compiler
from cluster.nodes.resources import rank_alone
from cluster.rank import Rank, set_up_torch
from cluster.recipe.config import RunConfig
from cluster.recipe.plugins import refuse_other_code
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.training.advice import unseen_images
from cluster.training.checkpoint import TrainState, checkpoint_facts
from cluster.training.crash import record_crashes
from cluster.training.failures import with_place
from cluster.training.graphs import GraphedPasses, new_stream
from cluster.training.loop import Compute, ForwardBackward, TrainingLoop, ends_epoch, new_state
from cluster.training.mounts import refuse_missing_mounts
from cluster.training.notices import Notices, stop_event
from cluster.training.progress import Reporter
from cluster.training.recorder import Recorder
from cluster.training.saving import latest_checkpoint, saver_of
from cluster.training.validation import Validation
from cluster.training.worker_task import WorkerTask
from cluster.weights import refuse_other_weights

# Gradients that are views of the buckets are not held twice; `Rank.share_buffers` stands in for torch's broadcast.
DATA_PARALLEL: dict[str, Any] = {
    "broadcast_buffers": False,
    "find_unused_parameters": True,
    "gradient_as_bucket_view": True,
}


@refuse_full_gpu("take a smaller train.micro_batch, or more workers")
def train_worker(task: WorkerTask) -> dict[str, Any]:
    """Train to the last step, from the latest checkpoint if there is one; return the run's final metrics (rank 0's)."""
    config = parse(task.config)
    rank = rank_of_this_process(config)
    refuse_other_code(config, task.plugins)
    if config.train.compile:  # the driver may be on a machine that has what this one lacks
        require_compiler()
    set_up_torch(config.train.deterministic)
    reporter = Reporter(task.board, rank.number, config.name, task.watch, task.open_run)
    reporter.begin()
    reporter.update(phase="building networks")
    run = assemble(config, rank, reuse_index=True)
    refuse_other_weights(run.starting_facts["weights"], task.weights)
    if unseen := unseen_images(Batches.of(config, run.batches.num_images)):
        reporter.say(unseen)
    state = new_state(run)
    with latest_checkpoint(config, task.newest_step) as checkpoint:
        if checkpoint is not None:
            directory, place = checkpoint
            state.restore(directory, checkpoint_facts(run), place)
            reporter.say(f"continuing at step {state.step} of {run.total_steps}, workers: {rank.world_size}")
    loop = TrainingLoop(run, state, passes(run, state))
    # A graph cannot be captured on the default stream; what was started on that stream comes first.
    with torch.cuda.stream(new_stream(rank.device) if config.train.cuda_graph else None):
        return train(loop, reporter, task)


def train(loop: TrainingLoop, reporter: Reporter, task: WorkerTask) -> dict[str, Any]:
    """Take the steps that are left, with validations and checkpoints between them; return the run's final metrics."""
    run, state, config = loop.run, loop.state, loop.config
    with Recorder(config, run, state.step, reporter, task.fence) as recorder:
        recorder.interval.restore(state.interval)
        validation, saver = Validation(run, recorder), saver_of(run)
        stop = task.stop or stop_event(task.board, run.rank)
        notices = Notices(run.rank, stop, task.watches_nodes)
        batches, first = recorder.timed(run.train_batches(state.step)), state.step + 1
        with with_place(lambda: place_of(loop), reporter.fail):
            while not loop.is_done:
                with recorder.timing(state):
                    record = loop.step(batches, partial(recorder.count, state.step))
                if state.step == first:  # an optimiser has its state by then, and there is no work to lose yet
                    state.refuse_unreadable()
                is_validated = ends_epoch(state.step, run, config.train.evaluate_every_epochs)
                asked = notices.after_step()
                is_stopping = asked.ends and not loop.is_done
                is_saved = checkpoint_is_due(state.step, run) or is_stopping or asked.notice is not None
                if is_validated or is_saved:
                    loop.watch.verify_weights()
                elif recorder.interval_ends(state.step):
                    loop.watch.verify()
                recorder.after_step(state, record)
                if is_validated:
                    validation.evaluate(state)
                if is_saved or loop.is_done:
                    recorder.check_fence()
                    state.interval = recorder.interval.so_far()
                    with reporter.timing("checkpoint/seconds"):
                        saver.save(state)
                if asked.notice is not None:
                    saver.finish()
                    reporter.say(f"{asked.notice}: a checkpoint of step {state.step} is written")
                if is_stopping:
                    saver.finish()
                    notices.close()
                    return recorder.stop(state)
            notices.close()
            if not validation.latest:  # continued after its last step
                saver.finish()
                validation.evaluate(state)
            return recorder.finish(state, validation.latest)


def place_of(loop: TrainingLoop) -> str:
    """Return which rank this is, and the step that it is at, or its last one."""
    step, total = loop.state.step, loop.run.total_steps
    where = f"after step {step} of {total}" if loop.is_done else f"step {step + 1} of {total}"
    return f"rank {loop.run.rank.number}, {where}"


def rank_of_this_process(config: RunConfig) -> Rank:
    """Return this process's rank in a run; of a worker, once its node is checked and its crashes are recorded."""
    if config.scaling.num_workers == 0:
        return rank_alone(config)
    rank = Rank.of_this_worker()
    refuse_missing_mounts(config)
    record_crashes(RunFolder.of(config).crash(rank.number))
    return rank


def passes(run: Assembly, state: TrainState) -> Compute:
    """Return the forward and backward passes as the recipe wants them: averaged over ranks, compiled, or a graph."""
    if run.config.train.cuda_graph:
        return GraphedPasses(run, state.distiller)
    model: Any = data_parallel(state.distiller) if run.rank.world_size > 1 else state.distiller
    no_sync = model.no_sync if run.rank.world_size > 1 else contextlib.nullcontext
    return ForwardBackward(run, torch.compile(model) if run.config.train.compile else model, no_sync)


def data_parallel(distiller: nn.Module) -> Any:
    """Wrap the distiller so that its gradients are averaged over the ranks.

    By default, DDP regroups its buckets after the first step that a process takes; with 4 or more ranks, the order of a
    sum depends on where in a bucket a gradient lies, so a continued run would add up in another order than an
    uninterrupted one. Searching for unused parameters keeps the first grouping, and lets a method leave parts of the
    student without a gradient, as methods on features alone do with its classifier.
    """
    import ray.train.torch

    return ray.train.torch.prepare_model(distiller, move_to_device=False, parallel_strategy_kwargs=DATA_PARALLEL)


def checkpoint_is_due(step: int, run: Assembly) -> bool:
    """Return whether the recipe wants a checkpoint after `step` optimiser steps."""
    every = run.config.checkpoint.every_steps or run.steps_per_epoch
    return step == run.total_steps or step % every == 0
