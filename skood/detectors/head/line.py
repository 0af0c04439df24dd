"""LINe: heads of the features and weights that matter to the class that is predicted."""

from functools import partial
from numbers import Real

import torch

from skood._compat import Interval
from skood.detectors.shaping.rectify import QuantileRectify
from skood.estimators.kinds import HeadDetector
from skood.estimators.parameters import param
from skood.functional import energy
from skood.learning.blocks import block_rows, score_in_folds, takes_plain_path
from skood.learning.class_folds import ClassFolds, folds_of, means_without
from skood.learning.learning import LearningScorer
from skood.learning.quantiles import quantile_of, round_down
from skood.learning.states import State

# With many classes each row of the threshold takes a quantile and a mask of its own, of C * D
# products: on ImageNet 20 ms.
THRESHOLD_PRODUCTS, FEWEST_ROWS = 2**32, 1000
# Of a CPU, for a tile of weights and its mask.
CACHE_BYTES = 2**20


def weight_bounds(importance, weight, activation_percentile, weight_percentile):
    """Return what the weights of a feature must exceed to count, (n, D): -∞ if all do, ∞ if none.

    Parameters
    ----------
    importance, weight : Tensor of shape (n, D) and (C, D), dtype float64
        Of the features, for some classes; and of the head.
    activation_percentile, weight_percentile : float
        See `LINeDetector`.
    """
    sizes, bounds = importance.abs(), torch.full_like(importance, -torch.inf)
    if weight_percentile:
        products = sizes[:, None] * weight
        least = quantile_of(products.flatten(1), weight_percentile)[:, None]
        # Products equal to the quantile do not count, whatever a division rounds them to.
        up = 1 + 4 * torch.finfo(bounds.dtype).eps * least.sign()
        of_zeros = torch.where(least < 0, -torch.inf, torch.inf)
        bounds = torch.where(sizes > 0, least / sizes * up, of_zeros)
    if activation_percentile:
        least = quantile_of(importance, activation_percentile)[:, None]
        bounds = bounds.masked_fill(importance <= least, torch.inf)
    return bounds


def masked_logits(groups, bounds, weight):
    """Return logits (n_samples, C) of groups of rows, by those weights that exceed a bound.

    A mask is used once, or for few rows. Tiles of the weights and a mask of floats stay in the
    cache, where masking takes a tenth of the time that it takes for all weights at once.

    Parameters
    ----------
    groups : list of Tensor of shape (n_rows, D)
        Rows with the same bounds.
    bounds : Tensor of shape (n_groups, D)
        Of each group.
    weight : Tensor of shape (C, D)
        Of the head.
    """
    size = block_rows(2 * weight[0].nbytes, weight.device, CACHE_BYTES)
    logits = []
    for tile in weight.split(size):
        mask = torch.empty_like(tile)
        parts = []
        for rows, bound in zip(groups, bounds, strict=True):
            torch.gt(tile, bound, out=mask)
            # With a vector: a matrix of one row takes six times as long.
            parts.append(mask.mul_(tile) @ rows.T.squeeze(1))
        logits.append(torch.column_stack(parts))
    return torch.cat(logits).T


class LINeScorer(LearningScorer):
    """Features → energy of the logits that important features and weights make."""

    learned = ("bounds",)
    needs_row_keys = folds_by_key = True

    def __init__(self, head, classes, percentiles, clip_percentile):
        super().__init__()
        self.head, self.classes, self.percentiles = head, classes, percentiles
        self.shaping = QuantileRectify(None, clip_percentile, per_channel=False)
        self.clear_cache()

    @property
    def n_threshold_rows(self):
        """Fewer where there are many classes."""
        return max(FEWEST_ROWS, THRESHOLD_PRODUCTS // self.head.weight.numel())

    def init_state(self, inputs, n_classes, n_expected):
        """Return sums and a sample of no rows."""
        n_logits, n_features = self.head.weight.shape
        means = ClassFolds(n_classes, n_logits, n_features, inputs[0].device)
        return State(means=means, sample=self.shaping.init_state(inputs[0], n_expected))

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        state.means.update(inputs[0], class_indices, self.head(inputs[0]).argmax(1), keys)
        self.shaping.update(state.sample, inputs[0], keys)

    def finalize(self, state, classes):
        """Set the bound of features, and those of weights by the means of the classes."""
        self.shaping.finalize(state.sample)
        self.sums = state.means.of_logits(classes, self.classes)
        self.bounds = self._bounds(torch.arange(len(self.sums), device=self.sums.device))

    def _bounds(self, columns, fold=None):
        """Return the bounds of some classes, by all rows or by those of the other folds."""
        weight = self.head.weight.double()
        dtype = torch.promote_types(self.head.weight.dtype, torch.float32)

        def bounds(columns):
            counts, means = means_without(self.sums, columns, fold)
            found = weight_bounds(means * weight[columns], weight, *self.percentiles)
            return round_down(torch.where(counts > 0, found, -torch.inf), dtype)

        size = block_rows(24 * weight.numel(), weight.device)
        return torch.cat([bounds(block) for block in columns.split(size)])

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        clipped = self.shaping(features)
        if not takes_plain_path(features):
            return self._score(clipped, self.bounds.__getitem__)
        weight = self.head.weight
        bounds = self.bounds[self.head(clipped).argmax(1)][:, None]
        logits = (weight * (weight > bounds) @ clipped[:, :, None])[:, :, 0]
        return energy(logits if self.head.bias is None else logits + self.head.bias)

    def _score(self, clipped, bounds_of):
        """Score rows by the bounds of the predicted classes."""
        predicted, order = self.head(clipped).argmax(1).sort()
        columns, sizes = predicted.unique_consecutive(return_counts=True)
        rows = clipped[order].split(sizes.tolist())
        logits = masked_logits(rows, bounds_of(columns), self.head.weight.detach())
        logits = logits if self.head.bias is None else logits + self.head.bias
        return energy(logits)[order.argsort()]

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows by the bounds that the other folds teach."""
        return score_in_folds(
            lambda fold, rows: self._score(rows, partial(self._bounds, fold=fold)),
            folds_of(keys),
            self.shaping.leave_one_out(inputs[0], keys),
        )

    def clear_cache(self):
        """Drop what only learning needs."""
        self.sums = None
        self.shaping.clear_cache()


class LINeDetector(HeadDetector):
    r"""Important neurons: logits of the features and weights that matter to the predicted class.

    Features :math:`h` are cut off at a quantile. For the class c that is predicted then,
    :math:`A_j = \mu_{cj} W_{cj}` is how important a feature is, with :math:`\mu_c` the mean of the
    training rows of c. Features stay where :math:`A_j` exceeds a quantile of A, and weights
    :math:`W_{kj}` where :math:`|A_j| W_{kj}` exceeds one of all k and j. The score is the energy of
    the logits of these.

    Parameters
    ----------
    activation_percentile : float, default=0.1
        The share of features to remove for each class, in [0, 1); 0 removes none.
    weight_percentile : float, default=0.1
        The share of weights to remove for each class, in [0, 1); 0 removes none. The authors take
        0.1 of both on ImageNet, 0.9 on CIFAR-10, 0.1 and 0.9 on CIFAR-100. With the 64 features of
        a ResNet-20 for CIFAR-10 0.1 and 0.9 of both gave an AUROC of .905 and .897 (flowers) and
        .926 and .973 (noise), with digits .992 and .970 (other digits).
    clip_percentile : float, default=0.9
        The level of the quantile of all features at which they are cut off, in (0, 1], as in
        `ReActDetector`. The authors cut off at a fixed 1.0 or 0.8.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; its buffer ``bounds`` (C, D) holds, by predicted class, what the
        weights of a feature must exceed to count: infinity where the feature does not.
        ``scorer_.shaping.high`` is where features are cut off.

    See Also
    --------
    DICEDetector : The same weights for all classes.

    Notes
    -----
    The means are those of features before the cut. Without labels a row belongs to the predicted
    class. For a class without rows all weights and features count. A batch takes :math:`C \cdot D`
    comparisons and products for each class that is predicted in it, in tiles of the weights, an
    exported graph a mask of all weights for each row at once. For the threshold of ``predict`` each
    row, on ImageNet of some 2000, is scored by the means of the other nine tenths, and the quantile
    of all other rows.

    References
    ----------
    Ahn et al., "LINe: Out-of-Distribution Detection by Leveraging Important Neurons", CVPR 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import LINeDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = LINeDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [6.0, 0.0, 0.0, 6.0]])
    array([ 1, -1])
    """

    activation_percentile: float = param(Interval(Real, 0, 1, closed="left"), default=0.1)
    weight_percentile: float = param(Interval(Real, 0, 1, closed="left"), default=0.1)
    clip_percentile: float = param(Interval(Real, 0, 1, closed="right"), default=0.9)

    def _build(self, network):
        percentiles = self.activation_percentile, self.weight_percentile
        scorer = LINeScorer(network.head, network.classes, percentiles, self.clip_percentile)
        return network.features(), scorer
