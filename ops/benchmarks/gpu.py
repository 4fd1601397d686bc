"""What only a GPU can show, in one script whose parts take minutes each: run them one by one, or all of them.

    regions         10,000 regions of JPEGs decoded on the GPU, against the same on the CPU (nvImageCodec issue 55)
    decode          images/s of DALI's loader with regions decoded on the GPU and on the CPU, and how far their pixels
                    differ
    graphs          a CIFAR step from the resident loader, launched operation by operation and as one CUDA graph
    deterministic   a step with train.deterministic on and off
    streams         a step whose teacher answers before the student runs, and during it on a stream of its own
    weights         a teacher's pass with its weights in float32, which autocast casts each time, and kept in bfloat16
    train           a whole run through `train`, its passes launched and replayed as one CUDA graph
    optimizers      an optimiser's step as torch has it by default, foreach and fused
    evaluation      images/s of validation, and of filling a cache
    waits           how often the host waits for the device in a step, by torch's own sync-debug mode

    python -m ops.benchmarks.gpu [PART ...] [--seconds 20] [--images FOLDER]

Each part adds its numbers to results/gpu.json as soon as it has them, so an interrupted call loses one part. Without a
GPU it is refused.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.cache.builder import Builder
from cluster.passes import evaluate
from cluster.rank import set_up_torch
from cluster.training.graphs import GraphedPasses, new_stream
from cluster.training.loop import TrainingLoop, new_state
from kdcore.batch import Batch
from kdcore.configs import ModelConfig
from kdcore.errors import Refused, typed_line
from kdcore.models import build_model
from ops.benchmarks.gpu_bench import KD, PAIRS, Bench, held, repeated
from ops.benchmarks.gpu_regions import regions
from ops.benchmarks.gpu_teacher import streams, weights
from ops.benchmarks.gpu_train import train
from ops.console import say
from ops.facts import RESULTS, facts
from pipelines.files import write_json

NAME = "gpu"
Part = Callable[[Bench], dict[str, Any]]


def decode(bench: Bench) -> dict[str, Any]:
    """Compare DALI's decoding of regions on the GPU with the CPU's: images/s, and the pixels."""
    pair, found, first = "resnet34 > resnet18, 224 px, batch 256", {}, {}
    for where in ("cpu", "gpu"):
        run = bench.assembled(pair, teacher=None, method=KD[:1], data={"decode": where})
        batches = repeated(run)
        first[where] = next(batches).images.float().cpu()
        found[where] = bench.milliseconds({"a batch": partial(next, batches)})["a batch"]
        found[where]["images_per_second"] = 1000 * run.config.train.batch_size / found[where]["median"]
    apart = (first["cpu"] - first["gpu"]).abs()
    statistic = {"mean": float(apart.mean()), "largest": float(apart.max())}
    return {**found, "difference_of_normalised_pixels": statistic}


def graphs(bench: Bench) -> dict[str, Any]:
    """Compare a step launched operation by operation with one replayed as a CUDA graph."""
    pair = "cifar_resnet56 > cifar_resnet20, 32 px, batch 64"
    calls = {}
    for name, passes in (("launched", None), ("graph", GraphedPasses)):
        run = bench.assembled(pair)
        state = new_state(run)
        loop = TrainingLoop(run, state, passes(run, state.distiller) if passes else None)
        calls[name] = stepping(loop, repeated(run))
    with torch.cuda.stream(new_stream(bench.device)):  # the default one cannot be captured
        return bench.milliseconds(calls)


def deterministic(bench: Bench) -> dict[str, Any]:
    """Compare a step with deterministic kernels with one without."""
    found = {}
    for pair in PAIRS:
        both: dict[str, Any] = {}
        for name, wanted in (("on", True), ("off", False)):  # a setting of the process: not in turns
            run = bench.assembled(pair, train={"deterministic": wanted})
            both |= bench.milliseconds({name: stepping(TrainingLoop(run, new_state(run)), held(run))})
        found[pair] = both
    set_up_torch(True)
    return found


def optimizers(bench: Bench) -> dict[str, Any]:
    """Compare an optimiser's step by itself: torch's default, all tensors in one call, and in one kernel."""
    found = {}
    for model in ("cifar_resnet20", "resnet18"):
        network = build_model(ModelConfig(model=model), ["0", "1"]).to(bench.device)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-6
        for kind, make in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
            options = {"sgd": {"momentum": 0.9}, "adamw": {}}[kind]
            made = {
                name: make(network.parameters(), lr=1e-6, **options, **how)  # type: ignore[arg-type]
                for name, how in {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items()
            }
            found[f"{model}, {kind}"] = bench.milliseconds({name: one.step for name, one in made.items()})
    return found


def evaluation(bench: Bench) -> dict[str, Any]:
    """Measure images/s of validation, and of a cache of logits and of one layer."""
    pair = "resnet34 > resnet18, 224 px, batch 256"
    run = bench.assembled(pair)
    number, loader = len(run.indexes["val"]), run.evaluation_loader("val")
    passed = bench.milliseconds({"validation": lambda: evaluate(run.student, loader, number, run.rank)})["validation"]
    found = {"validation": {**passed, "images_per_second": 1000 * number / passed["median"]}}
    last = PAIRS[pair]["last"]
    layer = {"term": "feature_mse", "weight": 1.0, "pairs": [{"student": last, "teacher": last}]}
    cache = {"dir": str(bench.folder / "cache"), "batch_size": 256}
    config = bench.recipe(pair, method=[*KD, layer], cache=cache, views={"num_views": 1})
    builder = Builder(config, bench.device)
    plan = builder.plan()
    constants, _ = builder.constants(plan)
    unit = plan.units()[0]

    def build() -> None:
        builder.build(unit, plan, "key", constants, lambda done: None)

    built = bench.milliseconds({"cache": build})["cache"]
    found["cache"] = {**built, "images_per_second": 1000 * (unit.stop - unit.start) / built["median"]}
    return found


def waits(bench: Bench) -> dict[str, Any]:
    """Count the host's waits for the device in a step, with the places of the first few."""
    found: dict[str, Any] = {}
    for pair in PAIRS:
        run = bench.assembled(pair)
        step = stepping(TrainingLoop(run, new_state(run)), held(run))
        for _ in range(3):
            step()
        found[pair] = counted(bench, step)
    return found


def counted(bench: Bench, call: Callable[[], object]) -> dict[str, Any]:
    """Return the number of times that a call made the host wait, and where."""
    if bench.device.type != "cuda":
        return {"waits": 0, "where": []}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    where = [f"{Path(one.filename).name}:{one.lineno}" for one in said if "synchroniz" in str(one.message)]
    return {"waits": len(where), "where": sorted(set(where))[:10]}


def stepping(loop: TrainingLoop, batches: Iterator[Batch]) -> Callable[[], object]:
    """Return a function that takes one optimiser step."""
    return lambda: loop.step(batches)


PARTS: dict[str, Part] = {
    "regions": regions,
    "decode": decode,
    "graphs": graphs,
    "deterministic": deterministic,
    "streams": streams,
    "weights": weights,
    "train": train,
    "optimizers": optimizers,
    "evaluation": evaluation,
    "waits": waits,
}


def main() -> None:
    """Run the named parts, or all, and write the results of each at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"(default: {', '.join(PARTS)})")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="an image folder of JPEGs (default: random pictures)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the numbers go (%(default)s)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise Refused("this benchmark needs a GPU, and this machine has none; run it where `doctor` shows one")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(torch.device("cuda", 0), args.seconds, Path(folder), args.images)
        measure(args.parts or list(PARTS), bench, args.results)


def measure(parts: list[str], bench: Bench, results: Path) -> None:
    """Run parts one after the other; add each to the result file. One that fails is recorded with its error."""
    path = results / f"{NAME}.json"
    for part in parts:
        begun = time.perf_counter()
        try:
            found = PARTS[part](bench)
        except (RuntimeError, ValueError, OSError) as error:  # the other parts are worth the machine's time
            found = {"error": typed_line(error, 500)}
        there = json.loads(path.read_text()) if path.exists() else {}
        there[part] = {**found, "seconds": time.perf_counter() - begun, "facts": facts()}
        write_json(path, there)
        say(f"{part}: {json.dumps(found)}")


if __name__ == "__main__":
    main()
