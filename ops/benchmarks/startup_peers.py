"""What start-up is compared with: scripts that do the least that another library needs for its first training step.

Each writes the file named by its last argument when the step is done, and then waits to be ended.

imports   only `import torch, timm`
timm      a script of timm's parts, put together as its train.py does for distillation: data set, loader, networks,
          task, optimiser and schedule
ray       Ray Train with NUM_WORKERS workers: one step of SGD on one linear layer

    python -m ops.benchmarks.startup_peers timm IMAGES STAMP
    python -m ops.benchmarks.startup_peers ray NUM_WORKERS STAMP
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

STUDENT, TEACHER, SIZE, BATCH = "resnet18", "resnet34", 128, 32
WAIT_SECONDS = 60.0  # for the caller to read the processor time


def with_timm(images: str, stamp: Path) -> None:
    """Take one step of KD with timm's loader, task, optimiser and schedule."""
    import timm
    import timm.data
    import timm.optim
    import timm.scheduler
    import timm.task
    import timm.utils
    import torch

    timm.utils.random_seed(42, 0)
    data = timm.data.create_dataset("", images, split="train", is_training=True, batch_size=BATCH)
    judged = timm.data.create_dataset("", images, split="val", is_training=False, batch_size=BATCH)
    classes = len(data.reader.class_to_idx)
    student, teacher = (timm.create_model(name, num_classes=classes) for name in (STUDENT, TEACHER))
    config = timm.data.resolve_data_config({"img_size": SIZE}, model=student)
    options: dict[str, Any] = {"mean": config["mean"], "std": config["std"], "num_workers": 2, "use_prefetcher": False}
    plain: Any = {"color_jitter": None}
    loader = timm.data.create_loader(data, (3, SIZE, SIZE), BATCH, is_training=True, **plain, **options)
    timm.data.create_loader(judged, (3, SIZE, SIZE), BATCH, is_training=False, **options)
    task = timm.task.LogitDistillationTask(
        student, teacher, torch.nn.CrossEntropyLoss(), device=torch.device("cpu"), verbose=False
    )
    optimizer = timm.optim.create_optimizer_v2(student, "sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
    scheduler, _ = timm.scheduler.create_scheduler_v2(optimizer, "cosine", num_epochs=10, updates_per_epoch=len(loader))
    assert scheduler is not None
    task.train()
    pixels, labels = next(iter(loader))
    task(pixels, labels)["loss"].backward()
    optimizer.step()
    scheduler.step_update(num_updates=1)
    stamp.touch()


def with_ray(num_workers: int, stamp: Path) -> None:
    """Take one step of SGD on one linear layer with Ray Train."""
    import ray
    import ray.train
    import torch
    from ray.train.torch import TorchTrainer, prepare_model

    def loop(config: dict[str, Any]) -> None:
        model = prepare_model(torch.nn.Linear(8, 8))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()
        if ray.train.get_context().get_world_rank() == 0:
            Path(config["stamp"]).touch()
            time.sleep(WAIT_SECONDS)

    ray.init("local", num_cpus=max(2, num_workers), log_to_driver=False, logging_level="ERROR")
    TorchTrainer(
        loop,
        train_loop_config={"stamp": str(stamp)},
        scaling_config=ray.train.ScalingConfig(num_workers=num_workers),
        run_config=ray.train.RunConfig(name="bare", storage_path=str(stamp.parent)),
    ).fit()


def main() -> None:
    """Run the named peer, and wait."""
    peer, *words = sys.argv[1:]
    stamp = Path(words[-1])
    if peer == "imports":
        import timm  # noqa: F401
        import torch

        stamp.touch()
    elif peer == "timm":
        import torch

        torch.set_num_threads(1)
        with_timm(words[0], stamp)
    else:
        with_ray(int(words[0]), stamp)
    time.sleep(WAIT_SECONDS)


if __name__ == "__main__":
    main()
