"""What the model card says of a run's metrics."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from cluster.tracking.folder import RunFolder
from ops.export import latency, model_card
from ops.history import DECISION, Group, Run, grouped


@pytest.mark.parametrize(("class_mean", "shown"), [(0.25, ["top-1", "mean per-class accuracy"]), (0.5, ["top-1"])])
def test_the_mean_over_classes_is_told_where_it_is_not_top1(tmp_path, monkeypatch, class_mean, shown):
    RunFolder(tmp_path).write_result({"metrics": {"val/top1": 0.5, "val/class_mean_top1": class_mean, "val/nll": 1.0}})
    monkeypatch.setattr(model_card, "repetitions_in_mlflow", lambda *_: Group(()))
    rows, set_aside, stops = model_card.reported_metrics(tmp_path, parts=None)
    assert [(row["name"], row["value"]) for row in rows] == list(zip(shown, ["50.00%", "25.00%"], strict=False))
    assert (set_aside, stops) == (0, "")


@pytest.mark.parametrize(("status", "told"), [("FINISHED", "45.00% ± 7.07% (n = 2)"), ("KILLED", "-")])
def test_seeds_that_a_sweep_has_stopped_leave_no_spread(tmp_path, monkeypatch, status, told):
    """That of the others, its best, stood there."""
    RunFolder(tmp_path).write_result({"metrics": {"val/top1": 0.5}})
    one = Run("0", "0", "0", "FINISHED", 0.0, {"seed": "0"}, {}, {"val/top1": 0.5})
    other = replace(one, status=status, recipe={"seed": "1"}, tags={DECISION: "worse"}, metrics={"val/top1": 0.4})
    monkeypatch.setattr(model_card, "repetitions_in_mlflow", lambda *_: grouped([one, other])[0])
    rows, _, stops = model_card.reported_metrics(tmp_path, parts=None)
    assert [(row["value"], row["all"]) for row in rows] == [("50.00%", told)]
    assert stops == ("1 of 2 seeds stopped" if status == "KILLED" else "")


@pytest.mark.parametrize(("device", "named"), [("cuda:0", ", cuda: NVIDIA H100 (8 threads"), ("cpu", "GiB (8 threads")])
@pytest.mark.parametrize("each", [True, False])
def test_the_card_names_a_gpu_only_for_what_ran_on_it(tmp_path, device, named, each):
    """ONNX Runtime's times, and those of a run on the CPU, stood under the GPU's name. each: as rows have it now."""
    common = {"network": "student", "size": [8, 8], "batch": 1, "p50_ms": 1.0, "p95_ms": 2.0, "images_per_second": 1e3}
    devices = {"torch": device, "onnx": "cpu"}
    rows = [{"form": form, **common, **({"device": of} if each else {})} for form, of in devices.items()]
    facts = {"gpus": ["NVIDIA H100"], "machine": "16 cores, 128 GiB", "packages": {"torch": "2.9"}}
    whole = {"facts": facts, "threads": 8, "rows": rows, **({} if each else {"device": device})}
    (tmp_path / "benchmark.json").write_text(json.dumps(whole))
    template = model_card.environment().get_template("model_card.md.j2")
    context = template.new_context({"latencies": model_card.latencies(tmp_path, (8, 8))})
    shown = "".join(template.blocks["latency"](context))
    assert named in shown
    assert f"| torch | {device} | 1 |" in shown
    assert "| onnx | cpu | 1 |" in shown


def test_a_row_tells_which_device_ran_it(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "write_onnx", lambda *given: None)
    monkeypatch.setattr(latency, "onnx_session", lambda path: None)
    monkeypatch.setattr(latency, "onnx_call", lambda session, images: lambda: None)
    for form, expected in (("torch", "meta"), ("onnx", "cpu")):
        (made,) = latency.subjects_of("student", nn.Flatten(), form, [1], (8, 8), torch.device("meta"), tmp_path)
        made.take_turn(0.0)
        assert made.summary()["device"] == expected
