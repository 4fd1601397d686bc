"""What a byte buys: sparse logits of a real ImageNet teacher, by size and by number of corrected classes.

The teacher's 1,000 logits for crops of real images (RandomResizedCrop, as in training) are coded by a code that was
fitted to other images, and read back at temperatures 1, 2 and 4. Three settings: other images of the fit's classes;
other classes than the fit's (harder than in use, where the fit sees every class); validation images, centre crops.

    python -m ops.benchmarks.cache_sparse --data IMAGENET20 --checkpoint efficientnet-lite0.pth

--data: an image folder with train/ and val/ (any images of ImageNet-1k's kind); --checkpoint: the weights of --model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.weights import weights_fingerprint
from kdcore.configs import ModelConfig
from kdcore.models import build_model, input_statistics
from ops.console import console, say, table
from ops.facts import spread, write
from pipelines.cache.sparse import TEMPERATURES, CodeSize, LogitCode, measured_error
from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.loaders.base import requests_of
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

CLASSES = 1000
SIZES = (32, 48, 64, 96, 128, 160)
TOPS = (2, 4, 8, 12, 16)  # at 64 bytes; at other sizes an eighth of the bytes
GOAL_BYTES, GOAL_NATS = 64, 0.01
BATCH = 64


def main() -> None:
    """Measure every setting, and write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--views", type=int, default=2, help="crops of every training image")
    parser.add_argument("--splits", type=int, default=3, help="random splits of the images into fit and measurement")
    parser.add_argument("--output", default="outputs/cache_sparse", help="where logits are kept for another run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = ModelConfig(model=args.model, checkpoint=args.checkpoint, checkpoint_keys="positions")
    teacher = build_model(config, [str(number) for number in range(CLASSES)]).eval()
    fingerprint = weights_fingerprint(teacher)
    train, val = (build_index(args.data, split, args.output) for split in ("train", "val"))
    crops = torch.stack(
        [kept_logits(args.output, fingerprint, teacher, train, ViewPolicy(), view) for view in range(args.views)]
    )
    centres = kept_logits(args.output, fingerprint, teacher, val, ViewPolicy.evaluation(224, crop_pct=1.0), 0)
    labels = torch.from_numpy(train.labels.astype(np.int64))
    content = {
        "teacher": {"model": args.model, "weights": fingerprint},
        "images": {"train": len(train), "views": args.views, "val": len(val), "classes": len(train.classes)},
        "bound": gaussian_bound(crops.flatten(0, 1)),
        "rows": measure(crops, labels, centres, args.splits),
    }
    path = write("cache_sparse", content)
    show(content)
    say(f"written to {path}")


def kept_logits(
    output: str, fingerprint: str, teacher: torch.nn.Module, index: Source, policy: ViewPolicy, view: int
) -> Tensor:
    """Return `logits`, computed once and kept under the fingerprints of what they depend on."""
    plan = ViewPlan(policy, 0, len(index))
    path = Path(output) / f"{fingerprint[:12]}-{index.fingerprint[:12]}-{plan.fingerprint[:12]}-{view}.pt"
    if not path.exists():
        say(f"the teacher answers: view {view} of {len(index):,} images")
        torch.save(logits(teacher, index, plan, view), path)
    kept: Tensor = torch.load(path, weights_only=True)
    return kept


@torch.inference_mode()
def logits(teacher: torch.nn.Module, index: Source, plan: ViewPlan, view: int) -> Tensor:
    """Compute the teacher's logits for a view of every image: [n,K]."""
    mean, std = input_statistics(teacher)
    loader = build_loader("dali", index, plan, mean=mean, std=std, device=torch.device("cpu"), max_batch=BATCH)
    requests = requests_of(np.arange(len(index)), BATCH, view)
    teacher = teacher.to(memory_format=torch.channels_last)
    return torch.cat([teacher(batch.images) for batch in loader.load(requests)])


def gaussian_bound(values: Tensor) -> dict[str, float]:
    """Return {temperature: bytes} that any code needs for GOAL_NATS if logits are normally distributed.

    Reverse water-filling (Cover and Thomas, theorem 10.3.3) at a mean squared error of 2 temperature^2 GOAL_NATS per
    class, for logits with this covariance and a flat softened distribution. It is a bound for a model, not for the
    logits: it tells which sizes are realistic.
    """
    centred = values.double() - values.double().mean(dim=0)
    variances = torch.linalg.svdvals(centred).square() / len(values)
    found = {}
    for temperature in TEMPERATURES:
        low, high = 1e-12, float(variances.max())
        for _ in range(100):
            level = (low * high) ** 0.5
            enough = torch.minimum(variances, torch.tensor(level)).sum() > 2 * temperature**2 * GOAL_NATS * CLASSES
            low, high = (low, level) if enough else (level, high)
        found[f"{temperature:g}"] = float((variances / level).log2().clamp_min(0).sum() / 2 / 8)
    return found


def measure(crops: Tensor, labels: Tensor, centres: Tensor, num_splits: int) -> list[dict[str, Any]]:
    """Return a row for every setting, size and number of corrections: the nats by temperature over the splits."""
    shapes = [(size, size // 8) for size in SIZES] + [(GOAL_BYTES, top) for top in TOPS if top != GOAL_BYTES // 8]
    rows: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    for split in range(num_splits):
        generator = torch.Generator().manual_seed(split)
        chosen = torch.rand(crops.shape[1], generator=generator) < 0.8
        half = torch.randperm(int(labels.max()) + 1, generator=generator)[: (int(labels.max()) + 1) // 2]
        known = torch.isin(labels, half)
        fits = [
            (crops[:, chosen].flatten(0, 1), {"other images": crops[0, ~chosen], "validation": centres}),
            (crops[:, known].flatten(0, 1), {"other classes": crops[0, ~known]}),
        ]
        for num_bytes, top in shapes:
            for fit, held_back in fits:
                code = LogitCode.fit(fit, CodeSize(CLASSES, num_bytes, top))
                for name, values in held_back.items():
                    error = measured_error(values, code.decode(*code.encode(values)))
                    rows.setdefault((name, num_bytes, top), []).append(error | {"components": len(code.bits)})
            say(f"split {split}: {num_bytes} bytes, {top} corrections")
    plain = [summary("plain top-k", size, size // 4, [top_k_error(crops[0], size // 4)]) for size in SIZES]
    return [summary(*key, errors) for key, errors in rows.items()] + plain


def top_k_error(values: Tensor, top: int) -> dict[str, float]:
    """Measure top-k alone: the largest logits in float16, the others flat with their true total mass.

    Indices take 16 bits.
    """
    log_p = torch.log_softmax(values.double(), dim=1)
    index = log_p.topk(top, dim=1).indices
    rest = log_p.scatter(1, index, float("-inf")).logsumexp(dim=1, keepdim=True)
    flat = (rest - np.log(CLASSES - top)).expand_as(log_p)
    decoded = flat.scatter(1, index, log_p.gather(1, index).half().double())
    return measured_error(log_p, decoded)


def summary(setting: str, num_bytes: int, top: int, errors: list[dict[str, float]]) -> dict[str, Any]:
    """Return one row: the number of rows in each split, and for every measure its spread over the splits."""
    measures = {name: spread([error[name] for error in errors]) for name in errors[0] if name != "rows"}
    rows = [int(error["rows"]) for error in errors]
    return {"setting": setting, "bytes": num_bytes, "top": top, "rows": rows, **measures}


def show(content: dict[str, Any]) -> None:
    """Print the table, and whether the goal is met."""
    names = [f"nats at temperature {t:g}" for t in TEMPERATURES]
    lines = []
    for row in content["rows"]:
        shown = [f"{row[name]['mean']:.4f}" for name in names]
        tail = f"{row[names[1] + ', 99th percentile']['mean']:.4f}"
        lines.append([row["setting"], str(row["bytes"]), str(row["top"]), *shown, tail])
    columns = ["images", "bytes", "corrected", "T=1", "T=2", "T=4", "T=2, 99 %"]
    title = f"mean D(dense || sparse) in nats, {content['teacher']['model']}, {content['images']['train']:,} images"
    console.print(table(title, columns, lines))
    bound = ", ".join(f"{value:.0f} at {name}" for name, value in content["bound"].items())
    say(f"bytes for {GOAL_NATS} nats in the normal model, by temperature: {bound}")
    ours = next(r for r in content["rows"] if (r["setting"], r["bytes"], r["top"]) == ("other images", GOAL_BYTES, 8))
    missed = {name: ours[name]["mean"] for name in names if ours[name]["mean"] > GOAL_NATS}
    verdict = "; ".join(f"{value:.4f} {name}" for name, value in missed.items())
    say(f"goal of {GOAL_NATS} nats in {GOAL_BYTES} bytes: {'missed, ' + verdict if missed else 'met'}")


if __name__ == "__main__":
    main()
