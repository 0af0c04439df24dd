"""A choice among the candidates of a search that keeps what is there unless in doubt."""

import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from scipy import stats
from sklearn.base import BaseEstimator

from skood._compat import HasMethods, Interval


class KeepUnlessBetter(BaseEstimator):
    r"""Keep an estimator's parameters in a search unless others are significantly better.

    For the ``refit`` of :class:`~sklearn.model_selection.GridSearchCV`, which by itself takes the
    candidate of the best mean score, however little it leads and however much that differs from
    split to split. Here the candidate of the best mean replaces the estimator's own parameters only
    if its gain over these is above 0 by a one-sided paired t-test over the splits. Since splits
    share training rows, the variance of the mean of n splits is taken for :math:`1/n + r` times
    that of a gain, as Nadeau and Bengio propose, where r is the ratio of test to training rows;
    and since the best of m others is better by chance more often than one is, the level is divided
    by m.

    Parameters
    ----------
    estimator : estimator
        What is searched, a Pipeline too. Its own parameters have to be among the candidates.
    confidence : float, default=0.95
        One minus the probability of taking a candidate that is no better. Higher values keep the
        estimator's own parameters more often.
    test_ratio : float, default=None
        Rows of a split that are scored, over those that are learned from: r. None:
        :math:`1/(n - 1)`, which is that of n folds. Splits that are drawn again and again, and
        `LeaveClassesOut`, which scores all rows of the classes that it holds out, have more. What
        is too small a ratio takes candidates that are no better more often: of 8 splits of ten
        classes 8 % where 5 % were meant.

    See Also
    --------
    LeaveClassesOut : Splits without OOD rows, after which this is of most use.

    Notes
    -----
    Eight splits or more are needed to find moderate gains; with fewer than two nothing is.
    A search with a callable ``refit`` has no ``best_score_``: it is
    ``cv_results_["mean_test_score"][best_index_]``.

    Where a network knows the classes that are held out, scores of splits need not tell what is
    better with OOD rows. They then differ from split to split, which is what this holds against
    them: see the page "Tuning without OOD rows" for what was measured.

    References
    ----------
    Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skood import KNNDetector
    >>> from skood.model_selection import KeepUnlessBetter, LeaveClassesOut
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = KNNDetector()
    >>> search = GridSearchCV(
    ...     detector,
    ...     {"k": [1, 5, 10, 20]},
    ...     cv=LeaveClassesOut(3, random_state=0),
    ...     refit=KeepUnlessBetter(detector),
    ... ).fit(X, y)
    >>> search.best_params_                         # of three splits hardly anything is sure
    {'k': 10}
    """

    _parameter_constraints = {
        "estimator": [HasMethods("get_params")],
        "confidence": [Interval(Real, 0, 1, closed="neither")],
        "test_ratio": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self, estimator: Any, *, confidence: float = 0.95, test_ratio: float | None = None
    ) -> None:
        self.estimator = estimator
        self.confidence = confidence
        self.test_ratio = test_ratio

    def __call__(self, cv_results: Mapping[str, Any]) -> int:
        """Return the index of the candidate to take.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of a search with one score.

        Returns
        -------
        best_index : int
            That of the estimator's own parameters, or of others.

        Raises
        ------
        ValueError
            If there are several scores, or no candidate has the estimator's own parameters.
        """
        self._validate_params()
        names = [name for name in cv_results if re.fullmatch(r"split\d+_test_score", name)]
        if not names:
            raise ValueError(
                "KeepUnlessBetter compares candidates by one score, and the search has several.\n"
                "Give `scoring` one."
            )
        own = self._own(cv_results["params"])
        scores = np.array([cv_results[name] for name in names])
        gains = scores - scores[:, [own]]
        means = np.where(np.isnan(gains).any(0), -np.inf, gains.mean(0))
        best, n_splits = int(means.argmax()), len(gains)
        if n_splits < 2:
            return own
        ratio = 1 / (n_splits - 1) if self.test_ratio is None else self.test_ratio
        error = gains[:, best].std(ddof=1) * (1 / n_splits + ratio) ** 0.5
        level = (1 - self.confidence) / max(1, len(means) - 1)
        return best if means[best] > stats.t.isf(level, n_splits - 1) * error else own

    def _own(self, candidates):
        """Return the index of the estimator's own parameters."""
        own = self.estimator.get_params()
        for index, params in enumerate(candidates):
            if all(is_same(value, own.get(name)) for name, value in params.items()):
                return index
        names = sorted({name for params in candidates for name in params})
        values = ", ".join(f"{name}={own.get(name)!r}" for name in names)
        raise ValueError(
            f"No candidate has the estimator's own parameters, {values}:\nthere is nothing to "
            "compare the others with. Add these values to the grid."
        )


def is_same(value, own):
    """Tell whether a value of the grid is the estimator's own."""
    if value is own:
        return True
    if isinstance(value, BaseEstimator) and isinstance(own, BaseEstimator):
        # Estimators equal none but themselves.
        return str(value) == str(own)
    try:
        return bool(np.array_equal(value, own))
    except (TypeError, ValueError):
        # Such as lists of lists of several lengths.
        return bool(value == own)
