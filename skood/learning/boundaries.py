"""Smoothing of maps of scores, at the boundaries of predicted segments and all over."""

from functools import reduce

import torch
from torch.nn.functional import pad


def shifted(maps, axis, reach, dilation=1, outside=None):
    """Return maps (n, H, W) moved by up to so many steps of `dilation` pixels along an axis.

    What moves in from beyond the edge is the edge, or the value `outside`.
    """
    width = reach * dilation
    padding = (0, 0, width, width) if axis == 1 else (width, width)
    how = {"mode": "replicate"} if outside is None else {"value": outside}
    padded = pad(maps, padding, **how)
    return [padded.narrow(axis, i * dilation, maps.shape[axis]) for i in range(2 * reach + 1)]


def widened(maps):
    """Return the largest value of each pixel and its four neighbours."""
    moved = [part for axis in (1, 2) for part in shifted(maps, axis, 1, outside=-torch.inf)]
    return reduce(torch.maximum, moved)


def boundaries(columns):
    """Return 1 where a neighbour has another label, or a lower one across a corner; else 0."""
    lowest = -columns
    for axis in (1, 2):
        lowest = reduce(torch.maximum, shifted(lowest, axis, 1, outside=-torch.inf))
    return (widened(columns) != -lowest).to(columns.dtype)


def blurred(maps, kernel, dilation):
    """Return averages weighted by a Gaussian of spread 1, whose pixels lie `dilation` apart."""
    reach = kernel // 2
    weights = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float64).square() / 2)
    weights = (weights / weights.sum()).tolist()
    for axis in (1, 2):
        moved = shifted(maps, axis, reach, dilation)
        maps = sum(weight * part for weight, part in zip(weights, moved, strict=True))
    return maps


def smooth_boundaries(scores, columns, width=4, iterations=4, kernel=7, dilation=6):
    """Replace scores near boundaries of predictions by those from inside, and blur all.

    Parameters
    ----------
    scores : Tensor of shape (n_samples, H, W)
        Of pixels.
    columns : Tensor of shape (n_samples, H, W)
        The predicted class of each.
    width, iterations, kernel, dilation
        See `StandardizedMaxLogitDetector`.

    Returns
    -------
    scores : Tensor of shape (n_samples, H, W)
        Of the same dtype.
    """
    grown = [boundaries(columns.to(scores.dtype))]
    for _ in range(width - 1):
        grown.append(widened(grown[-1]))
    radii = [*range(width - 1, 0, -(width // iterations))][: iterations - 1] + [0]
    for radius in radii:
        inside = (grown[radius] == 0).to(scores.dtype)
        total, count = scores * inside, inside
        for axis in (1, 2):
            total, count = (sum(shifted(part, axis, 1)) for part in (total, count))
        replaced = (inside == 0) & (count > 0)
        scores = torch.where(replaced, total / count.clamp(min=1), scores)
    return blurred(scores, kernel, dilation)
