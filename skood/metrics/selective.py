"""Metrics of a classifier that may abstain: open sets and selective prediction."""

import numpy as np
from sklearn.utils import check_array, check_consistent_length

from skood._compat import move_to_numpy
from skood._typing import Labels, Scores
from skood.data.labels import as_labels, is_ood
from skood.metrics import resampling
from skood.metrics.ranking import auroc
from skood.metrics.rows import evaluate_metric


def is_correct(y_true, y_pred):
    """Tell which predicted classes are right; never those of OOD rows."""
    y_true, y_pred = as_labels(y_true), as_labels(y_pred)
    check_consistent_length(y_true, y_pred)
    return np.asarray(y_true == y_pred, dtype=bool) & ~is_ood(y_true)


def oscr_score(y_true: Labels, y_pred: Labels, y_score: Scores) -> float:
    """Area under the open-set classification rate curve.

    The curve is the share of in-distribution rows that are accepted and correctly classified (CCR)
    against the share of OOD rows that are accepted (FPR), over all thresholds. Its area is the
    accuracy times the AUROC of the correctly classified rows against the OOD rows.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD.
    y_pred : array-like of shape (n_samples,)
        The classes that the classifier predicts, without a reject option.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more in-distribution.

    Returns
    -------
    score : float
        Between 0 and the accuracy, higher is better. nan with a warning if only one kind of row
        is present.

    Raises
    ------
    ValueError
        If the lengths differ, there are no rows, or a score is NaN or infinite.

    References
    ----------
    .. [1] A. Dhamija, M. Günther and T. Boult, "Reducing Network Agnostophobia", NeurIPS 2018.
       https://arxiv.org/abs/1811.04110

    Examples
    --------
    >>> from skood.metrics import oscr_score
    >>> oscr_score([0, 1, -1, -1], [0, 0, 0, 1], [0.9, 0.8, 0.5, 0.1])
    0.5
    """
    correct = is_correct(y_true, y_pred)

    def area(inside, scores):
        used = correct | ~inside
        if not correct.any():
            return 0.0
        return correct.sum() / inside.sum() * auroc(inside[used], scores[used])

    return evaluate_metric(area, y_true, y_score)


def ccr_at_fpr_score(
    y_true: Labels, y_pred: Labels, y_score: Scores, *, fpr: float = 0.05
) -> float:
    """Correct classification rate where at most a share `fpr` of the OOD rows is accepted.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD.
    y_pred : array-like of shape (n_samples,)
        The classes that the classifier predicts, without a reject option.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more in-distribution.
    fpr : float, default=0.05
        The share of OOD rows that may be accepted, in [0, 1].

    Returns
    -------
    score : float
        The share of in-distribution rows that are accepted and correctly classified, at the
        lowest threshold that keeps to `fpr`. nan with a warning if only one kind of row is
        present.

    Raises
    ------
    ValueError
        If `fpr` is out of range, the lengths differ, there are no rows, or a score is NaN or
        infinite.

    Examples
    --------
    >>> from skood.metrics import ccr_at_fpr_score
    >>> ccr_at_fpr_score([0, 1, -1, -1], [0, 1, 0, 1], [0.9, 0.3, 0.5, 0.1], fpr=0.0)
    0.5
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr={fpr!r} must lie in [0, 1].")
    correct = is_correct(y_true, y_pred)

    def rate(inside, scores):
        outside = np.sort(scores[~inside])[::-1]
        n_accepted = resampling.most(fpr, len(outside))
        accepted = inside if n_accepted == len(outside) else scores > outside[n_accepted]
        return (correct & accepted).sum() / inside.sum()

    return evaluate_metric(rate, y_true, y_score)


def aurc_score(y_true: Labels, y_pred: Labels, y_score: Scores) -> float:
    """Area under the risk-coverage curve of selective classification.

    The mean over all rows of the selective risk at the threshold that just accepts that row: the
    share of wrong classes among the rows whose score is as high or higher. OOD rows are wrong
    whatever is predicted.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD.
    y_pred : array-like of shape (n_samples,)
        The classes that the classifier predicts, without a reject option.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more trustworthy.

    Returns
    -------
    score : float
        Between 0 and 1, lower is better.

    Raises
    ------
    ValueError
        If the lengths differ, there are no rows, or a score is NaN or infinite.

    References
    ----------
    .. [1] Y. Geifman and R. El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS
       2017. https://arxiv.org/abs/1705.08500

    Examples
    --------
    >>> from skood.metrics import aurc_score
    >>> aurc_score([0, 1, 0, 1], [0, 1, 1, 1], [0.9, 0.8, 0.2, 0.1])
    0.14583333333333331
    """
    correct = is_correct(y_true, y_pred)
    scores = check_array(move_to_numpy(y_score), ensure_2d=False, input_name="y_score")
    check_consistent_length(correct, scores)
    order = np.argsort(-scores, kind="stable")
    # Rows of equal score are accepted together: the last of them tells the risk of all.
    last = np.searchsorted(-scores[order], -scores[order], "right")
    wrong = np.cumsum(~correct[order])
    return float((wrong[last - 1] / last).mean())


def aurra_score(y_true: Labels, y_pred: Labels, y_score: Scores) -> float:
    """Area under the response rate accuracy curve of selective classification.

    The mean over all rows of the accuracy at the threshold that just accepts that row: 1 minus
    the area under the risk-coverage curve, `aurc_score`.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD: no predicted class is right.
    y_pred : array-like of shape (n_samples,)
        The classes that the classifier predicts, without a reject option.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more trustworthy.

    Returns
    -------
    score : float
        Between 0 and 1, higher is better.

    Raises
    ------
    ValueError
        If the lengths differ, there are no rows, or a score is NaN or infinite.

    See Also
    --------
    aurc_score : The same for the risk.

    References
    ----------
    .. [1] D. Hendrycks, K. Zhao, S. Basart, J. Steinhardt and D. Song, "Natural Adversarial
       Examples", CVPR 2021. https://arxiv.org/abs/1907.07174

    Examples
    --------
    >>> from skood.metrics import aurra_score
    >>> aurra_score([0, 1, 0, 1], [0, 1, 1, 1], [0.9, 0.8, 0.2, 0.1])
    0.8541666666666667
    """
    return 1 - aurc_score(y_true, y_pred, y_score)
