"""What several detectors learn from and score together, in one pass through a network."""

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import KFold

from skood._compat import move_to_numpy
from skood.data.arrays import FEATURE_BATCH_BYTES
from skood.data.streams import is_shuffled
from skood.decisions.p_values import check_scores
from skood.decisions.rows import n_rows, take
from skood.estimators.base import BaseDetector
from skood.learning.learning import threshold_rows
from skood.metrics.scorers import score_rows

N_FOLDS = 5


def cross_scores(detector, X, y, random_state):
    """Return the scores of rows, each under a clone that was fitted on other folds."""
    scores = np.empty(n_rows(X))
    folds = KFold(min(N_FOLDS, len(scores)), shuffle=True, random_state=random_state)
    for rest, held in folds.split(scores):
        fitted = clone(detector).fit(take(X, rest), None if y is None else y[rest])
        scores[held] = check_scores(score_rows(fitted, take(X, held)), calibrates=False)
    return scores


def fit_detector(detector, X, y, random_state):
    """Fit a detector; return it and the scores of the rows as if it had not learned from them."""
    if isinstance(detector, BaseDetector):
        return detector, move_to_numpy(detector._fit(X, y))
    scores = cross_scores(detector, X, y, random_state)
    return detector.fit(X, y), scores


def on_common_rows(values, n_samples):
    """Return values of each detector on the rows that all have: some score a sample of rows."""
    common = threshold_rows(n_samples, min(map(len, values)))
    return [v[np.searchsorted(threshold_rows(n_samples, len(v)), common)] for v in values]


def check_order(X):
    """Raise if every pass over X gives its rows in another order."""
    if is_shuffled(X):
        raise ValueError(
            "The DataLoader shuffles, and detectors that read it themselves would see its rows in "
            "another order. Pass the Dataset, or a loader with shuffle=False."
        )


def feature_blocks(extractor, rows):
    """Yield features as numpy arrays of about 32 MiB: each costs every detector a call."""
    held, n_bytes = [], 0
    for (features,) in extractor._inputs(rows):
        held.append(features)
        n_bytes += features.nbytes
        if n_bytes >= FEATURE_BATCH_BYTES:
            yield move_to_numpy(torch.cat(held))
            held, n_bytes = [], 0
    if held:
        yield move_to_numpy(torch.cat(held))
