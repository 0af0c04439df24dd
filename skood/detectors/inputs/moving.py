"""What detectors that move inputs by gradients share."""

from numbers import Integral, Real

import numpy as np
import torch
from numpy.typing import ArrayLike

from skood._compat import Interval
from skood.estimators.parameters import DeclaresParameters, param


class MovesInputs(DeclaresParameters):
    """Mixin of detectors that move X by a small step against or along a gradient.

    Parameters
    ----------
    scale : float or array-like of shape (n_channels,), default=None
        What steps are divided by: the standard deviation by which pixels were divided, where X is
        normalised. An array has one number for each entry of X's second axis, or any shape that
        goes with a row's. None: 1.
    n_inputs : int, default=None
        How many inputs of a row are moved, those of the largest gradients. None: all.
    """

    scale: float | ArrayLike | None = param(
        Interval(Real, 0, None, closed="neither"), "array-like", None, default=None
    )
    n_inputs: int | None = param(Interval(Integral, 1, None, closed="left"), None, default=None)

    _changes_inputs = True

    def _step(self, epsilon):
        """Return how far inputs are moved, one number or as many as `scale` has."""
        if self.scale is None:
            return epsilon
        scale = np.asarray(self.scale, dtype=np.float64)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"scale={self.scale!r} must be positive: inputs are divided by it.")
        return torch.as_tensor(epsilon / scale)
