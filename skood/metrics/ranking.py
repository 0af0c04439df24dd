"""Metrics of how well scores rank in-distribution above OOD rows."""

import numpy as np
from sklearn.metrics import average_precision_score, det_curve

from skood._typing import Labels, Scores
from skood.metrics import resampling
from skood.metrics.rows import evaluate_metric, threshold_at_tpr


def auroc(inside, scores):
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
    return evaluate_metric(auroc, y_true, y_score)


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
    return evaluate_metric(average_precision_score, y_true, y_score)


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
    return evaluate_metric(
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
        return np.count_nonzero(negatives >= threshold_at_tpr(positives, tpr)) / len(negatives)

    return evaluate_metric(fpr_at_tpr, y_true, y_score)


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

    return evaluate_metric(detection_error, y_true, y_score)


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
        scores = resampling.rescale(scores)
        return 0.5 - (scores[inside].mean() - scores[~inside].mean()) / 2

    return evaluate_metric(area, y_true, y_score)
