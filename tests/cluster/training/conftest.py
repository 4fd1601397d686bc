"""Shared by the tests of training."""

from __future__ import annotations

import pytest


class Board:
    """Stands in for the actor: what it would answer."""

    def __init__(self, step: int, failed: set[int]) -> None:
        self.answer = (step, failed)
        self.end = self

    def remote(self) -> tuple[int, set[int]]:
        return self.answer


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> type[Board]:
    monkeypatch.setattr("cluster.training.recovery.ray.get", lambda answer: answer)
    return Board
