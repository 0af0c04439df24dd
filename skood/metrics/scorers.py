"""Scorers for model selection, and what estimators say of their scores and classes."""

import difflib
from collections.abc import Callable

import numpy as np
from torch import nn

from skood._warnings import caller_variables, warn
from skood.data.labels import is_negative, is_ood
from skood.metrics.ranking import (
    aupr_in_score,
    aupr_out_score,
    auroc_score,
    autc_score,
    detection_error_score,
    fpr_at_tpr_score,
)


def check_name(name, known, what):
    """Return a name, or raise a ValueError with the nearest known ones."""
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"There is no {what} {name!r}.{hint} Known are {sorted(known)}.")
    return name


def known_labels(estimator):
    """Return the labels that a fitted estimator does not call OOD, or None if it does not say."""
    if hasattr(estimator, "best_estimator_"):
        return known_labels(estimator.best_estimator_)
    if hasattr(estimator, "named_steps"):
        # The last step may not say, as an IsolationForest, while one before it does.
        steps = (known_labels(step) for _, step in reversed(estimator.steps))
        return next((known for known in steps if known is not None), None)
    if hasattr(estimator, "_known_labels"):
        return estimator._known_labels()
    return getattr(estimator, "known_classes_", None)


def score_rows(estimator, X):
    """Return the scores of the rows of X, higher = more in-distribution."""
    for method in ("score_samples", "decision_function"):
        if hasattr(estimator, method):
            return getattr(estimator, method)(X)
    raise TypeError(
        f"{type(estimator).__name__} has neither score_samples nor decision_function: it gives "
        "no scores that an OOD metric could rank."
    )


SCORERS = {
    "aupr_in": (aupr_in_score, 1),
    "aupr_out": (aupr_out_score, 1),
    "auroc": (auroc_score, 1),
    "autc": (autc_score, -1),
    "detection_error": (detection_error_score, -1),
    "fpr95": (fpr_at_tpr_score, -1),
}


def warn_of_unseen(estimator, y, ood):
    """Warn when a network that may know a class has its rows counted as OOD.

    A search warns once, by its first candidate and split, of any network in what it searches.

    Parameters
    ----------
    estimator : estimator
        A detector, or a Pipeline, search or wrapper around one or around a feature extractor.
    y : array-like of shape (n_samples,)
        The labels.
    ood : ndarray of shape (n_samples,), dtype bool
        The rows that are counted.
    """
    search = caller_variables("_fit_and_score", "candidate_progress")
    if search.get("candidate_progress"):
        if search["candidate_progress"][0] or search["split_progress"][0]:
            return
        estimator = search["estimator"]
    unseen = ood & ~is_negative(y)
    if unseen.any() and any(
        name.split("__")[-1] == "model" and isinstance(value, nn.Module)
        for name, value in getattr(estimator, "get_params", dict)().items()
    ):
        labels = sorted({str(label) for label in np.asarray(y, dtype=object)[unseen]})
        keep = " Or keep the parameters when in doubt: refit=KeepUnlessBetter(detector)."
        warn(
            f"{unseen.sum()} rows of the classes {', '.join(labels)}, which fit did not see, "
            "are counted as out-of-distribution. The network given as `model` may know these "
            "classes; if it does, the score misleads: fit with rows of them too, or let fit train "
            "the network (a skorch net)."
            f"{keep if search else ''}"
        )


class _OODScorer:
    """Callable (estimator, X, y) -> float, higher = better; see `get_scorer`."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"get_scorer({self.name!r})"

    def __call__(self, estimator, X, y):
        metric, sign = SCORERS[self.name]
        ood = is_ood(y, known_labels(estimator))
        warn_of_unseen(estimator, y, ood)
        labels = np.where(ood, -1, 0)
        return sign * metric(labels, score_rows(estimator, X))


def get_scorer_names() -> list[str]:
    """List the names that `get_scorer` knows.

    Returns
    -------
    names : list of str
        In alphabetical order.

    See Also
    --------
    get_scorer : The scorer of one of these names.

    Examples
    --------
    >>> from skood.metrics import get_scorer_names
    >>> get_scorer_names()
    ['aupr_in', 'aupr_out', 'auroc', 'autc', 'detection_error', 'fpr95']
    """
    return sorted(SCORERS)


def get_scorer(name: str) -> Callable[..., float]:
    """Get a scorer for scikit-learn's model selection.

    OOD are the rows whose label is a negative number, and those whose label is a class that the
    detector did not see in `fit`: that is what lets classes be held out in a search. Scores come
    from `score_samples`, or from `decision_function` where there is no such method.

    Parameters
    ----------
    name : {"auroc", "aupr_in", "aupr_out", "fpr95", "detection_error", "autc"}
        The metric. "fpr95" (FPR at a TPR of 0.95), "detection_error" and "autc" are negated,
        since scikit-learn takes the higher of two scores for the better one.

    Returns
    -------
    scorer : callable
        `scorer(estimator, X, y)` returns a float. For the `scoring` parameter of
        :class:`~sklearn.model_selection.GridSearchCV`,
        :func:`~sklearn.model_selection.cross_validate` and the like.

    Raises
    ------
    ValueError
        If there is no scorer of this name.

    See Also
    --------
    get_scorer_names : The names in a list.

    Notes
    -----
    Detectors are not classifiers, so that `cv=5` is an unshuffled split. On sorted labels it
    leaves folds with one kind of row, whose score is nan: use
    ``StratifiedKFold(shuffle=True)``.

    Examples
    --------
    >>> from sklearn.neighbors import KernelDensity
    >>> from skood.metrics import get_scorer
    >>> X, y = [[0.0], [0.1], [5.0], [9.0]], ["cat", "dog", -1, -1]
    >>> detector = KernelDensity().fit(X[:2])
    >>> get_scorer("auroc")(detector, X, y)
    1.0
    >>> backwards = KernelDensity().fit(X[2:])
    >>> get_scorer("fpr95")(backwards, X, y)
    -1.0
    """
    return _OODScorer(check_name(name, SCORERS, "scorer"))
