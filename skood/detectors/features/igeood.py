"""IGEOOD: Fisher-Rao distances to the classes, of softmaxes or of Gaussians around features."""

import math
from numbers import Real

import torch

from skood._compat import Interval, StrOptions
from skood._typing import RandomState
from skood.detectors.logits.softmax_distances import SoftmaxScorer
from skood.estimators.kinds import FeatureDetector
from skood.estimators.parameters import param
from skood.learning.blocks import block_rows, score_in_blocks, takes_plain_path
from skood.learning.gaussians import factor_covariance, ridges_of
from skood.learning.learning import LearningScorer
from skood.learning.moments import ClassMoments, check_squares

# By polynomials through so many points classes are found that may be closest to a row, with the
# second where the first leave more than a few: each takes a matrix product a point.
FEW_POINTS, MANY_POINTS = 4, 8
FEW_CLASSES = 32
# What products in float32 may be off by, relatively: of 2048 features and 1000 classes 1e-6.
ROUNDING = 1e-4


def area_sines(x):
    """Return arsinh |x|, in x itself but on the plain path."""
    # A fifth of the time of asinh, which ONNX Runtime has not in float64.
    if takes_plain_path(x):
        return ((x.square() + 1).sqrt() + x.abs()).log()
    x = x.abs_()
    return x.square().add_(1).sqrt_().add_(x).log_()


def gaussian_distances(rows, means, units):
    """Return Fisher-Rao distances of Gaussians with independent features and equal deviations.

    A unit is 1 over √8 times a deviation.
    """
    x = rows - means
    x = x * units if takes_plain_path(x) else x.mul_(units)
    return math.sqrt(8) * torch.linalg.vector_norm(area_sines(x), dim=-1)


class PolynomialBounds:
    r"""Bounds of squared distances of rows to many means, by matrix products.

    As a function of a mean :math:`\mu`, :math:`\operatorname{arsinh}^2(x - \mu)` is close to its
    polynomial through n Chebyshev points of the range of all means. With half of that range L it is
    off by at most :math:`\Gamma(n/2)^2 L^n / n!`: the n-th derivative is largest at 0, as
    :math:`\operatorname{arsinh}(x) / \sqrt{1 + x^2} = \int_0^\infty \sin(xt) K_0(t)\,dt` with a
    positive weight.

    Parameters
    ----------
    means : Tensor of shape (K, D), dtype float64
        In units in which a squared distance is the sum of these squares.
    n_points : int
        The most points that bounds may take.
    """

    def __init__(self, means, n_points):
        low, high = means.amin(0), means.amax(0)
        self.center, self.radius = (low + high) / 2, (high - low) / 2
        tiny = torch.finfo(means.dtype).tiny
        places = ((means - self.center) / self.radius.clamp(min=tiny)).float()
        # Chebyshev polynomials; the first, which is 1, needs no product.
        self.basis = [places, 2 * places.square() - 1]
        while len(self.basis) < n_points - 1:
            self.basis.append(2 * places * self.basis[-1] - self.basis[-2])

    def __call__(self, rows, n_points):
        """Return what squared distances of rows (n_samples, D) to the means are at least."""
        orders = torch.arange(n_points, dtype=torch.float64, device=rows.device)
        angles = (orders + 0.5) * (math.pi / n_points)
        from_values = (orders[:, None] * angles).cos() * (2 / n_points)
        from_values[0] /= 2
        points = (angles.cos()[:, None, None] * self.radius).float()
        values = area_sines((rows - self.center).float() - points).square_()
        constant, *others = torch.tensordot(from_values.float(), values, 1)
        sums = constant.sum(1, keepdim=True).repeat(1, len(self.basis[0]))
        for coefficients, polynomials in zip(others, self.basis, strict=False):
            sums.addmm_(coefficients, polynomials.T)
        share = math.gamma(n_points / 2) ** 2 / math.factorial(n_points)
        off = share * self.radius.pow(n_points).sum()
        return sums - off - ROUNDING * sums.abs()


class GaussianScorer(LearningScorer):
    """Features → minus the Fisher-Rao distance to the closest class, of Gaussians."""

    learned = ("means", "inverse_scales")
    # A row takes one logarithm for each feature and class that may be the closest.
    n_threshold_rows = 6000

    def __init__(self, reg_covar):
        super().__init__()
        # Bounds are made by the first rows that are scored.
        self.reg_covar, self.bounds = reg_covar, None
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
        self.bounds = None

    def clear_cache(self):
        """Drop what only learning needs."""
        self.counts = self.scatter = self.ridge = None

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        return score_in_blocks(self._score, self._row_bytes, features)

    @property
    def _row_bytes(self):
        """The memory that scoring a row takes."""
        if len(self.means) <= FEW_CLASSES:
            return 32 * self.means.numel()
        return 8 * (6 * self.means.shape[1] + 3 * len(self.means))

    @property
    def _units(self):
        return self.inverse_scales / math.sqrt(8)

    def _score(self, features):
        rows = features.double()
        if takes_plain_path(features):
            return -gaussian_distances(rows[:, None], self.means, self._units).amin(1)
        near = torch.ones(len(rows), len(self.means), dtype=torch.bool, device=rows.device)
        found = rows.new_full((len(rows),), torch.inf)
        return -self._closest(rows, self._units.expand_as(rows), near, found)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each left out of its mean and of the deviations; the ridge is kept.

        Without a row at δ from the mean of its n_c rows the mean is at δ n_c / (n_c - 1), and the
        scatter is less by δ² n_c / (n_c - 1).
        """
        return score_in_blocks(self._leave_out, self._row_bytes, inputs[0], class_indices)

    def _leave_out(self, features, class_indices):
        rows, n_own = features.double(), self.counts[class_indices]
        grow, n_rows = (n_own / (n_own - 1).clamp(min=1))[:, None], self.counts.sum()
        delta = rows - self.means[class_indices]
        # Rounding may take a little more than there is.
        scatter = torch.maximum(self.scatter - grow * delta.square(), 1e-12 * self.scatter)
        units = (8 * (scatter / (n_rows - 1) + self.ridge)).rsqrt()
        own = gaussian_distances(grow * delta, 0.0, units)
        # A class that loses its only row has no mean.
        own = own.masked_fill(n_own == 1, torch.inf)
        others = torch.ones(len(rows), len(self.means), dtype=torch.bool, device=rows.device)
        others.scatter_(1, class_indices[:, None], False)
        # Variances grow at most by the factor n / (n - 1).
        return -self._closest(rows, units, others, own, 1 - 1 / n_rows)

    def _closest(self, rows, units, near, found, shrink=1.0):
        """Return the least of distances that were found and of those to classes that are near.

        `units` (n_samples, D) are the rows' own; by these squared distances shrink at most by a
        factor. What was found, and what is near, may be changed.
        """
        if len(self.means) <= FEW_CLASSES:
            # All at once, in .6 of the time of pairs.
            distances = gaussian_distances(rows[:, None], self.means, units[:, None])
            return torch.minimum(found, distances.masked_fill_(~near, torch.inf).amin(1))
        parts = rows, units, near, found
        self._drop_far(FEW_POINTS, shrink, *parts)
        left = near.sum(1) > FEW_CLASSES
        if left.any():
            rest = [part[left] for part in parts]
            self._drop_far(MANY_POINTS, shrink, *rest)
            near[left], found[left] = rest[2:]
        for pairs in near.nonzero().split(block_rows(32 * rows.shape[1], rows.device)):
            i, k = pairs.T
            distances = gaussian_distances(rows[i], self.means[k], units[i])
            found.scatter_reduce_(0, i, distances, "amin")
        return found

    def _drop_far(self, n_points, shrink, rows, units, near, found):
        """Find one more distance a row, and keep near, in place, what bounds allow to be closer."""
        if self.bounds is None or self.bounds.center.device != rows.device:
            self.bounds = PolynomialBounds(self.means * self._units, MANY_POINTS)
        least = self.bounds(rows * self._units, n_points)
        guess = least.masked_fill(~near, torch.inf).argmin(1)
        torch.minimum(found, gaussian_distances(rows, self.means[guess], units), out=found)
        # Also where bounds are NaN, as squares in float32 have overflown.
        near &= ~(least > (found.square() / (8 * shrink))[:, None])
        near.scatter_(1, guess[:, None], False)


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

    With more than 32 classes only those that polynomials leave as candidates are compared with a
    row: of 1000 classes of 2048 features a batch of 128 took 27 ms instead of a second, in 5.5
    times the head's products, and 80 ms where rows lie between all classes.

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
