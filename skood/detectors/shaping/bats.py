"""BATS: activations kept within so many standard deviations of their mean."""

from numbers import Real

import torch

from skood._compat import Interval
from skood.detectors.shaping.rectify import along_channels, channels_last, rectify
from skood.estimators.kinds import ShapingDetector
from skood.estimators.parameters import param
from skood.learning.moments import ClassMoments, check_squares
from skood.learning.shaping import LearnedShaping


def bounds(count, mean, scatter, n_std):
    """Return mean ± n_std · std of each channel, std over n - 1; of one activation it is 0."""
    width = n_std * (scatter.clamp(min=0) / (count - 1).clamp(min=1)).sqrt()
    return mean - width, mean + width


def moments_without(count, mean, scatter, values):
    """Return the moments of all but one row, for each of some rows.

    Parameters
    ----------
    count, mean, scatter : Tensor of shape (), (n_channels,) and (n_channels,)
        Of all activations; the scatter is the sum of squares around the mean.
    values : Tensor of shape (n_samples, n_positions, n_channels)
        The activations of each row, fewer than all.

    Returns
    -------
    count, mean, scatter : Tensor of shape (), (n_samples, n_channels) and (n_samples, n_channels)
        Of the others.
    """
    n_own = values.shape[1]
    n_others = count - n_own
    own = values.mean(1)
    others = mean + (n_own / n_others) * (mean - own)
    within = (values - own[:, None]).square().sum(1)
    between = (n_own * count / n_others) * (mean - own).square()
    return n_others, others, scatter - within - between


class StdRectify(LearnedShaping):
    """Rectify each channel to mean ± n_std · std over the training rows.

    Parameters
    ----------
    n_std : float
        How many standard deviations.
    """

    learned, per_channel = ("low", "high"), True

    def __init__(self, n_std):
        super().__init__()
        self.n_std, self.moments = n_std, None

    def check(self, activations):
        """Raise if squares would overflow."""
        check_squares(activations)

    def init_state(self, activations, n_expected):
        """Return moments of no rows."""
        width = channels_last(activations, self.channel_axis).shape[2]
        state = ClassMoments(1, width, "diag", activations.device)
        # The one group is of all rows, not a class of y.
        state.per_class = ()
        return state

    def update(self, state, activations, keys):
        """Add activations, positions of maps as rows of their own."""
        columns = channels_last(activations, self.channel_axis).flatten(0, 1)
        state.update(columns, columns.new_zeros(len(columns), dtype=torch.int64))

    def finalize(self, state):
        """Set the bounds, (n_channels,)."""
        self.moments = state.counts[0], state.means[0], state.scatters[0]
        self.low, self.high = bounds(*self.moments, self.n_std)

    def forward(self, activations):
        """Rectify activations (n_samples, ...)."""
        return self._rectify(activations, self.low, self.high)

    def leave_one_out(self, activations, keys):
        """Rectify training rows by the moments of the others, exactly."""
        columns = channels_last(activations, self.channel_axis).double()
        if self.moments[0] <= columns.shape[1]:
            return self(activations)
        without = moments_without(*self.moments, columns)
        return self._rectify(activations, *bounds(*without, self.n_std))

    def _rectify(self, activations, *limits):
        shape = activations.ndim, self.channel_axis
        return rectify(activations, *(along_channels(limit, *shape) for limit in limits))

    def clear_cache(self):
        """Drop the moments."""
        self.moments = None


class BATSDetector(ShapingDetector):
    r"""Rectified activations: keep each near its mean in training rows, then score the logits.

    With the mean :math:`\mu` and the standard deviation :math:`\sigma` of each channel over the
    training rows, activations are clipped to :math:`\mu \pm \lambda \sigma`. The rest of the
    network gives logits, whose energy is the score.

    Parameters
    ----------
    n_std : float, default=1.05
        :math:`\lambda`. The authors use 1.05 for transformers and 3.25 for CIFAR. On the 64
        features of a ResNet-20 for CIFAR-10 the AUROC against noise was .924 with 1.05, .867 with
        2, .837 with 3.25, .835 with energy alone; against flowers .922 to .923 with each.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps activations, or inputs of the network, to scores; ``scorer_.shaping`` rectifies, and
        its buffers ``low`` and ``high`` (n_channels,) are the bounds.

    See Also
    --------
    ReActDetector : Cuts off at quantiles, the large activations alone by default.

    Notes
    -----
    Standard deviations divide by n - 1, and inside of a network are those over all rows and
    positions. For the threshold of ``predict`` each row is scored by the moments of the others,
    exactly. Signed activations need nothing else: both sides are cut off. The authors compute the
    same.

    References
    ----------
    Zhu et al., "Boosting Out-of-distribution Detection with Typical Features", NeurIPS 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import BATSDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = BATSDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [3.0, 3.0, 3.0, 3.0]])
    array([ 1, -1])
    """

    n_std: float = param(Interval(Real, 0, None, closed="neither"), default=1.05)

    def _make_shaping(self):
        return StdRectify(self.n_std)
