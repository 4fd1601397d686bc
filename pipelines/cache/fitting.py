"""The codes of a cache's columns: fitted to a sample of the teacher's outputs, measured on others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from kdcore.batch import TeacherOutputs
from pipelines.cache.columns import LOGITS, Code, Column, ProjectedColumn, SparseColumn, channels_last
from pipelines.cache.projection import ChannelMoments, LostVariance, Projection
from pipelines.cache.rows import named, refuse_not_finite
from pipelines.cache.sparse import LogitCode, measured_error

Sample = Callable[[], Iterable[TeacherOutputs]]  # batches of outputs, the same at every call


def fitted_codes(columns: Iterable[Column], fit: Sample, held_back: Sample) -> tuple[dict[str, Code], dict[str, float]]:
    """Return ({column name: code}, {measure: error}); neither sample is asked for if no column has a code.

    Sparse logits: see `sparse.measured_error`. Projections: the share of variance that is lost.
    """
    coded = [column for column in columns if isinstance(column, SparseColumn | ProjectedColumn)]
    if not coded:
        return {}, {}
    logits, moments = gathered(coded, fit)
    codes: dict[str, Code] = {}
    for column in coded:
        if isinstance(column, SparseColumn):
            codes[column.name] = LogitCode.fit(logits, column.code_size)
        else:
            kept = channels_last(torch.empty(1, *column.inner.shape)).shape[-1]
            codes[column.name] = moments[column.name].projection(kept)
    return codes, measured(codes, held_back)


def gathered(
    coded: list[SparseColumn | ProjectedColumn], sample: Sample
) -> tuple[torch.Tensor, dict[str, ChannelMoments]]:
    """Return the inputs of a fit: logits [n,K] of the sample (empty if none are coded), and moments of features."""
    logits = [torch.empty(0)]
    moments = {column.name: ChannelMoments() for column in coded if isinstance(column, ProjectedColumn)}
    sparse = len(moments) < len(coded)
    for values in _finite(sample, [column.name for column in coded]):
        for name, sums in moments.items():
            sums.add(channels_last(values[name]))
        if sparse:
            logits.append(values[LOGITS].float().cpu())
    return torch.cat(logits[1:] or logits), moments


def measured(codes: dict[str, Code], sample: Sample) -> dict[str, float]:
    """Return the errors on a sample."""
    logits: list[torch.Tensor] = []
    lost = {name: LostVariance(code) for name, code in codes.items() if isinstance(code, Projection)}
    for values in _finite(sample, list(codes)):
        for name, sums in lost.items():
            sums.add(channels_last(values[name]))
        if LOGITS in codes:
            logits.append(values[LOGITS].float().cpu())
    errors: dict[str, float] = {}
    for name, code in codes.items():
        if isinstance(code, LogitCode):
            dense = torch.cat(logits)
            errors |= measured_error(dense, code.decode(*code.encode(dense)))
        else:
            errors[f"share of variance lost of {name}"] = round(lost[name].share, 6)
    return errors


def _finite(sample: Sample, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield {column name: tensor} of each batch; Refused where one of the named columns has a NaN or an infinity."""
    for outputs in sample():
        values = named(outputs)
        for name in names:
            refuse_not_finite(name, values[name])
        yield values
