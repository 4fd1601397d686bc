"""What a checkpoint may hold: what torch reads back without running anything that a file names.

Optimisers, networks and losses from elsewhere keep what they like in their states, and a file takes nearly all of it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcore.errors import Refused

KEEP = "keep tensors, numbers and text, and lists or dicts of these"


def refuse_unreadable(owner: str, state: Any) -> None:
    """Refuse a state that could be written, but not read again, by the type and the place of what it keeps."""
    if is_readable(state):
        return
    place, value = unreadable(state)
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    raise Refused(
        f"{owner} keeps a {name} in its state ({'.'.join(map(str, place))}), and a checkpoint that holds one could not "
        f"be read; {KEEP}"
    )


def is_readable(state: Any) -> bool:
    """Whether torch reads a state back with `weights_only`; its tensors, which it does, are left out."""
    file = io.BytesIO()
    try:
        torch.save(without_tensors(state), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # an object's own methods run while it is pickled, and may raise anything
        return False
    return True


def without_tensors(state: Any) -> Any:
    """Return nested containers as they lie in a checkpoint, with None in the place of each tensor."""
    if type(state) in (Tensor, nn.Parameter):
        return None
    if isinstance(state, dict):
        return {key: without_tensors(value) for key, value in state.items()}
    return type(state)(map(without_tensors, state)) if type(state) in (list, tuple) else state


def unreadable(state: Any) -> tuple[list[Any], object]:
    """Return the first innermost value that cannot be read, with the keys that lead to it."""
    inside = state.items() if isinstance(state, dict) else enumerate(state) if type(state) in (list, tuple) else ()
    for key, value in inside:
        if not is_readable(value):
            place, found = unreadable(value)
            return [key, *place], found
    return [], next((key for key in state if not is_readable(key)), state) if isinstance(state, dict) else state


def unread_types(path: Path) -> list[str]:
    """Return the types in a torch file for which it is not read; none for a file that is damaged."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # whatever a damaged file leads to
        return []
