"""Python's collector of garbage is off while something big is imported, once, and on afterwards.

That no library complains at the end of such a process: `tests/ops/reproduce/test_lanes.py`, which starts one.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pathlib import Path

import pytest

from kdcore.importing import importing


@pytest.fixture(autouse=True)
def frozen():
    """Put back what the collector looks at."""
    yield
    gc.unfreeze()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that notes whether it was imported with the collector on."""
    (tmp_path / "big_library.py").write_text("import gc\nwas_on = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "big_library"
    sys.modules.pop("big_library", None)


def test_the_collector_is_off_in_an_import_and_on_after_it(library):
    before = gc.get_freeze_count()
    with importing(library):
        found = import_module(library)
    assert not found.was_on
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_what_is_made_after_the_imports_is_collected(library):
    with importing(library):
        import_module(library)
    frozen_by_then = gc.get_freeze_count()
    with importing(library):
        assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen_by_then  # of what is frozen, something may have gone


def test_an_import_that_fails_leaves_it_on():
    with pytest.raises(ModuleNotFoundError), importing("no_such_library"):
        import_module("no_such_library")
    assert gc.isenabled()


def test_an_import_within_another_leaves_it_off(library):
    with importing("no_such_library"):
        with importing(library):
            import_module(library)
        assert not gc.isenabled()
    assert gc.isenabled()
