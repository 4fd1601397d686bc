"""The numbers of one view, augmentation by augmentation: vectorised over samples, no state, no pixels.

Boxes are (y, x, height, width), int32. Every augmentation has a stream of its own, so that a new one changes none of
the old draws. Only operations that IEEE 754 fixes are used: see `pipelines.views.exact`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import pi

import numpy as np
from numpy.typing import NDArray

from pipelines.views import exact
from pipelines.views.auto_augment import WORDS
from pipelines.views.philox import uniforms, words
from pipelines.views.policy import ViewPolicy

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_TRIES = 10  # boxes tried before giving up, as in torchvision's RandomResizedCrop
NOISE_SLACK = 64  # the noise field is this much larger than a picture, so that its window can be moved


class Stream(IntEnum):
    """What random words are for. A number, once used, is never given to something else."""

    EPOCH_ORDER = 0
    PARTNER = 1
    CROP = 2
    FLIP = 3
    COLOUR = 4
    ERASE = 5
    MIX = 6
    MIX_SHARE = 7
    NOISE_FIELD = 8
    HELD_OUT = 9
    AUTO_AUGMENT = 10
    SAMPLE = 11
    SHARD_ORDER = 16
    WINDOW_ORDER = 17
    WINDOW_PARTNER = 18
    CLASS_ORDER = 19


@dataclass(frozen=True)
class Key:
    """The samples, each in one view, that the numbers are for. views [B], sample_ids [B]."""

    seed: int
    views: Ints
    sample_ids: Ints

    def uniforms(self, stream: Stream, n: int) -> Floats:
        return uniforms(self.seed, self.views, self.sample_ids, stream, n)


def _integers(uniform: Floats, count: Ints | int) -> Ints:
    """Return whole numbers in [0, count)."""
    return np.floor(uniform * count).astype(np.int64)


def _interpolate(uniform: Floats, low: float, high: float) -> Floats:
    return low + uniform * (high - low)


def random_boxes(
    uniform: Floats, heights: Ints, widths: Ints, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Ints, NDArray[np.bool_]]:
    """Return boxes of a random share of the area and a log-uniform aspect (width over height), at a random place.

    uniform [B,4 * tries]; heights, widths [B]. Returns boxes [B,4], the first try that fits, and whether one did [B].
    """
    share, aspect, y, x = np.moveaxis(uniform.reshape(len(uniform), -1, 4), 2, 0)
    heights, widths = heights[:, None], widths[:, None]
    area = heights * widths * _interpolate(share, *scale)
    aspect = exact.exp(_interpolate(aspect, float(exact.log(ratio[0])), float(exact.log(ratio[1]))))
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    fits: NDArray[np.bool_] = (h > 0) & (h <= heights) & (w > 0) & (w <= widths)
    boxes = np.stack((_integers(y, heights - h + 1), _integers(x, widths - w + 1), h, w), axis=2)
    return boxes[np.arange(len(boxes)), fits.argmax(axis=1)], np.any(fits, axis=1)


def central_boxes(heights: Ints, widths: Ints, ratio: tuple[float, float]) -> Ints:
    """Return the largest centred boxes whose aspect lies within ratio: [B,4]."""
    w = np.minimum(widths, np.maximum(1, np.rint(heights * ratio[1]))).astype(np.int64)
    h = np.minimum(heights, np.maximum(1, np.rint(widths / ratio[0]))).astype(np.int64)
    return np.stack(((heights - h) // 2, (widths - w) // 2, h, w), axis=1)


@dataclass(frozen=True)
class Geometry:
    """Where a picture's pixels come from.

    The window [B,4] of the source is brought to `resize` [B,2]; the part of it that begins at `offset` [B,2] is shown,
    black outside.
    """

    window: Ints
    resize: Ints
    offset: Ints


def geometry(policy: ViewPolicy, key: Key, heights: Ints, widths: Ints) -> Geometry:
    """Return the crop that the policy asks for, of sources of heights [B] and widths [B]."""
    crops = {"resized": _resized_crop, "padded": _padded_crop, "center": _center_crop}
    return crops[policy.crop](policy, key, heights, widths)


def _whole(heights: Ints, widths: Ints) -> Ints:
    zeros = np.zeros_like(heights)
    return np.stack((zeros, zeros, heights, widths), axis=1)


def _resized_crop(policy: ViewPolicy, key: Key, heights: Ints, widths: Ints) -> Geometry:
    uniform = key.uniforms(Stream.CROP, 4 * _TRIES)
    boxes, found = random_boxes(uniform, heights, widths, policy.scale, policy.ratio)
    window = np.where(found[:, None], boxes, central_boxes(heights, widths, policy.ratio))
    return Geometry(window, _tiled(policy.height, policy.width, len(window)), _tiled(0, 0, len(window)))


def _padded_crop(policy: ViewPolicy, key: Key, heights: Ints, widths: Ints) -> Geometry:
    offset = _integers(key.uniforms(Stream.CROP, 2), 2 * policy.padding + 1) - policy.padding
    return Geometry(_whole(heights, widths), _tiled(policy.height, policy.width, len(offset)), offset)


def _center_crop(policy: ViewPolicy, key: Key, heights: Ints, widths: Ints) -> Geometry:
    # The least picture of the source's aspect that covers (h, w); the longer side is rounded down.
    h, w = int(policy.height / policy.crop_pct), int(policy.width / policy.crop_pct)
    wide = widths * h >= heights * w
    resize = np.stack((np.where(wide, h, heights * w // widths), np.where(wide, widths * h // heights, w)), axis=1)
    offset = np.rint((resize - (policy.height, policy.width)) / 2).astype(np.int64)
    return Geometry(_whole(heights, widths), resize, offset)


def _tiled(a: int, b: int, num: int) -> Ints:
    return np.tile(np.array([[a, b]], dtype=np.int64), (num, 1))


def flip(policy: ViewPolicy, key: Key) -> NDArray[np.bool_]:
    """Return whether each picture is turned left to right: [B]."""
    return key.uniforms(Stream.FLIP, 1)[:, 0] < policy.flip_probability


def auto_augment(policy: ViewPolicy, key: Key) -> tuple[NDArray[np.int64], Floats] | None:
    """Return the kinds and arguments of each picture's operations, [B,T] each; None if the policy has no operations."""
    augment = policy.augment
    if augment is None:
        return None
    uniform = key.uniforms(Stream.AUTO_AUGMENT, WORDS * augment.num_operations)
    return augment.draw(uniform, policy.height, policy.width)


# Luma weights of R, G, B (Rec. 601), and the rotation of the chroma plane by a right angle in its YUV form, whose axes
# are U = 0.492 (B - Y) and V = 0.877 (R - Y). (YIQ is the same plane with its axes turned by 33 degrees.)
_LUMA = np.array([0.299, 0.587, 0.114])
_TURN_R = 0.492 / 0.877 * (np.array([0.0, 0.0, 1.0]) - _LUMA)
_TURN_B = -0.877 / 0.492 * (np.array([1.0, 0.0, 0.0]) - _LUMA)
_TURN = np.stack((_TURN_R, -(0.299 * _TURN_R + 0.114 * _TURN_B) / 0.587, _TURN_B))
_GREY = np.stack((_LUMA, _LUMA, _LUMA))


def colour(policy: ViewPolicy, key: Key) -> NDArray[np.float32] | None:
    """Return the colour change of each picture as a linear map of RGB in [0, 1]: float32 [B,3,4]; None for no change.

    Brightness b multiplies; contrast c stretches around mid-grey 0.5 (not around the picture's mean: a view does not
    depend on pixels); saturation s stretches the chroma and hue turns it by an angle h. Both leave greys alone, so all
    four together are, with Y the projection onto grey along luma and J the quarter turn of the chroma plane,
        x -> b c (Y + s (cos h (1 - Y) + sin h J)) x + (1 - c) / 2,    clipped to [0, 1] at the end.
    """
    if not policy.jitters:
        return None
    uniform = key.uniforms(Stream.COLOUR, 4)
    strengths = (policy.brightness, policy.contrast, policy.saturation)
    b, c, s = (_interpolate(uniform[:, i], max(0.0, 1 - x), 1 + x)[:, None, None] for i, x in enumerate(strengths))
    sin, cos = exact.sin_cos(2 * pi * policy.hue * _interpolate(uniform[:, 3], -1.0, 1.0))
    chroma = cos[:, None, None] * (np.eye(3) - _GREY) + sin[:, None, None] * _TURN
    matrix = b * c * (_GREY + s * chroma)
    offset = np.broadcast_to((1 - c) / 2, (len(matrix), 3, 1))
    return np.concatenate((matrix, offset), axis=2).astype(np.float32)


def erase(policy: ViewPolicy, key: Key) -> tuple[Ints, Ints] | None:
    """Return erased boxes [B,4] of the shown picture (area 0: none) and where their noise begins [B,2]; or None."""
    if policy.erase_probability == 0:
        return None
    uniform = key.uniforms(Stream.ERASE, 3 + 4 * _TRIES)
    sides = np.full(len(uniform), policy.height), np.full(len(uniform), policy.width)
    boxes, found = random_boxes(uniform[:, 3:], *sides, policy.erase_scale, policy.erase_ratio)
    erased = found & (uniform[:, 0] < policy.erase_probability)
    return np.where(erased[:, None], boxes, 0), _integers(uniform[:, 1:3], NOISE_SLACK)


def mix(policy: ViewPolicy, key: Key, partner: Ints) -> tuple[NDArray[np.float32], Ints]:
    """Return the sample's own share in its mixture, float32 [B] (1: not mixed), and CutMix's box [B,4].

    The box is filled with the partner; one of area 0 is none (Mixup). partner [B]: a sample that is its own is not
    mixed.

    CutMix draws a share, centres a box of the rest of the area anywhere, clips it to the picture, and then states the
    share that is truly left (Yun et al., "CutMix", arXiv 1905.04899, section 3.1).
    """
    uniform = key.uniforms(Stream.MIX, 4)
    mixed = policy.mixes & (uniform[:, 0] < policy.mix_probability) & (partner != key.sample_ids)
    both = policy.mixup_alpha > 0 and policy.cutmix_alpha > 0
    cut = (uniform[:, 1] < policy.switch_probability) if both else np.full(len(mixed), policy.cutmix_alpha > 0)
    share = np.ones(len(mixed))
    alphas = np.where(cut, policy.cutmix_alpha, policy.mixup_alpha)
    share[mixed] = symmetric_beta(Key(key.seed, key.views[mixed], key.sample_ids[mixed]), alphas[mixed])
    boxes = np.where((mixed & cut)[:, None], _cut_boxes(policy, share, uniform[:, 2:4]), 0)
    area = boxes[:, 2] * boxes[:, 3]
    share = np.where(mixed & cut, 1 - area / (policy.height * policy.width), share)
    return share.astype(np.float32), np.where(area[:, None] > 0, boxes, 0)


def _cut_boxes(policy: ViewPolicy, share: Floats, uniform: Floats) -> Ints:
    """Return boxes [B,4] of (1 - share) of the area around a uniform centre, clipped to the picture."""
    sides = np.array([policy.height, policy.width])
    half = np.floor(sides * np.sqrt(1 - share)[:, None]).astype(np.int64) // 2
    centre = _integers(uniform, sides)
    low, high = np.clip(centre - half, 0, sides), np.clip(centre + half, 0, sides)
    return np.concatenate((low, high - low), axis=1)


def symmetric_beta(key: Key, alphas: Floats) -> Floats:
    """Return draws from Beta(alpha, alpha), 0 < alpha <= 1: float64 [B].

    Johnk's method: of u, v uniform, u^(1/alpha) / (u^(1/alpha) + v^(1/alpha)) where that sum is at most 1; else again
    (Johnk, Metrika 8, 1964). In logarithms, so that small alphas do not underflow.
    """
    shares, todo, block = np.empty(len(alphas)), np.arange(len(alphas)), 0
    while todo.size:
        drawn = words(key.seed, key.views[todo], key.sample_ids[todo], Stream.MIX_SHARE, 2, first_block=block)
        log_u, log_v = (exact.log((drawn + 0.5) * 2.0**-32) / alphas[todo, None]).T
        accepted = exact.exp(log_u) + exact.exp(log_v) <= 1
        shares[todo[accepted]] = (1 / (1 + exact.exp(log_v - log_u)))[accepted]
        todo, block = todo[~accepted], block + 1
    return shares
