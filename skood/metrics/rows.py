"""Rows and their scores, as all metrics take them."""

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils import check_array, check_consistent_length

from skood._compat import move_to_numpy
from skood._warnings import ShownOnce, warn
from skood.data.labels import is_ood
from skood.metrics import resampling


class OneKindOfRow(ShownOnce, UndefinedMetricWarning):
    """A metric that compares both kinds of row was given one kind."""


def check_scores(scores, name="y_score"):
    """Return scores of rows as a float array, or raise."""
    scores = move_to_numpy(scores)
    if scores.ndim != 1:
        raise ValueError(f"{name} must have shape (n_samples,), got {scores.shape}.")
    # float32 sorts twice as fast as float64.
    return check_array(scores, ensure_2d=False, dtype=[np.float64, np.float32], input_name=name)


def check_rows(y_true, y_score):
    """Return the mask of in-distribution rows and the scores."""
    inside, scores = ~is_ood(y_true), check_scores(y_score)
    check_consistent_length(inside, scores)
    return inside, scores


def threshold_at_tpr(positives, tpr):
    """Return the highest threshold that at least a share `tpr` of the positive scores reaches."""
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must be greater than 0 and at most 1, got {tpr!r}.")
    last = len(positives) - resampling.fewest(tpr, len(positives))
    return np.partition(positives, last)[last]


def evaluate_metric(metric, y_true, y_score):
    """Return metric(in-distribution mask, scores); nan where one kind of row is missing."""
    inside, scores = check_rows(y_true, y_score)
    n_inside = np.count_nonzero(inside)
    if n_inside in (0, len(inside)):
        warn(
            f"y holds no {'out-of-distribution' if n_inside else 'in-distribution'} row, and "
            "metrics of OOD detection compare both kinds: the result is set to nan.\nNegative "
            "labels mark OOD rows. In a search without any, hold classes out:\n"
            "GridSearchCV(..., cv=skood.model_selection.LeaveClassesOut()).",
            OneKindOfRow,
        )
        return float("nan")
    # scikit-learn finds ties by differences, which overflow harmlessly between ±1.8e308.
    with np.errstate(over="ignore"):
        return float(metric(inside, scores))
