"""NECO: the share of the features that lies in the subspace of most of the variance."""

from numbers import Integral, Real

import torch

from skood._compat import Interval
from skood._warnings import warn
from skood.estimators.kinds import HeadDetector
from skood.estimators.network_estimator import PoolsLayer
from skood.estimators.parameters import param
from skood.functional import radial
from skood.learning.learning import LearningScorer
from skood.learning.moments import FoldMoments, check_squares
from skood.learning.states import State
from skood.learning.subspaces import ROUNDING, Subspace

# Features less correlated than this, once standardized, have no first directions but by chance:
# without a fold where that varies least, so that .07 % of fresh digits were OOD instead of 5 %.
UNCORRELATED = 1e-4


class Share(Subspace):
    """Rows → the share of their length, less the mean, in the subspace of most of the variance.

    Its buffers are the mean and the standard deviations (D,) of the features, these 1 where they do
    not divide, and the directions of the subspace (D, k).
    """

    learned = ("center", "scale", "basis")

    def __init__(self, n_components, standardize):
        super().__init__(n_components)
        self.standardize, self.divides, self.n_classes = standardize, standardize, None

    def finalize(self, moments, n_classes):
        """Find the subspace, of as many directions as there are classes if none are given."""
        self.n_classes, self.divides = n_classes, self.standardize
        *_, scatter = self.frame(*moments.without())
        between = (scatter - scatter.diagonal().diag()).abs().amax()
        if self.divides and len(scatter) > 1 and bool(between < UNCORRELATED * scatter.amax()):
            self.divides = False
            warn(
                "The features are uncorrelated, as after PCA: divided by their standard deviations "
                "all would vary alike, so they are not.\nGive standardize=False, or other features."
            )
        return super().finalize(moments)

    def frame(self, count, mean, scatter):
        """Return mean, standard deviation, and the scatter of standardized rows."""
        deviation = (scatter[0].diagonal() / count).sqrt()
        varies = deviation > ROUNDING[deviation.dtype] * mean[0].abs()
        scale = torch.where(varies & self.divides, deviation, 1.0)
        return mean[0], scale, scatter[0] / scale / scale[:, None]

    def dimension(self, variances):
        """Return the number of classes where none is given, or half of the features."""
        if self.n_components is not None:
            return super().dimension(variances)
        n_features = len(variances)
        return self.n_classes if self.n_classes < n_features else max(1, n_features // 2)

    def chosen(self, directions, k):
        """Return the directions of the subspace."""
        return directions[:, :k].contiguous()

    def measure(self, rows, center, scale, basis):
        """Return shares (n_samples,), in float64: 0 at the center."""
        directions = radial((rows.double() - center) / scale, 1)
        return torch.linalg.vector_norm(directions @ basis, dim=1)


class NECOScorer(LearningScorer):
    """Features, or (features, logits) → the share, times the largest logit."""

    needs_row_keys = folds_by_key = True

    def __init__(self, head, n_components, standardize, times_max_logit):
        super().__init__()
        self.head, self.times_max_logit = head, times_max_logit
        self.share = Share(n_components, standardize)

    def _logits(self, features, logits=None):
        return self.head(features) if logits is None else logits

    def check(self, inputs):
        """Raise if squares would overflow."""
        check_squares(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return moments of no rows, and for each logit how often it was largest and negative."""
        features, n_logits = inputs[0], self._logits(*inputs).shape[1]
        return State(
            moments=FoldMoments(features.shape[1], "full", features.device),
            n_negative=torch.zeros(n_logits, dtype=torch.float64, device=features.device),
        )

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        state.moments.update(inputs[0], keys)
        largest, columns = self._logits(*inputs).max(1)
        state.n_negative.index_add_(0, columns, (largest < 0).double())

    def finalize(self, state, classes):
        """Find the subspace."""
        self.share.finalize(state.moments, len(state.n_negative))
        negative = float(state.n_negative.sum() / state.moments.counts.sum())
        # Fewer hardly show among 5 % false alarms.
        if self.times_max_logit and negative > 0.01:
            warn(
                f"The largest logit is negative in {negative:.1%} of the rows of fit: NECO lowers "
                "these, the more of them lies in the subspace.\nGive times_max_logit=False."
            )

    def forward(self, *inputs):
        """Score rows."""
        return self._score(inputs, self.share(inputs[0]))

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows by the subspace of the other folds."""
        return self._score(inputs, self.share.leave_one_out(inputs[0], keys))

    def _score(self, inputs, shares):
        return shares * self._logits(*inputs).amax(1).double() if self.times_max_logit else shares

    def clear_cache(self):
        """Drop the subspaces of the folds."""
        self.share.clear_cache()


class NECODetector(PoolsLayer, HeadDetector):
    r"""Share of the features in the subspace of most of the variance, times the largest logit.

    Let :math:`s = (h - \mu) / \sigma` be the features, less the mean and divided by the standard
    deviation of those of training rows, and :math:`P` the first :math:`k` eigenvectors of the
    scatter :math:`\sum s s^\top`. The score is :math:`\max_c l_c\,\|s P\|_2 / \|s\|_2`: where a
    network's classes have collapsed, features lie in a subspace of as many directions.

    Parameters
    ----------
    n_components : int, float or None, default=None
        The dimension k of the subspace, less than the number of features D. A share in (0, 1): as
        few directions as hold this share of the variance. None: the number of logits, or D / 2
        where that is not less than D. The authors choose it for each network; on CIFAR-10 all from
        5 to 32 did equally well.
    standardize : bool, default=True
        Divide by the standard deviations. Features that are constant are not divided, and none
        are where all are uncorrelated, as principal components are, with a warning.
    times_max_logit : bool, default=True
        Multiply by the largest logit. False is what the authors do for ResNets; of a ResNet-20 for
        CIFAR-10 against MNIST it gave an AUROC of .602, and True .966.

    Attributes
    ----------
    n_components_ : int
        The dimension of the subspace.
    scorer_ : nn.Module
        Maps features, or features and logits, to scores; its buffers ``share.center`` and
        ``share.scale`` (D,) and ``share.basis`` (D, k) hold what was learned.

    See Also
    --------
    ResidualDetector : The size of what lies outside of a subspace.

    Notes
    -----
    A larger share raises the score only where the largest logit is positive: if in more than 1 % of
    the training rows it is not, a warning tells. Rows at the mean have the share 0. The threshold
    of ``predict`` is that of rows scored by the subspace of other folds: see `ResidualDetector`.
    The authors' code computes the same, but for DeiT and Swin, where it divides by the norm of the
    features as they are.

    References
    ----------
    Ben Ammar et al., "NECO: NEural Collapse Based Out-of-distribution detection", ICLR 2024.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import NECODetector
    >>> X, y = load_iris(return_X_y=True)
    >>> NECODetector().fit(X, y).predict([[5.1, 3.5, 1.4, 0.2], [5.0, 3.0, 4.0, 2.0]])
    array([ 1, -1])
    """

    n_components: int | float | None = param(
        Interval(Integral, 1, None, closed="left"),
        Interval(Real, 0, 1, closed="neither"),
        None,
        default=None,
    )
    standardize: bool = param("boolean", default=True)
    times_max_logit: bool = param("boolean", default=True)

    def _make_scorer(self, head):
        return NECOScorer(head, self.n_components, self.standardize, self.times_max_logit)

    def _fitted_attributes(self, scorer):
        return {"n_components_": scorer.share.basis.shape[1]}
