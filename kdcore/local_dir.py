"""A folder with a network in timm's form: `config.json` and `model.safetensors`, as an export of this project has it.

`local-dir:FOLDER` stands for the architecture, arguments and weights in it. So a fingerprint covers these, never the
folder's path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcore.errors import Refused
from kdcore.named_models import BUILDER_MODULES, LOCAL_DIR, module_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSING = ("mean", "std", "input_size", "crop_pct", "interpolation")


@dataclass(frozen=True)
class LocalDir:
    """The content of a folder. classes: in the order of the outputs, None if it does not name them."""

    path: Path
    architecture: str
    args: dict[str, Any]
    num_classes: int
    classes: tuple[str, ...] | None
    preprocessing: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.path / WEIGHTS

    def output_indices(self, class_names: Sequence[str], fresh: str) -> list[int] | None:
        """Return the index of the output for each class of the data; None if the folder does not name its classes.

        Refused if a class has no output; fresh: the remedy then, if the classes are others.
        """
        if self.classes is None:
            return None
        place = {name: number for number, name in enumerate(self.classes)}
        missing = [name for name in class_names if name not in place]
        if missing:
            raise Refused(
                f"the network in {self.path} answers for {len(self.classes)} classes "
                f"({', '.join(self.classes[:3])}, ...), and {missing[0]!r} of the data is not one of them; if they are "
                "the same by other names, give class_indices, a file that maps class folders to outputs; otherwise "
                f"{fresh}"
            )
        return [place[name] for name in class_names]


def read_local_dir(model: str) -> LocalDir:
    """Read the folder of `local-dir:FOLDER`. Refused if it is not one, or names code that the recipe does not."""
    path = Path(model.removeprefix(LOCAL_DIR)).expanduser()
    for file in (CONFIG, WEIGHTS):
        if not (path / file).is_file():
            raise Refused(
                f"model {model!r}: {path / file}: no such file; name a folder that `export` has written, or any with "
                f"timm's {CONFIG} and {WEIGHTS}"
            )
    try:
        found = json.loads((path / CONFIG).read_bytes())
        architecture, num_classes = found["architecture"], found.get("num_classes", 0)
        args, pretrained = found.get("model_args") or {}, found.get("pretrained_cfg") or {}
        names = found.get("label_names")
        num_classes = int(num_classes or pretrained.get("num_classes") or 0)
        if not isinstance(architecture, str) or not isinstance(args, dict) or not isinstance(pretrained, dict):
            raise TypeError("architecture is text; model_args and pretrained_cfg are mappings")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            f"model {model!r}: {path / CONFIG} is not timm's ({type(error).__name__}: {error}); export the run again"
        ) from error
    if architecture.startswith(LOCAL_DIR):
        raise Refused(f"model {model!r}: {path / CONFIG} names another folder; name that one: {architecture}")
    if found.get("classifier") == "reused":
        raise Refused(
            f"model {model!r}: {path} holds a SimKD student, whose network is more than {architecture}; take an export "
            "of a run with student.classifier: own"
        )
    module = module_of(architecture)
    if module is not None and module.partition(".")[0] not in BUILDER_MODULES:
        raise Refused(
            f"model {model!r}: its network is made by {architecture}, and a folder of weights does not decide what "
            f"code runs; name that code in the recipe: plugins: [{module}]"
        )
    classes = tuple(map(str, names)) if isinstance(names, list) and len(names) == num_classes else None
    preprocessing = {key: pretrained[key] for key in PREPROCESSING if key in pretrained}
    return LocalDir(path, architecture, args, num_classes, classes, preprocessing)
