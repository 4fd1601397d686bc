"""Choices and limits that both the command line and the module behind it name, without that module's imports."""

from __future__ import annotations

FORMS = ("torch", "compiled", "onnx")  # in which `benchmark` measures a network
PRECISIONS = ("fp16", "int8")  # of the smaller files of `export`
MAX_LOSS = 0.01  # of top-1 on the validation images, from which on such a file is refused
