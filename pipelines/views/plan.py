"""The view plan: what every sample looks like in every view, and in which order an epoch shows the samples.

Both are pure functions of integers, `view = f(seed, view number, sample id)` and `order = g(seed, epoch)`. Nothing is
kept between calls: any rank computes any part of any epoch, and a stored teacher output belongs to one view for good.
Where the plan has `windows`, an epoch is shuffled shard by shard: see `pipelines.views.windows`; where it has a
`sampling`, rare classes are shown more often: see `pipelines.views.sampling`.

An epoch has a row for each of its positions, and a row is a sample in a view. Where `repeats` is R, R consecutive rows
are of one sample (or, where views are mixed, of one pair of partners), in R consecutive views.
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
from pipelines.views.sampling import ClassSampling
from pipelines.views.windows import Windows, WindowSlots

# Raise this with any change, here or in `render`, that gives a view other pixels.
VERSION = 1


@dataclass(frozen=True)
class Views:
    """B samples, each in one view, as numbers. Boxes are (y, x, height, width) in pixels.

    views [B] and sample_ids [B] say which. window [B,4] of the source is brought to resize [B,2] (height, width); the
    picture is the part that begins at offset [B,2] (y, x; may be negative: black outside), then flip [B]. operations
    [B,T] of the kinds of `pipelines.views.operations`, with an argument each, in turn. colour [B,3,4]: RGB in [0, 1]
    through a matrix and an offset; erase [B,4] boxes (area 0: none) and noise_offset [B,2]. The sample's mixture:
    partner [B] sample ids, mix_lambda [B] the sample's own share (1: not mixed), mix_box [B,4] (area above 0: CutMix).
    """

    views: NDArray[np.int64]
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
        """Return some of the samples."""
        columns: dict[str, Any] = {k: v[part] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **columns)


@dataclass(frozen=True)
class ViewPlan:
    """The views and the epochs of a data set of num_samples samples.

    windows: None for a full shuffle; sampling: None for every sample once per epoch; at most one of the two.
    """

    policy: ViewPolicy
    seed: int
    num_samples: int
    windows: Windows | None = None
    sampling: ClassSampling | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise Refused(f"the view plan's seed is {self.seed}; give a whole number in [0, 2^64)")
        assert self.windows is None or len(self.windows.stored) == self.num_samples, "the windows are of these samples"
        assert self.sampling is None or len(self.sampling.labels) == self.num_samples, "the labels are of these samples"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the views look like and of their order: policy, seed, version, and windows where given.

        Equal ones on equal data show equal pixels. Where rare classes are shown more often, that is part of it.
        """
        return self._digest(self.windows, self.sampling)

    @property
    def appearance(self) -> str:
        """SHA-256 of what the views look like; windows count only where they choose partners.

        What is stored of one view is good for every order.
        """
        return self._digest(self.windows if self.policy.mixes else None, None)

    @property
    def without_windows(self) -> ViewPlan:
        """The plan of the same samples with a full shuffle, each once per epoch."""
        return replace(self, windows=None, sampling=None)

    def _digest(self, windows: Windows | None, sampling: ClassSampling | None) -> str:
        content: dict[str, Any] = {"policy": self.policy.appearance(), "seed": self.seed, "version": VERSION}
        if windows is not None:
            content["windows"] = windows.digest
        if sampling is not None:
            content["sampling"] = sampling.digest
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def views_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the view numbers of the rows at the given positions of an epoch: [P] -> [P]."""
        repeats, num_views = self.policy.repeats, self.policy.num_views
        views: NDArray[np.int64]
        if self.sampling is not None:
            views = self.sampling.showings(self.seed, epoch, positions)[1]
        else:
            views = epoch * repeats + self._places(positions)[1]
        return views if num_views is None else views % num_views

    def order(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sample ids of the rows at the given positions of an epoch: [P] -> [P].

        Where views are mixed, partners stand at positions 2k and 2k + 1 (the last of an odd number stands alone),
        except under a `sampling`, where every image has a view number of its own.
        """
        if self.sampling is not None:
            return self.sampling.showings(self.seed, epoch, positions)[0]
        places, _ = self._places(positions)
        if not self.policy.mixes:
            if self.windows is not None:
                return self.windows.samples(self.seed, epoch, places)
            return permutation(self.num_samples, self.seed, epoch, Stream.EPOCH_ORDER)(places)
        slots = places.copy()
        paired = places < self.num_samples - self.num_samples % 2
        slots[paired] = 2 * self._pairs(epoch, places[paired] // 2) + places[paired] % 2
        (pairing,) = self._pairings(self.views_at(epoch, np.zeros(1, dtype=np.int64)))
        return self._slots(pairing).inverse(slots)

    def partner(self, views: NDArray[np.int64] | int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sample that each is mixed with in its view: [B], [B] -> [B], itself where nothing is mixed.

        In one view, or in all views of an epoch, a partner's partner is the sample. views: one number, or one for each.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if not self.policy.mixes:
            return ids
        pairings = np.broadcast_to(self._pairings(np.asarray(views, dtype=np.int64)), ids.shape)
        partners = np.empty_like(ids)
        for pairing in np.unique(pairings).tolist():
            mine = pairings == pairing
            slots = self._slots(pairing)(ids[mine])
            other = slots ^ 1
            partners[mine] = self._slots(pairing).inverse(np.where(other < self.num_samples, other, slots))
        return partners

    def views(
        self,
        views: NDArray[np.int64] | int,
        sample_ids: NDArray[np.int64],
        heights: NDArray[np.int32],
        widths: NDArray[np.int32],
    ) -> Views:
        """Return the given samples, whose stored pictures have these heights and widths, in their views; all [B].

        views: one number for all, or one for each.
        """
        ids = np.asarray(sample_ids, dtype=np.int64)
        views = np.broadcast_to(np.asarray(views, dtype=np.int64), ids.shape)
        assert np.all((ids >= 0) & (ids < self.num_samples)), f"sample ids lie in [0, {self.num_samples})"
        key, policy = draws.Key(self.seed, views, ids), self.policy.at(views)
        where = draws.geometry(policy, key, heights.astype(np.int64), widths.astype(np.int64))
        operations, arguments = draws.auto_augment(policy, key) or (None, None)
        boxes, noise_offset = draws.erase(policy, key) or (None, None)
        partner = self.partner(views, ids)
        mix_lambda, mix_box = draws.mix(policy, key, partner)
        return Views(
            views=views,
            sample_ids=ids,
            window=where.window.astype(np.int32),
            resize=where.resize.astype(np.int32),
            offset=where.offset.astype(np.int32),
            flip=draws.flip(policy, key),
            operations=operations,
            arguments=arguments,
            colour=draws.colour(policy, key),
            erase=None if boxes is None else boxes.astype(np.int32),
            noise_offset=None if noise_offset is None else noise_offset.astype(np.int32),
            partner=partner,
            mix_lambda=mix_lambda,
            mix_box=mix_box.astype(np.int32),
        )

    def _places(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the place in the order of samples of each position, and which of the place's rows it is: [P], [P].

        A place stands for one sample; of a pair that is mixed, both rows come before the pair's next two.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if self.policy.repeats == 1:
            return positions, np.zeros_like(positions)
        together = 2 if self.policy.mixes else 1
        group, member = positions // together, positions % together
        alone = positions >= self.num_samples - self.num_samples % together
        places = np.where(alone, positions, group // self.policy.repeats * together + member)
        return places, np.where(alone, 0, group % self.policy.repeats)

    def _pairs(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pair of slots at each place of an epoch that shows pairs: [P] -> [P]."""
        if self.windows is not None:
            return self.windows.pairs(self.seed, epoch, places)
        return permutation(self.num_samples // 2, self.seed, epoch, Stream.EPOCH_ORDER)(places)

    def _pairings(self, views: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the pairings that the views are mixed by: all views of an epoch share one."""
        return views // self.policy.repeats

    def _slots(self, pairing: int) -> Permutation | WindowSlots:
        """Return the map from sample id to slot; slots 2k and 2k + 1 are partners in this pairing."""
        if self.windows is not None:
            return WindowSlots(self.windows, self.seed, int(pairing))
        return permutation(self.num_samples, self.seed, int(pairing), Stream.PARTNER)
