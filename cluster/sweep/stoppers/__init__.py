"""The rules that stop runs of a sweep early, one a file. Importing this package imports them all, which registers them.

base    what a rule is asked, and how SPACE.yaml names one
asha    asynchronous successive halving
median  the median rule
"""

import importlib
import pkgutil

from cluster.sweep.stoppers.base import REGISTRY, Curve, Mode, Report, Stopper, parse_stopper

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["REGISTRY", "Curve", "Mode", "Report", "Stopper", "parse_stopper"]
