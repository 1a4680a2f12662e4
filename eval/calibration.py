"""Whether a network is as sure as it is right: calibration error and AURRA, in percent.

Source: ``calibration_tools.py`` of Hendrycks et al. 2021 (natural-adv-examples), for ImageNet-A.
Samples of equal confidence keep the order in which they are given.

N samples: confidences (N,) in [0, 1] and correct (N,) bool
"""

import numpy as np


def rms_calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bin_size: int) -> float:
    """Root mean square of confidence − accuracy, over bins of samples of similar confidence.

    Bins hold ``bin_size`` samples in order of confidence; the last, surest one also takes the rest.
    """
    return _rms(confidence, correct, bin_size, skip_last=False)


def rms_calibration_error_as_published(
    confidence: np.ndarray, correct: np.ndarray, *, bin_size: int
) -> float | None:
    """The same as the published code has it, to compare with published figures.

    Its loop ends one bin early: the surest samples count among all and never add an error.  None
    where that leaves no bin: with fewer than two.
    """
    if len(confidence) < 2 * bin_size:
        return None
    return _rms(confidence, correct, bin_size, skip_last=True)


def _rms(confidence: np.ndarray, correct: np.ndarray, bin_size: int, *, skip_last: bool) -> float:
    order = np.argsort(confidence, kind="stable")
    bins = max(1, len(order) // bin_size)
    starts = np.arange(bins) * bin_size
    sizes = np.diff(starts, append=len(order))
    sure = np.add.reduceat(confidence[order].astype(np.float64), starts)
    right = np.add.reduceat(correct[order].astype(np.float64), starts)
    errors = sizes * ((sure - right) / sizes) ** 2
    total = errors[: bins - skip_last].sum()
    return 100 * float(np.sqrt(total / len(order)))


def aurra(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Area under the curve of accuracy by response rate: over the 1, 2, … N surest samples."""
    surest_first = np.argsort(confidence, kind="stable")[::-1]
    right = np.cumsum(correct[surest_first])
    return 100 * float(np.mean(right / np.arange(1, len(right) + 1)))
