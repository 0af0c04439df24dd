"""Moving the thresholds of a fitted ensemble, and of conformal p-values."""

import math
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skood._typing import Inputs, Labels
from skood.data.labels import as_labels, check_any_inside, is_inside
from skood.decisions.p_values import ROUNDING
from skood.estimators.network_estimator import OneState
from skood.learning.thresholds import keep_scores, kept_scores, lower_quantile
from skood.metrics.scorers import known_labels


def inside_rows(estimator, n_rows, y):
    """Return which of n_rows rows are in-distribution; raise if none is."""
    inside = is_inside(y, n_rows, known_labels(estimator))
    check_any_inside(inside)
    return inside


class MovesEnsembleThreshold(OneState):
    """The part of an ensemble that says which combined scores are low."""

    offset_: float
    false_alarm_rate: float
    _kept_scores: dict[str, Any]

    def _cut(self, scores, set_aside=False):
        """Set the threshold by scores that the detectors have not learned from, and keep these."""
        self._kept_scores = keep_scores(scores, 0.0, set_aside)
        self._cut_again()

    def _cut_again(self):
        kept = kept_scores(self)
        quantile = lower_quantile(kept["scores"], self.false_alarm_rate, kept["ranks"])
        self.offset_ = quantile - ROUNDING * max(1, abs(quantile))

    def set_threshold(
        self,
        X: Inputs | None = None,
        y: Labels | None = None,
        *,
        false_alarm_rate: float | None = None,
    ) -> Self:
        """Move the threshold of the fitted ensemble, without fitting it again.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), default=None
            In-distribution rows set aside: the threshold becomes the `false_alarm_rate` quantile of
            their scores. None: of the scores that the threshold came from before.
        y : array-like of shape (n_samples,), default=None
            Labels of X. Rows with a negative label, or of a class that ``fit`` did not see, are
            left out.
        false_alarm_rate : float, default=None
            The share of in-distribution rows to call out-of-distribution, above 0 and at most 0.5,
            which becomes the parameter. None: the parameter as it is.

        Returns
        -------
        self : object
            The ensemble, with another ``offset_``. Scores stay as they are.

        Raises
        ------
        ValueError
            If the rate is out of range, X holds no in-distribution row, or there is no X and the
            ensemble was fitted by a version of skood that kept no scores.

        See Also
        --------
        skood.GMMDetector.set_threshold : The same of one detector.
        """
        check_is_fitted(self)
        with self._drafting() as draft:
            if false_alarm_rate is not None:
                draft.false_alarm_rate = false_alarm_rate
            draft._validate_params()
            if X is not None:
                scores = draft.score_samples(X)
                draft._cut(scores[inside_rows(draft, len(scores), y)], set_aside=True)
            else:
                draft._cut_again()
            self.false_alarm_rate = draft.false_alarm_rate
        return self


class MovesLevel(OneState):
    """The part of a conformal detector that says which p-values are low."""

    offset_: float
    alpha: float

    def _calibrate(self, scores, groups, names):
        """Keep the calibration scores, of one detector or of each fold, in groups.

        Parameters
        ----------
        scores, groups : list of ndarray of shape (n_calibration,)
            The scores, and what each row is compared within.
        names : array
            The groups that fresh rows are compared to.
        """
        self._calibration = [
            (name, [np.sort(s[g == name]) for s, g in zip(scores, groups, strict=True)])
            for name in names
        ]
        self.n_calibration_ = sum(map(len, scores))
        self._set_level()

    def _set_level(self):
        threshold = self.alpha * (1 + ROUNDING)
        self.offset_ = math.log(threshold) if self.tail == "exponential" else threshold
        self._warn_of_few()

    def set_threshold(
        self,
        X: Inputs | None = None,
        y: Labels | None = None,
        *,
        false_alarm_rate: float | None = None,
    ) -> Self:
        """Move the threshold of the fitted detector, without fitting it again.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), default=None
            In-distribution rows set aside, which calibrate in place of those of ``fit``: p-values,
            and so scores, change. None: these stay as they are.
        y : array-like of shape (n_samples,), default=None
            Labels of X. Rows with a negative label, or of a class that is not among
            ``known_classes_``, are left out.
        false_alarm_rate : float, default=None
            The level, which becomes the parameter `alpha`. None: `alpha` as it is.

        Returns
        -------
        self : object
            The detector, with another ``offset_``.

        Raises
        ------
        ValueError
            If the rate is out of range, X holds no in-distribution row, ``class_conditional=True``
            has no y or none of a class, or the detectors are those of several folds: what was left
            out of one fold, the others have learned from.

        Warns
        -----
        UserWarning
            If the calibration rows are too few for the level.

        See Also
        --------
        skood.GMMDetector.set_threshold : The same of one detector.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skood import GMMDetector
        >>> from skood.calibration import ConformalDetector
        >>> X, y = load_iris(return_X_y=True)
        >>> detector = ConformalDetector(GMMDetector(), method="loo").fit(X, y)
        >>> detector.set_threshold(false_alarm_rate=0.2)
        ConformalDetector(alpha=0.2, detector=GMMDetector(), method='loo')
        >>> int((detector.predict(X) == -1).sum())
        19
        """
        check_is_fitted(self)
        with self._drafting() as draft:
            if false_alarm_rate is not None:
                draft.alpha = false_alarm_rate
            draft._validate_params()
            if X is None:
                draft._set_level()
            else:
                draft._calibrate_again(X, y)
            self.alpha = draft.alpha
        return self

    def _calibrate_again(self, X, y):
        if len(self.detectors_) > 1:
            raise ValueError(
                "The detectors of several folds are calibrated on the rows that each has not seen: "
                'X cannot take their place.\nFit with method="split" and X_cal.'
            )
        if self._within_labels and y is None and len(self._calibration) > 1:
            raise ValueError("class_conditional=True needs the labels of X: y.")
        scores = self._scores(self.detectors_[0], X, calibrates=True)
        inside = inside_rows(self, len(scores), y)
        names = np.asarray([name for name, _ in self._calibration])
        if self._within_predicted:
            group = np.asarray(self.class_conditional.predict(X))[inside]
            names = np.union1d(names, group)
        elif self._within_labels and y is not None:
            group = as_labels(y)[inside]
        else:
            group = np.zeros(inside.sum())
        self._calibrate([scores[inside]], [group], names)
