"""What holds of every loss function, checked one property at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

PROPERTIES = ("restated", "float32", "float16", "autocast", "gradcheck", "equal")


@dataclass(frozen=True)
class LossCase:
    """loss(student, teacher) -> [B]; restated: the same in plain numpy; equal(teacher): the value at student = teacher
    (of two tensors of the teacher's shape)."""

    loss: Callable[[Tensor, Tensor], Tensor]
    student: Tensor
    teacher: Tensor
    restated: Callable[[np.ndarray, np.ndarray], Any]
    equal: Callable[[np.ndarray], Any]

    def check(self, name: str) -> None:
        getattr(self, f"_{name}")()

    def _restated(self) -> None:
        value = self.loss(self.student, self.teacher)
        assert value.dtype == torch.float64
        assert value.shape == (len(self.student),)
        expected = np.asarray(self.restated(self.student.numpy(), self.teacher.numpy()))
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-9, atol=1e-12)

    def _float32(self) -> None:
        value = self.loss(self.student.float(), self.teacher.float())
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), self.loss(self.student, self.teacher), rtol=2e-5, atol=2e-6)

    def _float16(self) -> None:
        value = self.loss(self.student.half(), self.teacher.half())
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value.mean(), self.loss(self.student.float(), self.teacher.float()).mean(), rtol=1e-3, atol=1e-6
        )

    def _autocast(self) -> None:
        student, teacher = self.student.float(), self.teacher.float()
        with torch.autocast("cpu", torch.bfloat16):
            inside = self.loss(student, teacher)
        assert torch.equal(inside, self.loss(student, teacher))

    def _gradcheck(self) -> None:
        student = self.student.clone().requires_grad_(True)
        assert torch.autograd.gradcheck(lambda s: self.loss(s, self.teacher), (student,))

    def _equal(self) -> None:
        value = self.loss(self.teacher, self.teacher)
        expected = np.broadcast_to(np.asarray(self.equal(self.teacher.numpy()), dtype=float), value.shape)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-7, atol=1e-7)


@pytest.fixture
def loss_case() -> type[LossCase]:
    return LossCase


@pytest.fixture(params=PROPERTIES)
def loss_property(request: pytest.FixtureRequest) -> str:
    return request.param
