"""Codes are fitted to numbers alone: a teacher that gives others is refused by the column's name."""

from __future__ import annotations

import pytest
import torch

from kdcore.batch import Needs, TeacherOutputs
from kdcore.errors import Refused
from pipelines.cache.columns import Storage, columns_for
from pipelines.cache.fitting import fitted_codes
from pipelines.cache.rows import encode

NEEDS = Needs(teacher_logits=True, teacher_taps=frozenset({"layer2"}))
STORAGE = Storage(logits="sparse", sparse_bytes=32, sparse_top=4, project={"layer2": 2})
COLUMNS = columns_for(NEEDS, {"layer2": (6, 2, 2)}, 100, (8, 8), STORAGE)


def outputs(seed: int) -> TeacherOutputs:
    drawn = torch.Generator().manual_seed(seed)
    features = {"layer2": torch.randn(300, 6, 2, 2, generator=drawn)}
    return TeacherOutputs(logits=torch.randn(300, 100, generator=drawn), features=features)


@pytest.mark.parametrize("wrong", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("column", ["logits", "features.layer2"])
@pytest.mark.parametrize("where", ["fit", "held back", "stored"])
def test_a_number_that_is_none_is_refused_by_its_column(where: str, column: str, wrong: str) -> None:
    """It ended in a traceback of the singular value decomposition, or was fitted, and every row was blamed later."""
    batches = {"fit": outputs(0), "held back": outputs(1), "stored": outputs(2)}
    values = batches[where].logits if column == "logits" else batches[where].features["layer2"]
    assert values is not None
    values[7].flatten()[3] = float(wrong)

    def build() -> None:
        codes, _ = fitted_codes(COLUMNS, lambda: [batches["fit"]], lambda: [batches["held back"]])
        encode(COLUMNS, batches["stored"], codes)

    with pytest.raises(Refused, match=rf"^the teacher's {column} has a number that is {wrong}; find the cause"):
        build()
