"""Rectified activations: kept within bounds, which may be quantiles over training rows."""

import torch

from skood.learning.learning import LearnedModule
from skood.learning.quantiles import activation_sample, ascending, quantile
from skood.learning.shaping import LearnedShaping


def rectify(x, low=None, high=None, below="clip", lift=0.0):
    """Bring activations within bounds.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Activations.
    low, high : Tensor, default=None
        Bounds that broadcast to `x`; None is none.
    below : {"clip", "zero"}, default="clip"
        Whether activations below `low` become `low` or 0.
    lift : float, default=0.0
        Added to activations within the bounds.
    """
    low, high = (None if bound is None else bound.to(x) for bound in (low, high))
    if low is None and high is None:
        return x + lift
    shaped = torch.clamp(x, low, high)
    if lift:
        shaped = torch.where(shaped == x, x + lift, shaped)
    return shaped if below == "clip" or low is None else torch.where(x < low, 0, shaped)


def channels_last(activations, axis):
    """Return activations as (n_samples, n_positions, n_channels), the channels being an axis."""
    if activations.ndim == 2:
        return activations[:, None]
    return activations.movedim(axis, -1).flatten(1, -2)


def along_channels(bound, ndim, axis):
    """Return numbers for channels in a shape that broadcasts to activations of `ndim` axes.

    Parameters
    ----------
    bound : Tensor of shape (n_channels,) or (n_samples, n_channels)
        The same for all rows, or others for each.
    ndim, axis : int
        The axes of the activations, and that of the channels.
    """
    axis = axis % ndim if ndim > 2 else 1
    rows = () if bound.ndim == 1 else (len(bound), *(axis - 1) * [1])
    return bound.view(*rows, -1, *(ndim - 1 - axis) * [1])


class Rectify(LearnedModule):
    """`rectify` as a module, whose buffers `low` and `high` are the bounds."""

    learned = ("low", "high")

    def __init__(self, low=None, high=None, below="clip", lift=0.0):
        super().__init__()
        self.low, self.high, self.below, self.lift = low, high, below, lift

    def forward(self, activations):
        """Rectify activations (n_samples, ...)."""
        return rectify(activations, self.low, self.high, self.below, self.lift)


class QuantileRectify(Rectify, LearnedShaping):
    """`Rectify` whose bounds are quantiles of the activations of training rows.

    Parameters
    ----------
    lower, upper : float or None
        The levels of the quantiles; None is no bound.
    per_channel : bool
        Whether each channel has its own quantiles, or all activations have the same.
    below, lift
        See `rectify`.
    """

    def __init__(self, lower, upper, per_channel, below="clip", lift=0.0):
        super().__init__(below=below, lift=lift)
        self.levels, self.per_channel = (lower, upper), per_channel
        # The keys of the sampled rows, ascending, and their activations in ascending order.
        self.keys = self.ordered = None

    def init_state(self, activations, n_expected):
        """Return a sample of no rows."""
        return activation_sample(activations, n_expected)

    def update(self, state, activations, keys):
        """Add the activations of those rows that are drawn to the sample."""
        chosen = state.choose(keys)
        state.add([activations[chosen]], keys[chosen])

    def finalize(self, state):
        """Take the quantiles."""
        self.keys, (rows,) = state.sample()
        self.ordered = ascending(self._columns(rows).flatten(0, 1))
        self.low, self.high = (self._bound(level, rows.ndim) for level in self.levels)

    def leave_one_out(self, activations, keys):
        """Rectify rows of the sample by the quantiles of the others, exactly."""
        if len(self.keys) < 2:
            return self(activations)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        own, is_own = self._columns(activations), self.keys[place] == keys
        bounds = []
        for level, bound in zip(self.levels, (self.low, self.high), strict=True):
            if level is not None:
                others = self._bound(level, activations.ndim, own)
                bound = torch.where(is_own.view(-1, *(activations.ndim - 1) * [1]), others, bound)
            bounds.append(bound)
        return rectify(activations, *bounds, self.below, self.lift)

    def clear_cache(self):
        """Drop the ordered activations."""
        self.keys = self.ordered = None

    def _columns(self, activations):
        """Return activations (n_samples, width, n_channels), with one channel for all if shared."""
        if not self.per_channel:
            return activations.flatten(1)[:, :, None]
        return channels_last(activations, self.channel_axis)

    def _bound(self, level, ndim, left_out=None):
        """Return the quantile of a level, in a shape that broadcasts to activations, or None."""
        if level is None:
            return None
        bound = quantile(self.ordered, level, left_out)
        return along_channels(bound, ndim, self.channel_axis if self.per_channel else 1)
