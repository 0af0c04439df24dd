"""Quantiles of training activations, of all rows and of all but one."""

import numpy as np
import torch

from skood.learning.reservoir import Reservoir

# Activations that are kept, and rows at least: of 256 rows the level errs by .003, a fifth of what
# it would by so many independent numbers.
N_ACTIVATIONS, LEAST_ROWS = 2**24, 256


def activation_sample(activations, n_expected=0):
    """Return a sample of no rows yet, of as many rows like these as quantiles are taken of.

    Parameters
    ----------
    activations : Tensor of shape (n_samples, ...)
        Rows like those to come.
    n_expected : int, default=0
        See `Reservoir`.
    """
    width = max(1, activations[:1].numel())
    return Reservoir(max(LEAST_ROWS, N_ACTIVATIONS // width), n_expected)


def ascending(values, dim=0):
    """Return values sorted along an axis."""
    if values.is_cpu:
        # torch would give the order too, in twice the memory of float32, and take longer.
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
        For each of some rows those of the values in `ordered`, fewer than n, that are its own.

    Returns
    -------
    quantiles : Tensor of shape (n_columns,) or (n_samples, n_columns)
        Of all values, or for each row of those that are not its own.
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
    """Return the k-th value of each column, counted from 0, or for each row of the others.

    Parameters
    ----------
    ordered : Tensor of shape (n, n_columns)
        From `ascending`.
    k : int
        Less than the number of values that count.
    left_out : Tensor of shape (n_samples, width, n_columns), default=None
        See `quantile`; ascending along the second axis.
    """
    if left_out is None:
        return ordered[k]
    # The j-th of a row's own comes before the k-th of the others where all before it do and it
    # does not exceed what stands j places after k.
    is_before = left_out <= ordered[k : k + left_out.shape[1]]
    return ordered.gather(0, k + is_before.int().cumprod(dim=1).sum(dim=1))
