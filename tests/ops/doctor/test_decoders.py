"""`doctor` decodes regions of a JPEG with DALI: one that fails, lies, ends its process or hangs is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ops.doctor import decoders
from ops.doctor.findings import PROBE_SECONDS, Finding
from tests.ops.doctor.probing import only, raiser


def test_dali_really_decodes():
    assert decoders.apart("cpu") < 0.01
    assert decoders.apart_in_a_process("cpu") == decoders.apart("cpu")


def test_another_region_is_seen(monkeypatch):
    start, shape = decoders.random_regions()
    right = decoders.a_picture()
    for axis in (0, 1):  # by one pixel
        monkeypatch.setattr(decoders, "a_picture", lambda axis=axis: (right[0], np.roll(right[1], 1, axis=axis)))
        assert decoders.apart("cpu") > decoders.WRONG
    assert (start >= 0).all()
    assert (start + shape <= [375, 500]).all()


def test_decoders_that_fail_or_lie_are_failures(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(decoders, "apart_in_a_process", {"mixed": 31.0}.__getitem__)
    cpu, gpu = decoders.probe_decoders(Path())
    assert cpu == Finding("decoders", "ok", "DALI decodes regions of JPEGs (cpu)")
    assert "wrongly (mixed): off by 31 of 255" in only([gpu], "fail").seen
    monkeypatch.setattr(decoders, "apart", raiser(ImportError("libnvjpeg.so")))
    monkeypatch.setattr(decoders, "apart_in_a_process", raiser(RuntimeError("ended by signal 11")))
    cpu, gpu = decoders.probe_decoders(Path())
    assert "ImportError: libnvjpeg.so" in cpu.seen
    assert (cpu.level, cpu.remedy) == ("fail", "make env")
    assert "signal 11" in gpu.seen
    assert "leave data.decode at auto" in only([gpu], "fail").remedy


@pytest.mark.parametrize(
    ("code", "said"), [("import os; os.kill(os.getpid(), 11)", "signal 11"), ("raise OSError('no')", "OSError: no")]
)
def test_a_decoder_that_ends_its_process_is_named(monkeypatch, code, said):
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda words, **rest: run([words[0], "-c", code], **rest))
    with pytest.raises(RuntimeError, match=said):
        decoders.apart_in_a_process("mixed")


def test_a_decoder_that_hangs_is_ended_before_its_check_is_given_up(monkeypatch):
    """The check ended first, and the process stayed behind with its memory of the GPU."""
    started, popen = [], subprocess.Popen
    hang = "import threading; threading.Event().wait()"

    def start(words, **rest):
        started.append(popen([words[0], "-c", hang], **rest))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    assert decoders.GPU_SECONDS <= PROBE_SECONDS / 2
    monkeypatch.setattr(decoders, "GPU_SECONDS", 0.05)
    monkeypatch.setattr(decoders.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(decoders, "apart", lambda device: 0.0)
    _, gpu = decoders.probe_decoders(Path())
    assert "no answer within 0.05 s; the process was ended" in only([gpu], "fail").seen
    assert "set it to cpu" in gpu.remedy
    assert started[0].returncode < 0
