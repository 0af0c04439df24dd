"""Scores and decisions of any fitted detector."""

import numpy as np
from sklearn.base import is_classifier

from skood._compat import move_to_numpy


def last_step(detector):
    """Return the last step of a Pipeline, or the detector."""
    return detector.steps[-1][1] if hasattr(detector, "steps") else detector


def classifies(detector):
    """Tell a classifier; of detectors that are none of scikit-learn's no one is."""
    return hasattr(detector, "__sklearn_tags__") and is_classifier(detector)


def snapshot(detector):
    """Return a detector that stays as it is fitted now, whatever other threads do."""
    return detector._snapshot() if hasattr(detector, "_snapshot") else detector


def scored(detector, X):
    """Return scores of rows, their threshold, and which of them are called out-of-distribution.

    The threshold is that of ``score_samples``; 0 where the scores are those of
    ``decision_function``.
    """
    detector = snapshot(detector)
    final = last_step(detector)
    # Decisions of an OpenSetClassifier are about its classes.
    final = final.detector_ if classifies(final) else final
    plain = hasattr(detector, "score_samples") and getattr(final, "fdr", None) is None
    if plain and hasattr(final, "offset_"):
        scores, threshold = move_to_numpy(detector.score_samples(X)), float(final.offset_)
    else:
        scores, threshold = move_to_numpy(detector.decision_function(X)), 0.0
    return scores, threshold, (scores.astype(np.float64) - threshold).astype(scores.dtype) < 0
