"""Detectors on one set of rows: scores and times."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone
from torch.utils.data import Dataset, Subset

from skood._compat import move_to_numpy
from skood.decisions.rows import n_rows as count_rows
from skood.decisions.rows import take
from skood.metrics.ranking import aupr_out_score, auroc_score, fpr_at_tpr_score
from skood.metrics.scorers import score_rows
from skood.plots._common import labelled

if TYPE_CHECKING:
    from sklearn.utils import Bunch


METRICS = {"AUROC": auroc_score, "AUPR-out": aupr_out_score, "FPR95": fpr_at_tpr_score}


@dataclass(eq=False)
class Result:
    """What one detector did on the benchmark.

    Parameters
    ----------
    name : str
        What to call the detector.
    baseline : bool
        Whether it is there for comparison only.
    fit_seconds, score_seconds : float
        The time of `fit` on the training rows and of `score_samples` on all others.
    false_alarms : float
        The share of fresh in-distribution rows, between 0 and 1, that `predict` calls -1; nan
        without `predict`.
    nominal : float or None
        The share that the detector was asked for, its `false_alarm_rate`.
    scores : ndarray of shape (n_test,)
        Scores of the fresh in-distribution rows.
    ood_scores : dict of str to ndarray of shape (n_ood,)
        Scores of each OOD set.
    threshold : float, default=nan
        The score below which `predict` says -1.

    Attributes
    ----------
    metrics : dict of str to dict of str to float
        For each OOD set "AUROC", "AUPR-out" (OOD rows being the positive class) and "FPR95" (the
        share of OOD rows accepted where 95 % of the in-distribution rows are), between 0 and 1.
    """

    name: str
    baseline: bool
    fit_seconds: float
    score_seconds: float
    false_alarms: float
    nominal: float | None
    scores: np.ndarray = field(repr=False)
    ood_scores: dict = field(repr=False)
    threshold: float = float("nan")

    @cached_property
    def metrics(self) -> dict[str, dict[str, float]]:
        """For each OOD set, the metrics."""
        return {
            kind: {name: metric(*self.labelled(kind)) for name, metric in METRICS.items()}
            for kind in self.ood_scores
        }

    def labelled(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return 1 or -1 for each in-distribution row and each of an OOD set, and their scores."""
        return labelled(self.scores, self.ood_scores[kind])

    @property
    def mean_auroc(self) -> float:
        """The mean of the AUROCs over the OOD sets."""
        return float(np.mean([values["AUROC"] for values in self.metrics.values()]))

    @property
    def label(self) -> str:
        """The name, with a remark for baselines."""
        return f"{self.name} (baseline)" if self.baseline else self.name


def warm_up(detector, X, y):
    """Use a clone on a few rows: first calls load code and make kernels, GradNorm's for 4 s.

    The rows are a loader's own affair, and what fails here is told by what is measured.
    """
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        n_rows = len(X) if isinstance(X, Dataset) else count_rows(X)
        few = np.unique(np.linspace(0, n_rows - 1, 256).astype(int))
        X = Subset(X, few) if isinstance(X, Dataset) else take(X, few)
        score_rows(clone(detector).fit(X, None if y is None else take(y, few)), X)


def measure(name, detector, X_train, y_train, X_id, ood_sets, baseline=False):
    """Fit a detector and score the fresh in-distribution rows and each OOD set."""
    start = time.perf_counter()
    detector.fit(X_train, y_train)
    fitted = time.perf_counter()
    scores = move_to_numpy(score_rows(detector, X_id))
    ood_scores = {kind: move_to_numpy(score_rows(detector, X)) for kind, X in ood_sets.items()}
    scored = time.perf_counter()
    false_alarms = float("nan")
    if hasattr(detector, "predict"):
        false_alarms = float(np.mean(move_to_numpy(detector.predict(X_id)) == -1))
    return Result(
        name=name,
        baseline=baseline,
        fit_seconds=fitted - start,
        score_seconds=scored - fitted,
        false_alarms=false_alarms,
        nominal=getattr(detector, "false_alarm_rate", None),
        scores=scores,
        ood_scores=ood_scores,
    )


def run(
    detectors: Mapping[str, Any],
    data: Bunch,
    *,
    baselines: Mapping[str, Any] | None = None,
    on_result: Callable[[Any], Any] | None = None,
) -> list[Result]:
    """Fit each detector on the training rows and measure how it tells the OOD sets apart.

    Parameters
    ----------
    detectors : dict of str to estimator
        Anything with `fit`, `score_samples`, `decision_function` and `predict`, scikit-learn's
        outlier detectors and pipelines included. They are fitted in place.
    data : Bunch
        Rows as :func:`skood.datasets.load_digits_ood` returns them: `X_train`, `y_train`,
        `X_test` and `ood`, a dict of str to ndarray.
    baselines : dict of str to estimator, default=None
        More of these, marked as baselines in the results.
    on_result : callable, default=None
        Called with each `Result`, for a progress bar.

    Returns
    -------
    results : list of Result
        One for each detector, then one for each baseline.

    Examples
    --------
    >>> from skood import GMMDetector
    >>> from skood.benchmark import run
    >>> from skood.datasets import load_digits_ood
    >>> results = run({"GMMDetector": GMMDetector()}, load_digits_ood(as_images=False))
    >>> round(results[0].metrics["near"]["AUROC"], 1)
    1.0
    """
    todo = [(*pair, False) for pair in detectors.items()]
    todo += [(*pair, True) for pair in (baselines or {}).items()]
    results = []
    for name, detector, baseline in todo:
        rows = data.X_train, data.y_train, data.X_test, data.ood
        warm_up(detector, data.X_train, data.y_train)
        result = measure(name, detector, *rows, baseline=baseline)
        # The difference is the threshold for any outlier detector, a Pipeline too.
        decision = detector.decision_function(data.X_test[:1])
        result.threshold = float(result.scores[0]) - float(decision[0])
        results.append(result)
        if on_result is not None:
            on_result(results[-1])
    return results
