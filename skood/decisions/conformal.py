"""Thresholds that hold on fresh rows: conformal p-values around any outlier detector."""

from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from scipy.stats import false_discovery_control
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from skood._compat import HasMethods, Interval, StrOptions, _fit_context, move_to_numpy
from skood._typing import Inputs, Labels, RandomState
from skood.data.labels import as_labels, is_ood, warn_of_class_scorer
from skood.decisions.calibrating import Calibrates
from skood.decisions.moving import MovesLevel
from skood.decisions.p_values import conformal_p_values
from skood.decisions.rows import in_distribution
from skood.estimators.network_estimator import consistent, drafted
from skood.learning.learning import threshold_rows
from skood.metrics.scorers import get_scorer, known_labels


class ConformalDetector(Calibrates, MovesLevel, OutlierMixin, BaseEstimator):
    r"""Conformal p-values of any outlier detector, and a threshold that keeps its promise.

    The p-value of a row is about the share of in-distribution rows that look as unusual. With the
    scores :math:`s_i` of n calibration rows, which the detector has not learned from,

    .. math:: p(x) = \frac{1 + \#\{i : s_i \le s(x)\}}{n + 1}.

    ``predict`` calls a row out-of-distribution if :math:`p \le` `alpha`.

    **What is guaranteed.** For any detector and any data, a fresh in-distribution row has
    :math:`P(p \le t) \le t` for every t: of such rows at most a share `alpha` is called
    out-of-distribution, and exactly ``floor((n + 1) alpha) / (n + 1)`` where no scores are equal.
    This is an average over draws of the calibration rows: at 5 %, a single fit with 200 of them
    gives 2.4 to 8.4 % in 95 % of cases, one with 2 000 gives 4.1 to 6.0 %. The guarantee is that of
    ``method="split"``; what the others keep of it stands under `method`.

    **What it takes.** That calibration rows and fresh rows are exchangeable: shuffled together, no
    one could tell which are which. This fails, and false alarms rise, if the detector **or its
    network** has learned from the calibration rows but not from the fresh ones, and if the fresh
    rows come from another time, place or camera. Calibrate on rows that the network was not
    trained on: with rows of its training 5 % became 6.8 to 8.8 % over the five detectors on
    digits, and 8.5 to 14 % on CIFAR-10.

    Parameters
    ----------
    detector : estimator
        Any outlier detector with ``score_samples`` or ``decision_function``, higher = more
        in-distribution: skood's, scikit-learn's (`LocalOutlierFactor` with ``novelty=True``), a
        Pipeline that ends in one. It is cloned and fitted on the rows that do not calibrate, and so
        is a skorch net inside of it. A trained ``nn.Module`` inside stays as it is: give ``fit``
        rows that it has not seen, or `X_cal`. In a `FrozenEstimator` the whole detector is used
        as fitted, and all rows of ``fit`` calibrate.
    method : {"split", "cross", "loo"}, default="split"
        Which rows calibrate.

        - "split": a random share `calibration_size`, and the detector is fitted on the rest.
        - "cross": all, in folds of that size. Each fold is scored by a detector fitted on the other
          folds, all of which are kept; a row is compared to each fold under the detector of that
          fold (cross+). For rows too few to be split. Fitting and scoring take as many times as
          long as there are folds. Guaranteed is about :math:`P(p \le t) \le 2t`. Measured at 5 %:
          4.8 to 5.0 % with 600 rows; less where detectors differ from fold to fold, down to 2.8 %
          for a forest of 20 trees on 200 rows.
        - "loo": all, each scored in closed form as if one detector, fitted on all rows, had not
          learned from it. For skood's detectors, and as fast as fitting one. Exact for
          `ASHDetector` and `GradNormDetector` on a trained network, which learn nothing from rows;
          for the others there is no guarantee: at 5 % Gaussians had 5.4 %. What ``fit`` trains as
          `model` is not left out: with the head of ``model=None`` it was 5.5 to 5.7 %.
    calibration_size : float or int, default=0.2
        The share or number of rows that are held out at a time.
    alpha : float, default=0.05
        The share of false alarms; with `fdr` the false discovery rate.
    tail : {"none", "exponential"}, default="none"
        Without a tail all rows below the smallest calibration score have :math:`p = 1/(n+1)`. An
        exponential tail, fitted to the lowest tenth of the calibration scores, ranks them. P-values
        of :math:`1/(n+1)` and more stay what they are; those below are extrapolated and carry no
        guarantee.
    class_conditional : bool or fitted classifier, default=False
        Keep the false alarms in each class at `alpha`, not just in all together.

        - True: the p-value is the largest of those of the classes, each of which compares to
          calibration rows with this label; without y all rows are one class. The guarantee holds
          within each true class; a class with many unusual rows makes the threshold low for all.
        - A `FrozenEstimator` of a classifier, trained on other rows: a row is compared to
          calibration rows with the same predicted class. The guarantee holds within each predicted
          class.
    fdr : {None, "bh", "by"}, default=None
        Let ``predict`` control the false discovery rate of the batch that it is given: among the
        rows called out-of-distribution, the expected share of false ones is at most `alpha`. "bh"
        is Benjamini and Hochberg's procedure, proved for independent rows, "split" and no tail;
        "by" is Benjamini and Yekutieli's, for p-values that depend on each other in any way, which
        calls fewer.
    random_state : int, RandomState or None, default=None
        Draws the calibration rows or folds. The detector has its own.

    Attributes
    ----------
    offset_ : float
        The threshold on what ``score_samples`` gives: `alpha`, or its logarithm with a tail, plus a
        trifle for rounding.
    detectors_ : list of estimator
        The fitted detectors: one, or one a fold.
    n_calibration_ : int
        The number of calibration rows.
    known_classes_ : array of shape (n_classes,)
        The in-distribution labels, where y was given or the detector knows them.
    n_features_in_ : int
        As the detector has it.
    feature_names_in_ : ndarray of shape (n_features,)
        As the detector has it.

    See Also
    --------
    skood.metrics.auroc_score : What ``score`` returns; a threshold plays no part in it.

    Notes
    -----
    Levels below :math:`1/(n+1)` are out of reach: ``fit`` warns when that leaves no row to be
    called out-of-distribution. Ties among scores make p-values larger, never smaller.

    Calibrating on folds but scoring by one detector of all rows, which would save the time of
    "cross", is not offered: the fewer rows a detector has learned from, the lower it scores those
    that it has not seen, so that the threshold comes out far too low.

    References
    ----------
    Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 51(1), 2023.

    Barber et al., "Predictive inference with the jackknife+", Annals of Statistics 49(1), 2021.

    Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 74, 2015.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import GMMDetector
    >>> from skood.calibration import ConformalDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = ConformalDetector(GMMDetector(), method="loo").fit(X, y)
    >>> rows = [[5.1, 3.5, 1.4, 0.2], [0.0, 0.0, 0.0, 0.0]]
    >>> detector.p_values(rows).round(3)
    array([0.993, 0.007])
    >>> detector.predict(rows)
    array([ 1, -1])
    """

    _parameter_constraints = {
        "detector": [HasMethods("fit")],
        "method": [StrOptions({"split", "cross", "loo"})],
        "calibration_size": [
            Interval(Real, 0, 1, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "tail": [StrOptions({"none", "exponential"})],
        "class_conditional": ["boolean", HasMethods("predict")],
        "fdr": [StrOptions({"bh", "by"}), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        detector: Any,
        method: str = "split",
        calibration_size: int | float = 0.2,
        alpha: float = 0.05,
        *,
        tail: str = "none",
        class_conditional: bool = False,
        fdr: str | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.detector = detector
        self.method = method
        self.calibration_size = calibration_size
        self.alpha = alpha
        self.tail = tail
        self.class_conditional = class_conditional
        self.fdr = fdr
        self.random_state = random_state

    @drafted
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: Inputs,
        y: Labels | None = None,
        X_cal: Inputs | None = None,
        y_cal: Labels | None = None,
    ) -> Self:
        """Fit the detector and calibrate it.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            What the detector takes. A ``Dataset`` or ``DataLoader`` cannot be split, and goes with
            `X_cal`, with ``method="loo"`` or with a frozen detector.
        y : array-like of shape (n_samples,), default=None
            Class labels of any kind. Rows whose label is a negative number are
            out-of-distribution: they are left out, before any detector sees them.
        X_cal : array-like of shape (n_calibration, ...), default=None
            Rows to calibrate on, in-distribution and seen by neither the detector nor its network.
            The detector is then fitted on all of X.
        y_cal : array-like of shape (n_calibration,), default=None
            Their labels; rows with a negative one are left out.

        Returns
        -------
        self : object
            The fitted detector.
        """
        X, y = in_distribution(X, y)
        if X_cal is not None and self.method != "split":
            raise ValueError(f"X_cal leaves nothing for method={self.method!r} to choose.")
        if X_cal is None and isinstance(self.detector, FrozenEstimator):
            X_cal, y_cal = X, y
        if X_cal is not None and self._within_labels and (y is None) != (y_cal is None):
            raise ValueError("class_conditional=True needs labels of X and of X_cal: y and y_cal.")
        if X_cal is None and self.method == "loo":
            detectors, scores = self._leave_one_out(X, y)
            group = self._group(X, y, len(scores[0]))
            groups = [group[threshold_rows(len(group), len(scores[0]))]]
        else:
            detectors, scores, groups = [], [], []
            folds = self._hold_out(X, y) if X_cal is None else [(X, y, X_cal, y_cal)]
            for X_fit, y_fit, X_held, y_held in folds:
                detectors.append(clone(self.detector).fit(X_fit, y_fit))
                held = self._scores(detectors[-1], X_held, calibrates=True)
                if y_held is not None and len(as_labels(y_held)) != len(held):
                    raise ValueError(
                        f"X_cal has {len(held)} rows and y_cal {len(as_labels(y_held))} labels: "
                        "one label for each row is needed."
                    )
                scores.append(held if y_held is None else held[~is_ood(y_held)])
                groups.append(self._group(X_held, y_held, len(scores[-1])))
        if not sum(map(len, scores)):
            raise ValueError("X_cal holds no in-distribution row: all of y_cal is negative.")
        names, known = np.unique(np.concatenate(groups)), known_labels(detectors[0])
        known = None if known is None else move_to_numpy(known)
        if y is not None:
            labels = np.unique(as_labels(y)[~is_ood(y)])
            known = labels if known is None else np.union1d(known, labels)
            # A class without calibration rows has p-value 1.
            names = np.union1d(names, labels) if self._within_labels else names
        self.__dict__.pop("known_classes_", None)
        if known is not None:
            self.known_classes_ = known
        self.detectors_ = detectors
        self._calibrate(scores, groups, names)
        return self

    def _p_values(self, X, log):
        """Return p-values or their logarithms."""
        check_is_fitted(self)
        scores = [self._scores(detector, X) for detector in self.detectors_]
        predicted = self.class_conditional.predict(X) if self._within_predicted else None
        largest = np.full(len(scores[0]), -np.inf)
        for name, calibration in self._calibration:
            p_values = conformal_p_values(calibration, scores, tail=self.tail, log=log)
            if predicted is not None:
                p_values[predicted != name] = -np.inf
            largest = np.maximum(largest, p_values)
        # Nothing speaks against a row whose predicted class has no calibration row.
        largest[np.isneginf(largest)] = 0 if log else 1
        return largest

    @consistent
    def p_values(self, X: Inputs) -> np.ndarray:
        """Return conformal p-values.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.

        Returns
        -------
        p_values : ndarray of shape (n_samples,)
            Between 0 and 1; low for rows that look out-of-distribution.
        """
        return self._p_values(X, log=False)

    @consistent
    def score_samples(self, X: Inputs) -> np.ndarray:
        """Return p-values as scores, higher = more in-distribution.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            The p-values; with ``tail="exponential"`` their logarithms, since those of far rows
            underflow.
        """
        return self._p_values(X, log=self.tail == "exponential")

    @consistent
    def decision_function(self, X: Inputs) -> np.ndarray:
        """Return ``score_samples(X) - offset_``: p-values less alpha, or the same of logarithms.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.

        Returns
        -------
        decision : ndarray of shape (n_samples,)
            Negative for rows that ``predict`` calls out-of-distribution. With `fdr` the p-values
            are those that the procedure adjusts to the batch, and depend on all its rows.
        """
        warn_of_class_scorer()
        if self.fdr is None:
            return self.score_samples(X) - self.offset_
        adjusted = false_discovery_control(self.p_values(X), method=self.fdr)
        if self.tail == "exponential":
            adjusted = np.log(np.maximum(adjusted, np.finfo(np.float64).tiny))
        return adjusted - self.offset_

    @consistent
    def predict(self, X: Inputs) -> np.ndarray:
        """Tell in-distribution from out-of-distribution rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``; with `fdr` the batch whose false discoveries are controlled.

        Returns
        -------
        labels : ndarray of shape (n_samples,), dtype int64
            -1 for out-of-distribution, a p-value of `alpha` or less, else +1.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def fit_predict(self, X: Inputs, y: Labels | None = None) -> np.ndarray:
        """Fit on X and y, and predict X.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            See ``fit``.
        y : array-like of shape (n_samples,), default=None
            See ``fit``.

        Returns
        -------
        labels : ndarray of shape (n_samples,), dtype int64
            +1 for in-distribution, -1 for out-of-distribution.
        """
        # OutlierMixin's own drops y.
        return self.fit(X, y).predict(X)

    @consistent
    def score(self, X: Inputs, y: Labels) -> float:
        """Area under the ROC curve of in-distribution against out-of-distribution rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As in ``fit``.
        y : array-like of shape (n_samples,)
            Labels. A row is out-of-distribution if its label is negative or not among
            ``known_classes_``.

        Returns
        -------
        auroc : float
            1 is perfect, 0.5 is chance. That of the detector but for ties: rows below all
            calibration scores are equal without a tail.
        """
        return get_scorer("auroc")(self, X, y)

    @property
    def n_features_in_(self) -> int:
        """As the detector has it."""
        return self.detectors_[0].n_features_in_

    @property
    def feature_names_in_(self) -> np.ndarray:
        """As the detector has it."""
        return self.detectors_[0].feature_names_in_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.detector).input_tags
        return tags
