"""Reading files of weights as people have them, without running any code, and fitting them to a network's own names.

What is safe and unambiguous is done, and reported in one line; everything else is refused with a remedy. No pickled
object of a file is ever built: an inert one stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdcore.errors import Refused
from kdcore.located import LFS_POINTER, refuse_pointer
from kdcore.remarks import warn_once

# Names under which programs keep a moving average next to the trained weights; timm's is `state_dict_ema`.
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
PROFILED = ("total_ops", "total_params")  # what thop's profile() leaves in a network
COUNTER = "num_batches_tracked"  # of batch norm; files from before torch 0.4.1 lack it


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Load the tensors of a .safetensors file or of a torch file; never a pickled object.

    A torch file holds them at its top level, or under one key, such as 'state_dict', 'model' or 'net'; if it also holds
    a moving average of the same network, that is taken. Refused for any other file.
    """
    try:
        with Path(path).open("rb") as file:
            refuse_pointer(file.read(len(LFS_POINTER)), str(path))
        loaded = _load_safetensors(path) if str(path).endswith(".safetensors") else _load_torch(path)
    except (OSError, Refused):
        raise
    except safetensors.SafetensorError as error:
        raise Refused(
            f"{path}: not a file of tensors, but damaged or cut off ({error}); fetch or write it again"
        ) from error
    except Exception as error:
        raise Refused(f"{path}: not a file of tensors ({type(error).__name__}); convert it to .safetensors") from error
    return _tensors_in(loaded, path)


def to_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file; tensors that share memory, as CoaT's do, are written once.

    The format has no shared tensors: as in safetensors' own `save_model`, the file's metadata map each name left out to
    the one that stands for it.
    """
    first: dict[Any, str] = {}
    names = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        names[name] = first.setdefault(place, name) if tensor.numel() else name
    aliases = {name: stand_in for name, stand_in in names.items() if name != stand_in}
    written = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in aliases}
    return safetensors.torch.save(written, aliases or None)


def _load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Load a safetensors file, including the names that another one stands for (see `to_safetensors`)."""
    with safetensors.safe_open(path, framework="pt") as file:
        aliases = file.metadata() or {}
    loaded = safetensors.torch.load_file(path)
    return loaded | {name: loaded[stand_in] for name, stand_in in aliases.items() if stand_in in loaded}


class _Inert:
    """A stand-in for any pickled object that is not a tensor: it accepts any arguments and state, and keeps nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _load_torch(path: str | Path) -> Any:
    """Load a torch file with `weights_only`; objects of unknown classes are replaced by inert ones."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)  # reads the names, runs nothing
    except ValueError:  # the format before torch 1.6
        names = []
    with torch.serialization.safe_globals([(_Inert, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors_in(loaded: Any, path: str | Path) -> dict[str, Tensor]:
    """Return the one mapping of names to tensors in a file's content. Refused if there is none, or it is ambiguous."""
    found: dict[str, Any] = loaded if isinstance(loaded, dict) else {}
    inside = {
        key: {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
        for key, value in found.items()
        if isinstance(value, dict) and any(isinstance(tensor, Tensor) for tensor in value.values())
    }
    averages = [key for key in AVERAGES if key in inside]
    trained = [key for key in inside if key not in AVERAGES]
    if len(averages) == 1 and len(trained) <= 1:
        if trained:
            warn_once(f"{path}: took {averages[0]!r}, the moving average, which is next to {trained[0]!r}")
        return inside[averages[0]]
    if len(inside) > 1:
        raise Refused(
            f"{path}: holds the tensors of several networks, under {', '.join(map(repr, inside))}; write the one you "
            "mean to a file of its own: safetensors.torch.save_file"
        )
    tensors = inside[trained[0]] if trained else {k: v for k, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise Refused(
            f"{path}: no tensors at its top level, nor under a key such as 'state_dict', but {_kind(loaded)}; save the "
            "network's state_dict()"
        )
    return tensors


def _kind(loaded: Any) -> str:
    """Describe the content of a file that holds no tensors."""
    if isinstance(loaded, _Inert):
        return "a pickled network object"
    if not isinstance(loaded, dict):
        return type(loaded).__name__
    pickled = [key for key, value in loaded.items() if isinstance(value, _Inert)]
    return f"dict {list(loaded)[:6]}" + (f", with a pickled network object under {pickled[0]!r}" if pickled else "")


def fit_names(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Return a file's tensors under the network's own names, as far as that is unambiguous.

    A prefix that all of the network's names have in the file is stripped (module., _orig_mod., model., ...), and
    tensors with another one are left out; so is one that all of a file's names have where it lacks some, such as a
    classifier; a profiler's counts are left out; batch norm's counts of batches are added
    if the file has none. Refused if several networks in the file fit.
    """
    plain = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in PROFILED}
    counters = {name: tensor for name, tensor in own.items() if name.rpartition(".")[2] == COUNTER}
    wanted = own.keys() - counters.keys()
    first = min(wanted, default="")
    prefixes = [name.removesuffix(first) for name in plain if name == first or name.endswith(f".{first}")]
    fitting = [prefix for prefix in prefixes if all(prefix + name in plain for name in wanted)]
    if len(fitting) > 1:
        raise Refused(
            f"{path}: {len(fitting)} networks in it fit, under {', '.join(repr(prefix) for prefix in fitting)}; write "
            "the one you mean to a file of its own: safetensors.torch.save_file"
        )
    prefix = fitting[0] if fitting else _prefix_of_all(own, plain)
    fitted = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
    added = {name: tensor for name, tensor in counters.items() if fitting and name not in fitted}
    if added.keys() != counters.keys() and added:
        added = {}  # some are present, so a missing one is an error
    done = {
        f"took the tensors under {prefix!r} (of {len(plain)}, {len(fitted)})": prefix,
        f"left out a profiler's {len(tensors) - len(plain)} counts": len(tensors) - len(plain),
        f"set batch norm's {len(added)} missing batch counts, which affect nothing, to 0": added,
    }
    if any(done.values()):
        warn_once(f"{path}: {'; '.join(text for text, is_done in done.items() if is_done)}")
    return fitted | added


def _prefix_of_all(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Return the prefix without which all of a file's names are the network's; "" where there is none."""
    parts = next(iter(tensors), "").split(".")
    prefixes = ["".join(f"{part}." for part in parts[:number]) for number in range(len(parts))]
    return next(
        (p for p in prefixes if all(name.startswith(p) and name.removeprefix(p) in own for name in tensors)), ""
    )
