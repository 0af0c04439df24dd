"""Estimators that leave OOD rows out of `fit`, those that labels tell and those that scores do."""

from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_consistent_length, get_tags, indexable
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skood._compat import HasMethods, Interval, _fit_context
from skood._typing import Inputs, Labels
from skood._warnings import warn
from skood.data.arrays import is_named
from skood.data.labels import as_labels, encode_labels, warn_of_class_scorer
from skood.decisions.ensemble_rows import fit_detector
from skood.decisions.rows import n_rows, take
from skood.estimators.network_estimator import OneState, consistent, drafted
from skood.learning.learning import threshold_rows
from skood.metrics.scorers import get_scorer, known_labels, score_rows


def _has(*names):
    """Return a check for `available_if`: the wrapped estimator has one of these methods."""

    def check(self):
        estimator = getattr(self, "estimator_", self.estimator)
        return any(hasattr(estimator, name) for name in names)

    return check


class FitOnInliers(OneState, MetaEstimatorMixin, BaseEstimator):
    """Fit a transformer or any outlier detector on the in-distribution rows alone.

    `fit` leaves out the rows whose label is a negative number. A scaler in a Pipeline then does
    not learn from OOD rows, and an outlier detector such as
    :class:`~sklearn.ensemble.IsolationForest` has the `score` of skood's detectors, so that a
    search can tune it. Methods are those of the wrapped estimator.

    With `trim` it leaves out OOD rows that no label tells, too: a first fit scores all rows, each
    as if it had not been learned from, and a second learns without those that score lowest.

    Parameters
    ----------
    estimator : estimator
        A transformer, an outlier detector or a density, a Pipeline of these included. A clone
        of it is fitted.
    higher_is_outlier : bool, default=False
        False: scores are higher for in-distribution rows, as all of scikit-learn's are. True: the
        detector follows PyOD, where `decision_function` is higher for outliers and `threshold_`
        divides it. Scores are then negated and `predict` gives ±1.
    trim : float, default=None
        The share of the rows without a negative label to leave out, below 0.5: as many as are OOD
        all the same, the contamination of the data. None: no row. Skood's detectors are fitted
        twice; of others folds score each other, which takes seven fits.

    Attributes
    ----------
    estimator_ : estimator
        The fitted clone.
    known_classes_ : ndarray of shape (n_classes,)
        The sorted in-distribution labels, where y was given.
    offset_ : float
        Where the estimator has one: ``decision_function(X) = score_samples(X) - offset_``.
    n_features_in_ : int
        Where the estimator has it: the number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Where the estimator has it: the names of the features.
    support_ : ndarray of shape (n_samples,), dtype bool
        With `trim`: the rows that were learned from.

    See Also
    --------
    skood.metrics.get_scorer : Other metrics for a search.

    Notes
    -----
    What `trim` finds are rows that score low although others like them were learned from: few and
    far ones rather than many near ones. In place of those that it misses it leaves out
    in-distribution rows, and so it does where fewer are OOD than it says. The threshold is set
    without them, and false alarms rise above `false_alarm_rate`, by about `trim`, and more where
    rows are few. A class of which no row is left counts as OOD, with a warning. Rows that are
    known to be clean mend that: ``estimator_.set_threshold(X_clean)``. In scikit-learn
    ``contamination`` is another thing: the share of training rows that ``predict`` calls outliers.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skood.model_selection import FitOnInliers, LeaveClassesOut
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = FitOnInliers(IsolationForest(n_estimators=20, random_state=0))
    >>> grid = {"estimator__max_features": [0.5, 1.0]}
    >>> search = GridSearchCV(detector, grid, cv=LeaveClassesOut(3, random_state=0)).fit(X, y)
    >>> search.score_samples(X).shape
    (150,)

    Ten rows of noise among those of the classes:

    >>> import numpy as np
    >>> from skood import GMMDetector
    >>> noise = np.random.default_rng(0).uniform(0, 8, (10, 4))
    >>> X_all, y_all = np.vstack([X, noise]), np.r_[y, np.arange(10) % 3]
    >>> robust = FitOnInliers(GMMDetector(), trim=0.06).fit(X_all, y_all)
    >>> int(robust.support_[-10:].sum())            # of the noise one row is learned from
    1
    """

    _parameter_constraints = {
        "estimator": [HasMethods("fit")],
        "higher_is_outlier": ["boolean"],
        "trim": [Interval(Real, 0, 0.5, closed="neither"), None],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        higher_is_outlier: bool = False,
        trim: float | None = None,
    ) -> None:
        self.estimator = estimator
        self.higher_is_outlier = higher_is_outlier
        self.trim = trim

    @drafted
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Inputs, y: Labels | None = None) -> Self:
        """Fit a clone of the estimator on the rows whose label is not negative.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            What the estimator takes.
        y : array-like of shape (n_samples,), default=None
            Class labels; negative numbers mean out-of-distribution. None: all rows are learned.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        classes = labels = support = None
        if y is not None:
            check_consistent_length(X, y)
            n_samples = len(as_labels(y))
            rows, classes, codes = encode_labels(y, n_samples)
            labels = classes[codes]
            X = take(X, rows)
        if self.trim is not None:
            X = X if is_named(X) else indexable(X)[0]
            kept = self._inliers(X, labels)
            support = np.zeros(n_rows(X) if y is None else n_samples, dtype=bool)
            support[kept if y is None else rows[kept]] = True
            X = take(X, kept)
            if labels is not None:
                labels = labels[kept]
                kept_classes = np.unique(labels)
                gone, classes = np.setdiff1d(np.asarray(classes), kept_classes), kept_classes
                if len(gone):
                    warn(f"trim={self.trim} left no row of the classes {gone}: they count as OOD.")
        # PyOD warns of labels.
        estimator = clone(self.estimator).fit(X, None if self.higher_is_outlier else labels)
        fitted = {"estimator_": estimator, "known_classes_": classes, "support_": support}
        for name in ("n_features_in_", "feature_names_in_"):
            fitted[name] = getattr(estimator, name, None)
        last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        if self.higher_is_outlier and not hasattr(last, "threshold_"):
            raise AttributeError(
                f"{type(last).__name__} has no `threshold_`, as PyOD's detectors have: use "
                "FitOnInliers(..., higher_is_outlier=False)."
            )
        if not self.higher_is_outlier and hasattr(last, "decision_scores_"):
            raise ValueError(
                f"{type(last).__name__} has `decision_scores_`, as PyOD's detectors have, whose "
                "scores are higher for outliers: use FitOnInliers(..., higher_is_outlier=True)."
            )
        for name, value in fitted.items():
            self.__dict__.pop(name, None)
            if value is not None:
                setattr(self, name, value)
        return self

    @property
    def offset_(self) -> float:
        """The threshold of the fitted clone, wherever that is moved to."""
        if not self.higher_is_outlier:
            return self.estimator_.offset_
        estimator = self.estimator_
        last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        return -last.threshold_

    def _inliers(self, X, y):
        """Return the rows without the share that scores lowest, ascending."""
        y = None if self.higher_is_outlier else y
        detector, left_out = fit_detector(clone(self.estimator), X, y, random_state=0)
        scores = left_out
        if len(left_out) < n_rows(X):
            # Of many rows a sample is scored as not learned from, which of so many matters little.
            scores = np.array(score_rows(detector, X))
            scores[threshold_rows(len(scores), len(left_out))] = left_out
        order = np.argsort(-scores if self.higher_is_outlier else scores, kind="stable")
        return np.sort(order[round(self.trim * len(order)) :])

    @available_if(_has("transform"))
    def fit_transform(self, X: Inputs, y: Labels | None = None) -> Any:
        """Fit on the in-distribution rows and transform all.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.
        y : array-like of shape (n_samples,), default=None
            As in ``fit``.

        Returns
        -------
        X_new : array-like of shape (n_samples, n_features_out)
            All rows, the OOD rows too.
        """
        return self.fit(X, y).transform(X)

    @available_if(_has("predict"))
    def fit_predict(self, X: Inputs, y: Labels | None = None) -> np.ndarray:
        """Fit on the in-distribution rows and predict all.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.
        y : array-like of shape (n_samples,), default=None
            As in ``fit``.

        Returns
        -------
        labels : array of shape (n_samples,)
            +1 for in-distribution, -1 for out-of-distribution.
        """
        return self.fit(X, y).predict(X)

    @available_if(_has("transform"))
    def transform(self, X: Inputs) -> Any:
        """Transform rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.

        Returns
        -------
        X_new : array-like of shape (n_samples, n_features_out)
            What the fitted estimator makes of them.
        """
        check_is_fitted(self)
        return self.estimator_.transform(X)

    @available_if(_has("get_feature_names_out"))
    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Name the features that ``transform`` returns.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the features of X.

        Returns
        -------
        names : ndarray of str
            Those of the fitted estimator.
        """
        check_is_fitted(self)
        return self.estimator_.get_feature_names_out(input_features)

    @available_if(_has("set_output"))
    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose the container of what ``transform`` returns.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, default=None
            As in every transformer of scikit-learn; it is set on `estimator`, as by a Pipeline.

        Returns
        -------
        self : object
            This estimator.
        """
        for estimator in (self.estimator, getattr(self, "estimator_", self.estimator)):
            estimator.set_output(transform=transform)
        return self

    @available_if(_has("score_samples"))
    @consistent
    def score_samples(self, X: Inputs) -> np.ndarray:
        """Score rows; higher means more in-distribution.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.

        Returns
        -------
        scores : array of shape (n_samples,)
            Those of the fitted estimator, negated where `higher_is_outlier`.
        """
        check_is_fitted(self)
        scores = self.estimator_.score_samples(X)
        return -scores if self.higher_is_outlier else scores

    @available_if(_has("decision_function"))
    @consistent
    def decision_function(self, X: Inputs) -> np.ndarray:
        """Score rows relative to the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.

        Returns
        -------
        decision : array of shape (n_samples,)
            Negative for rows that ``predict`` calls out-of-distribution.
        """
        warn_of_class_scorer()
        check_is_fitted(self)
        decision = self.estimator_.decision_function(X)
        return -decision - self.offset_ if self.higher_is_outlier else decision

    @available_if(_has("predict"))
    @consistent
    def predict(self, X: Inputs) -> np.ndarray:
        """Tell in-distribution from out-of-distribution rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.

        Returns
        -------
        labels : array of shape (n_samples,)
            +1 for in-distribution, -1 for out-of-distribution.
        """
        check_is_fitted(self)
        if self.higher_is_outlier:
            return np.where(self.decision_function(X) >= 0, 1, -1)
        return self.estimator_.predict(X)

    @available_if(_has("score_samples", "decision_function"))
    @consistent
    def score(self, X: Inputs, y: Labels) -> float:
        """Area under the ROC curve of in-distribution against out-of-distribution rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.
        y : array-like of shape (n_samples,)
            Labels. A row is out-of-distribution if its label is negative, or if ``fit`` was given
            labels and this is a class that it did not see.

        Returns
        -------
        auroc : float
            1 is perfect, 0.5 is chance.
        """
        return get_scorer("auroc")(self, X, y)

    def _known_labels(self):
        """Return the labels that are not out-of-distribution; None if only negatives are."""
        known = known_labels(self.estimator_)
        return getattr(self, "known_classes_", None) if known is None else known

    def __sklearn_tags__(self):
        # PyOD's detectors have no tags.
        tagged = hasattr(self.estimator, "__sklearn_tags__")
        tags = get_tags(self.estimator) if tagged else super().__sklearn_tags__()
        # Labels are read as numpy arrays.
        tags.array_api_support = False
        return tags
