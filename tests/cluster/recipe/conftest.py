"""Tests of plug-ins leave nothing behind that the plug-ins have registered."""

from __future__ import annotations

import sys

import pytest

from cluster.recipe import plugins
from cluster.tracking.tracker import Tracker
from kdcore import named_models
from kdcore.terms import REGISTRY
from pipelines.data import kinds


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Whatever a plug-in registers is gone after its test."""
    monkeypatch.setattr(plugins, "_FINGERPRINTS", {})
    monkeypatch.setattr(kinds, "KINDS", list(kinds.KINDS))
    terms, modules = dict(REGISTRY), set(sys.modules)
    trackers, builders = dict(Tracker.registry), set(named_models.BUILDER_MODULES)
    yield
    for registry, before in ((REGISTRY, terms), (Tracker.registry, trackers)):
        registry.clear()
        registry.update(before)
    named_models.BUILDER_MODULES.intersection_update(builders)
    for name in set(sys.modules) - modules:
        if name.split(".")[0].startswith(("own_", "my_")):
            del sys.modules[name]
