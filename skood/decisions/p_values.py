"""Conformal p-values."""

import math

import numpy as np
from scipy.special import logsumexp

from skood._compat import move_to_numpy

# A p-value equal to alpha falls below the threshold, however both are rounded.
ROUNDING = 1e-9

# What scores and log p-values are clipped to: their sums and differences stay finite.
LARGEST = 1e300


def tail_scale(calibration):
    """Return the mean excess of the lowest tenth of the calibration scores, ascending, or of ten.

    The log-likelihood of Gaussian features has about an exponential tail of this scale.
    """
    k = min(len(calibration) - 1, max(10, len(calibration) // 10))
    scale = (calibration[k] - calibration[:k]).sum() / max(k, 1)
    # Calibration scores that are all equal have no scale.
    return max(scale, np.spacing(np.abs(calibration[0])))


def log_tail(calibration, scores):
    """Return the logarithm of an exponential tail below the smallest calibration score.

    Parameters
    ----------
    calibration : ndarray of shape (n_calibration,)
        Ascending.
    scores : ndarray of shape (n_samples,)
        Below all of them.

    Returns
    -------
    tail : ndarray of shape (n_samples,)
        0 at the smallest calibration score, and falling in proportion to the distance from it.
    """
    with np.errstate(over="ignore"):
        return np.maximum((scores - calibration[0]) / tail_scale(calibration), -LARGEST)


def conformal_p_values(calibration, scores, *, tail="none", log=False):
    """Return p-values: (1 + how many calibration scores are as low) / (1 + how many there are).

    Parameters
    ----------
    calibration : list of ndarray of shape (n_calibration,)
        Calibration scores, ascending; for cross+ those of each fold under the model of that fold.
    scores : list of ndarray of shape (n_samples,)
        The scores of the rows under each of these models.
    tail : {"none", "exponential"}, default="none"
        How rows below all calibration scores differ from each other.
    log : bool, default=False
        Return logarithms, which do not underflow.
    """
    folds = list(zip(calibration, scores, strict=True))
    below = sum(np.searchsorted(*fold, side="right") for fold in folds)
    p_values = (1 + below) / (1 + sum(map(len, calibration)))
    factor = np.zeros(len(p_values))
    if tail == "exponential":
        far = below == 0
        tails = [log_tail(c, s[far]) for c, s in folds if len(c)]
        if tails:
            factor[far] = logsumexp(tails, axis=0) - math.log(len(tails))
    return np.log(p_values) + factor if log else p_values * np.exp(factor)


def check_scores(scores, calibrates):
    """Return the scores of rows as float64, or raise."""
    scores = move_to_numpy(scores)
    eps = np.finfo(np.result_type(scores.dtype, np.float32)).eps
    scores = scores.astype(np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError(
            f"The detector gives scores of shape {scores.shape}, {np.isnan(scores).sum()} of "
            "them NaN. Calibration takes one number a row."
        )
    scores = scores.clip(-LARGEST, LARGEST)
    # Equal rows score unequally in batches of unlike sizes, and must count as equal.
    return scores - 16 * eps * np.median(np.abs(scores)) if calibrates else scores
