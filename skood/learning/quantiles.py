"""Quantiles of training activations, of all rows and of all but one."""

import numpy as np
import torch

from skood.learning.reservoir import Reservoir

# How many activations are kept, of at least how many rows. With 256 rows the level of a quantile is
# off by .003, a fifth of the error of 256 independent numbers.
N_ACTIVATIONS, LEAST_ROWS = 2**24, 256


def activation_sample(activations, n_expected=0):
    """Return an empty sample, for as many rows of activations as quantiles are taken of.

    Parameters
    ----------
    activations : Tensor of shape (n_samples, ...)
        Of a first batch: its shape tells how many rows are kept.
    n_expected : int, default=0
        See `Reservoir`.
    """
    width = max(1, activations[:1].numel())
    return Reservoir(max(LEAST_ROWS, N_ACTIVATIONS // width), n_expected)


def ascending(values, dim=0):
    """Return values sorted along an axis."""
    if values.is_cpu:
        # torch.sort returns the order too, in twice the memory of float32, and takes longer.
        return torch.from_numpy(np.sort(values.numpy(), axis=dim))
    return values.sort(dim=dim).values


def quantile(ordered, level, left_out=None):
    """Return a quantile of each column, numpy's default: linear between two order statistics.

    `torch.quantile` refuses more than 2²⁴ numbers.

    Parameters
    ----------
    ordered : Tensor of shape (n, n_columns)
        From `ascending`.
    level : float
        In [0, 1].
    left_out : Tensor of shape (n_samples, width, n_columns), default=None
        For each row the values in `ordered` that are its own and are to be left out, fewer than n.

    Returns
    -------
    quantiles : Tensor of shape (n_columns,) or (n_samples, n_columns)
        Of all values, or with `left_out`, for each row, of the values that are not its own.
    """
    n_values = len(ordered)
    if left_out is not None:
        n_values -= left_out.shape[1]
        left_out = ascending(left_out, dim=1)
    position = level * (n_values - 1)
    k = min(int(position), n_values - 1)
    below, above = (order_statistic(ordered, i, left_out) for i in (k, min(k + 1, n_values - 1)))
    return below + (position - k) * (above - below)


def order_statistic(ordered, k, left_out=None):
    """Return the k-th value of each column, counted from 0, perhaps of all but a row's own.

    Parameters
    ----------
    ordered : Tensor of shape (n, n_columns)
        From `ascending`.
    k : int
        Less than the number of values that are left.
    left_out : Tensor of shape (n_samples, width, n_columns), default=None
        See `quantile`; ascending along the second axis.
    """
    if left_out is None:
        return ordered[k]
    # The result stands as many places after k as values of the row come before it. The row's j-th
    # does if those before it do and if it is not larger than the value j places after k.
    is_before = left_out <= ordered[k : k + left_out.shape[1]]
    return ordered.gather(0, k + is_before.int().cumprod(dim=1).sum(dim=1))


def quantile_of(values, level):
    """Return a quantile along the last axis, as `quantile` does, without sorting.

    Parameters
    ----------
    values : Tensor of shape (..., n)
        Not in order.
    level : float
        In [0, 1].

    Returns
    -------
    quantiles : Tensor of shape (...), dtype float64
        Between two of them, linearly.
    """
    n_values = values.shape[-1]
    position = level * (n_values - 1)
    k = int(position)
    if values.is_cpu:
        # Of 2 million numbers numpy's partition takes a quarter of the time of its sort.
        values = torch.from_numpy(np.partition(values.numpy(), k))
    else:
        values = values.sort(dim=-1).values
    below = values[..., k].double()
    above = values[..., k + 1 :].amin(-1) if k + 1 < n_values else below
    return below + (position - k) * (above - below)


def round_down(values, dtype):
    """Return the largest numbers of a dtype that do not exceed the values."""
    rounded = values.to(dtype)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.double() > values, below, rounded)
