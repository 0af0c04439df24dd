"""Standardized max logits: the largest logit, in units of its spread where its class wins."""

from numbers import Integral

import torch
from torch import nn

from skood._compat import Interval
from skood.estimators.kinds import LogitsDetector
from skood.estimators.parameters import param
from skood.functional import all_finite, clip_to
from skood.learning.boundaries import smooth_boundaries
from skood.learning.learning import LearningScorer
from skood.learning.moments import OVERFLOW, ClassMoments, check_squares

# What is left of a sum of squares below this share of it, and a spread below this share of the
# mean, is rounding.
ROUNDING = 1e-12
# Sums of so large scores do not overflow.
LARGEST = 1e300


def without(values, count, mean, squares):
    """Return count, mean and sum of squared differences without one value of them each."""
    left = (count - 1).clamp(min=1)
    delta = values - mean
    rest = squares - delta.square() * count / left
    return count - 1, mean - delta / left, torch.where(rest > ROUNDING * squares, rest, 0.0)


def mean_and_spread(own, total):
    """Return mean and standard deviation of a class, or of all where it has too few rows."""

    def spread_of(count, mean, squares):
        spread = (squares / (count - 1).clamp(min=1)).sqrt()
        return torch.where(spread > ROUNDING * mean.abs(), spread, 0.0)

    spread, of_all = spread_of(*own), spread_of(*total)
    few = (own[0] < 3) | (spread == 0)
    of_all = torch.where(of_all > 0, of_all, 1.0)
    return torch.where(few, total[1], own[1]), torch.where(few, of_all, spread)


class LargestLogit(nn.Module):
    """Logits → the largest and its column: of maps much less to keep than all of them."""

    def forward(self, logits):
        """Return tensors of shape (n_samples, ...)."""
        return tuple(logits.max(1))


class StandardizedScorer(LearningScorer):
    """Largest logits and their columns → scores."""

    learned = ("means", "spreads")
    learns_pixels = True

    def __init__(self, n_logits, smoothing):
        super().__init__()
        self.n_logits, self.smoothing = n_logits, smoothing
        self.clear_cache()

    def check(self, inputs):
        """Raise if squares would overflow."""
        check_squares(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return moments of no rows, by the column of the largest logit."""
        state = ClassMoments(self.n_logits, 1, "diag", inputs[0].device)
        # These are not the classes of y.
        state.per_class = ()
        return state

    def update(self, state, inputs, class_indices, keys):
        """Add rows or pixels, but those that do not count."""
        values, columns, *counts = inputs
        chosen = counts[0] if counts else ...
        state.update(values[chosen].reshape(-1, 1), columns[chosen].reshape(-1))

    def finalize(self, state, classes):
        """Set mean and spread of each column."""
        counts, means, squares = state.counts, state.means[:, 0], state.scatters[:, 0]
        n = counts.sum().clamp(min=1)
        mean = (counts / n) @ means
        total = n, mean, squares.sum() + counts @ (means - mean).square()
        if not all_finite(total[2]):
            raise ValueError(OVERFLOW)
        self.moments = (counts, means, squares), total
        self.means, self.spreads = mean_and_spread(*self.moments)

    def clear_cache(self):
        """Drop what only learning needs."""
        self.moments = None

    def forward(self, values, columns, *counts):
        """Score rows, or pixels of maps (n_samples, H, W)."""
        return self._score(values.double(), columns, self.means[columns], self.spreads[columns])

    def leave_one_out(self, inputs, class_indices, keys):
        """Score each row or pixel by the mean and spread of the others."""
        values, columns = inputs[0].double(), inputs[1]
        own, total = self.moments
        own = without(values, *(part[columns] for part in own))
        return self._score(values, columns, *mean_and_spread(own, without(values, *total)))

    def _score(self, values, columns, means, spreads):
        scores = ((values - means) / spreads).clamp(-LARGEST, LARGEST)
        if self.smoothing is not None and scores.ndim == 3:
            scores = smooth_boundaries(scores, columns, **self.smoothing)
        return clip_to(scores, torch.float64)


class StandardizedMaxLogitDetector(LogitsDetector):
    r"""Largest logit, standardized over the training rows or pixels that are predicted its class.

    With :math:`\hat y = \arg\max_c l_c`, and mean :math:`m_c` and standard deviation
    :math:`\sigma_c` of the largest logit over the training pixels that are predicted c, the score
    is :math:`(\max_c l_c - m_{\hat y}) / \sigma_{\hat y}`. On maps of logits scores near boundaries
    of the predicted segments, which are low in any image, are replaced by scores from inside.

    Parameters
    ----------
    smooth : bool, default=True
        Smooth maps of scores: at boundaries first, then all of it. Rows have no neighbours.
    width : int, default=4
        How far from a boundary, in pixels of the logits, scores are replaced.
    iterations : int, default=4
        In so many steps of `width` / `iterations` pixels, from both sides.
    kernel : int, default=7
        The width of the Gaussian that blurs all scores, odd; its standard deviation is 1 of its
        pixels. 1: no blur.
    dilation : int, default=6
        The distance of the Gaussian's pixels, in pixels of the logits.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps largest logits and their columns (n_samples, ...) to scores; its buffers are ``means``
        and ``spreads`` (n_classes,).

    See Also
    --------
    MaxLogitDetector : The same without means and spreads, which differ between classes.

    Notes
    -----
    The defaults of `width` to `dilation` are the authors', for images of 1024 × 2048 pixels; choose
    smaller ones for smaller images. A class that is predicted for fewer than three training pixels,
    or with one value alone, has mean and spread of all pixels. Pixels with a negative label, or
    255, are not learned from; the authors learn from all. For the threshold each pixel is
    standardized without itself, in closed form. Of pixels 5 % false alarms are not 5 % of the
    images, and a threshold of few images is one of few images, however many pixels they have.

    References
    ----------
    Jung et al., "Standardized Max Logits: A Simple yet Effective Approach for Identifying
    Unexpected Road Obstacles in Urban-Scene Segmentation", ICCV 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import StandardizedMaxLogitDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = StandardizedMaxLogitDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [5.0, 3.0, 4.0, 2.0]])
    array([ 1, -1])
    """

    smooth: bool = param("boolean", default=True)
    width: int = param(Interval(Integral, 1, None, closed="left"), default=4)
    iterations: int = param(Interval(Integral, 1, None, closed="left"), default=4)
    kernel: int = param(Interval(Integral, 1, None, closed="left"), default=7)
    dilation: int = param(Interval(Integral, 1, None, closed="left"), default=6)

    def _build(self, network):
        names = ("width", "iterations", "kernel", "dilation")
        smoothing = {name: getattr(self, name) for name in names}
        if self.width % self.iterations or self.kernel % 2 == 0:
            raise ValueError(
                f"{smoothing} is no smoothing: width must be a multiple of iterations, and kernel "
                "odd."
            )
        body = nn.Sequential(network.logits(), LargestLogit())
        return body, StandardizedScorer(network.n_logits, smoothing if self.smooth else None)
