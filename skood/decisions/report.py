"""What a detector does on test rows, on one page."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skood._compat import move_to_numpy
from skood._typing import Inputs, Labels
from skood.data.labels import as_labels, is_ood
from skood.data.streams import is_stream
from skood.decisions.p_values import check_scores
from skood.decisions.reading import classifies, last_step, scored, snapshot
from skood.decisions.report_page import document, page
from skood.decisions.rows import take
from skood.decisions.watched import share_interval
from skood.estimators.network_estimator import NetworkEstimator, computing
from skood.metrics.inference import confidence_interval, metric_values
from skood.metrics.scorers import known_labels

METRICS = ["auroc", "fpr95"]
# False alarm rates for which thresholds are shown.
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
N_WORST = 8


class Report:
    """A page about a detector: what `skood.report` returns, shown by notebooks as it is.

    Parameters
    ----------
    title : str
        What it is about.
    html : str
        The page, without a head.
    """

    def __init__(self, title: str, html: str) -> None:
        self.title, self._html = title, html

    def __repr__(self):
        return f"<Report: {self.title}>"

    def _repr_html_(self):
        return self._html

    def save(self, path: str | PathLike[str]) -> None:
        """Write a file of HTML that needs no other file, and runs no script.

        Parameters
        ----------
        path : str or path-like
            Where to; what is there is replaced.
        """
        Path(path).write_text(document(self.title, self._html), encoding="utf-8")


def report(
    detector: Any,
    X_test: Inputs,
    y_test: Labels | None = None,
    ood: Mapping[str, Inputs] | None = None,
    *,
    classifier: Any = None,
    confidence: float = 0.95,
) -> Report:
    """Make a page of what a fitted detector does on test rows.

    It shows the scores of each set around the threshold; AUROC, FPR95 and the share that is found
    of each OOD set; false alarms, overall and by class; what other thresholds would do; the rows
    that are judged worst; settings and versions.

    Parameters
    ----------
    detector : fitted estimator
        skood's, a Pipeline that ends in one, or any with ``decision_function``.
    X_test : array-like of shape (n_samples, ...)
        In-distribution rows that neither the detector nor its network has seen.
    y_test : array-like of shape (n_samples,), default=None
        Their classes, for the false alarms by class.
    ood : dict of str to array-like of shape (n_ood, ...), default=None
        Out-of-distribution rows by name. None: the page is about false alarms alone.
    classifier : fitted classifier or callable, default=None
        What it predicts, or returns, for rows is their predicted class. None: that of the largest
        logit, where `detector` itself, not within a Pipeline or another estimator, has a network
        or head that gives logits.
    confidence : float, default=0.95
        That of the intervals: Clopper and Pearson's for shares, those of
        `skood.metrics.confidence_interval` for AUROC and FPR95.

    Returns
    -------
    report : Report
        Shown by a notebook; ``save(path)`` writes a file.

    Raises
    ------
    ValueError
        If `y_test` says that rows are out-of-distribution, scores are maps, `ood` is no dict, or
        `confidence` does not lie between 0 and 1.

    See Also
    --------
    skood.benchmark.evaluate : Several detectors, as a table.

    Examples
    --------
    >>> import skood
    >>> from skood.datasets import load_digits_ood
    >>> data = load_digits_ood(as_images=False)
    >>> detector = skood.GMMDetector().fit(data.X_train, data.y_train)
    >>> skood.report(detector, data.X_test, data.y_test, data.ood)
    <Report: GMMDetector on 434 rows>
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must lie between 0 and 1.")
    if ood is not None and (not isinstance(ood, Mapping) or None in ood):
        raise ValueError("ood must be a dict of names, not None, to rows: ood={'new': X_new}.")
    detector = snapshot(detector)
    sets: dict[Any, Inputs] = {None: X_test, **(ood or {})}
    scores: dict[Any, np.ndarray] = {}
    thresholds, flags = set(), {}
    for name, X in sets.items():
        values, threshold, flags[name] = scored(detector, X)
        scores[name] = check_scores(values, calibrates=False).astype(np.float64)
        thresholds.add(threshold)
    labels = None if y_test is None else _checked_labels(detector, y_test, len(scores[None]))
    final = last_step(detector)
    found: dict[str, Any] = {
        "title": f"{type(final).__name__} on {len(scores[None]):,} rows",
        "detector": detector,
        "threshold": thresholds.pop(),
        "asked": getattr(final, "false_alarm_rate", getattr(final, "alpha", None)),
        "confidence": confidence,
        "scores": scores,
        "shares": {name: _share(flag, confidence) for name, flag in flags.items()},
        "classes": _by_class(labels, flags[None], confidence),
        "metrics": {name: _metrics(scores, name, confidence) for name in sets if name is not None},
        "rates": _at_rates(scores),
        "worst": _worst(detector, classifier, sets, scores, labels),
    }
    return Report(found["title"], page(found))


def _checked_labels(detector, y, n_rows):
    """Return the labels of in-distribution rows."""
    labels, outside = as_labels(y), is_ood(y, known_labels(detector))
    if len(labels) != n_rows:
        raise ValueError(f"X_test has {n_rows} rows and y_test {len(labels)} labels.")
    if outside.any():
        raise ValueError(
            f"y_test calls {outside.sum()} of {n_rows} rows out-of-distribution: their labels are "
            "negative, or\nclasses that fit did not see. Give these rows by name: ood={'new': X}."
        )
    return labels


def _share(flags, confidence):
    """Return how many rows there are, the share that is called OOD, and its interval."""
    return (len(flags), *map(float, share_interval(flags.sum(), len(flags), confidence)))


def _by_class(labels, flags, confidence):
    """Return the shares of false alarms of each class, the largest first."""
    if labels is None:
        return []
    classes, codes = np.unique(labels, return_inverse=True)
    n_rows, n_out = (np.bincount(codes, weights) for weights in (None, flags))
    shares = zip(classes, n_rows, *share_interval(n_out, n_rows, confidence), strict=True)
    return sorted(shares, key=lambda line: -line[2])


def _metrics(scores, name, confidence):
    """Return the metrics of an OOD set and their intervals."""
    y = np.repeat([1, -1], [len(scores[None]), len(scores[name])])
    together = np.r_[scores[None], scores[name]]
    intervals: Any = confidence_interval(
        METRICS, y, together, confidence_level=confidence, random_state=0
    )
    values = metric_values(METRICS, y, None, together)
    return [(value, *intervals[metric]) for metric, value in zip(METRICS, values, strict=True)]


def _at_rates(scores):
    """Return thresholds for rates, the false alarms of each, and what it finds of OOD sets."""
    outside = [values for name, values in scores.items() if name is not None]
    lines = []
    for rate in RATES:
        threshold = float(np.quantile(scores[None], rate))
        # Of scores that tie fewer lie below.
        shares = [float(np.mean(one < threshold)) for one in (scores[None], *outside)]
        lines.append((rate, threshold, shares))
    return lines


def _worst(detector, classifier, sets, scores, labels):
    """Return the lowest of the test rows and the highest of OOD rows, as dicts of a row each."""
    places = [(name, i) for name in scores for i in range(len(scores[name]))]
    values = np.concatenate(list(scores.values()))
    n_test = len(scores[None])
    lowest = np.argsort(values[:n_test], kind="stable")[:N_WORST]
    highest = n_test + np.argsort(-values[n_test:], kind="stable")[:N_WORST]
    lists = []
    for chosen in (lowest, highest):
        rows = [{"set": places[i][0], "row": places[i][1], "score": values[i]} for i in chosen]
        for name in {row["set"] for row in rows}:
            _describe(detector, classifier, sets[name], [r for r in rows if r["set"] == name])
        if labels is not None and chosen is lowest:
            for row in rows:
                row["class"] = labels[row["row"]]
        lists.append(rows)
    return lists


def _describe(detector, classifier, X, rows):
    """Add to rows of X what is predicted for them, and themselves."""
    if is_stream(X):
        # Its rows have gone by.
        return
    rows.sort(key=lambda row: row["row"])
    chosen = take(X, [row["row"] for row in rows])
    predicted = _classes(detector, classifier, chosen)
    images = move_to_numpy(chosen) if getattr(chosen, "ndim", 0) == 4 else None
    for i, row in enumerate(rows):
        row["image"] = None if images is None else images[i]
        row["predicted"] = None if predicted is None else predicted[i]


def _classes(detector, classifier, X):
    """Return the predicted classes of rows; None where nothing tells."""
    if classifier is None and classifies(detector):
        classifier = detector
    if classifier is not None:
        return move_to_numpy(getattr(classifier, "predict", classifier)(X))
    if not isinstance(detector, NetworkEstimator) or detector._network.module is None:
        return None
    network = detector._network
    try:
        body = network.require_logits().logits()
    except ValueError:
        # It gives features.
        return None
    with computing():
        batches = detector._inputs(detector._check_rows(X, "report"), body)
        largest = torch.cat([logits.argmax(1) for (logits,) in batches]).tolist()
    known = network.classes
    return largest if known is None or not len(known) else [known[i] for i in largest]
