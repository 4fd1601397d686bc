"""The view plan: what every sample looks like in every view, and in which order an epoch shows the samples.

Both are pure functions of integers, `view = f(seed, view number, sample id)` and `order = g(seed, epoch)`. Nothing is
kept between calls: any rank computes any part of any epoch, and a stored teacher output belongs to one view for good.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.views import draws
from pipelines.views.draws import Stream
from pipelines.views.order import Permutation, permutation
from pipelines.views.policy import ViewPolicy

# Raise this with any change, here or in `render`, that gives a view other pixels.
VERSION = 1


@dataclass(frozen=True)
class Views:
    """One view of B samples, as numbers. Boxes are (y, x, height, width) in pixels.

    window [B,4] of the source is brought to resize [B,2] (height, width); the picture is the part that begins at offset
    [B,2] (y, x; may be negative: black outside), then flip [B]. operations [B,T] of the kinds of
    `pipelines.views.operations`, with an argument each, in turn. colour [B,3,4]: RGB in [0, 1] through a matrix and an
    offset; erase [B,4] boxes (area 0: none) and noise_offset [B,2]. The sample's mixture: partner [B] sample ids,
    mix_lambda [B] the sample's own share (1: not mixed), mix_box [B,4] (area above 0: CutMix).
    """

    view: int
    sample_ids: NDArray[np.int64]
    window: NDArray[np.int32]
    resize: NDArray[np.int32]
    offset: NDArray[np.int32]
    flip: NDArray[np.bool_]
    operations: NDArray[np.int64] | None
    arguments: NDArray[np.float64] | None
    colour: NDArray[np.float32] | None
    erase: NDArray[np.int32] | None
    noise_offset: NDArray[np.int32] | None
    partner: NDArray[np.int64]
    mix_lambda: NDArray[np.float32]
    mix_box: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, part: slice) -> Views:
        """Some of the samples."""
        columns: dict[str, Any] = {k: v[part] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **columns)


@dataclass(frozen=True)
class ViewPlan:
    """The views and the epochs of a data set of num_samples samples."""

    policy: ViewPolicy
    seed: int
    num_samples: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise Refused(f"the view plan's seed is {self.seed}; give a whole number in [0, 2^64)")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the views look like: policy, seed, version. Equal ones on equal data show equal pixels."""
        content = {"policy": self.policy.appearance(), "seed": self.seed, "version": VERSION}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def view_of(self, epoch: int) -> int:
        """The number of the view that an epoch shows."""
        return epoch if self.policy.num_views is None else epoch % self.policy.num_views

    def order(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample ids at the given positions of an epoch: [P] -> [P].

        Where views are mixed, partners stand at positions 2k and 2k + 1 (the last of an odd number stands alone).
        """
        positions = np.asarray(positions, dtype=np.int64)
        if not self.policy.mixes:
            return permutation(self.num_samples, self.seed, epoch, Stream.EPOCH_ORDER)(positions)
        pairs = permutation(self.num_samples // 2, self.seed, epoch, Stream.EPOCH_ORDER)
        slots = positions.copy()
        paired = positions < self.num_samples - self.num_samples % 2
        slots[paired] = 2 * pairs(positions[paired] // 2) + positions[paired] % 2
        return self._slots(self.view_of(epoch)).inverse(slots)

    def partner(self, view: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whom each sample is mixed with in a view: [B] -> [B], its own inverse; itself where nothing is mixed."""
        ids = np.asarray(ids, dtype=np.int64)
        if not self.policy.mixes:
            return ids
        slots = self._slots(view)(ids)
        other = slots ^ 1
        return self._slots(view).inverse(np.where(other < self.num_samples, other, slots))

    def views(
        self, view: int, sample_ids: NDArray[np.int64], heights: NDArray[np.int32], widths: NDArray[np.int32]
    ) -> Views:
        """One view of the given samples, whose stored pictures have these heights and widths; all [B]."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        assert np.all((ids >= 0) & (ids < self.num_samples)), f"sample ids lie in [0, {self.num_samples})"
        key = draws.Key(self.seed, view, ids)
        where = draws.geometry(self.policy, key, heights.astype(np.int64), widths.astype(np.int64))
        operations, arguments = draws.auto_augment(self.policy, key) or (None, None)
        boxes, noise_offset = draws.erase(self.policy, key) or (None, None)
        partner = self.partner(view, ids)
        mix_lambda, mix_box = draws.mix(self.policy, key, partner)
        return Views(
            view=view,
            sample_ids=ids,
            window=where.window.astype(np.int32),
            resize=where.resize.astype(np.int32),
            offset=where.offset.astype(np.int32),
            flip=draws.flip(self.policy, key),
            operations=operations,
            arguments=arguments,
            colour=draws.colour(self.policy, key),
            erase=None if boxes is None else boxes.astype(np.int32),
            noise_offset=None if noise_offset is None else noise_offset.astype(np.int32),
            partner=partner,
            mix_lambda=mix_lambda,
            mix_box=mix_box.astype(np.int32),
        )

    def _slots(self, view: int) -> Permutation:
        """Sample id -> slot; slots 2k and 2k + 1 are partners in this view."""
        return permutation(self.num_samples, self.seed, view, Stream.PARTNER)
