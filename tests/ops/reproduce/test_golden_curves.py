"""Loss curves of resnet56 -> resnet20 on real images against a golden file, and the size of the losses.

The curves are stepped by `Flight`, which another test holds against the product's loop, bit for bit.

A change that is meant to change no result changes no bit here: with the torch and the processor of the golden file the
curves are equal to the last digit. Elsewhere kernels add up in another order, which training magnifies: with another
instruction set the third loss differed by 1e-5 of itself and the fourth by 5e-4. A tenfold of that is allowed then. To
renew the file after a change that is meant to change results, delete it and run this test twice.
"""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.recipe.config import RunConfig
from cluster.tracking.journal import read_journal
from ops import catalog
from ops.cifar100.images import write_cifar100
from ops.reproduce.lane import Lane
from ops.reproduce.lanes import flights_of

GOLDEN = Path(__file__).parent / "golden" / "resnet56-resnet20.json"
TOLERANCE = 5e-3
STEPS = 4
PAIR = "cifar100/resnet56-resnet20"
ROWS = {"alone": "cifar100/resnet20/alone", **{row: f"{PAIR}/{row}" for row in ("kd", "wttm", "simkd")}}


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 1,000 training images, and the first test image of each class."""
    parquet, root = tmp_path_factory.mktemp("parquet"), tmp_path_factory.mktemp("cifar100")
    train = pq.ParquetFile(shared_data / "cifar100" / "train-00000-of-00002.parquet").read_row_group(0)
    test = pq.ParquetFile(shared_data / "cifar100" / "test-00000-of-00001.parquet").read_row_group(0)
    _, first = np.unique(test["fine_label"].to_numpy(), return_index=True)
    pq.write_table(train, parquet / "train-00000-of-00001.parquet")
    pq.write_table(test.take(pa.array(first)), parquet / "test-00000-of-00001.parquet")
    return write_cifar100(parquet, root, {"train": 1000, "val": 100})


@pytest.fixture
def config(data: Path, shared_data: Path, tmp_path: Path):
    def make(recipe: str, *changes: str) -> RunConfig:
        teacher = shared_data / "teachers" / "cifar100_resnet56.safetensors"
        common = [
            f"data.root={data}",
            "data.loader=resident",
            f"output_dir={tmp_path}",
            f"train.max_steps={STEPS}",
            "scaling.num_workers=0",
            "tracking={system_metrics: false, every_steps: 1}",
            *([] if recipe.endswith("alone") else [f"teacher.checkpoint={teacher}"]),
        ]
        return catalog.load(recipe, [*common, *changes])

    return make


def machine() -> dict[str, str]:
    """What the last digits depend on."""
    described = dict(re.findall(r"^(vendor_id|cpu family|model|stepping)\s*: (.*)$", cpuinfo(), re.MULTILINE))
    return {
        "torch": torch.__version__,
        "processor": " ".join(described.values()) or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def test_loss_curves(config):
    lanes = [Lane(config(recipe, f"name={row}"), torch.device("cpu")) for row, recipe in ROWS.items()]
    (flight,) = flights_of(lanes)  # the four of them see the same views, and the teacher answers once for three
    steps = [[float(loss) for loss in flight.step()] for _ in range(STEPS)]
    curves = dict(zip(ROWS, map(list, zip(*steps, strict=True)), strict=True))
    if not GOLDEN.exists():
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps({"machine": machine(), "curves": curves}, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} was not there and has been written; look at it, and keep it")
    golden = json.loads(GOLDEN.read_text())
    for row, curve in golden["curves"].items():
        assert len(curve) == STEPS
        assert curves[row] == (curve if machine() == golden["machine"] else pytest.approx(curve, rel=TOLERANCE)), row


def test_size_of_the_losses(config):
    """Un-weighted terms of one student under one teacher, each at the hyper-parameters of this pair's row.

    Predicted: cross-entropy starts near ln 100. WTTM weighs each sample's TTM by 1 <= U <= 100^(1-gamma), and the
    published weights 7 and 1.5 even this out. T^2 KL = T^2 [TCKD + (1 - p) NCKD], of which DKD takes at least as much.
    The mean over a map's elements leaves feature losses of the order of a squared activation, not of a map's size.
    """
    launch = pytest.importorskip("cluster.training.launch", reason="needs Ray", exc_type=ImportError).launch
    terms = [
        {"term": "ce", "weight": 1},
        {"term": "kd", "weight": 0.1, "temperature": 4},
        {"term": "dkd", "weight": 0.1, "temperature": 4, "non_target_weight": 2},
        {"term": "ttm", "weight": 0.1, "gamma": 0.3},
        {"term": "wttm", "weight": 0.1, "gamma": 0.3},
        {"term": "feature_mse", "weight": 0.1, "pairs": [{"student": "layer3", "teacher": "layer3"}]},
    ]
    run = config(f"{PAIR}/kd", "name=terms", f"method={json.dumps(terms)}")
    launch(run)
    rows = [row for row in read_journal(run.run_dir / "metrics.jsonl") if "train/ce" in row]
    assert len(rows) == STEPS
    assert rows[0]["train/ce"] == pytest.approx(np.log(100), abs=0.7)
    for row in rows:
        kd, dkd, ttm, wttm, features = (row[f"train/{name}"] for name in ("kd", "dkd", "ttm", "wttm", "feature_mse"))
        assert kd < dkd
        assert 1 < wttm / ttm < 100**0.7
        assert 1 / 3 < (7 * ttm) / (1.5 * wttm) < 3
        assert 0.1 < features < 100  # summed over the 4,096 elements of a map, it would be tens of thousands
