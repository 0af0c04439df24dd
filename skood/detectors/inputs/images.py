"""Transforms of images by name, each of which treats every row alike."""

from functools import cache, partial

import numpy as np
import torch
from torch.nn.functional import pad

# Of what a row's entries spread by, the standard deviation of "noise".
NOISE = 0.1


def mirror(x):
    """Reverse the last axis."""
    return x.flip(-1)


def shift(x, by, axis):
    """Move images by some pixels along an axis; zeros follow."""
    edges = [0, 0] * (x.ndim - 1 - axis % x.ndim) + [max(by, 0), max(-by, 0)]
    length = x.shape[axis]
    return pad(x, edges).narrow(axis, max(-by, 0), length)


def blur(x):
    """Average each pixel with its neighbours, by weights 1, 2, 1 along both axes."""
    for axis in (-2, -1):
        last = x.shape[axis] - 1
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, last)], axis)
        after = torch.cat([x.narrow(axis, 1, last), x.narrow(axis, last, 1)], axis)
        x = (before + after) / 4 + x / 2
    return x


def contrast(x):
    """Halve the distances of a row's entries to their mean, channel by channel."""
    mean = x.mean(tuple(range(2, x.ndim)) or 1, keepdim=True)
    return (x + mean) / 2


@cache
def field(shape):
    """Return the noise of all rows."""
    return np.random.RandomState(0).standard_normal(shape)


def noise(x):
    """Add the same field of noise to each row, by the spread of its entries."""
    values = torch.as_tensor(field(tuple(x.shape[1:])), dtype=x.dtype, device=x.device)
    # Squares of the entries may overflow.
    size = x.flatten(1).abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    spread = size[:, 0] * (x.flatten(1) / size).std(1, correction=0)
    return x + NOISE * spread.view(-1, *[1] * (x.ndim - 1)) * values


TRANSFORMS = {
    "mirror": [mirror],
    "shift": [partial(shift, by=by, axis=axis) for axis in (-2, -1) for by in (-1, 1)],
    "blur": [blur],
    "contrast": [contrast],
    "noise": [noise],
}
OF_IMAGES = {"mirror", "shift", "blur"}


def map_back(transform, scores):
    """Return a map of the scores of transformed pixels as one of X's pixels."""
    if transform in TRANSFORMS["shift"]:
        raise ValueError(
            "Scores are maps, in which pixels at the edges have none after a shift.\nLeave out "
            "'shift', or use callables that keep pixels where they are."
        )
    return scores.flip(-1) if transform is mirror else scores
