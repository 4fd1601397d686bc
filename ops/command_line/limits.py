"""Choices and limits that the command line shares with the modules behind it, without those modules' imports."""

from __future__ import annotations

FORMS = ("torch", "compiled", "onnx")  # in which `benchmark` measures a network
PRECISIONS = ("fp16", "int8")  # of the smaller files of `export`
MAX_LOSS = 0.01  # of top-1 on the validation images; such a file that loses more is refused
