"""`benchmark`: how long a run's student and its teacher take here, in torch, compiled, and in ONNX Runtime.

Measurements take turns, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from cluster.assembly import assemble
from cluster.evaluation import load_student, with_online_teacher
from cluster.images import deployed_size
from cluster.nodes.resources import device_here, use_worker_threads
from cluster.rank import Rank, synchronise
from cluster.recipe.config import RunConfig
from cluster.teachers.running import SINGLE
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_errors import mlflow_errors_as_refusals
from cluster.tracking.mlflow_tracker import open_store, tracking_uri
from kdcore.errors import Refused
from kdcore.reporting import optional
from kdcore.reused import deployed_parameters
from ops.console import console, say, table
from ops.evaluation.subjects import find_student
from ops.export.programs import example_of, write_onnx
from ops.facts import facts
from pipelines.files import write_json

ROUNDS = 5  # turns of each, over which its calls are spread
WARM_UP = 3  # calls that are not counted
ONNX_DEVICE = "cpu"  # where `onnx_session` runs a network, also on a machine with GPUs

Infer = Callable[[], object]


@dataclass
class Subject:
    """A network in one form on a batch of one size.

    device: what runs it; size: height and width of an image; parameters: how many are deployed; infer: runs the
    network on the batch; seconds: of each call.
    """

    network: str
    form: str
    device: str
    batch: int
    size: tuple[int, int]
    parameters: int
    infer: Infer
    seconds: list[float] = field(default_factory=list)

    def take_turn(self, seconds: float) -> None:
        """Call `infer` for `seconds`, and at least once over all turns."""
        ends = time.perf_counter() + seconds
        while not self.seconds or time.perf_counter() < ends:
            started = time.perf_counter()
            self.infer()
            self.seconds.append(time.perf_counter() - started)

    def summary(self) -> dict[str, Any]:
        """Return the latencies in milliseconds, and the images per second at the median."""
        p50, p95 = np.percentile(self.seconds, [50, 95])
        return {
            "network": self.network,
            "form": self.form,
            "device": self.device,
            "batch": self.batch,
            "size": list(self.size),
            "parameters": self.parameters,
            "n": len(self.seconds),
            "p50_ms": 1000 * float(p50),
            "p95_ms": 1000 * float(p95),
            "images_per_second": self.batch / float(p50),
        }


def benchmark(run: str, batches: Sequence[int], forms: Sequence[str], seconds: float, overrides: Sequence[str]) -> int:
    """Print latency and throughput of a run's networks, and write them to its folder. seconds: of each measurement."""
    if min(batches) < 1:
        raise Refused(f"--batches {min(batches)}: a batch has at least one image")
    found, weights = find_student(run, overrides)
    config, path = found.config, RunFolder(found.folder.parent).benchmark
    rows = measure_networks(config, weights, batches, forms, seconds)
    threads = torch.get_num_threads()
    show(rows, f"{threads} threads of the CPU")
    write_json(path, {"facts": facts(), "threads": threads, "rows": rows})
    say(f"written: {path}")
    if found.run_id is not None:
        log_to_mlflow(config, found.run_id, rows)
    return 0


def log_to_mlflow(config: RunConfig, run_id: str, rows: Sequence[dict[str, Any]]) -> None:
    """Log the cost of a run's networks on its page, one image at a time in torch, so that runs can be compared.

    Refused where the server does not answer.
    """
    from mlflow.entities import RunTag

    single = {row["network"]: row for row in rows if row["batch"] == 1 and row["form"] == "torch"}
    prefixes = {"student": "", "teacher": "teacher_"}
    noted = {f"model/{prefixes[network]}latency_ms": row["p50_ms"] for network, row in single.items()}
    if "teacher" in single:
        noted["model/teacher_parameters"] = single["teacher"]["parameters"]
    uri = tracking_uri(config)
    with mlflow_errors_as_refusals(uri, "the numbers are in the run's folder: measure again when it is back"):
        open_store(config).log_batch(run_id, tags=[RunTag(name, f"{value:.12g}") for name, value in noted.items()])


def measure_networks(
    config: RunConfig, weights: Path, batches: Sequence[int], forms: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    """Return a row for each network of a run, form and batch size, measured with the threads of one worker.

    The teacher is measured if its weights are available. seconds: of each measurement.
    """
    config = with_online_teacher(config)
    device = device_here(config)
    use_worker_threads(config)
    parts = assemble(config, Rank(0, 1, device))
    networks: dict[str, nn.Module] = {"student": load_student(parts, weights)}
    sizes = {"student": deployed_size(config), "teacher": deployed_size(parts.for_teacher.config)}
    if SINGLE in parts.teachers.online:
        networks["teacher"] = parts.teachers.single.model
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        subjects = [
            subject
            for name, network in networks.items()
            for form in forms
            for subject in subjects_of(name, network.eval(), form, batches, sizes[name], device, Path(folder))
        ]
        let_take_turns(subjects, seconds)
    return [subject.summary() for subject in subjects]


def subjects_of(
    name: str,
    network: nn.Module,
    form: str,
    batches: Sequence[int],
    size: tuple[int, int],
    device: torch.device,
    folder: Path,
) -> list[Subject]:
    """Return a network in one form at every batch size, ready to be measured; none, with a line, where it fails."""
    made: list[Subject] = []
    with optional(f"the {name} in the form {form} is", say):
        if form == "onnx":
            path = folder / f"{name}.onnx"
            write_onnx(network, example_of(size, device), path, {})
            session = onnx_session(path)
        runner = torch.compile(network) if form == "compiled" else network
        for batch in batches:
            images = torch.randn(batch, 3, *size, device=device)
            infer = onnx_call(session, images) if form == "onnx" else torch_call(runner, images)
            for _ in range(WARM_UP):
                infer()
            runs_on = ONNX_DEVICE if form == "onnx" else str(device)
            made.append(Subject(name, form, runs_on, batch, size, deployed_parameters(network), infer))
    return made


def torch_call(network: Callable[[Tensor], Tensor], images: Tensor) -> Infer:
    """Return a call of a network in torch, which waits until the device is done."""

    def infer() -> None:
        network(images)
        synchronise(images.device)

    return infer


def onnx_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a file in ONNX Runtime on the CPU, with as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnx_call(session: onnxruntime.InferenceSession, images: Tensor) -> Infer:
    """Return a call of a network in ONNX Runtime."""
    inputs = {"images": images.cpu().numpy()}
    return lambda: session.run(None, inputs)


def let_take_turns(subjects: Sequence[Subject], seconds: float) -> None:
    """Measure all subjects in turns, each for `seconds` in total."""
    for _ in range(ROUNDS):
        for subject in subjects:
            subject.take_turn(seconds / ROUNDS)


def show(rows: Sequence[dict[str, Any]], place: str) -> None:
    """Print a row for each network, form and batch size, with its speed relative to the teacher's."""
    slowest = {(row["form"], row["batch"]): row["p50_ms"] for row in rows if row["network"] == "teacher"}
    shown = []
    for row in rows:
        teacher = slowest.get((row["form"], row["batch"]))
        shown.append(
            [
                f"{row['network']}, {row['form']}",
                row["device"],
                "{} x {}".format(*row["size"]),
                f"{row['batch']}",
                f"{row['p50_ms']:.2f}",
                f"{row['p95_ms']:.2f}",
                f"{row['images_per_second']:,.0f}",
                f"{teacher / row['p50_ms']:.2f}x" if teacher and row["network"] == "student" else "-",
                f"{row['n']:,}",
            ]
        )
    columns = ["network", "device", "pixels", "batch", "p50 ms", "p95 ms", "images/s", "teacher / student", "calls"]
    console.print(table(place, columns, shown))
