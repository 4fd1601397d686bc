"""What MLflow's errors mean, where the store is a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.recipe import parse
from cluster.tracking.run import close_run, open_run
from kdcore.errors import Refused


@pytest.mark.parametrize("gone", ["", "mlflow.db"])
def test_a_file_that_was_deleted_under_mlflow(recipe, gone):
    """MLflow keeps it open, and writes nothing any more: of a new run, and of one that goes on."""
    config = parse(recipe(scaling__num_workers=0))
    open_run(config, "train")
    close_run(config, "KILLED")
    place = Path(config.output_dir) / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(Refused, match=r"mlflow.db cannot be written: .* deleted or replaced.*; restart Python"):
        open_run(config, "train")
