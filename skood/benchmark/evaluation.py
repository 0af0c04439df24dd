"""Detectors on one's own arrays and OOD sets, with confidence intervals, times and memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from skood._typing import Inputs, Labels, RandomState
from skood.benchmark.results import measure, warm_up
from skood.data.labels import as_labels, is_ood
from skood.metrics.inference import confidence_interval, metric_values

if TYPE_CHECKING:
    import pandas as pd


def import_for_evaluate():
    """Return pandas and psutil, which are optional."""
    try:
        import pandas
        import psutil
    except ImportError as error:
        raise ImportError(f'evaluate needs {error.name}: pip install "skood[evaluate]"') from error
    return pandas, psutil


@contextmanager
def _memory(psutil):
    """Yield a function that returns by how many MiB the process has grown at most since."""
    process, stop = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch():
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: (max(peak, process.memory_info().rss) - before) / 2**20
    finally:
        stop.set()
        watcher.join()


def _named(detectors):
    """Return a dict of detectors; those without a name are called after their class."""
    if isinstance(detectors, dict):
        return detectors
    if not isinstance(detectors, (list, tuple)):
        detectors = [detectors]
    named = {}
    for detector in detectors:
        name = type(detector).__name__
        if name in named:
            raise ValueError(
                f"There are several detectors of class {name}: give a dict that names them."
            )
        named[name] = detector
    return named


def _check_inside(y_train, y_id):
    """Raise if labels say that rows which should be in-distribution are not."""
    known = None
    if y_train is not None:
        known = np.unique(as_labels(y_train)[~is_ood(y_train)])
    ood = is_ood(y_id, known)
    if ood.any():
        labels = list(dict.fromkeys(as_labels(y_id)[ood].tolist()))
        raise ValueError(
            f"y_id labels {np.count_nonzero(ood)} of {len(ood)} rows as out-of-distribution: "
            f"{', '.join(map(repr, labels[:5]))} are negative or no class of y_train. Put these "
            "rows into ood_sets."
        )


def evaluate(
    detectors: Any,
    X_train: Inputs,
    y_train: Labels | None,
    X_id: Inputs,
    y_id: Labels | None,
    ood_sets: Mapping[str, Inputs],
    *,
    metrics: Sequence[str] = ("auroc", "aupr_in", "aupr_out", "fpr95"),
    confidence_level: float = 0.95,
    n_resamples: int = 500,
    random_state: RandomState = None,
    on_result: Callable[[Any], Any] | None = None,
) -> pd.DataFrame:
    """Compare detectors on one's own data, with confidence intervals, times and memory.

    Parameters
    ----------
    detectors : estimator, list of estimator or dict of str to estimator
        Anything with `fit` and `score_samples` or `decision_function`, scikit-learn's outlier
        detectors and Pipelines included. They are cloned; a
        :class:`~sklearn.frozen.FrozenEstimator` is used as it was fitted.
    X_train : array-like of shape (n_train, ...)
        What the detectors are fitted on, of any kind that they take.
    y_train : array-like of shape (n_train,) or None
        Its class labels; rows whose label is a negative number are out-of-distribution.
    X_id : array-like of shape (n_id, ...)
        Fresh in-distribution rows, that neither the detectors nor their network have seen.
    y_id : array-like of shape (n_id,) or None
        Their class labels, to check that they are in-distribution.
    ood_sets : dict of str to array-like of shape (n_ood, ...)
        Out-of-distribution rows, by name.
    metrics : sequence of str, default=("auroc", "aupr_in", "aupr_out", "fpr95")
        Or "detection_error" and "autc", as :func:`skood.metrics.confidence_interval` knows them.
    confidence_level : float, default=0.95
        Of the intervals. They answer how far another draw of test rows of the same size would
        move the figure; not another training, and not other kinds of OOD rows.
    n_resamples : int, default=500
        See :func:`skood.metrics.confidence_interval`.
    random_state : int, RandomState or None, default=None
        Draws the resamples. Detectors have their own.
    on_result : callable, default=None
        Called with the name of each detector that is done, for a progress bar.

    Returns
    -------
    table : pandas.DataFrame
        A row for each detector and OOD set, with the columns "detector", "ood", "n_id", "n_ood";
        for each metric its value, and with "_low" and "_high" behind its name the ends of the
        interval; "false_alarms", the share of `X_id` that `predict` calls -1; "fit_seconds";
        "score_seconds", of `X_id` and all OOD sets together; "memory_mib", by how many MiB the
        process grew at most, which leaves out the memory of a GPU. The last four belong to the
        detector and are the same for all OOD sets. Before they are measured a clone is fitted on
        256 of the rows, so that no detector pays for being the first; rows of a DataLoader are not.

    Raises
    ------
    ImportError
        If pandas or psutil is not installed.
    ValueError
        If there is no OOD set, or `y_id` says that rows are out-of-distribution.

    Examples
    --------
    >>> from sklearn.ensemble import IsolationForest
    >>> from skood import GMMDetector
    >>> from skood.benchmark import evaluate
    >>> from skood.datasets import load_digits_ood
    >>> data = load_digits_ood(as_images=False)
    >>> table = evaluate(
    ...     [GMMDetector(), IsolationForest(random_state=0)],
    ...     data.X_train, data.y_train, data.X_test, data.y_test, data.ood, random_state=0,
    ... )
    >>> list(table.columns[:7])
    ['detector', 'ood', 'n_id', 'n_ood', 'auroc', 'auroc_low', 'auroc_high']
    >>> best = table.sort_values("auroc").groupby("ood").last()
    >>> best.loc["near", "detector"]
    'GMMDetector'
    """
    pandas, psutil = import_for_evaluate()
    if not ood_sets:
        raise ValueError("ood_sets is empty: give at least one set of OOD rows, by name.")
    if y_id is not None:
        _check_inside(y_train, y_id)
    table = []
    for name, detector in _named(detectors).items():
        warm_up(detector, X_train, y_train)
        with _memory(psutil) as grown:
            result = measure(name, clone(detector), X_train, y_train, X_id, ood_sets)
            memory_mib = grown()
        for kind, ood in result.ood_scores.items():
            y, scores = result.labelled(kind)
            row = {"detector": name, "ood": kind, "n_id": len(result.scores), "n_ood": len(ood)}
            intervals: Any = confidence_interval(
                list(metrics),
                y,
                scores,
                confidence_level=confidence_level,
                n_resamples=n_resamples,
                random_state=random_state,
            )
            values = metric_values(intervals, y, None, scores)
            for (metric, bounds), value in zip(intervals.items(), values, strict=True):
                row |= {metric: value, f"{metric}_low": bounds.low, f"{metric}_high": bounds.high}
            row |= {
                "false_alarms": result.false_alarms,
                "fit_seconds": result.fit_seconds,
                "score_seconds": result.score_seconds,
                "memory_mib": memory_mib,
            }
            table.append(row)
        if on_result is not None:
            on_result(name)
    return pandas.DataFrame(table)
