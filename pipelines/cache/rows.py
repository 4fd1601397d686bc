"""Rows of columns: teacher outputs as the fields of all their columns, encoded and decoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from kdcore.batch import Classifier, Needs, TeacherOutputs
from kdcore.errors import Refused
from pipelines.cache.columns import FEATURES, INPUT_GRADIENT, LOGITS, Code, Column

HELD = "held"  # key, next to encoded rows: whether their codings hold every number


def row_bytes(columns: Iterable[Column]) -> int:
    """Return the bytes of a view."""
    widths = {"uint8": 1, "int8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4}
    return sum(widths[spec.dtype] * spec.width for column in columns for spec in column.fields().values())


def encode(columns: Iterable[Column], outputs: TeacherOutputs, codes: Mapping[str, Code]) -> dict[str, Tensor]:
    """Return {field: [B,width]} on the outputs' device.

    codes: {column name: what it is coded with}. Refused for a number that the coding cannot hold.
    """
    columns = tuple(columns)
    rows = encode_unchecked(columns, outputs, codes)
    if not bool(rows.pop(HELD).all()):
        refuse_not_held(columns, outputs, codes)
    return rows


def encode_unchecked(
    columns: Iterable[Column], outputs: TeacherOutputs, codes: Mapping[str, Code]
) -> dict[str, Tensor]:
    """Return what `encode` does, and under HELD whether the codings hold the numbers, without waiting for the device.

    Where they do not, `refuse_not_held` refuses them.
    """
    values = named(outputs)
    rows: dict[str, Tensor] = {}
    for column in columns:
        rows |= column.encode(values[column.name], codes.get(column.name))
    finite = [tensor.isfinite().all() for tensor in rows.values() if tensor.is_floating_point()]
    device = next(iter(rows.values())).device
    rows[HELD] = torch.stack(finite) if finite else torch.ones(1, dtype=torch.bool, device=device)
    return rows


def refuse_not_held(columns: Iterable[Column], outputs: TeacherOutputs, codes: Mapping[str, Code]) -> NoReturn:
    """Refuse outputs with a number that its coding cannot hold, naming the first such column."""
    columns, values = tuple(columns), named(outputs)
    for column in columns:
        refuse_not_finite(column.name, values[column.name])
    for column in columns:
        for field, tensor in column.encode(values[column.name], codes.get(column.name)).items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                largest = float(values[column.name].float().abs().max())
                raise Refused(
                    f"the teacher's {column.name} reaches {largest:g}, which {tensor.dtype} ({field}) cannot hold; "
                    "store it as float32"
                )
    raise AssertionError("a column was found not to hold its numbers")


def refuse_not_finite(name: str, values: Tensor) -> None:
    """Refuse a column's numbers where one is NaN or infinite, which no coding holds and no code is fitted to."""
    finite = values.isfinite()
    if not bool(finite.all()):
        raise Refused(
            f"the teacher's {name} has a number that is {float(values[~finite][0]):g}; find the cause: check the "
            "teacher's weights, and whether the type that it computes in holds its numbers"
        )


def decode(
    columns: Iterable[Column],
    rows: Mapping[str, Tensor],
    codes: Mapping[str, Code],
    classifier: Classifier | None = None,
) -> TeacherOutputs:
    """Return the outputs that `encode` was given, up to the coding's error, as float32."""
    values = {column.name: column.decode(rows, codes.get(column.name)) for column in columns}
    return TeacherOutputs(
        logits=values.get(LOGITS),
        features={name.removeprefix(FEATURES): value for name, value in values.items() if name.startswith(FEATURES)},
        classifier=classifier,
        input_gradient=values.get(INPUT_GRADIENT),
    )


def named(outputs: TeacherOutputs) -> dict[str, Tensor]:
    """Return {column name: tensor} of what is present."""
    values = {FEATURES + tap: tensor for tap, tensor in outputs.features.items()}
    if outputs.logits is not None:
        values[LOGITS] = outputs.logits
    if outputs.input_gradient is not None:
        values[INPUT_GRADIENT] = outputs.input_gradient
    return values


def wanted(columns: Iterable[Column], needs: Needs, where: str) -> tuple[Column, ...]:
    """Return the columns that answer `needs`.

    Refused where one is missing, naming those that are there.
    """
    by_name = {column.name: column for column in columns}
    names = [LOGITS] if needs.teacher_logits else []
    names += [FEATURES + tap for tap in sorted(needs.teacher_taps)]
    names += [INPUT_GRADIENT] if needs.teacher_input_gradient else []
    missing = [name for name in names if name not in by_name]
    if missing:
        raise Refused(
            f"the cache {where} holds {', '.join(by_name) or 'nothing'}, but the recipe reads {', '.join(missing)}; "
            "build a cache with this recipe in another folder, or choose a method that reads what is there"
        )
    return tuple(by_name[name] for name in names)
