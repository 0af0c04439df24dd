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


def lower_quantile(scores, share):
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
    """
    least = math.ceil(1 / share * (1 - 1e-12)) - 1
    if len(scores) < least:
        warn(
            f"false_alarm_rate={share:g} takes {least} in-distribution rows at least, got "
            f"{len(scores)}. The lowest of their scores is the threshold, below which "
            f"{1 / (len(scores) + 1):.1%} of fresh rows lie: give more rows, or a larger rate."
        )
    if len(scores) == 1:
        return float(scores[0])
    rank = np.clip(share * (len(scores) + 1), 1, len(scores))
    k = min(int(rank), len(scores) - 1)
    low, high = np.partition(scores, [k - 1, k])[k - 1 : k + 1]
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
