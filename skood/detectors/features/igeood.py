"""IGEOOD: Fisher-Rao distances to the classes, of softmaxes or of Gaussians around features."""

import math
from numbers import Real

import torch

from skood._compat import Interval, StrOptions
from skood._typing import RandomState
from skood.detectors.logits.softmax_distances import SoftmaxScorer
from skood.estimators.kinds import FeatureDetector
from skood.estimators.parameters import param
from skood.learning.blocks import score_in_blocks, takes_plain_path
from skood.learning.gaussians import factor_covariance, ridges_of
from skood.learning.learning import LearningScorer
from skood.learning.moments import ClassMoments, check_squares


def gaussian_distances(rows, means, inverse_scales):
    """Return Fisher-Rao distances of Gaussians with independent features and equal deviations."""
    x, unit = rows - means, inverse_scales / math.sqrt(8)
    # A fifth of the time of asinh, which ONNX Runtime has not in float64.
    if takes_plain_path(x):
        x = x.abs() * unit
        grown = ((x.square() + 1).sqrt() + x).log()
    else:
        x = x.abs_().mul_(unit)
        grown = x.square().add_(1).sqrt_().add_(x).log_()
    return math.sqrt(8) * torch.linalg.vector_norm(grown, dim=-1)


class GaussianScorer(LearningScorer):
    """Features → minus the Fisher-Rao distance to the closest class, of Gaussians."""

    learned = ("means", "inverse_scales")
    # A row takes one logarithm for each class and feature.
    n_threshold_rows = 6000

    def __init__(self, reg_covar):
        super().__init__()
        self.reg_covar = reg_covar
        self.clear_cache()

    def check(self, inputs):
        """Raise if squares would overflow."""
        check_squares(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return the moments of no rows."""
        return ClassMoments(n_classes, inputs[0].shape[1], "diag", inputs[0].device)

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        state.update(inputs[0], class_indices)

    def finalize(self, state, classes):
        """Invert the deviations within the classes, with a larger ridge where one is 0."""
        self.counts, self.means = state.counts, state.means.clone()
        self.scatter = state.scatters.sum(0)
        ridge, least_ridge = ridges_of(state, self.reg_covar)
        name = "all rows" if classes is None else "all classes"
        self.inverse_scales, _, self.ridge = factor_covariance(
            self.scatter, self.counts.sum(), ridge, least_ridge, name
        )

    def clear_cache(self):
        """Drop what only learning needs."""
        self.counts = self.scatter = self.ridge = None

    def _in_blocks(self, score, *inputs):
        return score_in_blocks(score, 32 * self.means.numel(), *inputs)

    def forward(self, features):
        """Score features of shape (n_samples, D)."""

        def score(features):
            rows = features.double()[:, None]
            return -gaussian_distances(rows, self.means, self.inverse_scales).amin(1)

        return self._in_blocks(score, features)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each left out of its mean and of the deviations; the ridge is kept.

        Without a row at δ from the mean of its n_c rows the mean is at δ n_c / (n_c - 1), and the
        scatter is less by δ² n_c / (n_c - 1).
        """
        return self._in_blocks(self._leave_out, inputs[0], class_indices)

    def _leave_out(self, features, class_indices):
        rows, n_own = features.double(), self.counts[class_indices][:, None]
        grow = n_own / (n_own - 1).clamp(min=1)
        delta = rows - self.means[class_indices]
        # Rounding may take a little more than there is.
        scatter = torch.maximum(self.scatter - grow * delta.square(), 1e-12 * self.scatter)
        scales = (scatter / (self.counts.sum() - 1) + self.ridge).rsqrt()
        distances = gaussian_distances(rows[:, None], self.means, scales[:, None])
        own = gaussian_distances(grow * delta, 0.0, scales)[:, None]
        # A class that loses its only row has no mean.
        own = own.masked_fill(n_own == 1, torch.inf)
        return -distances.scatter(1, class_indices[:, None], own).amin(1)


class IGEOODDetector(FeatureDetector):
    r"""Fisher-Rao distances to the classes, between softmaxes or Gaussians of features.

    With ``on="features"`` the score is :math:`-\min_c \sqrt{\sum_j d_{cj}^2}` with
    :math:`d_{cj} = \sqrt 8 \operatorname{arsinh}(|h_j - \mu_{cj}| / (\sqrt 8\, \sigma_j))`, the
    class means :math:`\mu_c` and the deviations :math:`\sigma_j` within classes: large differences
    of single features count by their logarithm. With ``on="logits"`` it is the *mean* over classes
    of the distance :math:`4 \arcsin(\|\sqrt p - \sqrt{q_c}\| / 2)` between the softmax p and that
    of the mean logits of class c: far from all but one is in-distribution.

    Parameters
    ----------
    on : {"features", "logits"}, default="features"
        What is compared. Beside CIFAR-10 the AUROC of features was .83 on flowers and .99 on noise,
        that of logits .92 and .82.
    temperature : float, default=1.0
        What logits are divided by.
    reg_covar : float or "auto", default="auto"
        What is added to the variances of features. "auto" is 0.01 times their mean.
    random_state : int, RandomState or None, default=None
        For the k-means clusters that stand in for classes where "logits" get neither a network nor
        y.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features or logits to scores; its buffer ``means`` holds those of the classes.

    See Also
    --------
    MahalanobisDetector : Squared distances under the full covariance.

    Notes
    -----
    Without y there is one mean of features, and the predicted class is that of logits. For the
    threshold each training row is left out of what it is compared with, in closed form. A score on
    logits ranks much as the softmax does.

    edadaltocg/detectors computes the same (``reg_covar=0``). The authors sum over classes instead
    of averaging, and learn the centres of logits by gradient descent.

    References
    ----------
    Gomes et al., "Igeood: An Information Geometry Approach to Out-of-Distribution Detection", ICLR
    2022.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import IGEOODDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> IGEOODDetector().fit(X, y).predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    on: str = param(StrOptions({"features", "logits"}), default="features")
    temperature: float = param(Interval(Real, 0, None, closed="neither"), default=1.0)
    reg_covar: float | str = param(
        StrOptions({"auto"}), Interval(Real, 0, None, closed="left"), default="auto"
    )
    random_state: RandomState = param("random_state", default=None)

    @property
    def _needs_logits(self):
        return self.on == "logits"

    def _build(self, network):
        if self.on == "features":
            return super()._build(network)
        if self.layer is not None:
            raise ValueError(
                f'on="logits" takes what leaves the network, got layer={self.layer!r}.\n'
                'Leave layer=None, or use on="features".'
            )
        return network.logits(), SoftmaxScorer(self.temperature)

    def _make_scorer(self):
        return GaussianScorer(self.reg_covar)
