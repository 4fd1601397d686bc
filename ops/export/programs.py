"""A network as a program: torch.export's model.pt2 and ONNX, for batches of any size.

Only its shapes are taken from here. The example that torch.export keeps in its file is zeros, and what torch notes at
every operation, the line of Python that it came from, is removed: it names folders of this machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from pipelines.files import write_whole


def example_of(size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Return a batch of 2 without content: [2,3,height,width]."""
    return torch.zeros(2, 3, *size, device=device)


def write_program(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as torch.export's program."""
    with without_remarks():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for module in program.graph_module.modules():
            if isinstance(module, torch.fx.GraphModule):
                for node in module.graph.nodes:
                    node.meta.pop("stack_trace", None)
        write_whole(path, lambda file: torch.export.save(program, file))


def has_remarks(path: Path) -> bool:
    """Return whether a program holds the lines of Python that its operations came from, as torch itself leaves them.

    Programs of earlier versions do, and hold images as their example. Nothing of the file is loaded.
    """
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        graphs = [name for name in file.namelist() if name.endswith("/models/model.json")]
        return any(b'"stack_trace"' in file.read(name) for name in graphs)
    return False


def write_onnx(network: nn.Module, example: Tensor, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a network as ONNX. facts: kept in its metadata, as JSON."""
    with without_remarks():
        made = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert made is not None, "a program, with dynamo"
        ClearMetadataAndDocStringPass()(made.model)
        made.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
        write_whole(path, made.model_proto.SerializeToString())


@contextlib.contextmanager
def without_remarks() -> Any:
    """Run the body with the exporters' messages silenced."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
