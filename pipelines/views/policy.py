"""What a view may look like: the augmentation's settings, as data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, field_validator, model_validator

from kdcore.errors import Refused
from kdcore.section import Section
from pipelines.identity import identity_of
from pipelines.views.auto_augment import AutoAugment, Colour, auto_augment

Probability = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=16384)]
Epoch = Annotated[int, Field(ge=0)]
Value = Annotated[int, Field(ge=0, le=255)]

# Settings that mean something with one kind of crop only: another kind refuses them rather than ignores them.
_CROP_FIELDS = {"scale": "resized", "ratio": "resized", "padding": "padded", "crop_pct": "center"}


class ViewPolicy(Section):
    """How training images are augmented: the settings of a data set's views."""

    # Do not add to these: a field that is off must not change the fingerprints of what was made before it existed.
    # fmt: off
    FIRST_FIELDS: ClassVar[frozenset[str]] = frozenset({
        "size", "crop", "scale", "ratio", "padding", "crop_pct", "interpolation", "flip_probability", "brightness",
        "contrast", "saturation", "hue", "erase_probability", "erase_scale", "erase_ratio", "erase_fill", "mixup_alpha",
        "cutmix_alpha", "mix_probability", "switch_probability", "num_views",
    })
    # fmt: on

    size: Side | tuple[Side, Side] = 224
    """The side of what a network sees, or its (height, width), in pixels."""
    crop: Literal["resized", "padded", "center"] = "resized"
    """What is cut out. `resized`: a random part of the picture, brought to `size`, as torchvision's RandomResizedCrop.
    `padded`: the whole picture brought to `size`, surrounded by `padding` black pixels and cropped at a random place.
    `center`: the picture's shorter side brought to floor(size / crop_pct), then its centre; for square
    sizes as timm evaluates, which rounds the longer side for others, where it is rounded down here."""
    scale: tuple[float, float] = (0.08, 1.0)
    """With `crop: resized`: the range of the part's share of the picture's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """With `crop: resized`: the range of the part's aspect, width over height, drawn log-uniformly."""
    padding: int = Field(default=4, ge=0)
    """With `crop: padded`: black pixels added on each side."""
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    """With `crop: center`: the side of the centre over that of the resized picture."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How pictures are resized."""
    flip_probability: Probability = 0.5
    """The probability of a left-right flip."""
    brightness: float = Field(default=0.0, ge=0)
    """The strength of the brightness jitter: the factor is drawn from [max(0, 1 - strength), 1 + strength]."""
    contrast: float = Field(default=0.0, ge=0)
    """The strength of the contrast jitter around mid-grey: the factor is drawn from [max(0, 1 - strength), 1 +
    strength]."""
    saturation: float = Field(default=0.0, ge=0)
    """The strength of the saturation jitter: the factor is drawn from [max(0, 1 - strength), 1 + strength]."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """The strength of the hue jitter: the angle is drawn from [-hue, hue] turns."""
    erase_probability: Probability = 0.0
    """The probability of erasing one box (random erasing)."""
    erase_scale: tuple[float, float] = (0.02, 1 / 3)
    """The range of the erased box's share of the area."""
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """The range of the erased box's aspect, width over height, drawn log-uniformly."""
    erase_fill: Literal["mean", "noise"] = "mean"
    """What the erased box is filled with: the mean colour, which is 0 after normalisation, or noise of unit
    variance."""
    sizes: tuple[tuple[Epoch, Side | tuple[Side, Side]], ...] = ()
    """Other sizes by epoch (progressive resizing), as pairs of [epoch, size]: from that epoch on, views have that size
    instead of `size`, which networks are built for and judged at. With `num_views` a view keeps the size of the epoch
    that first shows it."""
    repeats: int = Field(default=1, ge=1)
    """How many rows of an epoch show the same sample, each in its own view (repeated augmentation; DeiT uses 3). An
    epoch keeps its number of rows, so it shows one in `repeats` samples. `num_views` must be a multiple of it."""
    erase_first: bool = False
    """Whether pictures are erased before they are mixed, as timm does it, so that a mixed image can contain
    an erased partner. By default the mixed image is erased."""
    mixup_alpha: float = Field(default=0.0, ge=0)
    """Mixup: a sample's share in its mixture is drawn from Beta(alpha, alpha). 0 turns it off."""
    cutmix_alpha: float = Field(default=0.0, ge=0)
    """CutMix: a sample's share in its mixture is drawn from Beta(alpha, alpha). 0 turns it off."""
    mix_probability: Probability = 1.0
    """The probability of mixing a sample at all, where Mixup or CutMix is on."""
    switch_probability: Probability = 0.5
    """The probability of CutMix, rather than Mixup, where both are on."""
    num_views: int | None = Field(default=None, ge=1)
    """The number of views: an epoch shows view `epoch mod num_views`. Not given: a new view every epoch. It does not
    change what views look like, and is not part of a cache's fingerprint."""
    auto_augment: str | None = None
    """The augmentation policy that is applied after crop and flip: `rand-m9-mstd0.5-inc1` (RandAugment as timm writes
    it), `ra-2-9` (torchvision's, operations and magnitude), `aa-imagenet`, `aa-cifar`, `aa-svhn` (AutoAugment by
    torchvision), `v0`, `v0r`, `original`, `originalr` (by timm, each also with `-mstd0.5`), `trivial`
    (TrivialAugmentWide) or `three` (3-Augment). Not given: none."""
    auto_augment_fill: tuple[Value, Value, Value] | None = None
    """The colour, R, G and B of 0 to 255, of what shears, shifts and rotations bring in from outside. Not
    given, the original's: ImageNet's mean colour for timm's policies, black for the others."""

    @classmethod
    def evaluation(
        cls,
        size: int | tuple[int, int],
        crop_pct: float = 0.875,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> ViewPolicy:
        """Return the one view a network is judged by: the centre, nothing random."""
        return cls(
            size=size, crop="center", crop_pct=crop_pct, interpolation=interpolation, flip_probability=0, num_views=1
        )

    @field_validator("scale", "erase_scale")
    @classmethod
    def _share_of_area(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise Refused(f"{value} is not a range of shares of the area; give (low, high) with 0 < low <= high <= 1")
        return value

    @field_validator("ratio", "erase_ratio")
    @classmethod
    def _range_of_aspects(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise Refused(f"{value} is not a range of aspect ratios; give (low, high) with 0 < low <= high")
        return value

    @field_validator("mixup_alpha", "cutmix_alpha")
    @classmethod
    def _alpha_at_most_one(cls, value: float) -> float:
        if value > 1:
            raise Refused(f"{value} is above 1, and shares are drawn for alpha in [0, 1] only; give 1 or less")
        return value

    @field_validator("auto_augment")
    @classmethod
    def _known_policy(cls, value: str | None) -> str | None:
        if value is not None:
            auto_augment(value)  # refuses an unknown one
        return value

    @model_validator(mode="after")
    def _no_idle_fill(self) -> ViewPolicy:
        if self.auto_augment is None and self.auto_augment_fill is not None:
            raise Refused(
                f"auto_augment_fill={self.auto_augment_fill} has no effect without auto_augment; remove it, or name a "
                "policy"
            )
        return self

    @field_validator("sizes")
    @classmethod
    def _ascending_epochs(cls, value: tuple[tuple[int, Any], ...]) -> tuple[tuple[int, Any], ...]:
        epochs = [epoch for epoch, _ in value]
        if epochs != sorted(set(epochs)):
            raise Refused(f"the epochs {epochs} do not ascend; give each [epoch, size] after those of earlier epochs")
        return value

    @model_validator(mode="after")
    def _whole_epochs_of_views(self) -> ViewPolicy:
        if self.num_views is not None and self.num_views % self.repeats:
            raise Refused(
                f"num_views={self.num_views} is not a multiple of repeats={self.repeats}, the views that an epoch "
                f"shows; give num_views={-(-self.num_views // self.repeats) * self.repeats}"
            )
        return self

    @model_validator(mode="after")
    def _no_idle_order(self) -> ViewPolicy:
        if self.erase_first and not (self.mixes and self.erase_probability > 0):
            raise Refused("erase_first=true has no effect unless views are both mixed and erased; remove it")
        return self

    @model_validator(mode="after")
    def _no_idle_crop_settings(self) -> ViewPolicy:
        for name, crop in _CROP_FIELDS.items():
            if self.crop != crop and getattr(self, name) != type(self).model_fields[name].default:
                raise Refused(
                    f"{name}={getattr(self, name)} has no effect with crop='{self.crop}'; "
                    f"remove it, or set crop='{crop}'"
                )
        return self

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def mixes(self) -> bool:
        """Whether a sample's picture may hold a part of its partner's. Labels are then distributions."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def in_pixels(self) -> str | None:
        """The first setting that is on and counts pixels of `size`, so that another size shows another view."""
        on = {
            "padding": self.crop == "padded" and self.padding > 0,
            "erase_probability": self.erase_probability > 0,
            "cutmix_alpha": self.mix_probability > 0 and self.cutmix_alpha > 0,
            "auto_augment": self.auto_augment is not None,
        }
        return next((f"views.{name}" for name, is_on in on.items() if is_on), None)

    @property
    def jitters(self) -> bool:
        """Whether colours are changed."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @property
    def augment(self) -> AutoAugment | None:
        """The augmentation policy that `auto_augment` names."""
        return None if self.auto_augment is None else auto_augment(self.auto_augment)

    @property
    def fill(self) -> Colour:
        """The colour of what the operations of `auto_augment` bring in from outside."""
        assert self.augment is not None, "there are operations"
        return self.auto_augment_fill or self.augment.fill

    def at(self, views: ArrayLike) -> ViewPolicy:
        """Return the policy with the one size that these views have; it has no others."""
        if not self.sizes:
            return self
        epochs = np.unique(np.asarray(views) // self.repeats).tolist()
        found = {next((size for start, size in reversed(self.sizes) if start <= epoch), self.size) for epoch in epochs}
        assert len(found) == 1, "the rows of a batch have one size"
        return self.model_copy(update={"size": found.pop(), "sizes": ()})

    @property
    def all_sizes(self) -> list[tuple[int, int]]:
        """Every (height, width) that views may have."""
        sizes = dict.fromkeys([self.size, *(size for _, size in self.sizes)])
        return [(size, size) if isinstance(size, int) else size for size in sizes]

    def appearance(self) -> dict[str, Any]:
        """Return the settings that decide how a view looks, ready for JSON."""
        values = {name: value for name, value in identity_of(self).items() if name != "num_views"}
        return {**values, "size": [self.height, self.width]}
