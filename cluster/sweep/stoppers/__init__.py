"""The rules that stop runs of a sweep early, one per file. Importing this package imports and so registers them all.

base    what a rule is asked, and how SPACE.yaml names one
asha    asynchronous successive halving
median  the median rule
"""

import importlib
import pkgutil

from cluster.sweep.stoppers.base import REGISTRY, Curve, Report, Stopper, parse_stopper

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["REGISTRY", "Curve", "Report", "Stopper", "parse_stopper"]
