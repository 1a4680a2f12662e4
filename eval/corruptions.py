"""ImageNet-C's two scores, which papers mix up: mCE and the unnormalised mean error.

mCE divides the errors of each corruption type by AlexNet's; the other does not.  ResNet-50 has an
mCE of 76.7 and an unnormalised error of 60.8.  Both are over the same 15 types and 5 severities.

Source: Hendrycks and Dietterich 2019, arXiv 1903.12261; AlexNet's errors as the authors'
repository, hendrycks/robustness, gives them.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from zoo.errors import DataError

SEVERITIES = (1, 2, 3, 4, 5)

TYPES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""What both scores are over."""

EXTRA_TYPES = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""For tuning on; part of neither score."""

ALEXNET_ERRORS: Mapping[str, float] = MappingProxyType(
    {
        "gaussian_noise": 88.6428,
        "shot_noise": 89.4468,
        "impulse_noise": 92.2640,
        "defocus_blur": 81.9880,
        "glass_blur": 82.6268,
        "motion_blur": 78.5948,
        "zoom_blur": 79.8360,
        "snow": 86.6816,
        "frost": 82.6572,
        "fog": 81.9324,
        "brightness": 56.4592,
        "contrast": 85.3204,
        "elastic_transform": 64.6056,
        "pixelate": 71.7840,
        "jpeg_compression": 60.6500,
        "speckle_noise": 84.5388,
        "gaussian_blur": 78.7108,
        "spatter": 71.7512,
        "saturate": 65.8248,
    }
)
"""Top-1 errors of AlexNet in percent, by type: the mean over the severities."""

Errors = Mapping[str, Mapping[int, float]]
"""Top-1 errors in percent, by type and severity."""


def mce(errors: Errors) -> float:
    """Mean corruption error in percent, normalised by AlexNet's errors: its own mCE is 100.

    Extra types are left out.  Raises DataError where one of the 15 types or 5 severities is
    missing: over fewer there is no such number.
    """
    _require(errors, TYPES)
    return _mean([_error(kind, errors) / ALEXNET_ERRORS[kind] for kind in TYPES]) * 100


def unnormalised_mean_error(errors: Errors) -> float:
    """Mean error in percent over the 15 types and 5 severities: not an mCE, whatever it is called.

    Extra types are left out.  Raises DataError as ``mce`` does.
    """
    _require(errors, TYPES)
    return _mean([_error(kind, errors) for kind in TYPES])


def normalised_errors(errors: Errors) -> dict[str, float]:
    """Error relative to AlexNet's in percent, by type: of all types given, the extra ones too.

    Raises DataError where a severity of a given type is missing.
    """
    _require(errors, list(errors))
    return {
        kind: 100 * _error(kind, errors) / error
        for kind, error in ALEXNET_ERRORS.items()
        if kind in errors
    }


def _require(errors: Errors, types: Sequence[str]) -> None:
    """Raise DataError unless there is an error in percent of each severity of these types."""
    given = [(kind, severity) for kind, found in errors.items() for severity in found]
    unknown = [p for p in given if p[0] not in ALEXNET_ERRORS or p[1] not in SEVERITIES]
    if unknown:
        raise DataError(
            f"ImageNet-C has no part {_part(unknown[0])}",
            where=_listed(unknown),
            fix=f"severities are 1 to 5, types {', '.join(ALEXNET_ERRORS)}",
        )
    due = [(kind, severity) for kind in types for severity in SEVERITIES]
    missing = [p for p in due if p not in given]
    if missing:
        raise DataError(
            f"errors of {len(missing)} of {len(due)} parts of ImageNet-C are missing",
            where=_listed(missing),
            fix="evaluate these too: a mean over fewer is another benchmark",
        )
    for kind, severity in due:
        if not 0 <= errors[kind][severity] <= 100:
            raise DataError(
                f"an error of {errors[kind][severity]} %",
                where=_part((kind, severity)),
                fix="give errors in percent, from 0 to 100",
            )


def _part(part: tuple[str, int]) -> str:
    return f"{part[0]}/{part[1]}"


def _listed(parts: list[tuple[str, int]]) -> str:
    return ", ".join(map(_part, parts[:10])) + (", …" if len(parts) > 10 else "")


def _error(kind: str, errors: Errors) -> float:
    return _mean([errors[kind][severity] for severity in SEVERITIES])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def standard_error(
    wrong: np.ndarray, parts: np.ndarray, images: np.ndarray, weights: np.ndarray
) -> float:
    """Standard error of a weighted sum of the parts' errors, over the images behind the files.

    A validation image is in every part, so its files are no independent samples: what counts is how
    the score moves when an image goes with all of them (the clustered, linearised error).

    wrong: (N,) bool, by file.  parts: (N,) int64, which part each file is of.  images: (N,) int64,
    which validation image it was made from.  weights: (P,) of the parts' error rates in the score.
    """
    sizes = np.bincount(parts, minlength=len(weights))
    errors = np.bincount(parts, wrong, len(weights)) / np.maximum(sizes, 1)
    moves = (weights / np.maximum(sizes, 1))[parts] * (wrong - errors[parts])
    by_image = np.bincount(np.unique(images, return_inverse=True)[1], moves)
    count = len(by_image)
    return float(np.sqrt((by_image**2).sum() * count / max(count - 1, 1)))
