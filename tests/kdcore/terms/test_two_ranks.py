"""Terms in data-parallel training: two ranks with one micro-batch each are one rank with both."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdcore.batch import TeacherOutputs
from kdcore.terms import TermContext, TermInputs, parse_term
from tests.processes import run_ranks

B, K, D, N = 5, 4, 6, 20
COUPLED = {
    "dist": {"temperature": 2.0},
    "sp": {},
    "rkd": {},
    "pkt": {},
    "itrd": {"alpha": 1.01},
    "mlkd": {"temperatures": (2.0,), "standardise": True},
}
INDEPENDENT = {
    "wttm": {"gamma": 0.3},
    "simkd": {},
    "rld": {"temperature": 2.0, "correlation_weight": 2.0},
    "wkd_l": {"temperature": 2.0},
    "wkd_f": {"student_tap": "map", "teacher_tap": "map"},
}
TERMS = {**COUPLED, **INDEPENDENT}
MICRO_BATCHES = ([3, 17, 8, 0, 11], [4, 9, 1, 19, 6])
# Sample ids by step, rank and micro-batch, all of them unequal in number.
CRD_STEPS = ([[[3, 17, 8]], [[4, 9], [2, 5, 7]]], [[[0, 11]], [[1, 19], [6, 12, 10]]])


class Student(nn.Module):
    """A linear map of a sample's picture (a function of its id alone) to features and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.logits = nn.Linear(3, D), nn.Linear(D, K)
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            nn.init.normal_(weight, generator=generator)

    def forward(self, sample_ids: Tensor) -> TermInputs:
        pictures, teacher, logits = (
            torch.randn(N, n, generator=torch.Generator().manual_seed(n))[sample_ids] for n in (3, D, K)
        )
        vector = self.features(pictures)
        return TermInputs(
            labels=sample_ids % K,
            student_logits=self.logits(vector),
            teacher=TeacherOutputs(logits=logits, features=taps(teacher)),
            student_features=taps(vector),
            sample_ids=sample_ids,
            epoch=0.0,
        )


def taps(vector: Tensor) -> dict[str, Tensor]:
    """A vector, the map of one place that it comes from, and a map of two places."""
    return {
        "classifier_input": vector,
        "forward_features": vector[:, :, None, None],
        "map": torch.stack([vector, vector.square()], dim=2)[:, :, None],
    }


def module(name: str, fields: dict) -> nn.Module:
    shapes = {tap: features.shape[1:] for tap, features in taps(torch.zeros(1, D)).items()}
    similarity = torch.eye(K) / 2 + 0.5
    context = TermContext(
        *(shapes, shapes), num_classes=K, num_samples=N, class_similarity=similarity, sample_labels=torch.arange(N) % K
    )
    torch.manual_seed(0)
    return parse_term({"term": name, "weight": 1.0, **fields}).build(context)


def loss_and_gradients(name: str, sample_ids: list[int]) -> list[Tensor]:
    """The micro-batch's mean loss, and its gradient with respect to every weight of the student."""
    student = Student()
    loss = module(name, TERMS[name])(student(torch.tensor(sample_ids))).mean()
    gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    return [loss.detach(), *(torch.zeros(1) if g is None else g for g in gradients)]


def crd_run(steps: list[list[list[int]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return CRD's losses, and its buffers after the steps of one process, each of micro-batches of sample ids."""
    crd, student = module("crd", {"dim": 4, "num_negatives": 8}), Student()
    losses = []
    for micro_batches in steps:
        for sample_ids in micro_batches:
            losses.append(crd(student(torch.tensor(sample_ids))).detach())
        crd.end_step()
    return torch.cat(losses), {name: buffer.clone() for name, buffer in crd.named_buffers()}


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    results: dict[str, object] = {}
    for name in TERMS:
        results[name] = loss_and_gradients(name, MICRO_BATCHES[rank])
        for tensor in results[name]:
            dist.all_reduce(tensor)
            tensor /= 2
    results["crd"] = crd_run([step[rank] for step in CRD_STEPS])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    run_ranks(one_rank, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", TERMS)
def test_two_ranks_are_two_micro_batches(name, ranks):
    first, second = (loss_and_gradients(name, sample_ids) for sample_ids in MICRO_BATCHES)
    assert not torch.allclose(first[0], second[0])
    for rank in ranks:
        for value, a, b in zip(rank[name], first, second, strict=True):
            torch.testing.assert_close(value, (a + b) / 2)


@pytest.mark.parametrize("name", COUPLED)
def test_a_coupled_term_over_both_micro_batches_at_once_is_another_number(name):
    """Why the micro-batch's size is the recipe's and not the cluster's."""
    both = loss_and_gradients(name, MICRO_BATCHES[0] + MICRO_BATCHES[1])
    first, second = (loss_and_gradients(name, sample_ids) for sample_ids in MICRO_BATCHES)
    assert not torch.allclose(both[0], (first[0] + second[0]) / 2, rtol=1e-3)


def test_the_contrastive_bank_is_one_and_the_same_on_all_ranks(ranks):
    (_, first), (_, second) = (rank["crd"] for rank in ranks)
    assert first.keys() >= {"banks", "constants"}
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_contrastive_steps_are_those_of_one_rank_with_all_micro_batches(ranks):
    """However many micro-batches each rank has: its losses, the bank, and the constants, of the first micro-batch."""
    losses, buffers = crd_run([first + second for first, second in CRD_STEPS])
    parts = iter(losses.split([len(ids) for step in CRD_STEPS for rank in step for ids in rank]))
    expected: list[list[Tensor]] = [[], []]
    for step in CRD_STEPS:
        for rank, micro_batches in enumerate(step):
            expected[rank] += [next(parts) for _ in micro_batches]
    for (found, theirs), own in zip((rank["crd"] for rank in ranks), expected, strict=True):
        torch.testing.assert_close(found, torch.cat(own))
        for name in ("banks", "constants"):
            torch.testing.assert_close(theirs[name], buffers[name])
