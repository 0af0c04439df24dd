"""Mahalanobis: the distance to the closest class mean, perhaps relative to that to all rows."""

from numbers import Real

import torch

from skood._compat import Interval, StrOptions
from skood.estimators.kinds import FeatureDetector
from skood.estimators.parameters import param
from skood.functional import clip_to, radial
from skood.learning.blocks import score_in_blocks
from skood.learning.gaussians import (
    distances_without_own,
    factor_covariance,
    nearest_squared_distance,
    nearest_to_zero,
    ridges_of,
    squared_norms,
    triangular_product,
)
from skood.learning.learning import LearningScorer
from skood.learning.moments import ClassMoments, check_squares
from skood.learning.relative import (
    relative_directions,
    total_distances_without_own,
    total_scatter,
)


class MahalanobisScorer(LearningScorer):
    """Features → minus the squared distance to the closest class mean, perhaps relative."""

    # `shrinkage` is None unless distances are relative.
    learned = ("center", "projection", "means", "shrinkage")

    def __init__(self, power, relative, reg_covar):
        super().__init__()
        self.power, self.relative, self.reg_covar = power, relative, reg_covar
        self.clear_cache()

    def _scaled(self, features):
        return radial(features, self.power, torch.float64)

    def check(self, inputs):
        """Raise if squares would overflow."""
        check_squares(self._scaled(inputs[0]))

    def init_state(self, inputs, n_classes, n_expected):
        """Return the moments of no rows."""
        return ClassMoments(n_classes, inputs[0].shape[1], "tied", inputs[0].device)

    def update(self, state, inputs, class_indices, keys):
        """Add a batch to the moments."""
        state.update(self._scaled(inputs[0]), class_indices)

    def finalize(self, state, classes):
        """Factor the covariance, with a larger ridge where it is singular."""
        if self.relative and len(state.counts) < 2:
            raise ValueError(
                "relative=True compares classes: pass y with two or more, or relative=False. Got "
                f"{'no y' if classes is None else 'one class'}."
            )
        counts, n_rows, scatter = state.counts, state.counts.sum(), state.scatters[0]
        ridge, least_ridge = ridges_of(state, self.reg_covar)
        name = "all rows" if classes is None else "all classes"
        self.projection, _, ridge = factor_covariance(scatter, n_rows, ridge, least_ridge, name)
        self.center, self.shrinkage, self.moments = nearest_to_zero(state), None, state
        # For `leave_one_out`: around which point, of rows within the classes and then of all rows.
        spreads = [(scatter, self.center)]
        if self.relative:
            spreads.append(total_scatter(state))
            self.center = spreads[1][1]
            white = (state.means - self.center) @ self.projection
            directions, self.shrinkage = relative_directions(white, counts / n_rows)
            self.projection = self.projection @ directions
        self.means = (state.means - self.center) @ self.projection
        # The ridge stays when a row is left out.
        others, how = (n_rows - 1).clamp(min=1), (ridge, least_ridge)
        self.one_less = [(c, factor_covariance(s, others, *how)[0]) for s, c in spreads]

    def clear_cache(self):
        """Drop what only learning needs."""
        self.moments = self.one_less = None

    @property
    def _row_bytes(self):
        """The memory that scoring a row takes."""
        return 8 * (6 * len(self.center) + 4 * len(self.means))

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        return score_in_blocks(self._score, self._row_bytes, features)

    def _score(self, features):
        """Score rows of a block."""
        rows = self._scaled(features) - self.center
        if self.shrinkage is None:
            white = triangular_product(rows, self.projection)
            scores = -nearest_squared_distance(white, self.means)
        else:
            white = rows @ self.projection
            nearness = 2 * white @ self.means.T - squared_norms(self.means)
            scores = nearness.amax(1) - (white.square() * self.shrinkage).sum(1)
        # A square that overflows gives minus infinity.
        return clip_to(scores, torch.float64)

    def explain(self, features):
        """Return the nearest class, and what each feature adds to the score."""
        rows = self._scaled(features) - self.center
        white = rows @ self.projection
        nearness = 2 * white @ self.means.T - squared_norms(self.means)
        best = nearness.argmax(1)
        means = self.means[best]
        if self.shrinkage is None:
            # The mean before it was whitened: the projection is triangular.
            from_center = torch.linalg.solve_triangular(self.projection.T, means.T, upper=False).T
            parts = -(rows - from_center) * ((white - means) @ self.projection.T)
            base = parts.new_zeros(len(parts))
        else:
            parts = rows * ((2 * means - white * self.shrinkage) @ self.projection.T)
            base = -squared_norms(means)
        return {"contributions": parts, "base": base, "nearest_class": best}

    def leave_one_out(self, inputs, class_indices, keys):
        """Score each training row under Gaussians refitted without it; the ridge is kept.

        See `distances_without_own` and `total_distances_without_own`.
        """
        return score_in_blocks(self._leave_out, self._row_bytes, inputs[0], class_indices)

    def _leave_out(self, features, class_indices):
        """Score training rows of a block."""
        rows, counts = self._scaled(features), self.moments.counts
        center, factor = self.one_less[0]
        white, means = (triangular_product(x - center, factor) for x in (rows, self.moments.means))
        distances, _ = distances_without_own(white, class_indices, means, counts)
        # A class that loses its only row has no mean left, and is no candidate.
        own = distances.gather(1, class_indices[:, None])
        own = own.masked_fill(counts[class_indices, None] == 1, torch.inf)
        scores = -distances.scatter(1, class_indices[:, None], own).amin(1)
        if self.relative:
            scores += total_distances_without_own(rows, *self.one_less[1], counts.sum())
        return clip_to(scores, torch.float64)


class MahalanobisDetector(FeatureDetector):
    r"""Mahalanobis distance of the features to the closest class mean.

    Features :math:`h` are scaled to length 1. With the class means :math:`\mu_c`, the covariance
    :math:`\Sigma` within the classes and a ridge :math:`r` on its diagonal, the score is
    :math:`-\min_c d_c`, where :math:`d_c = (h - \mu_c)^\top (\Sigma + r)^{-1} (h - \mu_c)`. The
    relative score is :math:`-\min_c (d_c - d_0)`, where :math:`d_0` is the distance to the mean of
    all rows under the covariance of all rows.

    Parameters
    ----------
    normalize : bool or float, default=True
        True scales features to length 1, as Mahalanobis++ does; False leaves them, as Lee et al.
        do. A number p in [0, 2] divides them by :math:`\|h\|^p`, the radial scaling of Janiak et
        al. Length 1 is better on OpenOOD's four ImageNet networks, by up to 17 points of AUROC on
        near OOD rows and 19 on far ones, and on a ResNet-20 of CIFAR-10 (.90 for .67 on flowers).
        Where OOD rows differ in length, as in some small networks, False can be better.
    relative : bool, default=False
        Subtract the distance to the mean of all rows. Only the directions in which classes differ
        are left: better on OOD rows near the classes, blind to differences in other directions.
        Needs y with at least two classes.
    reg_covar : "auto" or float, default="auto"
        The ridge r. "auto" is 0.01 times the mean variance of the (scaled) features within the
        classes: of 100 rows of a ResNet-20 it gave .792 against flowers, and 0, the papers', .763.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; its buffers are ``center`` (n_features,), ``projection``
        (n_features, n_directions), which whitens centred rows, ``means`` (n_classes, n_directions)
        of whitened rows and, where distances are relative, ``shrinkage`` (n_directions,).

    See Also
    --------
    GMMDetector : The density of the features, with a covariance for each class.

    Notes
    -----
    Lee et al.'s detector is ``normalize=False, reg_covar=0``; RMD is that with ``relative=True``.
    Mahalanobis++ is ``reg_covar=0``. Without y one Gaussian is fitted to all rows, which on
    features of length 1 ranks as SSD with one cluster does.
    A covariance that is singular gets a larger ridge, with a warning. For the threshold training
    rows are scored without themselves, exactly but for the ridge of "auto", which is kept: of 217
    rows of 64 features plain scores made 20 % false alarms instead of 5 %.

    OpenOOD and the authors of Mahalanobis++ use no ridge. pytorch-ood does not divide its scatter
    by the number n of rows: with ``normalize=False, reg_covar=1e-6 / n`` the scores are -2n times
    (relative ones -n times) its own.

    References
    ----------
    Müller and Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization", ICML 2025.

    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks", NeurIPS 2018.

    Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import MahalanobisDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = MahalanobisDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [0.0, 0.0, 0.0, 0.0]])
    array([ 1, -1])
    """

    normalize: bool | float = param("boolean", Interval(Real, 0, 2, closed="both"), default=True)
    relative: bool = param("boolean", default=False)
    reg_covar: float | str = param(
        StrOptions({"auto"}), Interval(Real, 0, None, closed="left"), default="auto"
    )

    def _make_scorer(self):
        return MahalanobisScorer(float(self.normalize), self.relative, self.reg_covar)
