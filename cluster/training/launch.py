"""Starting a run: on this machine, on a Ray cluster, or inside a submitted job; the same call.

A run's name is its identity: starting it again continues it from its last checkpoint, or, if it is finished, gives its
result.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Ray reads these when it is imported: fast health checks make short runs end promptly, and a worker group that cannot
# be placed is reported instead of being waited for without end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.config import RunConfig
from cluster.rank import Rank
from cluster.recipe import load_recipe, to_yaml
from cluster.tracking.run import close_run, flat, open_run
from cluster.training.progress import open_board
from cluster.training.recovery import Recovery, mend, obituary
from kdcore.errors import Refused, RunFailed
from pipelines.cache.local import is_remote
from pipelines.files import make_folder, read_json, write_json, write_whole

REMEDY = "delete that file and run the same command again: the run then goes on from its last checkpoint"

Watcher = Callable[[dict[str, Any], list[str]], None]


def runtime_env(**env_vars: str) -> dict[str, Any]:
    """For `ray.init`: environment variables of the cluster's processes, and RAY_ADDRESS, once each of them knows it.

    Ray Train frees the place of a run whose controller was killed (as a sweep kills a run it stops) by asking the
    cluster it finds on its machine. Where there are two, that fails, and the place stays taken until the driver ends.
    """

    def tell_address() -> None:  # in here, so that it travels as a whole: a worker may not know this module yet
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address

    return {"env_vars": env_vars, "worker_process_setup_hook": tell_address}


@dataclass(frozen=True)
class RunResult:
    """metrics: the last of each; wall_seconds: from the call to the result, start-up included."""

    name: str
    run_dir: str
    mlflow_run_id: str
    metrics: dict[str, float]
    steps: int
    train_seconds: float
    images_per_second: float
    wall_seconds: float
    best_score: float | None = None


def check(config: RunConfig) -> None:
    """Refused for everything about a run that can be known without its workers: files, names, taps, sizes."""
    from cluster.assembly import assemble  # here alone: Ray need not wait for the networks' libraries

    for model in filter(None, (config.student, config.teacher)):
        model.check()
    parts = assemble(config, Rank(0, 1, torch.device("cpu")))
    if not config.needs.class_means:  # those take a pass over the data: left to the workers
        parts.distiller()


def launch(
    config: RunConfig, watch: Watcher | None = None, command: str = "", tags: Mapping[str, str] | None = None
) -> RunResult:
    """Runs (or continues) a training run to its end. Refused before the first step is taken, RunFailed afterwards.

    tags: of the run in MLflow, beside its own.
    """
    started = time.perf_counter()
    finished = continued(config)
    if finished is not None:
        return finished
    with ThreadPoolExecutor(1) as thread:  # Ray, the networks' libraries and MLflow take seconds each to wake
        checking = thread.submit(check, config)
        with ray_session(config):
            checking.result()
            make_folder(config.run_dir, "output_dir")
            write_whole(config.run_dir / "recipe.yaml", to_yaml(config).encode())
            opening = thread.submit(open_run, config, command, tags)
            try:
                final = place(config, opening, watch)
            except BaseException as error:
                if refusal := opening.exception():
                    raise refusal from None
                close_run(config, opening.result(), "FAILED" if isinstance(error, RunFailed) else "KILLED")
                raise
    run_id = opening.result()
    result = RunResult(
        name=config.name,
        run_dir=str(config.run_dir),
        mlflow_run_id=run_id,
        wall_seconds=time.perf_counter() - started,
        **final,
    )
    write_json(config.run_dir / "result.json", asdict(result))
    close_run(config, run_id, "FINISHED")
    return result


def place(config: RunConfig, opening: Future[str], watch: Watcher | None) -> dict[str, Any]:
    """Runs the workers where the recipe wants them; what rank 0 returned. opening: the run in MLflow, which the workers
    wait for once they are there."""
    payload = {"config": config.model_dump(mode="json")}
    if config.scaling.num_workers == 0:
        opening.result()
        torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))  # as Ray does for a worker's process
        return fit(config, payload | {"board": None})
    board = open_board()
    opening.add_done_callback(lambda done: board.open.remote(done.exception() is None))
    with watching(board, watch):
        final = fit(config, payload | {"board": board})
    ray.kill(board)
    return final


def continued(config: RunConfig) -> RunResult | None:
    """The result of a run that is finished already; None for one that is new or to be continued.

    Refused where the name belongs to a run of another recipe: it would be continued as something it is not.
    """
    earlier = config.run_dir / "recipe.yaml"
    if not earlier.exists():
        return None
    ours, theirs = (flat(c.model_dump(mode="json")) for c in (config, load_recipe(earlier)))
    changed = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    changed = [key for key in changed if key.split(".")[0] not in RunConfig.INCIDENTAL]
    if changed:
        key = changed[0]
        raise Refused(
            f"{config.run_dir} holds a run of another recipe ({key}: {theirs.get(key)!r} there, {ours.get(key)!r} "
            "now); choose another name=..., or delete that folder"
        )
    result = config.run_dir / "result.json"
    return RunResult(**read_json(result, REMEDY)) if result.exists() else None


def fit(config: RunConfig, payload: dict[str, Any]) -> dict[str, Any]:
    """One Ray Train run; what rank 0 returned."""
    from cluster.training.worker import train_worker  # as in `check`

    scaling, use_gpu = config.scaling, wants_gpu(config)
    folder = None if is_remote(config.storage) else Path(config.storage) / config.name
    if folder:
        mend(folder)
    # Ray Train's own meetings of the ranks (at every checkpoint) would otherwise wait without end.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(scaling.timeout_seconds)
    resources = {"CPU": scaling.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = scaling.gpus_per_worker
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=payload,
        scaling_config=ray.train.ScalingConfig(
            num_workers=(scaling.min_workers, scaling.num_workers) if scaling.min_workers else scaling.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=scaling.resize_seconds,
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(scaling.timeout_seconds)),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=config.storage,
            failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures, controller_failure_limit=3),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.checkpoint.keep),
            callbacks=[Recovery(folder)],
        ),
    )
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise RunFailed(obituary(error, scaling.num_workers, payload["board"])) from error


def wants_gpu(config: RunConfig) -> bool:
    """GPUs if the recipe says so, or if it leaves it open and the cluster has enough."""
    if config.scaling.use_gpu is not None or config.scaling.num_workers == 0:
        return bool(config.scaling.use_gpu)
    needed = (config.scaling.min_workers or config.scaling.num_workers) * config.scaling.gpus_per_worker
    return ray.cluster_resources().get("GPU", 0) >= needed > 0


@contextmanager
def ray_session(config: RunConfig) -> Iterator[None]:
    """The Ray cluster that is there already, or the one RAY_ADDRESS names, or one on this machine for this run."""
    if ray.is_initialized() or config.scaling.num_workers == 0:
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=runtime_env(), **quiet)
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        cpus = max(os.cpu_count() or 1, int(config.scaling.num_workers * config.scaling.cpus_per_worker))
        env = runtime_env(PYTHONPATH=str(Path(__file__).parents[2]), TOKENIZERS_PARALLELISM="false")
        ray.init("local", num_cpus=cpus, include_dashboard=True, runtime_env=env, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def watching(board: Any, watch: Watcher | None) -> Iterator[None]:
    """Calls `watch(state, messages)` several times a second, from a thread, until the run ends."""
    if watch is None:
        yield
        return
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.3):
            watch(*ray.get(board.look.remote()))
        watch(*ray.get(board.look.remote()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
