"""Weibull distributions of the largest of some numbers, for many groups of them at once."""

import math

import torch

# libMR fits to numbers that are moved to start here. The shape is then so large that what is fitted
# is the limit for large shapes, a Gumbel distribution, but for 4e-4.
SHIFT = 10_000.0
# Newton's method takes 5 to 8 steps.
MAX_STEPS = 100
# The exponent of the distribution function of equal numbers, at them.
STEEP = 40.0


def largest_of_groups(values, groups, n_groups, k):
    """Return the k largest values of each group, descending.

    Parameters
    ----------
    values : Tensor of shape (n_samples,)
        Finite numbers.
    groups : Tensor of shape (n_samples,)
        The group of each.
    n_groups : int
        How many groups there are.
    k : int
        How many to return.

    Returns
    -------
    largest : Tensor of shape (n_groups, k)
        Minus infinity where a group has fewer.
    """
    order = values.argsort(descending=True)
    order = order[groups[order].argsort(stable=True)]
    values, groups = values[order], groups[order]
    sizes = torch.bincount(groups, minlength=n_groups)
    ranks = torch.arange(len(values), device=values.device) - (sizes.cumsum(0) - sizes)[groups]
    largest = values.new_full((n_groups, k), -torch.inf)
    largest[groups[ranks < k], ranks[ranks < k]] = values[ranks < k]
    return largest


def drop_from_tails(tails, values):
    """Return the largest values of groups but for one that is perhaps among them.

    Parameters
    ----------
    tails : Tensor of shape (n_groups, k + 1)
        From `largest_of_groups`.
    values : Tensor of shape (n_groups,)
        What to drop. Where it is not among the first k these stay, and what follows is dropped.

    Returns
    -------
    tails : Tensor of shape (n_groups, k + 1)
        Minus infinity in place of what is dropped.
    """
    # In other batches a value may differ in its last digits.
    larger = tails[:, :-1] > values[:, None] * (1 + 1e-9)
    return tails.scatter(1, larger.sum(1, keepdim=True), -torch.inf)


def fit_weibull(tails, rounding):
    """Return the Weibull distributions of the greatest likelihood of d - least + 10 000.

    Parameters
    ----------
    tails : Tensor of shape (n_groups, k), dtype float64
        The numbers d; minus infinity where a group has fewer.
    rounding : Tensor of shape (n_groups,)
        Differences up to this are none: numbers that are all equal become a step just above them.

    Returns
    -------
    least, shape, log_scale : Tensor of shape (n_groups,)
        For `weibull_cdf`, which is 1 for groups of fewer than two numbers.
    """
    present = tails.isfinite()
    n = present.sum(1, dtype=tails.dtype)
    least = tails.masked_fill(~present, torch.inf).amin(1)
    moved = ((tails - least[:, None]) / SHIFT).masked_fill(~present, 0.0).log1p()
    # Shapes in units of the spread, which is 1 then.
    spread = moved.amax(1)
    is_step = tails.amax(1) - least <= rounding
    t = moved / torch.where(is_step, 1.0, spread)[:, None]
    log_shape = _log_shape(t, present, ~is_step & (n > 1))
    shape = log_shape.exp() / spread
    terms = (shape[:, None] * (moved - spread[:, None])).masked_fill(~present, -torch.inf)
    log_scale = spread + (torch.logsumexp(terms, 1) - n.log()) / shape
    at_step = (rounding.clamp(min=1e-290) / SHIFT).log1p()
    shape = torch.where(is_step, STEEP / at_step, shape)
    log_scale = torch.where(is_step, at_step, log_scale)
    few = n < 2
    return (
        least.masked_fill(few, 0.0),
        shape.masked_fill(few, 1.0),
        log_scale.masked_fill(few, -torch.inf),
    )


def _log_shape(t, present, wanted):
    """Return the logarithm of the root k of k (Σ t eᵏᵗ / Σ eᵏᵗ - mean t) = 1, of t in [0, 1].

    The logarithm of the left side grows at least as fast as that of k, in which Newton's method
    searches; a step beyond what is known to enclose the root is half of that instead.
    """
    n = present.sum(1, dtype=t.dtype)
    mean = t.sum(1) / n
    low, high = torch.zeros_like(mean), (2 * n.square() + 10).log()
    at = (math.pi / math.sqrt(6) / t.std(1, correction=0).clamp(min=1e-3)).log()
    for _ in range(MAX_STEPS):
        k = at.exp()
        weights = (k[:, None] * (t - 1)).exp().masked_fill(~present, 0.0)
        weights /= weights.sum(1, keepdim=True)
        expected = (weights * t).sum(1)
        variance = (weights * (t - expected[:, None]).square()).sum(1)
        gap = expected - mean
        value = at + gap.log()
        low, high = torch.where(value < 0, at, low), torch.where(value < 0, high, at)
        step = at - value / (1 + k * variance / gap)
        step = torch.where((step > low) & (step < high), step, (low + high) / 2)
        change, at = (step - at).abs(), step
        if not bool((change[wanted] > 1e-13).any()):
            break
    return at


def weibull_cdf(d, least, shape, log_scale):
    """Return the distribution functions of `fit_weibull` at d."""
    moved = ((d - least) / SHIFT).clamp(min=-1.0).log1p()
    # From e⁷ on it is 1; what overflows has no gradient.
    return 1 - (-(shape * (moved - log_scale)).clamp(max=100.0).exp()).exp()
