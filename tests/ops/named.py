"""The named recipes, each read once for all tests of a process."""

from __future__ import annotations

from functools import cache

from ops import catalog

loaded = cache(catalog.load)
text = cache(catalog.text)

NAMES = catalog.names()
OWN = ["alone", "feature_only", "kd", "simkd", "teacher", "wttm"]
CIFAR_ROWS = [name for name in NAMES if name.startswith("cifar100/")]
