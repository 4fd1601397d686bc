"""The named recipes, each read once for all tests of a process."""

from __future__ import annotations

from functools import cache

from ops import catalog

loaded = cache(catalog.load)
text = cache(catalog.text)
