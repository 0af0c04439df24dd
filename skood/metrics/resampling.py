"""Standard errors of metrics by DeLong and by the stratified bootstrap, and their intervals."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri

# Counts in a block of replicates: 2 MiB, so that a block stays in cache.
BLOCK = 2**18
# Standard errors of pooled pixels are those of scores in as many bins.
N_BINS = 4096


def interval(value, error, n_pairs, level, highest=1.0):
    """Return the bounds of a metric from its standard error, on the logit scale.

    Where the data show no spread, they still are `n_pairs` disjoint pairs of an in-distribution
    and an OOD row that agree. Pairs agree with probability q; at q = ((1 - level) / 2)^(1/n_pairs),
    the bound of Clopper and Pearson, all would do so too rarely. The pairs that do not agree may
    have any value.
    """
    share = value / highest
    if error > 0 and 0 < share < 1:
        middle = logit(share)
        width = ndtri((1 + level) / 2) * error / highest / (share * (1 - share))
        low, high = expit(middle - width), expit(middle + width)
    else:
        agree = ((1 - level) / 2) ** (1 / n_pairs)
        low, high = agree * share, agree * share + 1 - agree
    # logit and expit are rounded.
    return float(min(highest * low, value)), float(max(highest * high, value))


def paired_test(difference, error, n_pairs, level):
    """Return the bounds of a difference from its standard error, and its p-value.

    Without any spread the bounds are those of `interval` for values between -1 and 1.
    """
    if error > 0:
        width = ndtri((1 + level) / 2) * error
        low, high = difference - width, difference + width
        pvalue = 2 * ndtr(-abs(difference) / error)
    else:
        agree = ((1 - level) / 2) ** (1 / n_pairs)
        low, high = (agree * difference + sign * (1 - agree) for sign in (-1, 1))
        # The level at which a bound is 0.
        pvalue = np.minimum(1, 2 * (1 + abs(difference)) ** -n_pairs)
    return *(float(bound) for bound in np.clip([low, high], -1, 1)), float(pvalue)


def placements(inside, scores):
    """Count for each row the rows of the other kind below it, twice, ties once.

    Returns
    -------
    counts : list of two ndarrays
        Of the in-distribution and of the OOD rows, in their order.
    """
    kinds = [scores[inside], scores[~inside]]
    counts = []
    for kind, other in (kinds, kinds[::-1]):
        other = np.sort(other)
        counts.append(sum(np.searchsorted(other, kind, side) for side in ("left", "right")))
    return counts


def delong_error(counts):
    """Return DeLong's standard error of an AUROC, or of a difference, from its placements."""
    n_pairs = len(counts[0]) * len(counts[1])
    # Integers, so that equal placements have no variance at all.
    variances = [np.var(kind, ddof=1) * len(kind) for kind in counts]
    return np.sqrt(sum(variances)) / (2 * n_pairs)


class Curve(NamedTuple):
    """How many rows are accepted at each threshold, for a block of replicates.

    The counts have shape (n_replicates, n_thresholds + 1): none at first, all at last. Equal
    scores are one threshold. `steps` are the columns where in-distribution, and where OOD rows
    have been added.
    """

    inside: np.ndarray
    outside: np.ndarray
    correct: np.ndarray
    thresholds: np.ndarray
    steps: list


class Ranking:
    """The scores of one detector, sorted once.

    Parameters
    ----------
    inside : ndarray of shape (n_samples,), dtype bool
        The in-distribution rows.
    correct : ndarray of shape (n_samples,), dtype bool, or None
        The rows that are classified correctly; none of them is OOD. None if no metric asks.
    scores : ndarray of shape (n_samples,)
        Higher is more in-distribution.
    """

    def __init__(self, inside, correct, scores):
        thresholds = np.unique(scores)[::-1]
        self.thresholds = rescale(thresholds)
        self.orders, self.accepted = [], []
        for kind in (inside, ~inside):
            values = -scores[kind]
            order = slice(None) if (values[:-1] <= values[1:]).all() else np.argsort(values)
            accepted = np.searchsorted(values[order], -thresholds, "right")
            self.orders.append(order)
            self.accepted.append(np.concatenate([[0], accepted]))
        self.steps = [np.flatnonzero(np.diff(accepted)) + 1 for accepted in self.accepted]
        self.correct = None if correct is None else correct[inside][self.orders[0]]

    def curve(self, counts):
        """Return the curve of resampled rows from how often each row of both kinds is drawn."""
        kinds = [kind[:, order] for kind, order in zip(counts, self.orders, strict=True)]
        inside, outside = map(cumulate, kinds, self.accepted)
        correct = self.correct
        if correct is not None:
            correct = cumulate(kinds[0] * correct, self.accepted[0])
        return Curve(inside, outside, correct, self.thresholds, self.steps)


def rescale(scores):
    """Return scores as float64 between 0 and 1; zeros if all are equal."""
    # Halves, since the difference of two float64 numbers may overflow.
    scores = scores.astype(np.float64) / 2
    scores -= scores.min()
    return scores / (scores.max() or 1)


def cumulate(counts, through):
    """Return the sums of the first `through` counts."""
    # int32 keeps arrays small enough that the allocator does not return freed ones to the system,
    # which took half the time.
    sums = np.zeros((len(counts), counts.shape[1] + 1), dtype=np.int32)
    np.cumsum(counts, axis=1, dtype=np.int32, out=sums[:, 1:])
    return sums.take(through, axis=1)


def mean_precision(hits, others):
    """Average over all hits their share among the rows found with each."""
    # In place and by einsum, also to spare arrays.
    precision = np.add(hits, others, dtype=np.float64)
    # Only rows that are not drawn have been found.
    precision[precision == 0] = 1
    np.divide(hits, precision, out=precision)
    return np.einsum("rt,rt->r", np.diff(hits, axis=1, prepend=0), precision) / hits[:, -1]


def aupr_in(curve):
    """Average over the in-distribution rows the precision of accepting at their scores."""
    reached = curve.steps[0]
    return mean_precision(curve.inside.take(reached, 1), curve.outside.take(reached, 1))


def aupr_out(curve):
    """Average over the OOD rows the precision of rejecting at their scores."""
    above = curve.steps[1][::-1] - 1
    return mean_precision(
        *(kind[:, -1:] - kind.take(above, 1) for kind in (curve.outside, curve.inside))
    )


def fewest(share, n):
    """Return the smallest count of n rows that is at least a share of them."""
    count = np.floor(share * np.asarray(n)).astype(np.int64)
    # The product may be rounded.
    return count + (count / n < share)


def fpr95(curve):
    """Share of OOD rows accepted where 95 % of the in-distribution rows are."""
    n_accepted = fewest(0.95, curve.inside[:, -1:])
    first = (curve.inside >= n_accepted).argmax(axis=1)
    return curve.outside[np.arange(len(first)), first] / curve.outside[:, -1]


def detection_error(curve):
    """Return the smallest mean of both error rates."""
    missed = 1 - curve.inside / curve.inside[:, -1:]
    return (missed + curve.outside / curve.outside[:, -1:]).min(axis=1) / 2


def autc(curve):
    """Area under both error rates over the thresholds, scaled to [0, 1]."""
    drawn = np.diff(curve.inside + curve.outside, axis=1) > 0
    highest = curve.thresholds[drawn.argmax(axis=1)]
    lowest = curve.thresholds[::-1][drawn[:, ::-1].argmax(axis=1)]
    inside, outside = (
        np.diff(kind, axis=1) @ curve.thresholds / kind[:, -1]
        for kind in (curve.inside, curve.outside)
    )
    spread = np.where(highest > lowest, highest - lowest, 1)
    return 0.5 - (inside - outside) / (2 * spread)


def oscr(curve):
    """Area under the rate of correct and accepted rows over that of accepted OOD rows."""
    fprs = curve.outside / curve.outside[:, -1:]
    return np.trapezoid(curve.correct, fprs, axis=1) / curve.inside[:, -1]


def auroc(curve):
    """Area under the rate of accepted in-distribution rows over that of accepted OOD rows."""
    return oscr(curve._replace(correct=curve.inside))


def ccr_at_fpr(curve):
    """Share of in-distribution rows accepted and correct where 5 % of the OOD rows are."""
    n_accepted = most(0.05, curve.outside[0, -1])
    last = (curve.outside <= n_accepted).sum(axis=1) - 1
    return curve.correct[np.arange(len(last)), last] / curve.inside[:, -1]


def most(share, n):
    """Return the largest count of n rows that is at most a share of them."""
    # The slack is for 0.29 * 100, which is less than 29 in floating point.
    return int(share * n * (1 + 1e-12))


def aurc(curve):
    """Average over all rows the share of wrong classes among the rows accepted with each."""
    accepted = curve.inside + curve.outside
    accuracy = curve.correct / np.maximum(accepted, 1)
    return 1 - np.einsum("rt,rt->r", np.diff(accepted), accuracy[:, 1:]) / accepted[:, -1]


def aurra(curve):
    """Average over all rows the accuracy among the rows accepted with each."""
    return 1 - aurc(curve)


CURVE_METRICS = {
    metric.__name__: metric
    for metric in (
        aupr_in,
        aupr_out,
        auroc,
        fpr95,
        detection_error,
        autc,
        oscr,
        ccr_at_fpr,
        aurc,
        aurra,
    )
}


def difference(values):
    """Return the values of one detector, or those of the first of two less the second's."""
    values = np.asarray(values)
    return values[0] if len(values) == 1 else values[0] - values[1]


def draw(rng, n, n_replicates):
    """Return how often each of n rows is drawn when n are drawn with replacement."""
    rows = rng.integers(max(n, 1), size=(n_replicates, n))
    rows += n * np.arange(n_replicates)[:, np.newaxis]
    return np.bincount(rows.ravel(), minlength=n_replicates * n).reshape(n_replicates, n)


def resample(names, inside, corrects, scores, n_resamples, rng):
    """Evaluate metrics on resampled rows, the two kinds drawn separately.

    Parameters
    ----------
    names : list of str
        Keys of `CURVE_METRICS`.
    inside : ndarray of shape (n_samples,), dtype bool
        The in-distribution rows.
    corrects, scores : lists of ndarrays of shape (n_samples,)
        One array a detector.
    n_resamples : int
        The number of replicates, which are the same rows for all detectors and metrics.
    rng : Generator
        The source of randomness.

    Returns
    -------
    values : ndarray of shape (n_detectors, n_metrics, n_resamples)
        The metrics.
    """
    rankings = [
        Ranking(inside, correct, score) for correct, score in zip(corrects, scores, strict=True)
    ]
    sizes = np.count_nonzero(inside), np.count_nonzero(~inside)
    values = np.empty((len(rankings), len(names), n_resamples))
    n_rows = max(1, BLOCK // len(inside))
    for start in range(0, n_resamples, n_rows):
        part = values[:, :, start : start + n_rows]
        counts = [draw(rng, size, part.shape[2]) for size in sizes]
        for ranking, results in zip(rankings, part, strict=True):
            curve = ranking.curve(counts)
            for name, result in zip(names, results, strict=True):
                result[:] = CURVE_METRICS[name](curve)
    return values


def resample_fpr95(inside, scores, n_resamples, rng):
    """Draw FPR95 of resampled rows of one detector, each from two random numbers.

    The threshold is an order statistic of drawn rows: of n uniform numbers the k-th smallest has
    a Beta(k, n - k + 1) distribution. The drawn OOD rows that reach it are binomial.
    """
    kind, other = -np.sort(-scores[inside]), np.sort(scores[~inside])
    k, n_other = fewest(0.95, len(kind)), len(other)
    drawn = rng.beta(k, len(kind) - k + 1, size=n_resamples) * len(kind)
    # A Beta number may be rounded to 1.
    thresholds = kind[np.minimum(drawn.astype(np.int64), len(kind) - 1)]
    accepted = n_other - np.searchsorted(other, thresholds)
    return rng.binomial(n_other, accepted / n_other) / n_other


def image_errors(names, kinds, scores, n_resamples, rng):
    """Return standard errors of metrics of pooled pixels, or of differences, images being drawn.

    Pixels are counted by image in bins of equally many: replicates are sums of these counts.

    Parameters
    ----------
    names : list of str
        Keys of `CURVE_METRICS` that need no classes.
    kinds : ndarray of shape (n_images, H, W)
        1 for in-distribution, -1 for OOD, 0 for ignored pixels.
    scores : list of one or two ndarrays of shape (n_images, H, W)
        Those of each detector.
    n_resamples : int
        The number of replicates.
    rng : Generator
        The source of randomness.
    """
    # The first row is the images as they are.
    weights = np.vstack([np.ones(len(kinds)), draw(rng, len(kinds), n_resamples)])
    values = []
    for maps in scores:
        edges = np.unique(np.quantile(maps[kinds != 0], np.linspace(0, 1, N_BINS)))
        counts = np.zeros((2, len(kinds), len(edges)))
        for image, (kind, pixels) in enumerate(zip(kinds, maps, strict=True)):
            for row, sign in enumerate((1, -1)):
                # From the highest score down.
                bins = len(edges) - np.searchsorted(edges, pixels[kind == sign], "right")
                counts[row, image] = np.bincount(bins, minlength=len(edges))
        inside, outside = (np.cumsum(weights @ c, axis=1) for c in counts)
        none = np.zeros((len(weights), 1))
        steps = np.arange(1, len(edges) + 1)
        curve = Curve(
            inside=np.hstack([none, inside]),
            outside=np.hstack([none, outside]),
            correct=None,
            thresholds=rescale(edges[::-1]),
            steps=(steps, steps),
        )
        # Draws that lack a kind of pixel say nothing.
        drawn = (inside[:, -1] > 0) & (outside[:, -1] > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append([np.where(drawn, CURVE_METRICS[name](curve), np.nan) for name in names])
    values = difference(values)
    return np.sqrt(np.nanmean((values[:, 1:] - values[:, :1]) ** 2, axis=1))
