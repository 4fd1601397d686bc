"""Importing big libraries without looking for garbage meanwhile.

What an import makes, stays. Python's collector does not know that: it looks through a million objects again and again,
a quarter of the time that `import torch, timm` takes.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Keep the collector off in the body, which imports the module, and what is there by then out of its sight.

    Nothing happens where the module is there already: what a process makes after its imports is looked through as ever.
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
        atexit.register(gc.unfreeze)  # at its end Python frees all: libraries in C++ complain of what it cannot
        if was_on:
            gc.enable()
