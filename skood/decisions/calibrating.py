"""Scores of rows that a detector has not learned from, to compare fresh ones to."""

import math
from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from skood._warnings import warn
from skood.data.labels import as_labels, is_ood
from skood.data.streams import is_stream
from skood.decisions.p_values import ROUNDING, check_scores
from skood.decisions.rows import n_rows, take
from skood.estimators.base import BaseDetector
from skood.metrics.scorers import score_rows
from skood.network.model import is_trained


class Calibrates:
    """The part of `ConformalDetector` that collects the scores to compare to."""

    @property
    def _within_labels(self):
        """True when rows are compared to the calibration rows of each class."""
        return bool(self.class_conditional) and not self._within_predicted

    @property
    def _within_predicted(self):
        """True when rows are compared to calibration rows of the same predicted class."""
        return hasattr(self.class_conditional, "predict")

    def _hold_out(self, X, y):
        """Yield (X, y) to fit on and (X, y) to calibrate on."""
        if is_stream(X):
            raise TypeError(
                f"X is a {type(X).__name__}, which cannot be split. Give rows to calibrate on, "
                "fit(X, y, X_cal), or arrays."
            )
        n_samples = n_rows(X)
        indices = np.arange(n_samples)
        # Only within classes are rows of a stratified sample exchangeable with fresh ones.
        strata = y if self._within_labels else None
        size, random_state = self.calibration_size, self.random_state
        if self.method == "split":
            split = train_test_split(
                indices, test_size=size, stratify=strata, random_state=random_state
            )
            splits = [split]
        else:
            share = size / n_samples if isinstance(size, Integral) else size
            KFolds = KFold if strata is None else StratifiedKFold
            n_folds = min(max(2, round(1 / share)), n_samples)
            splits = KFolds(n_folds, shuffle=True, random_state=random_state).split(indices, strata)
        for rest, held in splits:
            rest, held = np.sort(rest), np.sort(held)
            labels = (None, None) if y is None else (y[rest], y[held])
            yield take(X, rest), labels[0], take(X, held), labels[1]

    def _leave_one_out(self, X, y):
        """Return a detector fitted on all rows, and their scores as if not learned from."""
        if not isinstance(self.detector, BaseDetector):
            raise TypeError(
                "method='loo' takes leave-one-out scores in closed form, which skood's detectors "
                f"have; {type(self.detector).__name__} has none. Use method='cross'."
            )
        model = self.detector._given_model
        if model is not None and not is_trained(model):
            warn(
                f"{type(model).__name__} is trained on the very rows that calibrate, which "
                "method='loo' does not leave out: expect more false alarms than alpha. Use "
                "method='split' or 'cross'."
            )
        detector = clone(self.detector)
        return [detector], [check_scores(detector._fit(X, y), calibrates=True)]

    def _group(self, X, y, n_inside):
        """Return what each in-distribution row is compared within."""
        inside = slice(None) if y is None else ~is_ood(y)
        if self._within_predicted:
            return np.asarray(self.class_conditional.predict(X))[inside]
        if y is None or not self.class_conditional:
            return np.zeros(n_inside)
        return as_labels(y)[inside]

    def _scores(self, detector, X, calibrates=False):
        return check_scores(score_rows(detector, X), calibrates)

    def _warn_of_few(self):
        """Warn when no p-value can fall to alpha."""
        for name, calibration in self._calibration:
            n = sum(map(len, calibration))
            if (n + 1) * self.alpha * (1 + ROUNDING) < 1:
                of_class = f" of class {name}" if self.class_conditional else ""
                consequence = (
                    "rests on the exponential tail alone"
                    if self.tail == "exponential" and n
                    else "calls no row out-of-distribution"
                )
                least = math.ceil(1 / self.alpha * (1 - ROUNDING)) - 1
                warn(
                    f"There are {n} calibration rows{of_class}, too few for alpha={self.alpha}, "
                    f"which takes {least}: predict {consequence}"
                    f"{' that is predicted to be of it' if self._within_predicted else ''}."
                )
