"""Where a recipe's network is from, by the form of its name; checked without building anything.

    resnet50, resnet50.a1_in1k       timm's registry, including the project's and plug-ins' networks
    package.module:function          your own code: function(num_classes=K, **args) returns an nn.Module
    torchvision:resnet18             torchvision's classifiers
    hf-hub:timm/resnet50.a1_in1k     a repository of the Hugging Face hub in timm's form; timm downloads it
    local-dir:FOLDER                 a folder in timm's form, such as an export of this project (`kdcore.local_dir`)

Not here: how they are built (`kdcore.models`), and what a network must have (`kdcore.protocol`).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from kdcore.errors import Refused, did_you_mean, raised_at, typed_line

LOCAL_DIR, HF_HUB, TORCHVISION = "local-dir:", "hf-hub:", "torchvision:"
OWN_PREFIXES = ("cifar_", "mobilenetv1")  # what the names of this project's networks begin with

# Top-level modules that the user named. A file may name a function of these, and of no others: a folder of weights
# never decides what code runs.
BUILDER_MODULES: set[str] = set()


def module_of(model: str) -> str | None:
    """Return the module of a name such as `package.module:function`; None for a name of another form."""
    if model.startswith((LOCAL_DIR, HF_HUB, TORCHVISION)):
        return None
    match = re.fullmatch(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_][\w.]*)", model)
    return match[1] if match else None


def builder_of(model: str) -> Callable[..., Any]:
    """Import the function that a name such as `package.module:function` means. Refused where there is none."""
    module_name = module_of(model)
    assert module_name is not None, "a name of this form"
    try:
        found: Any = sys.modules.get(module_name) or importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if not f"{module_name}.".startswith(f"{missing}."):
            raise Refused(f"model {model!r}: {module_name} imports {missing!r}, which is not installed") from error
        raise Refused(
            f"model {model!r}: there is no module {module_name!r}; name its file as a plug-in (plugins: [./nets.py]), "
            "or put its folder onto PYTHONPATH"
        ) from error
    except Refused as error:
        raise Refused(f"model {model!r}: {error}") from error
    except Exception as error:
        place = raised_at({module_name.partition(".")[0]}, error)
        raise Refused(
            f"model {model!r}: {module_name} does not import ({typed_line(error)}{place}); correct it"
        ) from error
    name = model.partition(":")[2]
    for part in name.split("."):
        if not hasattr(found, part):
            known = [one for one in dir(found) if not one.startswith("_")]
            hint = did_you_mean(part, known, "define it there", cutoff=0.5)
            raise Refused(f"model {model!r}: {module_name} has no {name!r}; {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise Refused(
            f"model {model!r}: {name} is of type {type(found).__name__}; name a function that returns the network"
        )
    BUILDER_MODULES.add(module_name.partition(".")[0])
    return found


def own_place(error: BaseException) -> str:
    """Return the last line of the user's own modules that an error came through: ' at FILE:LINE'; '' for none."""
    return raised_at(BUILDER_MODULES, error)


def names_if_unknown(model: str) -> tuple[str, ...] | None:
    """Return timm's names if this one occurs in no file of its networks; None for others and the project's own.

    Read from the files' text: importing timm takes longer than everything else that is done before a name is refused.
    A plug-in that registers networks imports timm itself; then its registry is asked.
    """
    if "timm" in sys.modules or model.startswith(OWN_PREFIXES):
        return None
    words, names = _words_of_networks()
    return None if model.partition(".")[0] in words else names


@cache
def _words_of_networks() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return every word in the files of timm's networks, and the names that they register."""
    timm = importlib.util.find_spec("timm")
    places = (timm.submodule_search_locations if timm else None) or ()
    files = [file for place in places for file in sorted((Path(place) / "models").glob("*.py"))]
    text = "\n".join(file.read_text("utf-8") for file in files)
    return frozenset(re.findall(r"\w+", text)), tuple(re.findall(r"@register_model\s+def (\w+)", text))


def check_torchvision(model: str) -> str:
    """Return the bare name of one of torchvision's classifiers. Refused, with the nearest, for another."""
    from torchvision import models

    name, known = model.removeprefix(TORCHVISION), models.list_models(module=models)
    if name not in known:
        hint = did_you_mean(name, known, "torchvision.models.list_models() lists the names", n=4, cutoff=0.5)
        raise Refused(f"unknown model {model!r}; {hint}")
    return name


def check_hub(model: str) -> None:
    """Refuse a malformed name of a hub's repository."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", model.removeprefix(HF_HUB)):
        raise Refused(f"model {model!r}: a repository is OWNER/NAME; write it like {HF_HUB}timm/resnet50.a1_in1k")


def short_name(model: str) -> str:
    """Return a network's name without its origin, for where there is no room for that: the last part of it."""
    if model.startswith(LOCAL_DIR):
        return PurePath(model.removeprefix(LOCAL_DIR)).name
    return model.rpartition(":")[2].rpartition("/")[2]
