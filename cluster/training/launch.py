"""Starting a run: on this machine, on a Ray cluster, or inside a submitted job; the same call.

A run's name is its identity: started again, it goes on from its last checkpoint or, if finished, gives its result.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from cluster.error_text import ending_of
from cluster.interruption import Terminated, in_main_thread, in_thread, in_words
from cluster.nodes.resources import ray_session, use_worker_threads, worker_resources
from cluster.nodes.versions import node_versions
from cluster.recipe.config import RunConfig
from cluster.recipe.plugins import fingerprints_of
from cluster.tracking.delivery import deliver_rest
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import nan_for_null
from cluster.tracking.mlflow_store import refuse_read_only
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.run import close_run, is_opened_first, open_run
from cluster.training.check import check_run, check_this_process
from cluster.training.opening import NotOpened, Opening
from cluster.training.progress import Watcher
from cluster.training.worker_task import WorkerTask
from kdcore.errors import Refused, RunFailed, shortened
from kdcore.importing import importing
from pipelines.files import make_folder, write_text
from pipelines.leases import Fence, leased

if TYPE_CHECKING:
    from cluster.training.fitting import Job

logger = logging.getLogger("stillhouse")

STOP_SECONDS = 20.0  # for a last checkpoint; Kubernetes kills 30 s after its SIGTERM, AWS 120 s after its notice


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    metrics: the last of each, except validations, which are of the deployed weights; wall_seconds: from the call to
    the result, start-up included; best_score, best_step: of the deployed weights, where the recipe chooses them.
    """

    name: str
    run_dir: str
    mlflow_run_id: str
    metrics: dict[str, float]
    steps: int
    train_seconds: float
    images_per_second: float
    wall_seconds: float
    best_score: float | None = None
    best_step: int | None = None

    @classmethod
    def of(cls, config: RunConfig, final: Mapping[str, Any], wall_seconds: float) -> RunResult:
        """Return the result of a run that has ended. final: what rank 0 returned."""
        run_id = RunFolder.of(config).read_run_id()
        assert run_id is not None, "it was opened before it was trained"
        return cls(config.name, str(config.run_dir), run_id, wall_seconds=wall_seconds, **final)

    @classmethod
    def read(cls, folder: RunFolder) -> RunResult:
        """Return the result in a finished run's folder. Refused where the file is not whole, or not of such a run."""
        found = folder.read_result()
        known = {field.name: field.default is MISSING for field in fields(cls)}
        if missing := [name for name, is_needed in known.items() if is_needed and name not in found]:
            raise Refused(
                f"{folder.result} has no {missing[0]!r}, so it is not the result of a run of `train`; delete that file "
                "and run the same command again: the run goes on from its last checkpoint"
            )
        own = {name: value for name, value in found.items() if name in known}
        if isinstance(own["metrics"], dict):
            own["metrics"] = nan_for_null(own["metrics"])
        try:
            result = TypeAdapter(cls).validate_python(own)
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise Refused(
                f"{folder.result}: {place} is {shortened(repr(error.errors()[0]['input']))}, which no run has written; "
                "delete that file and run the same command again: the run goes on from its last checkpoint"
            ) from error
        return replace(result, run_dir=str(folder.path))  # which may have moved since


def launch(
    config: RunConfig,
    watch: Watcher | None = None,
    command: str = "",
    tags: Mapping[str, str] | None = None,
    images: Mapping[str, Any] | None = None,
) -> RunResult:
    """Run (or continue) a training run to its end. Refused before the first step is taken, RunFailed afterwards.

    tags: of the run in MLflow, besides its own. images: what `check_run` has returned, where it has just been called.
    """
    started = time.perf_counter()
    folder = RunFolder.of(config)
    if (finished := continued(config)) is None:
        check_this_process(config)
    elif not folder.outbox.exists():
        return finished
    make_folder(Path(config.output_dir), "output_dir")
    with leased(folder.path, "train") as fence:
        if (finished := continued(config)) is not None:  # finished by the process that had the folder until now
            deliver_rest(config)
            return finished
        result = run_to_end(config, folder, fence, watch, command, tags, images or check_run(config), started)
        close_run(config, "FINISHED", asdict(result))
    return result


def run_to_end(
    config: RunConfig,
    folder: RunFolder,
    fence: Fence,
    watch: Watcher | None,
    command: str,
    tags: Mapping[str, str] | None,
    images: Mapping[str, Any],
    started: float,
) -> RunResult:
    """Open a checked run in its trackers, and let its workers train it to its last step; return its result.

    images: what tells its images from others, as `check_run` returns it.
    """
    refuse_read_only(tracking_uri(config))  # the output folder's own store is opened only after the first step
    opening: Opening | None = None
    is_new = folder.state() == "new"
    with ThreadPoolExecutor(1) as thread:
        try:
            with ray_session(config):
                folder.error.unlink(missing_ok=True)
                folder.claim(config, images, has_checkpoint(config))
                opening = Opening(partial(open_run, config, command, tags), thread, is_opened_first(config))
                if opening.is_first:
                    opening.begin()  # while the workers start: both take seconds
                final = run_workers(config, opening, watch, fence)
        except BaseException as error:  # here the workers are gone, which would otherwise write on meanwhile
            if opening is None or not (opening.has_begun or isinstance(error, RunFailed)):
                raise  # the trackers do not know of it
            refusal = opening.begin().exception()
            if refusal is not None and isinstance(error, NotOpened):
                if opening.is_first:
                    if is_new:
                        folder.give_back()
                    raise refusal from None
                write_text(folder.error, ending_of(refusal))
                raise (RunFailed(str(refusal)) if isinstance(refusal, Refused) else refusal) from None
            has_failed = isinstance(error, Exception)  # else it was asked to end
            if has_failed:
                write_text(folder.error, ending_of(error))
            if refusal is None:
                close_run(config, "FAILED" if has_failed else "KILLED")
            else:
                logger.warning("%s", refusal)  # besides what ended the run
            raise
    return RunResult.of(config, final, time.perf_counter() - started)


def run_workers(config: RunConfig, opening: Opening, watch: Watcher | None, fence: Fence) -> dict[str, Any]:
    """Run the workers where the recipe wants them; return what rank 0 returned.

    opening: the run in its trackers, which rank 0 waits for before it delivers, and before it trains where that may be
    refused.
    """
    if config.scaling.num_workers == 0:
        return run_here(config, opening, watch, fence)
    with importing("cluster.training.fitting"):  # only here: a run in one process has no Ray
        import ray

        from cluster.training.board import open_board, polling_progress
        from cluster.training.fitting import fit

    job, board = job_of(config, fence), open_board()

    def open_it(asked: Future[None]) -> None:
        if asked.exception() is None:  # else the board is gone, and the run with it
            opening.begin().add_done_callback(lambda done: board.open.remote(done.exception() is None))

    board.wanted.remote().future().add_done_callback(open_it)
    try:
        with polling_progress(board, watch):
            return fit_or_stop(partial(fit, job, board), board.stop.remote, watch)
    finally:
        with suppress(ray.exceptions.RayError, RuntimeError):  # Ray itself may be what has failed
            ray.kill(board)


def run_here(config: RunConfig, opening: Opening, watch: Watcher | None, fence: Fence) -> dict[str, Any]:
    """Train as the run's only worker, in this process and without Ray; return what rank 0 returned."""
    with importing("cluster.training.worker"):
        from cluster.training.worker import train_worker

    stop = threading.Event()
    task = replace(task_of(config, fence), watch=watch, stop=stop, open_run=opening.wait)
    if opening.is_first:
        opening.wait()
    use_worker_threads(config)
    return fit_or_stop(partial(train_worker, task), stop.set, watch)


def fit_or_stop(
    fitted: Callable[[], dict[str, Any]], stop: Callable[[], object], watch: Watcher | None
) -> dict[str, Any]:
    """Return what rank 0 returned. On Ctrl-C and SIGTERM, have a checkpoint written before they are raised.

    fitted: trains to the end; stop: asks the run to end after the step that it is at. What takes longer than
    STOP_SECONDS is not waited for.
    """
    if not in_main_thread():  # a trial's: Tune ends it in its own way
        return fitted()
    fitting = in_thread(fitted)
    try:
        return fitting.result()
    except (KeyboardInterrupt, Terminated) as error:
        stop()
        if watch:
            watch({}, ["the run ends after this step, with a checkpoint; the same signal again ends it at once"])
        with suppress(TimeoutError, RunFailed, Refused):
            step = fitting.result(STOP_SECONDS).get("stopped")
            if step is not None:
                raise type(error)(f"{in_words(error)}; a checkpoint of step {step} is written") from None
        raise


def continued(config: RunConfig) -> RunResult | None:
    """Return the result of a run that is finished already; None for one that is new or to be continued.

    Refused where the name belongs to a run of another recipe or of other weights.
    """
    folder = RunFolder.of(config)
    folder.refuse_another(config)
    return RunResult.read(folder) if folder.state() == "finished" else None


def job_of(config: RunConfig, fence: Fence) -> Job:
    """Return the job for the driver of a run's workers, once the run's folder is this process's."""
    from cluster.training.fitting import Job

    scaling = config.scaling
    return Job(
        name=config.name,
        run_dir=str(config.run_dir),
        storage=config.storage,
        keep=config.checkpoint.keep,
        each={name: amount for name, amount in worker_resources(config).items() if amount},
        num_workers=scaling.num_workers,
        min_workers=scaling.min_workers,
        max_failures=scaling.max_failures,
        timeout_seconds=scaling.timeout_seconds,
        patience_seconds=scaling.patience_seconds,
        resize_seconds=scaling.resize_seconds,
        task=task_of(config, fence),
    )


def has_checkpoint(config: RunConfig) -> bool:
    """Return whether a run goes on from a checkpoint. Refused as `newest_step`."""
    from cluster.training.saving import newest_step  # as in `check_run`

    return newest_step(config) is not None


def task_of(config: RunConfig, fence: Fence) -> WorkerTask:
    """Return what every worker of a run gets."""
    from cluster.training.saving import newest_step  # as in `check_run`

    return WorkerTask(
        config=config.model_dump(mode="json"),
        plugins=fingerprints_of(config),
        versions=node_versions(with_dali=config.data.loader == "dali"),
        newest_step=newest_step(config),
        fence=fence,
        watches_nodes=config.scaling.num_workers > 0 and os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0",
        weights=RunFolder.of(config).weights_fingerprints(),
    )
