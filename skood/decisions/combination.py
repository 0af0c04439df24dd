"""From the scores of several detectors to one."""

import numpy as np
from scipy.special import logsumexp, ndtri_exp
from scipy.stats import rankdata

from skood.decisions.p_values import conformal_p_values

# Log p-values (n_samples, n_detectors) → scores (n_samples,). Logarithms of p-values all along:
# p-values of far rows are all 0.
COMBINATIONS = {
    "min": lambda log_p: log_p.min(axis=1),
    "fisher": lambda log_p: log_p.sum(axis=1),
    "stouffer": lambda log_p: ndtri_exp(log_p).sum(axis=1) / np.sqrt(log_p.shape[1]),
    "mean_rank": lambda log_p: logsumexp(log_p, axis=1) - np.log(log_p.shape[1]),
}


def below_one(log_p, n_calibration):
    """Return log p-values that are less than 0, half a step at most: the quantile of 1 is inf."""
    return np.minimum(log_p, np.log1p(-0.5 / (n_calibration + 1)))


def log_p_values(calibration, scores):
    """Return the log p-values of fresh rows, with an exponential tail.

    Parameters
    ----------
    calibration : ndarray of shape (n_calibration,)
        Ascending.
    scores : ndarray of shape (n_samples,)
    """
    log_p = conformal_p_values([calibration], [scores], tail="exponential", log=True)
    return below_one(log_p, len(calibration))


def own_log_p_values(scores):
    """Return the log p-values of calibration rows, each compared to the others.

    The lowest has no tail: one row a detector, far below the threshold in any case.
    """
    return below_one(np.log(rankdata(scores, "max") / len(scores)), len(scores))
