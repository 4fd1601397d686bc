"""What is stored of a view: teacher outputs as Arrow fields of fixed width, encoded and decoded.

A column is one output (`logits`, `features.<tap>`, `input_gradient`) in one coding. Maps are stored channels-last and
come back so, which is how the networks here hold them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.section import Section
from kdcore.terms.logits import kl_divergence
from pipelines.cache.projection import Projection
from pipelines.cache.sparse import CodeSize, LogitCode

LOGITS, INPUT_GRADIENT = "logits", "input_gradient"
FEATURES = "features."

Code = LogitCode | Projection  # what some columns are read with, fitted once per cache


class Storage(Section):
    """How teacher outputs are stored."""

    logits: Literal["dense", "sparse"] = "dense"
    """`dense` keeps a number for each class; `sparse` keeps `sparse_bytes` a view, which serve every temperature within
    a stated error."""
    dtype: Literal["float16", "float32"] = "float16"
    """The type of dense logits and of input gradients."""
    features: Literal["float16", "float32", "int8"] = "float16"
    """The type of features; int8 has one scale a row, an error of at most 1/254 of the row's largest value."""
    project: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """{tap: channels}: store the features of a tap as this many principal components, from which the original
    channels are restored on reading."""
    sparse_bytes: int = Field(default=64, ge=4)
    """Bytes of a view's sparse logits."""
    sparse_top: int = Field(default=8, ge=1)
    """Classes of a view's sparse logits that are corrected one by one."""


class FieldSpec(NamedTuple):
    """An Arrow field: `width` numbers per row."""

    dtype: str
    width: int


class _Column(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[Annotated[int, Field(ge=1, lt=2**31)], ...]  # of one row, as the network gives it

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def _stored(self, values: Tensor) -> Tensor:
        """[B,...] -> [B,size], maps channels-last."""
        assert values.shape[1:] == self.shape, f"{self.name} has rows of {self.shape}, not {tuple(values.shape[1:])}"
        return channels_last(values).reshape(len(values), -1)

    def _restored(self, rows: Tensor) -> Tensor:
        """Return the numbers that `_stored` was given, up to the coding."""
        if len(self.shape) != 3:
            return rows.view(-1, *self.shape)
        channels, height, width = self.shape
        return rows.view(-1, height, width, channels).movedim(-1, 1)


class PlainColumn(_Column):
    """Numbers as they are, or rounded to float16."""

    coding: Literal["float16", "float32"]

    def fields(self) -> dict[str, FieldSpec]:
        return {self.name: FieldSpec(self.coding, self.size)}

    def encode(self, values: Tensor, code: Code | None) -> dict[str, Tensor]:
        return {self.name: self._stored(values).to(getattr(torch, self.coding))}

    def decode(self, rows: Mapping[str, Tensor], code: Code | None) -> Tensor:
        return self._restored(rows[self.name].float())

    def agrees(self, fresh: Tensor, stored: Tensor, rounding: float, code: Code | None) -> Tensor:
        """Return whether recomputed rows match those stored: [B].

        They may differ by the coding, and by `rounding` times their largest value.
        """
        return _within(fresh, stored, rounding + (2**-11 if self.coding == "float16" else 0.0))


class Int8Column(_Column):
    """Whole numbers from -127 to 127 times the row's scale.

    The error is at most half a scale, which is 1/254 of the row's largest value.
    """

    coding: Literal["int8"]

    def fields(self) -> dict[str, FieldSpec]:
        return {self.name: FieldSpec("int8", self.size), f"{self.name}.scale": FieldSpec("float32", 1)}

    def encode(self, values: Tensor, code: Code | None) -> dict[str, Tensor]:
        stored = self._stored(values).float()
        scale = stored.abs().amax(dim=1, keepdim=True) / 127
        whole = torch.where(scale > 0, stored / scale, 0).round()
        return {self.name: whole.to(torch.int8), f"{self.name}.scale": scale}

    def decode(self, rows: Mapping[str, Tensor], code: Code | None) -> Tensor:
        return self._restored(rows[self.name].float() * rows[f"{self.name}.scale"])

    def agrees(self, fresh: Tensor, stored: Tensor, rounding: float, code: Code | None) -> Tensor:
        return _within(fresh, stored, rounding + 0.501 / 127)


class SparseColumn(_Column):
    """Logits in a `LogitCode`."""

    coding: Literal["sparse"]
    num_bytes: int
    top: int

    @property
    def code_size(self) -> CodeSize:
        return CodeSize(self.shape[0], self.num_bytes, self.top)

    def fields(self) -> dict[str, FieldSpec]:
        size = self.code_size
        return {
            f"{self.name}.components": FieldSpec("uint8", size.code_bytes),
            f"{self.name}.scale": FieldSpec("float16", 1),
            f"{self.name}.corrections": FieldSpec(f"int{size.word_bits}", self.top),
        }

    def encode(self, values: Tensor, code: Code | None) -> dict[str, Tensor]:
        assert isinstance(code, LogitCode), "a sparse column comes with its code"
        return dict(zip(self.fields(), code.encode(values), strict=True))

    def decode(self, rows: Mapping[str, Tensor], code: Code | None) -> Tensor:
        assert isinstance(code, LogitCode), "a sparse column comes with its code"
        return code.decode(*(rows[name] for name in self.fields()))

    def agrees(self, fresh: Tensor, stored: Tensor, rounding: float, code: Code | None) -> Tensor:
        """Return whether recomputed rows match those stored: [B].

        Rounding may move a code to the next level, so decoded logits are compared as distributions.
        """
        again = self.decode(self.encode(fresh, code), code)
        nats = kl_divergence(torch.log_softmax(again, dim=1), torch.log_softmax(stored, dim=1))
        return nats <= 0.005 + 10 * rounding


class ProjectedColumn(_Column):
    """Coefficients of a `Projection`, stored as the inner column says."""

    coding: Literal["projected"]
    inner: PlainColumn | Int8Column

    def fields(self) -> dict[str, FieldSpec]:
        return self.inner.fields()

    def encode(self, values: Tensor, code: Code | None) -> dict[str, Tensor]:
        assert isinstance(code, Projection), "a projected column comes with its projection"
        return self.inner.encode(channels_first(code.project(channels_last(values))), None)

    def decode(self, rows: Mapping[str, Tensor], code: Code | None) -> Tensor:
        assert isinstance(code, Projection), "a projected column comes with its projection"
        return channels_first(code.restore(channels_last(self.inner.decode(rows, None))))

    def agrees(self, fresh: Tensor, stored: Tensor, rounding: float, code: Code | None) -> Tensor:
        """Return whether the coefficients match: [B]. What the projection loses is lost on both sides."""
        assert isinstance(code, Projection), "a projected column comes with its projection"
        fresh, stored = (channels_first(code.project(channels_last(values))) for values in (fresh, stored))
        return self.inner.agrees(fresh, stored, rounding, None)


Column = Annotated[PlainColumn | Int8Column | SparseColumn | ProjectedColumn, Field(discriminator="coding")]


def channels_last(values: Tensor) -> Tensor:
    """Return maps [B,C,H,W] as [B,H,W,C]; tokens [B,N,D] and vectors [B,D] as they are."""
    return values.movedim(1, -1) if values.ndim == 4 else values


def channels_first(values: Tensor) -> Tensor:
    """Undo `channels_last`."""
    return values.movedim(-1, 1) if values.ndim == 4 else values


def _within(fresh: Tensor, stored: Tensor, tolerance: float) -> Tensor:
    """Whether no number of a row is off by more than `tolerance` times the row's largest: [B]."""
    fresh, stored = fresh.float().flatten(1), stored.flatten(1)
    return (fresh - stored).abs().amax(dim=1) <= tolerance * fresh.abs().amax(dim=1) + 1e-6


def columns_for(
    needs: Needs, shapes: Mapping[str, tuple[int, ...]], num_classes: int, image_size: tuple[int, int], storage: Storage
) -> tuple[Column, ...]:
    """Return the columns that answer `needs`, and no others. shapes: {tap: shape of a row}."""
    columns: list[Column] = []
    if needs.teacher_logits and storage.logits == "sparse":
        sparse = SparseColumn(
            name=LOGITS,
            shape=(num_classes,),
            coding="sparse",
            num_bytes=storage.sparse_bytes,
            top=storage.sparse_top,
        )
        sparse.code_size.check()
        columns.append(sparse)
    elif needs.teacher_logits:
        columns.append(PlainColumn(name=LOGITS, shape=(num_classes,), coding=storage.dtype))
    if unknown := sorted(storage.project.keys() - needs.teacher_taps):
        raise Refused(
            f"cache.project names the tap {unknown[0]!r}, which is not stored; stored are "
            f"{', '.join(sorted(needs.teacher_taps)) or 'none'}; correct it, or add the tap to cache.taps"
        )
    columns += [features_column(tap, tuple(shapes[tap]), storage) for tap in sorted(needs.teacher_taps)]
    if needs.teacher_input_gradient:
        columns.append(PlainColumn(name=INPUT_GRADIENT, shape=(3, *image_size), coding=storage.dtype))
    return tuple(columns)


def features_column(tap: str, shape: tuple[int, ...], storage: Storage) -> Column:
    """Return the column of a tap's features."""
    name = FEATURES + tap
    if (kept := storage.project.get(tap)) is None:
        return plain_or_int8(name, shape, storage.features)
    axis = 0 if len(shape) == 3 else -1
    if kept >= shape[axis]:
        raise Refused(
            f"cache.project.{tap}={kept} saves nothing: the features have {shape[axis]} channels; take fewer, or leave "
            "the tap out of cache.project"
        )
    small = list(shape)
    small[axis] = kept
    inner = plain_or_int8(name, tuple(small), storage.features)
    return ProjectedColumn(name=name, shape=shape, coding="projected", inner=inner)


def plain_or_int8(
    name: str, shape: tuple[int, ...], coding: Literal["float16", "float32", "int8"]
) -> PlainColumn | Int8Column:
    if coding == "int8":
        return Int8Column(name=name, shape=shape, coding="int8")
    return PlainColumn(name=name, shape=shape, coding=coding)
