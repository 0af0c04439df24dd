"""The threshold of a detector, and moving it after the fit."""

from typing import Any, Self

import numpy as np
import torch
from scipy.stats import betabinom, binomtest
from sklearn.utils.validation import check_is_fitted

from skood._typing import Inputs, Labels
from skood._warnings import warn
from skood.data.labels import check_any_inside, is_inside
from skood.data.lazy import is_dask, load_distributed
from skood.data.streams import is_stream
from skood.estimators.network_estimator import NetworkEstimator
from skood.learning.thresholds import (
    N_ULPS,
    epsilon,
    keep_scores,
    kept_scores,
    lower_quantile,
    size_of,
)


class ThresholdAttributes:
    """The types of what the threshold comes from: apart from the parameters."""

    offset_: float
    false_alarm_rate: float
    _kept_scores: dict[str, Any]


class MovesThreshold(ThresholdAttributes, NetworkEstimator):
    """The part of a detector that says which scores are low, and keeps what that came from."""

    def _cut(self, scores, dtype, rounding, set_aside=False):
        """Return the attributes that say where scores are cut, by all of them, a tensor."""
        kept = keep_scores(scores.cpu().numpy().ravel(), rounding, set_aside)
        return {"offset_": self._threshold(scores, dtype) - rounding, "_kept_scores": kept}

    def _threshold(self, scores, dtype):
        """Return the quantile of the scores, a little lower so that equal rows fall together."""
        scores = scores.double().cpu().numpy().ravel()
        return self._lowered(lower_quantile(scores, self.false_alarm_rate), size_of(scores), dtype)

    @staticmethod
    def _lowered(quantile, size, dtype):
        """Return a quantile less what rounding makes of equal rows."""
        # A row on the quantile would flip between batch sizes. The scale is that of the scores,
        # not 1: gradient norms of features of size 1e-6 are as small.
        return float(quantile - N_ULPS * epsilon(dtype) * max(abs(quantile), size))

    def _threshold_again(self, kept, dtype):
        """Return the threshold by the scores that were kept."""
        scores, rate = kept["scores"].astype(np.float64), self.false_alarm_rate
        quantile = lower_quantile(scores, rate, kept["ranks"])
        return self._lowered(quantile, float(kept["size"]), dtype) - float(kept["rounding"])

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
            In-distribution rows set aside, seen by neither ``fit`` nor the network: the threshold
            becomes the `false_alarm_rate` quantile of their scores. None: of the scores that the
            threshold came from before, those of the training rows as if not learned from.
        y : array-like of shape (n_samples,) or (n_samples, H, W), default=None
            Labels of X. Rows that ``score`` takes for out-of-distribution are left out: those with
            a negative label, or of a class that ``fit`` did not see.
        false_alarm_rate : float, default=None
            The share of in-distribution rows to call out-of-distribution, above 0 and at most 0.5.
            It becomes the parameter of this name, which clones and further ``partial_fit`` go by.
            None: the parameter as it is.

        Returns
        -------
        self : object
            The detector, with another ``offset_``. Scores stay as they are.

        Raises
        ------
        ValueError
            If the rate is out of range, X holds no in-distribution row, or there is no X and the
            detector was fitted by a version of skood that kept no scores.

        Warns
        -----
        UserWarning
            If there are fewer than 1 / rate - 1 rows. By ``partial_fit`` and ``merge``, which go
            back to the training rows, if the threshold came from rows set aside.

        Notes
        -----
        Without X the threshold is the one that ``fit`` would have set, exactly up to 16 384
        training rows. Of more the lowest 8192 scores and 8192 others are kept: what lies between
        is interpolated, which moves the share of false alarms by less than a tenth of its
        standard error.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skood import GMMDetector
        >>> X, y = load_iris(return_X_y=True)
        >>> detector = GMMDetector().fit(X[::2], y[::2])
        >>> offset = GMMDetector(false_alarm_rate=0.2).fit(X[::2], y[::2]).offset_
        >>> detector.set_threshold(false_alarm_rate=0.2).offset_ == offset
        True
        >>> detector.set_threshold(X[1::2], false_alarm_rate=0.1)
        GMMDetector(false_alarm_rate=0.1)
        >>> int((detector.predict(X[1::2]) == -1).sum())
        7
        """
        check_is_fitted(self)
        with self._drafting() as draft:
            if false_alarm_rate is not None:
                draft.set_params(false_alarm_rate=false_alarm_rate)
            draft._validate_params()
            if "_learned" in vars(draft) and "_finalized" not in vars(draft):
                draft._finalize()
            dtype = draft._network.dtype
            if X is not None:
                rounding = float(vars(draft).get("_kept_scores", {}).get("rounding", 0.0))
                scores = torch.from_numpy(draft._scores_inside(X, y).ravel())
                vars(draft).update(draft._cut(scores, dtype, rounding, set_aside=True))
            else:
                draft.offset_ = draft._threshold_again(kept_scores(draft), dtype)
            rate = draft.false_alarm_rate
            draft._fitted_params = {**draft._fitted_params, "false_alarm_rate": rate}
            self.false_alarm_rate = rate
        return self

    def _scores_inside(self, X, y):
        """Return the scores of the in-distribution rows, or pixels."""
        if is_dask(X):
            scores, y = load_distributed().compute(self.score_samples(X), y)
        else:
            rows, scores = self._score(X, "set_threshold", y)
            scores, y = scores.cpu().numpy(), rows.labels if is_stream(X) else y
        if y is not None and scores.ndim > 1:
            inside = self._pixel_kinds(y, scores, self._row_shape) > 0
        else:
            inside = is_inside(y, len(scores), self._known_labels())
        check_any_inside(inside)
        return scores[inside]

    def _check_false_alarms(self, X):
        """Warn if rows that were not learned from are called out-of-distribution too often."""
        scores, rate = self._scores_inside(X, None), self.false_alarm_rate
        if scores.ndim > 1:
            raise ValueError(
                "X_val checks scores of rows, and these are maps: pixels of an image are alike.\n"
                "Call set_threshold(X_val, y_val) to move the threshold by them."
            )
        n_rows, n_called = len(scores), int((scores.astype(np.float64) < self.offset_).sum())
        # Of as many rows like those of fit; the threshold is as uncertain as its own rows are few.
        n_learned = self._kept_scores["ranks"][-1] + 1
        as_learned = betabinom(n_rows, rate * (n_learned + 1), (1 - rate) * (n_learned + 1))
        if as_learned.sf(n_called - 1) < 0.025:
            low, high = binomtest(n_called, n_rows).proportion_ci()
            warn(
                f"Of the {n_rows} rows of X_val {n_called / n_rows:.1%} are called "
                f"out-of-distribution (95 % interval {low:.1%} to {high:.1%}), at "
                f"false_alarm_rate={rate}.\nHas the network seen the rows of fit? "
                "set_threshold(X_val) moves the threshold;\n"
                "ConformalDetector(FrozenEstimator(detector)).fit(X_val) gives p-values that hold."
            )
