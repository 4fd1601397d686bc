"""A user's own networks, as a module that can be imported."""

from __future__ import annotations

import sys

import pytest

from kdcore import named_models
from tests.own_code import write_own_code


@pytest.fixture
def own_nets(tmp_path, monkeypatch):
    """`own_nets` is importable, and forgotten afterwards."""
    monkeypatch.setattr(named_models, "BUILDER_MODULES", set())
    monkeypatch.setattr("kdcore.local_dir.BUILDER_MODULES", named_models.BUILDER_MODULES)
    monkeypatch.syspath_prepend(str(write_own_code(tmp_path / "code")))
    yield
    sys.modules.pop("own_nets", None)
