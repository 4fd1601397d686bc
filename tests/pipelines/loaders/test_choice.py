"""Which loader is built and where it decodes: wrong choices are refused, and `auto` says what it chose."""

from __future__ import annotations

import pytest
import torch

from kdcore.errors import Refused
from pipelines.data.source import Source
from pipelines.loaders import choose, dali
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from tests.pipelines.loaders.loading import MEAN, PLAIN, STD


def test_wrong_choices(odd_index: Source) -> None:
    plan = ViewPlan(PLAIN, 0, 13)
    rest = {"mean": MEAN, "std": STD, "device": torch.device("cpu")}
    with pytest.raises(Refused, match="no loader 'torch'; choose 'dali', 'reference' or 'resident'"):
        build_loader("torch", odd_index, plan, **rest)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="decode='gpu' with batches on cpu; use decode='cpu'"):
        build_loader("dali", odd_index, plan, decode="gpu", **rest)  # type: ignore[arg-type]

    with pytest.raises(Refused, match="prefetch=1; give at least"):
        build_loader("dali", odd_index, plan, prefetch=1, **rest)  # type: ignore[arg-type]


def test_auto_decodes_on_the_cpu_beside_a_gpu_and_says_why(odd_index: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    said: list[str] = []
    monkeypatch.setattr(dali, "DaliLoader", lambda *_, decode_on_gpu, **__: made.append(decode_on_gpu))
    monkeypatch.setattr(choose, "Finish", lambda *_, **__: None)
    monkeypatch.setattr(choose, "warn_once", said.append)
    plan, cuda = ViewPlan(ViewPolicy(size=16), 0, len(odd_index)), torch.device("cuda", 0)
    for decode in ("auto", "cpu", "gpu"):
        build_loader("dali", odd_index, plan, mean=(0, 0, 0), std=(1, 1, 1), device=cuda, decode=decode)  # type: ignore[call-overload]
    assert made == [False, False, True]
    assert [line.partition(":")[0] for line in said] == ["data.decode=auto"]
