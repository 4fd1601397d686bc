"""AutoAugment's searched policies: of each of 25 sub-policies (kind, probability, level of 0 to 9) for two turns.

Source: Cubuk et al., "AutoAugment", arXiv 1805.09501, its appendix; an operation without a strength has level 0.
"""

from __future__ import annotations

from pipelines.views.operations import Kind

SubPolicies = tuple[tuple[tuple[Kind, float, int], ...], ...]

_IMAGENET: SubPolicies = (
    ((Kind.POSTERIZE, 0.4, 8), (Kind.ROTATE, 0.6, 9)),
    ((Kind.SOLARIZE, 0.6, 5), (Kind.AUTO_CONTRAST, 0.6, 0)),
    ((Kind.EQUALIZE, 0.8, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.POSTERIZE, 0.6, 7), (Kind.POSTERIZE, 0.6, 6)),
    ((Kind.EQUALIZE, 0.4, 0), (Kind.SOLARIZE, 0.2, 4)),
    ((Kind.EQUALIZE, 0.4, 0), (Kind.ROTATE, 0.8, 8)),
    ((Kind.SOLARIZE, 0.6, 3), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.POSTERIZE, 0.8, 5), (Kind.EQUALIZE, 1.0, 0)),
    ((Kind.ROTATE, 0.2, 3), (Kind.SOLARIZE, 0.6, 8)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.POSTERIZE, 0.4, 6)),
    ((Kind.ROTATE, 0.8, 8), (Kind.COLOR, 0.4, 0)),
    ((Kind.ROTATE, 0.4, 9), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.EQUALIZE, 0.0, 0), (Kind.EQUALIZE, 0.8, 0)),
    ((Kind.INVERT, 0.6, 0), (Kind.EQUALIZE, 1.0, 0)),
    ((Kind.COLOR, 0.6, 4), (Kind.CONTRAST, 1.0, 8)),
    ((Kind.ROTATE, 0.8, 8), (Kind.COLOR, 1.0, 2)),
    ((Kind.COLOR, 0.8, 8), (Kind.SOLARIZE, 0.8, 7)),
    ((Kind.SHARPNESS, 0.4, 7), (Kind.INVERT, 0.6, 0)),
    ((Kind.SHEAR_X, 0.6, 5), (Kind.EQUALIZE, 1.0, 0)),
    ((Kind.COLOR, 0.4, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.EQUALIZE, 0.4, 0), (Kind.SOLARIZE, 0.2, 4)),
    ((Kind.SOLARIZE, 0.6, 5), (Kind.AUTO_CONTRAST, 0.6, 0)),
    ((Kind.INVERT, 0.6, 0), (Kind.EQUALIZE, 1.0, 0)),
    ((Kind.COLOR, 0.6, 4), (Kind.CONTRAST, 1.0, 8)),
    ((Kind.EQUALIZE, 0.8, 0), (Kind.EQUALIZE, 0.6, 0)),
)
_CIFAR: SubPolicies = (
    ((Kind.INVERT, 0.1, 0), (Kind.CONTRAST, 0.2, 6)),
    ((Kind.ROTATE, 0.7, 2), (Kind.TRANSLATE_X, 0.3, 9)),
    ((Kind.SHARPNESS, 0.8, 1), (Kind.SHARPNESS, 0.9, 3)),
    ((Kind.SHEAR_Y, 0.5, 8), (Kind.TRANSLATE_Y, 0.7, 9)),
    ((Kind.AUTO_CONTRAST, 0.5, 0), (Kind.EQUALIZE, 0.9, 0)),
    ((Kind.SHEAR_Y, 0.2, 7), (Kind.POSTERIZE, 0.3, 7)),
    ((Kind.COLOR, 0.4, 3), (Kind.BRIGHTNESS, 0.6, 7)),
    ((Kind.SHARPNESS, 0.3, 9), (Kind.BRIGHTNESS, 0.7, 9)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.EQUALIZE, 0.5, 0)),
    ((Kind.CONTRAST, 0.6, 7), (Kind.SHARPNESS, 0.6, 5)),
    ((Kind.COLOR, 0.7, 7), (Kind.TRANSLATE_X, 0.5, 8)),
    ((Kind.EQUALIZE, 0.3, 0), (Kind.AUTO_CONTRAST, 0.4, 0)),
    ((Kind.TRANSLATE_Y, 0.4, 3), (Kind.SHARPNESS, 0.2, 6)),
    ((Kind.BRIGHTNESS, 0.9, 6), (Kind.COLOR, 0.2, 8)),
    ((Kind.SOLARIZE, 0.5, 2), (Kind.INVERT, 0.0, 0)),
    ((Kind.EQUALIZE, 0.2, 0), (Kind.AUTO_CONTRAST, 0.6, 0)),
    ((Kind.EQUALIZE, 0.2, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.COLOR, 0.9, 9), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.AUTO_CONTRAST, 0.8, 0), (Kind.SOLARIZE, 0.2, 8)),
    ((Kind.BRIGHTNESS, 0.1, 3), (Kind.COLOR, 0.7, 0)),
    ((Kind.SOLARIZE, 0.4, 5), (Kind.AUTO_CONTRAST, 0.9, 0)),
    ((Kind.TRANSLATE_Y, 0.9, 9), (Kind.TRANSLATE_Y, 0.7, 9)),
    ((Kind.AUTO_CONTRAST, 0.9, 0), (Kind.SOLARIZE, 0.8, 3)),
    ((Kind.EQUALIZE, 0.8, 0), (Kind.INVERT, 0.1, 0)),
    ((Kind.TRANSLATE_Y, 0.7, 9), (Kind.AUTO_CONTRAST, 0.9, 0)),
)
_SVHN: SubPolicies = (
    ((Kind.SHEAR_X, 0.9, 4), (Kind.INVERT, 0.2, 0)),
    ((Kind.SHEAR_Y, 0.9, 8), (Kind.INVERT, 0.7, 0)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.SOLARIZE, 0.6, 6)),
    ((Kind.INVERT, 0.9, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.ROTATE, 0.9, 3)),
    ((Kind.SHEAR_X, 0.9, 4), (Kind.AUTO_CONTRAST, 0.8, 0)),
    ((Kind.SHEAR_Y, 0.9, 8), (Kind.INVERT, 0.4, 0)),
    ((Kind.SHEAR_Y, 0.9, 5), (Kind.SOLARIZE, 0.2, 6)),
    ((Kind.INVERT, 0.9, 0), (Kind.AUTO_CONTRAST, 0.8, 0)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.ROTATE, 0.9, 3)),
    ((Kind.SHEAR_X, 0.9, 4), (Kind.SOLARIZE, 0.3, 3)),
    ((Kind.SHEAR_Y, 0.8, 8), (Kind.INVERT, 0.7, 0)),
    ((Kind.EQUALIZE, 0.9, 0), (Kind.TRANSLATE_Y, 0.6, 6)),
    ((Kind.INVERT, 0.9, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.CONTRAST, 0.3, 3), (Kind.ROTATE, 0.8, 4)),
    ((Kind.INVERT, 0.8, 0), (Kind.TRANSLATE_Y, 0.0, 2)),
    ((Kind.SHEAR_Y, 0.7, 6), (Kind.SOLARIZE, 0.4, 8)),
    ((Kind.INVERT, 0.6, 0), (Kind.ROTATE, 0.8, 4)),
    ((Kind.SHEAR_Y, 0.3, 7), (Kind.TRANSLATE_X, 0.9, 3)),
    ((Kind.SHEAR_X, 0.1, 6), (Kind.INVERT, 0.6, 0)),
    ((Kind.SOLARIZE, 0.7, 2), (Kind.TRANSLATE_Y, 0.6, 7)),
    ((Kind.SHEAR_Y, 0.8, 4), (Kind.INVERT, 0.8, 0)),
    ((Kind.SHEAR_X, 0.7, 9), (Kind.TRANSLATE_Y, 0.8, 3)),
    ((Kind.SHEAR_Y, 0.8, 5), (Kind.AUTO_CONTRAST, 0.7, 0)),
    ((Kind.SHEAR_X, 0.7, 2), (Kind.INVERT, 0.1, 0)),
)

SUB_POLICIES: dict[str, SubPolicies] = {"imagenet": _IMAGENET, "cifar": _CIFAR, "svhn": _SVHN}
