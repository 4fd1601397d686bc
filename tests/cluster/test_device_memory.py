"""A full GPU is refused in a line, with what to make smaller, wherever it is met."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from cluster import evaluation, passes
from cluster.cache import builder, outlook, verify
from cluster.cache.builder import Builder
from cluster.device_memory import refuse_full_gpu
from cluster.probing import Probe
from cluster.rank import Rank
from cluster.teachers import class_statistics
from cluster.training import replay, worker
from kdcore.errors import Refused
from ops.evaluation import predict
from ops.reproduce import slices
from pipelines.cache.store import Unit

# As PyTorch 2.11 said it on an H100.
SAID = (
    "CUDA out of memory. Tried to allocate 250.00 MiB. GPU 0 has a total capacity of 79.18 GiB of which 226.62 MiB is "
    "free. Process 3430 has 7.32 GiB memory in use. Including non-PyTorch memory, this process has 6.32 GiB memory in "
    "use. Of the allocated memory 5.12 GiB is allocated by PyTorch, with 3.70 GiB allocated in private pools."
)


def full(*_, **__):
    raise torch.OutOfMemoryError(SAID)


def test_what_is_said():
    with pytest.raises(Refused) as refused, refuse_full_gpu("take less"):
        full()
    assert str(refused.value) == (
        "out of GPU memory: 250.00 MiB more were wanted, 226.62 MiB of 79.18 GiB are free; take less"
    )


def test_words_that_are_not_known():
    with pytest.raises(Refused, match=r"^out of GPU memory; take less$"), refuse_full_gpu("take less"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_training_evaluation_caches_and_runs_side_by_side(monkeypatch):
    monkeypatch.setattr(worker, "parse", full)
    with pytest.raises(Refused, match=r"take a smaller train\.micro_batch"):
        worker.train_worker(SimpleNamespace(config={}))
    monkeypatch.setattr(passes, "counts_for", full)
    loader, rank = SimpleNamespace(source=None), Rank(0, 1, torch.device("cpu"))
    for look in (passes.evaluate, passes.teacher_pass):
        with pytest.raises(Refused, match=r"take a smaller data\.evaluation_batch"):
            look(torch.nn.Identity(), loader, 1, rank)
    on_cpu = SimpleNamespace(run=SimpleNamespace(rank=rank, indexes={"val": range(3)}), loaders={"val": loader})
    loader.max_batch, loader.load = 3, full
    with pytest.raises(Refused, match=r"take a smaller data\.evaluation_batch"):
        Probe.embed(on_cpu, torch.nn.Identity(), "val")
    monkeypatch.setattr(evaluation, "assemble", full)
    with pytest.raises(Refused, match=r"take a smaller data\.evaluation_batch"):
        evaluation.evaluate_share(None, None, None, rank)
    monkeypatch.setattr(replay, "check_run", full)
    with pytest.raises(Refused, match=r"on the CPU, with scaling\.use_gpu=false"):
        replay.replay_step(None, 0, None, None)
    monkeypatch.setattr(passes, "LayerQuality", full)
    with pytest.raises(Refused, match=r"take a smaller data\.evaluation_batch"):
        passes.quality_pass(None, loader, [], 2)
    with pytest.raises(Refused, match="128 images at once on every machine: take a GPU with more"):
        class_statistics.class_means(None, SimpleNamespace(max_batch=1, load=full), 1, 2, rank)
    monkeypatch.setattr(class_statistics, "smallest_class", full)
    with pytest.raises(Refused, match="128 images at once on every machine: take a GPU with more"):
        class_statistics.similarity_of_classes(None, loader, [], 2, rank)
    monkeypatch.setattr(builder, "codes_of", full)
    unit = Unit("train", 0, 0, 1)
    with pytest.raises(Refused, match=r"take a smaller cache\.batch_size"):
        Builder.build(SimpleNamespace(device=None), unit, MagicMock(), "", {}, full)
    full_run = SimpleNamespace(class_statistics=full)
    with pytest.raises(Refused, match=r"take a smaller cache\.batch_size"):
        Builder.constants(SimpleNamespace(teacher=SimpleNamespace(classifier=None), head=None, run=full_run), None)
    monkeypatch.setattr(verify, "require_teacher", full)
    with pytest.raises(Refused, match=r"take a smaller cache\.batch_size"):
        verify.verify(None, 1, None)
    monkeypatch.setattr(outlook, "use_worker_threads", full)
    with pytest.raises(Refused, match=r"take a smaller train\.micro_batch"):
        outlook.outlook(None, None, 1)
    monkeypatch.setattr(slices, "take_turns", full)
    with pytest.raises(Refused, match=r"--side-by-side 4 or fewer"):
        slices.run_slice([], None, None, device=None, seconds=1, side_by_side=9)
    with pytest.raises(Refused, match="take a GPU with more of it; what is saved"):
        slices.run_slice([], None, None, device=None, seconds=1, side_by_side=1)


def test_photographs(monkeypatch):
    """The forward pass of a generator, which a decorator does not see."""
    student = torch.nn.Identity()
    student.register_forward_pre_hook(full)
    batch = SimpleNamespace(images=torch.zeros(1))
    loader = SimpleNamespace(max_batch=1, load=lambda requests: [batch for _ in requests])
    rank, config = Rank(0, 1, torch.device("cpu")), SimpleNamespace(data=SimpleNamespace(loader="dali"))
    parts = SimpleNamespace(indexes={}, rank=rank, config=config, evaluation_loader=lambda split: loader)
    monkeypatch.setattr(predict, "replace", lambda one, **changes: one)
    monkeypatch.setattr(predict, "load_student", lambda *_: student)
    monkeypatch.setattr(predict, "autocast", lambda *_: nullcontext())
    with pytest.raises(Refused, match=r"take a smaller data\.evaluation_batch"):
        next(predict.likeliest(parts, None, range(1), 1))
