"""Where to cut scores: a quantile of those of training rows, and what rounding does to them."""

import math

import numpy as np
import torch

from skood._warnings import warn

# What a network gives for a row differs by units of the last digit between batch sizes: numbers
# that so many lie between count as equal.
N_ULPS = 16
# Of so many rows it is looked at what rounding does to their scores.
ROUNDED_ROWS = 16
# A fitted detector keeps so many scores of training rows, 128 KiB of them.
KEPT_SCORES = 2**14


def size_of(scores):
    """Return how large scores are: the median of their absolute values."""
    return np.median(np.abs(scores))


def keep_scores(scores, rounding, set_aside=False):
    """Return what a detector keeps of scores, to move its threshold and to compare others to.

    All of them where they are few, else the lowest and others at even distances: the place of a
    quantile is then off by far less than another draw of the rows moves it.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Of rows that nothing was learned from, in any order.
    rounding : float
        By how much rounding changes them.
    set_aside : bool, default=False
        Whether the rows are others than those of ``fit``.

    Returns
    -------
    kept : dict of str to ndarray
        "scores", ascending, their "ranks" among all, from 0 on, the "size" of a score, "rounding"
        and "set_aside".
    """
    n = len(scores)
    ranks, ordered = np.arange(n), np.sort(scores)
    if n > KEPT_SCORES:
        half = KEPT_SCORES // 2
        spaced = np.linspace(half, n - 1, half).astype(np.int64)
        ranks = np.concatenate([ranks[:half], spaced])
    return {
        "scores": ordered[ranks],
        "ranks": ranks,
        "size": size_of(ordered.astype(np.float64)),
        "rounding": np.float64(rounding),
        "set_aside": np.bool_(set_aside),
    }


def kept_scores(estimator):
    """Return what `keep_scores` made when an estimator was fitted; raise if that was not yet so."""
    kept = vars(estimator).get("_kept_scores")
    if not kept:
        raise ValueError(
            f"This {type(estimator).__name__} was fitted by a version of skood that kept no scores "
            "of training rows.\nGive rows set aside as X, or fit again."
        )
    return kept


def lower_quantile(scores, share, ranks=None):
    """Return what, on average over training rows, this share of fresh rows scores below.

    Of fresh rows k / (n + 1) lie below the k-th of n scores, on average. Between two of them it is
    reckoned with an exponential tail: of 50 normal numbers interpolating linearly would give 4.8 %
    for 5 %, and numpy's default quantile 6.6 %.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Of rows that nothing was learned from.
    share : float
        Between 0 and 1.
    ranks : ndarray of shape (n_samples,), default=None
        Where scores are some of more, ascending: their places, from 0 to that of the last.
    """
    n = len(scores) if ranks is None else int(ranks[-1]) + 1
    least = math.ceil(1 / share * (1 - 1e-12)) - 1
    if n < least:
        warn(
            f"false_alarm_rate={share:g} takes {least} in-distribution rows at least, got "
            f"{n}. The lowest of their scores is the threshold, below which "
            f"{1 / (n + 1):.1%} of fresh rows lie: give more rows, or a larger rate."
        )
    if n == 1:
        return float(scores[0])
    rank = np.clip(share * (n + 1), 1, n)
    k = min(int(rank), n - 1)
    if ranks is None:
        low, high = np.partition(scores, [k - 1, k])[k - 1 : k + 1]
    else:
        low, high = np.interp([k - 1, k], ranks, scores)
    # The distance of the k-th to the next has the mean 1 / k in units of the tail.
    return float(low + (high - low) * (k + 1 - k * (k + 1) / rank))


def epsilon(dtype):
    """Return the relative size of rounding errors, float32's for half precision."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def rounding_of(scorer, inputs, network):
    """Return by how much scores change when what they are computed from does, in its last digits.

    Of a distance 0, or of an energy whose terms cancel, the score itself does not tell.

    Parameters
    ----------
    scorer : nn.Module
        Maps inputs to scores.
    inputs : tuple of Tensor or dict
        A batch of what it takes.
    network : Network
        What they come from. Features that are given are exact, but are multiplied in their dtype.
    """
    error = epsilon(network.dtype) * (1 if network.takes_features else N_ULPS)
    generator = np.random.default_rng(0)

    def few(values):
        return values[:: -(-len(values) // ROUNDED_ROWS)]

    def changed(values):
        if not values.is_floating_point():
            return values
        signs = torch.from_numpy(generator.choice([-1.0, 1.0], values.shape)).to(values)
        return torch.addcmul(values, values, signs, value=error)

    def each(function, part):
        if isinstance(part, dict):
            return {name: function(values) for name, values in part.items()}
        return function(part)

    rows = [each(few, part) for part in inputs]
    scores, others = scorer(*rows).double(), scorer(*(each(changed, part) for part in rows))
    change = (others.double() - scores).abs()
    return float(change.nan_to_num(0.0).median()) if change.numel() else 0.0


def interpolate(x, xp, fp):
    """Return numpy's interpolation, and what lies beyond all given values as it is.

    Parameters
    ----------
    x : ndarray of shape (n_samples,)
        Where to take it.
    xp, fp : ndarray of shape (n_values,)
        Values that go together, ascending.
    """
    found = np.interp(x, xp, fp)
    found = np.where(x < xp[0], np.minimum(x, found), found)
    return np.where(x > xp[-1], np.maximum(x, found), found)
