"""Metrics of OOD detection with scikit-learn signatures, and scorers for model selection."""

import difflib
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, det_curve
from sklearn.utils import check_array, check_consistent_length, check_random_state

from skood import _intervals
from skood._compat import move_to_numpy
from skood._labels import as_labels, is_label_map, is_ood, map_kinds
from skood._model import warn_of_unseen
from skood._typing import Labels, RandomState, Scores
from skood._warnings import ShownOnce, warn

__all__ = [
    "ConfidenceInterval",
    "PairedTest",
    "aupr_in_score",
    "aupr_out_score",
    "aurc_score",
    "auroc_score",
    "aurra_score",
    "autc_score",
    "ccr_at_fpr_score",
    "confidence_interval",
    "detection_error_score",
    "fpr_at_tpr_score",
    "get_scorer",
    "get_scorer_names",
    "oscr_score",
    "paired_test",
    "segmentation_score",
]


class OneKindOfRow(ShownOnce, UndefinedMetricWarning):
    """A metric that compares both kinds of row was given one kind."""


def _check_scores(scores, name="y_score"):
    """Return scores of rows as a float array, or raise."""
    scores = move_to_numpy(scores)
    if scores.ndim != 1:
        raise ValueError(f"{name} must have shape (n_samples,), got {scores.shape}.")
    # float32 sorts twice as fast as float64.
    return check_array(scores, ensure_2d=False, dtype=[np.float64, np.float32], input_name=name)


def _check_rows(y_true, y_score):
    """Return the mask of in-distribution rows and the scores."""
    inside, scores = ~is_ood(y_true), _check_scores(y_score)
    check_consistent_length(inside, scores)
    return inside, scores


def _threshold_at_tpr(positives, tpr):
    """Return the highest threshold that at least a share `tpr` of the positive scores reaches."""
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must be greater than 0 and at most 1, got {tpr!r}.")
    last = len(positives) - _intervals.fewest(tpr, len(positives))
    return np.partition(positives, last)[last]


def _evaluate(metric, y_true, y_score):
    """Return metric(in-distribution mask, scores); nan where one kind of row is missing."""
    inside, scores = _check_rows(y_true, y_score)
    n_inside = np.count_nonzero(inside)
    if n_inside in (0, len(inside)):
        warn(
            f"y holds no {'out-of-distribution' if n_inside else 'in-distribution'} row, and "
            "metrics of OOD detection compare both kinds: the result is set to nan.\nNegative "
            "labels mark OOD rows. In a search without any, hold classes out:\n"
            "GridSearchCV(..., cv=skood.model_selection.LeaveClassesOut()).",
            OneKindOfRow,
        )
        return float("nan")
    # scikit-learn finds ties by differences, which overflow harmlessly between ±1.8e308.
    with np.errstate(over="ignore"):
        return float(metric(inside, scores))


def _auroc(inside, scores):
    """Count the pairs of rows of both kinds that are ranked correctly, ties half."""
    # `compress` is 5 times as fast as indexing by a mask.
    kinds = [scores.compress(inside), scores.compress(~inside)]
    n_pairs = len(kinds[0]) * len(kinds[1])
    few, many = (np.sort(kind) for kind in sorted(kinds, key=len))
    doubled = 0
    # The values among which a block of sorted queries falls stay in cache: .6 of the time.
    for start in range(0, len(few), 4096):
        queries = few[start : start + 4096]
        low = int(np.searchsorted(many, queries[0]))
        near = many[low : np.searchsorted(many, queries[-1], "right")]
        doubled += 2 * low * len(queries)
        for side in ("left", "right"):
            doubled += int(np.searchsorted(near, queries, side).sum())
    correct = doubled if len(kinds[0]) <= len(kinds[1]) else 2 * n_pairs - doubled
    return correct / (2 * n_pairs)


def auroc_score(y_true: Labels, y_score: Scores) -> float:
    """Area under the ROC curve of in-distribution against OOD rows.

    The probability that a random in-distribution row has a higher score than a random OOD row,
    ties counted half. 0.5 is guessing, 1 is perfect; which of the two kinds is called positive
    does not matter.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD, any other label in-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more in-distribution, as `score_samples` and `decision_function`
        return them. A torch tensor may be on any device and require gradients.

    Returns
    -------
    score : float
        Between 0 and 1, higher is better. nan, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, if only one kind of row is present.

    Raises
    ------
    ValueError
        If the lengths differ, there are no rows, or a score is NaN or infinite.

    See Also
    --------
    sklearn.metrics.roc_auc_score : The same for binary labels, slower.

    References
    ----------
    .. [1] D. Hendrycks and K. Gimpel, "A Baseline for Detecting Misclassified and
       Out-of-Distribution Examples in Neural Networks", ICLR 2017.
       https://arxiv.org/abs/1610.02136

    Examples
    --------
    >>> from skood.metrics import auroc_score
    >>> auroc_score(["cat", "dog", -1, -1], [0.9, 0.4, 0.5, 0.1])
    0.75
    """
    return _evaluate(_auroc, y_true, y_score)


def aupr_in_score(y_true: Labels, y_score: Scores) -> float:
    """Area under the precision-recall curve, in-distribution rows being the positive class.

    Computed as the average precision: the mean over the in-distribution rows of the precision
    at the threshold that just accepts that row. Guessing reaches the share of in-distribution
    rows, so that values of different mixtures do not compare.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD, any other label in-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more in-distribution, as `score_samples` and `decision_function`
        return them. A torch tensor may be on any device and require gradients.

    Returns
    -------
    score : float
        Between 0 and 1, higher is better. nan, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, if only one kind of row is present.

    Raises
    ------
    ValueError
        If the lengths differ, there are no rows, or a score is NaN or infinite.

    See Also
    --------
    aupr_out_score : The same with OOD rows as the positive class.
    sklearn.metrics.average_precision_score : The function that computes the area.

    Notes
    -----
    OpenOOD and pytorch-ood join the points of the curve by straight lines (the trapezoidal
    rule), which is too optimistic between distant points [2]_: their values differ a little.

    References
    ----------
    .. [1] D. Hendrycks and K. Gimpel, "A Baseline for Detecting Misclassified and
       Out-of-Distribution Examples in Neural Networks", ICLR 2017.
       https://arxiv.org/abs/1610.02136
    .. [2] J. Davis and M. Goadrich, "The relationship between Precision-Recall and ROC curves",
       ICML 2006. https://doi.org/10.1145/1143844.1143874

    Examples
    --------
    >>> from skood.metrics import aupr_in_score
    >>> aupr_in_score([0, -1, -1, -1], [0.4, 0.5, 0.3, 0.1])
    0.5
    """
    return _evaluate(average_precision_score, y_true, y_score)


def aupr_out_score(y_true: Labels, y_score: Scores) -> float:
    """Area under the precision-recall curve, OOD rows being the positive class.

    Computed as the average precision of the negated scores: the mean over the OOD rows of the
    precision at the threshold that just rejects that row. Guessing reaches the share of OOD
    rows, so that values of different mixtures do not compare.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD, any other label in-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more in-distribution, as `score_samples` and `decision_function`
        return them. A torch tensor may be on any device and require gradients.

    Returns
    -------
    score : float
        Between 0 and 1, higher is better. nan, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, if only one kind of row is present.

    Raises
    ------
    ValueError
        If the lengths differ, there are no rows, or a score is NaN or infinite.

    See Also
    --------
    aupr_in_score : The same with in-distribution rows as the positive class; its notes say how
        other libraries compute the area.

    References
    ----------
    .. [1] D. Hendrycks and K. Gimpel, "A Baseline for Detecting Misclassified and
       Out-of-Distribution Examples in Neural Networks", ICLR 2017.
       https://arxiv.org/abs/1610.02136

    Examples
    --------
    >>> from skood.metrics import aupr_out_score
    >>> aupr_out_score([0, 1, 2, -1], [0.9, 0.4, 0.6, 0.5])
    0.5
    """
    return _evaluate(
        lambda inside, scores: average_precision_score(~inside, -scores), y_true, y_score
    )


def fpr_at_tpr_score(
    y_true: Labels, y_score: Scores, *, tpr: float = 0.95, positive: str = "in"
) -> float:
    """Share of OOD rows accepted where a given share of in-distribution rows is (FPR95).

    The false positive rate of the highest threshold whose true positive rate is at least `tpr`,
    the in-distribution rows being the positive class: a false positive is an OOD row that is
    accepted. A row is accepted if its score reaches the
    threshold, and the thresholds are the scores themselves: ties are accepted or rejected
    together and nothing is interpolated.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD, any other label in-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more in-distribution, as `score_samples` and `decision_function`
        return them. A torch tensor may be on any device and require gradients.
    tpr : float, default=0.95
        The share of positive rows to be recognized, greater than 0 and at most 1. 0.95 is what
        the literature reports.
    positive : {"in", "out"}, default="in"
        The kind of row that is called positive. "in" is the definition of [1]_. "out" is the
        share of in-distribution rows that are rejected where at least a share `tpr` of the OOD
        rows is: what OpenOOD and pytorch-ood compute under the same name. The two differ widely
        when the scores of one kind spread more.

    Returns
    -------
    score : float
        Between 0 and 1, lower is better. nan, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, if only one kind of row is present.

    Raises
    ------
    ValueError
        If the lengths differ, there are no rows, a score is NaN or infinite, or a parameter is
        out of its range.

    See Also
    --------
    sklearn.metrics.roc_curve : Both rates at all thresholds.

    References
    ----------
    .. [1] S. Liang, Y. Li and R. Srikant, "Enhancing The Reliability of Out-of-distribution
       Image Detection in Neural Networks", ICLR 2018. https://arxiv.org/abs/1706.02690

    Examples
    --------
    >>> from skood.metrics import fpr_at_tpr_score
    >>> y_true, y_score = [0, 0, 1, 1, -1, -1], [0.9, 0.8, 0.7, 0.2, 0.3, 0.1]
    >>> fpr_at_tpr_score(y_true, y_score)
    0.5
    >>> fpr_at_tpr_score(y_true, y_score, tpr=0.75)
    0.0
    >>> fpr_at_tpr_score(y_true, y_score, positive="out")
    0.25
    """
    if positive not in ("in", "out"):
        raise ValueError(f'positive must be "in" or "out", got {positive!r}.')

    def fpr_at_tpr(inside, scores):
        if positive == "out":
            inside, scores = ~inside, -scores
        positives, negatives = scores.compress(inside), scores.compress(~inside)
        return np.count_nonzero(negatives >= _threshold_at_tpr(positives, tpr)) / len(negatives)

    return _evaluate(fpr_at_tpr, y_true, y_score)


def detection_error_score(y_true: Labels, y_score: Scores) -> float:
    r"""Smallest average of the two error rates over all thresholds.

    .. math::
        \min_t \; \tfrac12 P(s < t \mid \text{in}) + \tfrac12 P(s \ge t \mid \text{OOD})

    The error probability of the best threshold if both kinds of row are equally frequent.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD, any other label in-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more in-distribution, as `score_samples` and `decision_function`
        return them. A torch tensor may be on any device and require gradients.

    Returns
    -------
    score : float
        Between 0 and 0.5, lower is better; to accept or to reject every row already reaches
        0.5. nan, with an :class:`~sklearn.exceptions.UndefinedMetricWarning`, if only one kind
        of row is present.

    Raises
    ------
    ValueError
        If the lengths differ, there are no rows, or a score is NaN or infinite.

    See Also
    --------
    sklearn.metrics.det_curve : The function that computes both error rates.

    Notes
    -----
    The threshold is chosen on the rows that are evaluated. The detection error that some papers
    report is the average error at a true positive rate of 0.95, which is never smaller.

    References
    ----------
    .. [1] S. Liang, Y. Li and R. Srikant, "Enhancing The Reliability of Out-of-distribution
       Image Detection in Neural Networks", ICLR 2018. https://arxiv.org/abs/1706.02690

    Examples
    --------
    >>> from skood.metrics import detection_error_score
    >>> detection_error_score([0, 0, 1, 1, -1, -1], [0.9, 0.8, 0.7, 0.2, 0.3, 0.1])
    0.125
    """

    def detection_error(inside, scores):
        fprs, fnrs, _ = det_curve(inside, scores)
        return (fprs + fnrs).min() / 2

    return _evaluate(detection_error, y_true, y_score)


def autc_score(y_true: Labels, y_score: Scores) -> float:
    r"""Area under the threshold curve: both error rates, averaged over all thresholds.

    The scores are scaled to [0, 1] by their minimum and maximum. AUTC is the mean of the areas
    under the false positive and the false negative rate as functions of the threshold, which is

    .. math::
        \tfrac12 - \tfrac12 \bigl(\overline{s_\text{in}} - \overline{s_\text{OOD}}\bigr)

    Unlike metrics of ranks it asks that the kinds are far apart, as a threshold that is chosen
    without OOD rows needs it. One extreme score compresses all others: clip or transform the
    scores before where they have no natural range.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels; negative numbers mean OOD, any other label in-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher means more in-distribution, as `score_samples` and `decision_function`
        return them. A torch tensor may be on any device and require gradients.

    Returns
    -------
    score : float
        Between 0 and 1, lower is better, 0.5 is guessing and what equal scores reach. nan, with
        an :class:`~sklearn.exceptions.UndefinedMetricWarning`, if only one kind of row is present.

    Raises
    ------
    ValueError
        If the lengths differ, there are no rows, or a score is NaN or infinite.

    Notes
    -----
    The rates are steps and their areas exact. The code of [1]_ joins their points by straight
    lines, and takes scores that lie in [0, 1] as they are.

    References
    ----------
    .. [1] G. Humblot-Renaux, S. Escalera and T. Moeslund, "Beyond AUROC & co. for evaluating
       out-of-distribution detection performance", CVPR Workshops 2023.
       https://arxiv.org/abs/2306.14658

    Examples
    --------
    >>> from skood.metrics import autc_score
    >>> autc_score([0, 1, -1, -1], [1.0, 0.75, 0.25, 0.0])
    0.125
    >>> autc_score([0, 1, -1, -1], [1.0, 0.25, 0.25, 0.0])
    0.25
    """

    def area(inside, scores):
        scores = _intervals.rescale(scores)
        return 0.5 - (scores[inside].mean() - scores[~inside].mean()) / 2

    return _evaluate(area, y_true, y_score)


def _is_correct(y_true, y_pred):
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
    correct = _is_correct(y_true, y_pred)

    def area(inside, scores):
        used = correct | ~inside
        if not correct.any():
            return 0.0
        return correct.sum() / inside.sum() * _auroc(inside[used], scores[used])

    return _evaluate(area, y_true, y_score)


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
    correct = _is_correct(y_true, y_pred)

    def rate(inside, scores):
        outside = np.sort(scores[~inside])[::-1]
        n_accepted = _intervals.most(fpr, len(outside))
        accepted = inside if n_accepted == len(outside) else scores > outside[n_accepted]
        return (correct & accepted).sum() / inside.sum()

    return _evaluate(rate, y_true, y_score)


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
    correct = _is_correct(y_true, y_pred)
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


def segmentation_score(
    metric: str | Callable[..., float], y_true: Labels, y_score: Scores, *, average: str = "pixels"
) -> float:
    """Compute a metric of OOD detection on the pixels of label maps.

    Parameters
    ----------
    metric : str or callable
        A name in `get_scorer_names`, which stands for the function and is not negated, or a
        callable ``metric(y_true, y_score)`` such as `auroc_score`.
    y_true : array of shape (n_samples, H, W)
        Labels of pixels; negative numbers mean OOD, 255 is ignored.
    y_score : array of shape (n_samples, H, W)
        Scores, higher means more in-distribution.
    average : {"pixels", "images"}, default="pixels"
        "pixels" pools the pixels of all images. "images" is the mean over the images that hold
        both in-distribution and OOD pixels, which leaves out differences between images.

    Returns
    -------
    score : float
        What `metric` returns; nan, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, where no pixels of both kinds are
        there to compare.

    Raises
    ------
    ValueError
        If the shapes differ or are no maps, or there is no such metric or average.

    Notes
    -----
    `confidence_interval` and `paired_test` take such maps too.

    Examples
    --------
    >>> import numpy as np
    >>> from skood.metrics import segmentation_score
    >>> y_true = np.array([[[0, 1, -1, 255]], [[3, 2, 1, -1]]])
    >>> y_score = np.array([[[0.9, 0.5, 0.1, 0.0]], [[0.6, 0.3, 0.1, 0.2]]])
    >>> segmentation_score("auroc", y_true, y_score)
    0.85
    >>> segmentation_score("auroc", y_true, y_score, average="images")
    0.8333333333333333
    """
    if not callable(metric):
        metric, _ = _SCORERS[_check_name(metric, _SCORERS, "scorer")]
    kinds, scores = _check_maps(y_true, y_score, average)
    if average == "pixels":
        return metric(kinds[kinds != 0], scores[kinds != 0])
    return float(np.mean(_image_values(metric, kinds, scores)))


def _check_maps(y_true, y_score, average):
    """Return maps of 1, -1 and 0 for in-distribution, OOD and ignored pixels, and the scores."""
    if average not in ("pixels", "images"):
        raise ValueError(f'average must be "pixels" or "images", got {average!r}.')
    kinds, scores = map_kinds(y_true), move_to_numpy(y_score)
    if kinds.ndim != 3 or kinds.shape != scores.shape:
        raise ValueError(
            "y_true and y_score must be maps of one shape (n_samples, H, W), got "
            f"{kinds.shape} and {scores.shape}."
        )
    return kinds, scores


def _image_values(metric, kinds, scores):
    """Return a metric of each image that holds both kinds of pixel; nan if there is none."""
    both = [(image == 1).any() and (image == -1).any() for image in kinds]
    if not any(both):
        warnings.warn(
            "No image holds both in-distribution and OOD pixels. The result is set to nan.",
            UndefinedMetricWarning,
            stacklevel=4,
        )
        return np.array([np.nan])
    return np.array(
        [
            metric(image[image != 0], image_scores[image != 0])
            for image, image_scores in zip(kinds[both], scores[both], strict=True)
        ]
    )


# The names of the metrics that have intervals, and whether they ask for y_pred.
_METRICS = {
    "aupr_in": (aupr_in_score, False),
    "aupr_out": (aupr_out_score, False),
    "aurc": (aurc_score, True),
    "auroc": (auroc_score, False),
    "aurra": (aurra_score, True),
    "autc": (autc_score, False),
    "ccr_at_fpr": (ccr_at_fpr_score, True),
    "detection_error": (detection_error_score, False),
    "fpr95": (fpr_at_tpr_score, False),
    "oscr": (oscr_score, True),
}


class ConfidenceInterval(NamedTuple):
    """The bounds that `confidence_interval` returns."""

    low: float
    high: float


class PairedTest(NamedTuple):
    """What `paired_test` returns: a difference, its interval, the p-value of no difference."""

    difference: float
    low: float
    high: float
    pvalue: float


def _values(names, y_true, y_pred, y_score):
    """Return the metrics of these names in an array."""
    values = []
    for name in names:
        metric, needs_classes = _METRICS[name]
        values.append(metric(y_true, *([y_pred] if needs_classes else []), y_score))
    return np.array(values)


def _generator(random_state):
    """Return numpy's generator for what scikit-learn calls a random state."""
    return np.random.default_rng(check_random_state(random_state).randint(2**31))


def _map_statistics(names, y_true, y_scores, average, n_resamples, random_state):
    """Return metrics of label maps, or differences of two, their errors and numbers of images."""
    maps = [_check_maps(y_true, y_score, average) for y_score in y_scores]
    kinds, scores = maps[0][0], [score for _, score in maps]
    metrics = [_METRICS[name][0] for name in names]
    if average == "images":
        values = [[_image_values(metric, kinds, score) for metric in metrics] for score in scores]
        values = _intervals.difference(values)
        n_images = len(values[0])
        errors = np.std(values, axis=1, ddof=1) / np.sqrt(n_images) if n_images > 1 else [0.0]
        values = np.mean(values, axis=1)
    else:
        values = [
            [metric(kinds[kinds != 0], score[kinds != 0]) for metric in metrics] for score in scores
        ]
        values = _intervals.difference(values)
        n_images, errors = len(kinds), [0.0]
        if n_images > 1 and not np.isnan(values).any():
            rng = _generator(random_state)
            errors = _intervals.image_errors(names, kinds, scores, n_resamples, rng)
    errors = np.broadcast_to(errors, len(names))
    return values, dict(zip(names, errors, strict=True)), dict.fromkeys(names, n_images)


def _check_inference(metric, y_true, y_pred, confidence_level, n_resamples):
    """Return the names of metrics in a list."""
    names = [metric] if isinstance(metric, str) else list(metric)
    for name in names:
        _check_name(name, _METRICS, "metric")
        if _METRICS[name][1] and is_label_map(y_true):
            raise ValueError(f"{name!r} is for rows, and y_true holds labels of pixels.")
        if _METRICS[name][1] and y_pred is None:
            raise ValueError(f"{name!r} needs y_pred, the predicted classes.")
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level={confidence_level!r} must lie between 0 and 1.")
    if n_resamples < 2:
        raise ValueError(f"n_resamples={n_resamples!r} must be at least 2.")
    return names


def _standard_errors(names, values, y_true, y_preds, y_scores, n_resamples, random_state):
    """Return standard errors of values, metrics or differences of two, and numbers of rows.

    Both are dicts by name. An error of 0 means that the rows show no spread.
    """
    masks, scores = zip(*(_check_rows(y_true, y_score) for y_score in y_scores), strict=True)
    # Sorted by the first detector, its resampled rows need no sorting and its searches are quick.
    order = np.argsort(-scores[0])
    inside, scores = masks[0][order], [score[order] for score in scores]
    corrects = [
        None if y_pred is None else _is_correct(y_true, y_pred)[order] for y_pred in y_preds
    ]
    n_pairs = max(1, min(inside.sum(), (~inside).sum()))
    n_rows = {name: len(inside) if name in ("aurc", "aurra") else n_pairs for name in names}
    errors = dict.fromkeys(names, 0.0)
    # One row says nothing of how rows of its kind vary.
    defined = {
        name: value
        for name, value in zip(names, values, strict=True)
        if n_rows[name] > 1 and not np.isnan(value)
    }
    if defined.pop("auroc", None) is not None:
        counts = [_intervals.placements(inside, score) for score in scores]
        difference = counts[0] if len(counts) == 1 else map(np.subtract, *counts)
        errors["auroc"] = _intervals.delong_error(list(difference))
    replicates = {}
    if defined:
        rng = _generator(random_state)
    if "fpr95" in defined and len(scores) == 1:
        replicates["fpr95"] = _intervals.resample_fpr95(inside, *scores, n_resamples, rng)
    resampled = [name for name in defined if name not in replicates]
    if resampled:
        drawn = _intervals.resample(resampled, inside, corrects, scores, n_resamples, rng)
        replicates.update(zip(resampled, _intervals.difference(drawn), strict=True))
    for name, drawn in replicates.items():
        # Deviations from the value, not from their mean, count the bias of a minimum: 1 to 3 %
        # more coverage of the detection error.
        errors[name] = np.sqrt(np.mean((drawn - defined[name]) ** 2))
    # Replicates that are equal may differ by rounding.
    return {name: error if error > 1e-12 else 0.0 for name, error in errors.items()}, n_rows


def confidence_interval(
    metric: str | Sequence[str],
    y_true: Labels,
    y_score: Scores,
    *,
    y_pred: Labels | None = None,
    average: str = "pixels",
    confidence_level: float = 0.95,
    n_resamples: int = 500,
    random_state: RandomState = None,
) -> ConfidenceInterval | dict[str, ConfidenceInterval]:
    r"""Compute a confidence interval of a metric.

    .. math::
        \operatorname{logit} m \pm z \, \frac{\sigma}{m (1 - m)}

    with the metric :math:`m`, its standard error :math:`\sigma` and the normal quantile
    :math:`z`. The standard error is DeLong's [1]_ for AUROC and else the bootstrap's: the root
    mean square deviation of the metric of resampled rows from :math:`m`. In-distribution and OOD
    rows are drawn separately. The detection error is taken relative to its largest value, 0.5.

    Parameters
    ----------
    metric : str or list of str
        "auroc", "aupr_in", "aupr_out", "fpr95", "detection_error", "autc", "oscr", "ccr_at_fpr",
        "aurc" or "aurra": the function of that name, with its default parameters. The metrics in
        a list share the resampled rows.
    y_true : array-like of shape (n_samples,) or (n_samples, H, W)
        Labels; negative numbers mean OOD, any other label in-distribution. In maps, whose images
        are drawn with all of their pixels, 255 is ignored.
    y_score : array-like of shape (n_samples,) or (n_samples, H, W)
        Scores, higher means more in-distribution.
    y_pred : array-like of shape (n_samples,), default=None
        The predicted classes, for "oscr", "ccr_at_fpr", "aurc" and "aurra".
    average : {"pixels", "images"}, default="pixels"
        What to do with maps, as for `segmentation_score`.
    confidence_level : float, default=0.95
        The share of samples in which such an interval holds the true value.
    n_resamples : int, default=500
        How often rows are drawn, except for AUROC. The width of an interval varies by
        1 / sqrt(2 n_resamples), 3 % of itself, from draw to draw.
    random_state : int, RandomState instance or None, default=None
        An int makes the intervals reproducible.

    Returns
    -------
    interval : ConfidenceInterval or dict
        A named tuple (low, high) that holds the metric; for a list, a dict of them by name.
        (nan, nan) where the metric is nan, with its warning.

    Raises
    ------
    ValueError
        If the metric would raise one, there is none of this name, `y_pred` is missing, or a
        parameter is out of its range.

    See Also
    --------
    paired_test : Whether two detectors differ.

    Notes
    -----
    The interval is for rows that are drawn independently, such as images, and for a given
    network and detector: another training varies beyond it. Pixels of one image are not
    independent, so of maps whole images are drawn: for pooled pixels by the bootstrap, AUROC
    included, while the mean over images has a standard error of its own.

    Where the rows show no spread (AUROC is 1, all scores are equal, a kind has a single row), or
    the metric is at an end of its range, the interval goes from :math:`q m` to
    :math:`q m + 1 - q` with :math:`q = ((1 - c) / 2)^{1/n}`, the confidence level :math:`c` and
    the smaller number of rows of a kind :math:`n` (of all rows for AURC and AURRA). For AUROC
    that is exact: if less than a share q of the pairs were ordered rightly, n disjoint pairs
    would all be with a probability below :math:`(1 - c) / 2` only (Clopper and Pearson). For the
    others it is a rule of thumb.

    Of FPR95 the upper bound is 1 with fewer than 20 in-distribution rows: 95 % of them are all, and
    how far below the lowest the threshold may lie they do not tell. Of nominal 95 % intervals for
    5, 10 and 19 such rows beside 200 OOD rows at least 97, 92 and 80 % then held the true value
    (49, 62 and 67 % with the bound of the standard error), for 20 and 30 rows 83 to 92 %.

    Of nominal 95 % intervals, with 60 normally distributed rows of each kind and AUROCs from
    0.76 to 0.998, 93 to 99 % held the true value, and 88 to 100 % for the detection error, which
    is too low in small samples. With 30 in-distribution and 200 OOD rows it was 90 to 97 %, and
    87 % for the detection error. AUTC hangs on the two most extreme scores, whose variation
    resampling shows only in part.

    References
    ----------
    .. [1] E. DeLong, D. DeLong and D. Clarke-Pearson, "Comparing the areas under two or more
       correlated receiver operating characteristic curves", Biometrics 44, 1988.
    .. [2] X. Sun and W. Xu, "Fast implementation of DeLong's algorithm", IEEE Signal Processing
       Letters 21, 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from skood.metrics import auroc_score, confidence_interval
    >>> rng = np.random.default_rng(0)
    >>> y_true = np.repeat([0, -1], 100)
    >>> y_score = rng.normal(size=200) + 2 * (y_true == 0)
    >>> round(auroc_score(y_true, y_score), 3)
    0.947
    >>> low, high = confidence_interval("auroc", y_true, y_score)
    >>> round(low, 3), round(high, 3)
    (0.911, 0.969)
    >>> intervals = confidence_interval(["fpr95", "aupr_in"], y_true, y_score, random_state=0)
    >>> [round(bound, 2) for bound in intervals["fpr95"]]
    [0.14, 0.36]
    """
    names = _check_inference(metric, y_true, y_pred, confidence_level, n_resamples)
    if is_label_map(y_true):
        values, errors, n_rows = _map_statistics(
            names, y_true, [y_score], average, n_resamples, random_state
        )
    else:
        values = _values(names, y_true, y_pred, y_score)
        errors, n_rows = _standard_errors(
            names, values, y_true, [y_pred], [y_score], n_resamples, random_state
        )
    intervals = {}
    for name, value in zip(names, values, strict=True):
        highest = 0.5 if name == "detection_error" else 1.0
        intervals[name] = ConfidenceInterval(
            *_intervals.interval(value, errors[name], n_rows[name], confidence_level, highest)
        )
    if "fpr95" in intervals and not is_label_map(y_true) and not np.isnan(intervals["fpr95"].low):
        n_inside = np.count_nonzero(~is_ood(y_true))
        if _intervals.fewest(0.95, n_inside) == n_inside:
            # Where the threshold lies such rows bound from above alone.
            intervals["fpr95"] = intervals["fpr95"]._replace(high=1.0)
    return intervals[metric] if isinstance(metric, str) else intervals


def paired_test(
    metric: str | Sequence[str],
    y_true: Labels,
    y_score_1: Scores,
    y_score_2: Scores,
    *,
    y_pred: Labels | tuple[Labels, Labels] | None = None,
    average: str = "pixels",
    confidence_level: float = 0.95,
    n_resamples: int = 500,
    random_state: RandomState = None,
) -> PairedTest | dict[str, PairedTest]:
    """Test whether a metric of two detectors differs, both having scored the same rows.

    The difference is divided by its standard error and compared with the normal distribution.
    The error is DeLong's [1]_ for AUROC, which knows how the two correlate, and else that of the
    bootstrap, which draws the same rows for both detectors.

    Parameters
    ----------
    metric : str or list of str
        As for `confidence_interval`.
    y_true : array-like of shape (n_samples,) or (n_samples, H, W)
        As for `confidence_interval`.
    y_score_1, y_score_2 : array-likes of shape (n_samples,) or (n_samples, H, W)
        The scores of the two detectors, higher means more in-distribution.
    y_pred : array-like of shape (n_samples,) or a tuple of two, default=None
        The predicted classes, for "oscr", "ccr_at_fpr", "aurc" and "aurra"; a tuple where the
        two detectors go with different classifiers.
    average : {"pixels", "images"}, default="pixels"
        What to do with maps, as for `segmentation_score`.
    confidence_level : float, default=0.95
        The level of the interval.
    n_resamples : int, default=500
        How often rows are drawn, except for AUROC.
    random_state : int, RandomState instance or None, default=None
        An int makes the result reproducible.

    Returns
    -------
    test : PairedTest or dict
        A named tuple (difference, low, high, pvalue): the metric of the first detector minus
        that of the second, its interval, and the two-sided p-value of no difference, which is
        below 1 - `confidence_level` where the interval leaves out 0. For a list of metrics, a
        dict by name. All nan where a metric is nan, with its warning.

    Raises
    ------
    ValueError
        If the metric would raise one, there is none of this name, `y_pred` is missing, or a
        parameter is out of its range.

    See Also
    --------
    confidence_interval : The interval of one detector; its notes hold here as well.

    Notes
    -----
    A p-value is meant for one comparison that was planned: the best of many detectors differs
    from the second by chance more often. Of pairs of equally good detectors on 60 + 60 rows 0 to
    8 % had a p-value below 0.05; of AUTC, which hangs on extreme scores, 11 % on 500 + 500.

    Where the rows show no spread, the bounds are those of `confidence_interval` for numbers
    between -1 and 1, and the p-value is :math:`2 (1 + |d|)^{-n}`, at most 1, for a difference d.

    References
    ----------
    .. [1] E. DeLong, D. DeLong and D. Clarke-Pearson, "Comparing the areas under two or more
       correlated receiver operating characteristic curves", Biometrics 44, 1988.

    Examples
    --------
    >>> import numpy as np
    >>> from skood.metrics import paired_test
    >>> rng = np.random.default_rng(0)
    >>> y_true = np.repeat([0, -1], 100)
    >>> good = rng.normal(size=200) + 2 * (y_true == 0)
    >>> test = paired_test("auroc", y_true, good, good + 0.5 * rng.normal(size=200))
    >>> round(test.difference, 3), round(test.pvalue, 4)
    (0.022, 0.0309)
    """
    names = _check_inference(metric, y_true, y_pred, confidence_level, n_resamples)
    y_scores = [y_score_1, y_score_2]
    if is_label_map(y_true):
        differences, errors, n_rows = _map_statistics(
            names, y_true, y_scores, average, n_resamples, random_state
        )
    else:
        y_preds = list(y_pred) if isinstance(y_pred, tuple) and len(y_pred) == 2 else [y_pred] * 2
        first, second = (
            _values(names, y_true, y_pred, y_score)
            for y_pred, y_score in zip(y_preds, y_scores, strict=True)
        )
        differences = first - second
        errors, n_rows = _standard_errors(
            names, differences, y_true, y_preds, y_scores, n_resamples, random_state
        )
    tests = {}
    for name, difference in zip(names, differences.tolist(), strict=True):
        bounds = _intervals.paired_test(difference, errors[name], n_rows[name], confidence_level)
        tests[name] = PairedTest(difference, *bounds)
    return tests[metric] if isinstance(metric, str) else tests


def _check_name(name, known, what):
    """Return a name, or raise a ValueError with the nearest known ones."""
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"There is no {what} {name!r}.{hint} Known are {sorted(known)}.")
    return name


def _known_labels(estimator):
    """Return the labels that a fitted estimator does not call OOD, or None if it does not say."""
    if hasattr(estimator, "best_estimator_"):
        return _known_labels(estimator.best_estimator_)
    if hasattr(estimator, "named_steps"):
        # The last step may not say, as an IsolationForest, while one before it does.
        steps = (_known_labels(step) for _, step in reversed(estimator.steps))
        return next((known for known in steps if known is not None), None)
    if hasattr(estimator, "_known_labels"):
        return estimator._known_labels()
    return getattr(estimator, "known_classes_", None)


def _score_rows(estimator, X):
    """Return the scores of the rows of X, higher = more in-distribution."""
    for method in ("score_samples", "decision_function"):
        if hasattr(estimator, method):
            return getattr(estimator, method)(X)
    raise TypeError(
        f"{type(estimator).__name__} has neither score_samples nor decision_function: it gives "
        "no scores that an OOD metric could rank."
    )


_SCORERS = {
    "aupr_in": (aupr_in_score, 1),
    "aupr_out": (aupr_out_score, 1),
    "auroc": (auroc_score, 1),
    "autc": (autc_score, -1),
    "detection_error": (detection_error_score, -1),
    "fpr95": (fpr_at_tpr_score, -1),
}


class _OODScorer:
    """Callable (estimator, X, y) -> float, higher = better; see `get_scorer`."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"get_scorer({self.name!r})"

    def __call__(self, estimator, X, y):
        metric, sign = _SCORERS[self.name]
        ood = is_ood(y, _known_labels(estimator))
        warn_of_unseen(estimator, y, ood)
        labels = np.where(ood, -1, 0)
        return sign * metric(labels, _score_rows(estimator, X))


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
    return sorted(_SCORERS)


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
    return _OODScorer(_check_name(name, _SCORERS, "scorer"))
