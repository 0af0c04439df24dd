"""Distances to classes relative to that to all rows."""

import torch

from skood.learning.gaussians import room_left, squared_norms


def total_scatter(moments):
    """Return the scatter (D, D) of all rows around their mean (D,), and this mean."""
    weights = moments.counts / moments.counts.sum()
    mean = weights @ moments.means
    shifts = moments.counts.sqrt()[:, None] * (moments.means - mean)
    return moments.scatters[0] + shifts.T @ shifts, mean


def relative_directions(means, weights):
    """Return the directions in which distances to class means and to the mean of all rows differ.

    In coordinates that are white within the classes, around the mean of all rows, the covariance
    of all rows is 1 + Σ w m mᵀ, with the class means m and their weights w. The difference of the
    two squared distances is |x - m|² - xᵀ(1 + Σ w m mᵀ)⁻¹x. It cancels outside of the span of the
    class means; along the principal axes of that, z = x @ directions, it is
    |m|² - 2 z·m + Σ z² s²/(1 + s²), in which no large numbers are subtracted.

    Parameters
    ----------
    means : Tensor of shape (K, D)
        White, around the mean of all rows.
    weights : Tensor of shape (K,)
        The shares of the classes.

    Returns
    -------
    directions : Tensor of shape (D, min(K, D))
        Orthonormal.
    shrinkage : Tensor of shape (min(K, D),)
        s²/(1 + s²).
    """
    _, s, directions = torch.linalg.svd(weights.sqrt()[:, None] * means, full_matrices=False)
    return directions.T, s.square() / (1 + s.square())


def total_distances_without_own(rows, mean, factor, n_rows):
    """Return squared distances of training rows to the mean of all others, under their covariance.

    Of n rows with mean μ and scatter T, x is left out. With δ = x - μ the mean becomes μ - δ/(n-1)
    and the scatter T - n/(n-1) δδᵀ. If q is the squared distance of x to μ under T/(n-1), then by
    Sherman and Morrison that to the new mean under the new covariance is
    (n/(n-1))² q / (1 - n/(n-1)² q).

    Parameters
    ----------
    rows : Tensor of shape (n_samples, D)
        Training rows.
    mean : Tensor of shape (D,)
        Of all.
    factor : Tensor of shape (D, D)
        `inverse_factor` of T/(n-1) and a ridge, which is kept.
    n_rows : Tensor of shape ()
        The number n.
    """
    grow = n_rows / (n_rows - 1)
    total = squared_norms((rows - mean) @ factor)
    return grow.square() * total / room_left(1 - grow / (n_rows - 1) * total)
