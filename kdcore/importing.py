"""Importing big libraries with the garbage collector off.

What an import creates stays. Python's collector does not know that: it scans a million objects again and again, which
is a quarter of the time that `import torch, timm` takes.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Turn the collector off in the body, which imports the module; then freeze every object that exists.

    Nothing happens if the module is already imported: objects made after a process's imports are collected as usual.
    """
    if module in sys.modules:
        yield
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # at exit Python frees everything: C++ libraries complain about what it cannot
        if was_on:
            gc.enable()
