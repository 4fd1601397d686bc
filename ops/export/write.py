"""`export`: a run's student as files that need nothing from this project, each checked on real images.

model.safetensors, config.json   timm's form: weights, architecture, classes, preprocessing
model.pt2                        torch.export's form: the whole network, SimKD's too; torch alone loads it
model.onnx                       for ONNX Runtime and other engines; names its classes and preprocessing
predict.py                       names what photographs show, with ONNX Runtime alone
lineage.json                     what it was made from, and the digests of these files; `lineage` prints and verifies it
README.md                        the model card
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnxruntime
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from cluster.assembly import Assembly, assemble
from cluster.evaluation import load_student
from cluster.images import evaluation_policy
from cluster.nodes.resources import use_worker_threads
from cluster.rank import Rank
from cluster.tracking.folder import RunFolder
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from kdcore.multi_label import THRESHOLD
from kdcore.named_models import LOCAL_DIR
from ops.console import console, say, table
from ops.evaluation.subjects import find_student
from ops.export import photo_script
from ops.export.construction import Construction
from ops.export.files import FILES, PROGRAM, remove_earlier
from ops.export.lineage import write_lineage
from ops.export.model_card import write_card
from ops.export.programs import example_of, write_onnx, write_program
from ops.export.quantize import write_small_files
from ops.export.registry import register
from pipelines.files import make_folder, require_folder_place, write_text, write_whole
from pipelines.leases import leased
from pipelines.loaders.base import requests_of
from pipelines.spread import evenly_spread
from pipelines.views.policy import ViewPolicy

SCRIPT = Path(photo_script.__file__)  # runs without the rest of this project
_BATCH = 64  # images shown to the network at once
TOLERANCE = 1e-3  # largest difference of a logit, relative to the largest logit


@dataclass(frozen=True)
class Export:
    """The student in eval mode on the CPU, and where its files go.

    images [n,3,H,W]: for the checks; logits [n,K]: the student's for them.
    """

    parts: Assembly
    student: nn.Module
    images: Tensor
    logits: Tensor
    folder: Path

    @property
    def policy(self) -> ViewPolicy:
        return evaluation_policy(self.parts.config)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.parts.indexes["train"].classes

    @cached_property
    def construction(self) -> Construction:
        """What builds the network around its weights."""
        return Construction.of(self.parts.config.student, self.student)


def export(
    run: str,
    output: str,
    num_images: int,
    name: str | None,
    precisions: Sequence[str],
    max_loss: float,
    overrides: Sequence[str],
) -> int:
    """Write the files, check them, and register the model.

    precisions, max_loss: as in `ops.export.quantize.write_small_files`. Refused, before anything is written, for a
    student whose logits are not finite, and where a file answers differently.
    """
    folder = Path(output)
    require_folder_place(folder, "--output")
    if known := [file.name for file in (RunFolder(folder).recipe, RunFolder(folder).result) if file.exists()]:
        raise Refused(f"--output: {folder} is a run's folder, as it has a {known[0]}; give another folder")
    subject, weights = find_student(run, overrides)
    if not Path(run).is_dir():
        raise Refused(f"{run} is a file of weights, which does not say how good they are; give the run's folder")
    use_worker_threads(subject.config)
    parts = assemble(subject.config, Rank(0, 1, torch.device("cpu")))
    student = load_student(parts, weights).to(memory_format=torch.contiguous_format)
    images = sample_images(parts, num_images)
    job = Export(parts, student, images, finite_logits(student, images, weights), folder)
    make_folder(folder, "--output")
    with leased(folder, "export"):
        remove_earlier(folder)
        write_weights(job)
        write_programs(job)
        shutil.copyfile(SCRIPT, folder / "predict.py")
        checks = compare_files(job)
        show(checks, len(images), "classes" if parts.config.data.multi_label else "top-1")
        if precisions:
            write_small_files(parts, folder, precisions, max_loss)
        write_lineage(folder, parts, Path(run), job.construction.in_timm)
        facts = onnx_facts(job)
        card = write_card(folder, parts, student, Path(run), job.construction, facts, checks, len(images))
        written = sorted(str(folder / name) for name in FILES if (folder / name).is_file())
        say(f"written: {', '.join(written)}")
        if subject.run_id is not None:
            say(register(subject.config, subject.run_id, job.folder, job.images, name, card))
    return 0


def sample_images(parts: Assembly, number: int) -> Tensor:
    """Return evenly spaced validation images, as the student sees them: [n,3,H,W]."""
    ids = evenly_spread(len(parts.indexes["val"]), number)
    batches = parts.evaluation_loader("val", _BATCH).load(requests_of(ids, _BATCH))
    return torch.cat([batch.images.float().contiguous() for batch in batches])


@torch.no_grad()
def finite_logits(student: nn.Module, images: Tensor, weights: Path) -> Tensor:
    """Return the student's logits for some images: [n,K]. Refused where one is not finite."""
    logits: Tensor = student(images)
    if not logits.isfinite().all():
        raise Refused(
            f"{weights}: the student's logits for {int((~logits.isfinite()).any(dim=1).sum())} of {len(images)} "
            "validation images are not finite; train again with a smaller optimizer.lr, or export another run"
        )
    return logits


def write_weights(job: Export) -> None:
    """Write model.safetensors, and config.json, from which timm builds the network around it."""
    # Copies, even of tensors that share memory: timm looks for every name.
    tensors = {name: tensor.contiguous().clone() for name, tensor in job.student.state_dict().items()}
    write_whole(job.folder / "model.safetensors", safetensors.torch.save(tensors, {"format": "pt"}))
    write_text(job.folder / "config.json", json.dumps(timm_config(job), indent=2) + "\n")


def timm_config(job: Export) -> dict[str, Any]:
    """Return timm's description of the network and its preprocessing."""
    own = getattr(job.student, "pretrained_cfg", {})
    mean, std = job.parts.statistics
    pretrained = {
        "input_size": [3, job.policy.height, job.policy.width],
        "mean": list(mean),
        "std": list(std),
        "crop_pct": job.policy.crop_pct,
        "crop_mode": "center",  # of views that are not square, timm may resize the longer side to a pixel more
        "interpolation": job.policy.interpolation,
        "num_classes": len(job.classes),
        "first_conv": own.get("first_conv"),
        "classifier": own.get("classifier"),
    }
    features = getattr(job.student, "num_features", None)
    return {
        "architecture": job.construction.architecture,
        "num_classes": len(job.classes),
        **({} if features is None else {"num_features": features}),
        "label_names": list(job.classes),
        "model_args": job.construction.args,
        "pretrained_cfg": pretrained,
        **({"classifier": "reused"} if job.parts.config.student.classifier == "reused" else {}),
    }


def write_programs(job: Export) -> None:
    """Write model.pt2 and model.onnx, both for batches of any size."""
    example = example_of((job.policy.height, job.policy.width))
    write_program(job.student, example, job.folder / PROGRAM)
    write_onnx(job.student, example, job.folder / "model.onnx", onnx_facts(job))


def onnx_facts(job: Export) -> dict[str, Any]:
    """Return the metadata of model.onnx: its classes in order, and the preprocessing of an image."""
    policy, (mean, std) = job.policy, job.parts.statistics
    return {
        "classes": list(job.classes),
        **({"multi_label": True} if job.parts.config.data.multi_label else {}),
        "preprocessing": {
            "size": [policy.height, policy.width],
            "cover": [int(side / policy.crop_pct) for side in (policy.height, policy.width)],
            "interpolation": policy.interpolation,
            "mean": list(mean),
            "std": list(std),
        },
    }


def compare_files(job: Export) -> list[dict[str, Any]]:
    """Return how far each file's logits are from the student's.

    {file, difference: largest, equal: share of images for which both name the same class, or the same classes where an
    image may show several}. Refused where they differ by more than rounding.
    """
    named = classes_named if job.parts.config.data.multi_label else likeliest
    rows = []
    with torch.no_grad():
        for file, network in exported_networks(job).items():
            found = network(job.images)
            difference = float((found - job.logits).abs().max())
            equal = float((named(found) == named(job.logits)).all(dim=1).double().mean())
            if not difference <= TOLERANCE * float(job.logits.abs().max()):  # `not <=`: a NaN is refused, too
                raise Refused(f"{job.folder / file} gives other outputs than the student (by {difference:.3g})")
            rows.append({"file": file, "difference": difference, "equal": equal})
    return rows


def likeliest(logits: Tensor) -> Tensor:
    """Return the likeliest class of each image: [n,1]."""
    return logits.argmax(dim=1, keepdim=True)


def classes_named(logits: Tensor) -> Tensor:
    """Return the classes that are named for each image: [n,K] bool."""
    return logits.sigmoid() >= THRESHOLD


def exported_networks(job: Export) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return every file as a function of images, loaded as its users load it."""
    session = onnxruntime.InferenceSession(job.folder / "model.onnx", providers=["CPUExecutionProvider"])
    found: dict[str, Callable[[Tensor], Tensor]] = {
        PROGRAM: torch.export.load(job.folder / PROGRAM).module(),
        "model.onnx": lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
    }
    if job.construction.in_timm:
        found["model.safetensors"] = timm.create_model(
            job.construction.architecture,
            checkpoint_path=str(job.folder / "model.safetensors"),
            num_classes=len(job.classes),
            **job.construction.args,
        ).eval()
    elif job.parts.config.student.classifier == "own":
        folder = ModelConfig(model=f"{LOCAL_DIR}{job.folder.absolute()}")
        found["config.json, model.safetensors"] = build_model(folder, job.classes).eval()
    return found


def show(checks: list[dict[str, Any]], num_images: int, what: str) -> None:
    """Print how far each file's answers are from the student's."""
    rows = [[row["file"], f"{row['difference']:.2g}", f"{row['equal']:.2%}"] for row in checks]
    title = f"against the student, on {num_images} validation images"
    console.print(table(title, ["file", "largest difference of a logit", f"equal {what}"], rows))
