"""Every loss of the project, one family per file. Importing this package imports them all, which registers them."""

import importlib
import pkgutil

from kdcore.terms.base import REGISTRY, Pair, Stateless, Term, TermContext, TermInputs, parse_term

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["REGISTRY", "Pair", "Stateless", "Term", "TermContext", "TermInputs", "parse_term"]
