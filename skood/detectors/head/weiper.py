"""WeiPer: histograms of features, and of logits of perturbed heads, against the mean ones."""

from numbers import Integral, Real

import torch
from sklearn.utils import check_random_state
from torch.nn.functional import linear

from skood._compat import Interval
from skood.estimators.kinds import HeadDetector
from skood.estimators.parameters import param
from skood.learning.blocks import block_rows, score_in_blocks
from skood.learning.histograms import MeanHistogram
from skood.learning.learning import LearningScorer
from skood.learning.neighbours import THRESHOLD_ROWS
from skood.learning.quantiles import activation_sample

# What the authors add to the shares of features, and of logits, so that none is 0.
LEAST_SHARE, LEAST_LOGIT_SHARE = 0.01, 0.025


def perturbed_weights(weight, n_heads, distance, seed):
    """Return weights plus noise (n_heads, n_classes, D), the same in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_heads, *weight.shape, generator=generator).to(weight)
    lengths = torch.linalg.vector_norm(weight, dim=1) * distance
    noise *= (lengths / torch.linalg.vector_norm(noise, dim=2))[:, :, None]
    return noise.add_(weight)


class WeiPerScorer(LearningScorer):
    """Features → minus the divergences of their histograms, plus the confidence of the heads."""

    learned = ("weight",)
    needs_row_keys = subtracts_inputs = True
    # A row takes n_heads products with the head's weights.
    n_threshold_rows = THRESHOLD_ROWS

    def __init__(self, head, n_heads, distance, n_bins, smoothing, weights, seed):
        super().__init__()
        self.head, self.n_heads, self.distance, self.seed = head, n_heads, distance, seed
        self.of_features = MeanHistogram(n_bins, smoothing[0], LEAST_SHARE)
        self.of_logits = MeanHistogram(n_bins, smoothing[1], LEAST_LOGIT_SHARE)
        self.logits_weight, self.msp_weight = weights
        self.keys = None

    def init_state(self, inputs, n_classes, n_expected):
        """Return a sample of no rows."""
        return activation_sample(inputs[0], n_expected)

    def update(self, state, inputs, class_indices, keys):
        """Add those rows that are drawn to the sample."""
        chosen = state.choose(keys)
        state.add([inputs[0][chosen]], keys[chosen])

    def finalize(self, state, classes):
        """Draw the heads, set the edges, and average histograms."""
        self.keys, (rows,) = state.sample()
        weight = self.head.weight.detach()
        self.weight = perturbed_weights(weight, self.n_heads, self.distance, self.seed)
        blocks = rows.split(block_rows(self.row_bytes, rows.device))
        extremes = [torch.stack(z.aminmax()) for block in blocks for z in self.logits(block)]
        low, high = torch.stack(extremes).unbind(1)
        self.of_features.set_range(*rows.aminmax())
        self.of_logits.set_range(low.amin(), high.amax())
        sums = [[part.sum(0) for part in self._shares(block)[:2]] for block in blocks]
        means = (sum(of_blocks) / len(rows) for of_blocks in zip(*sums, strict=True))
        self.of_features.mean, self.of_logits.mean = means

    @property
    def row_bytes(self):
        """The memory that a row takes with one head, and its features."""
        return 64 * max(self.head.out_features, self.head.in_features)

    def logits(self, features):
        """Yield logits (n_samples, n_heads, n_classes) of as many heads at a time as fit."""
        n_heads = self.n_heads
        if not torch.compiler.is_exporting():
            n_heads = block_rows(24 * len(features) * self.head.out_features, features.device)
        for weight in self.weight.split(n_heads):
            bias = None if self.head.bias is None else self.head.bias.repeat(len(weight))
            yield linear(features, weight.flatten(0, 1), bias).unflatten(1, weight.shape[:2])

    def _shares(self, features):
        """Return the shares of features and of logits in bins, and the mean confidence."""
        counts = confidence = 0
        for logits in self.logits(features):
            counts = counts + self.of_logits.counts(logits.flatten(1))
            confidence = confidence + torch.softmax(logits, 2).amax(2).sum(1, dtype=torch.float64)
        n_logits = self.n_heads * self.head.out_features
        of_features = self.of_features.counts(features) / features.shape[1]
        return of_features, counts / n_logits, confidence / self.n_heads

    def _score(self, features, is_own=None):
        left_out = () if is_own is None else (len(self.keys), is_own)
        of_features, of_logits, confidence = self._shares(features)
        far = self.of_features.divergence(of_features, *left_out)
        logits_far = self.of_logits.divergence(of_logits, *left_out)
        return self.msp_weight * confidence - far - self.logits_weight * logits_far

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        return score_in_blocks(self._score, self.row_bytes, features)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score rows of the sample by the mean histograms of the others, in the same bins."""
        is_own = torch.isin(keys, self.keys)
        return score_in_blocks(self._score, self.row_bytes, inputs[0], is_own)

    def clear_cache(self):
        """Drop what only learning needs."""
        self.keys = None


class WeiPerDetector(HeadDetector):
    r"""Weight perturbations: how usual the features are, and the logits of many noisy heads.

    R heads have the weights :math:`W_c + \delta \|W_c\| u` with random directions :math:`u`, one
    for each head and class. A row's features, and its :math:`R \cdot C` logits, give a histogram
    each, which is compared to the mean one of the training rows by the symmetric divergence
    :math:`\mathrm{KL}(p \| q) + \mathrm{KL}(q \| p)`. With the mean over the heads of the softmax
    probability of the predicted class, :math:`\bar m`, the score is
    :math:`-\mathrm{KL}_h - \lambda_1 \mathrm{KL}_l + \lambda_2 \bar m`.

    Parameters
    ----------
    n_heads : int, default=100
        R.
    distance : float, default=1.8
        :math:`\delta`, the length of the noise over that of the weights. 0: the head's own logits.
    n_bins : int, default=100
        The number of bins, of equal width, between the least and the largest number of `fit`.
    smoothing : int, default=4
        Each share of features is averaged with those of its neighbours, over so many bins.
    logits_smoothing : int, default=15
        The same for logits.
    logits_weight : float, default=2.5
        :math:`\lambda_1`.
    msp_weight : float, default=2.5
        :math:`\lambda_2`. The authors publish 0.1 and search up to 5. On narrow features the first
        two terms alone are weak: on the 64 of a ResNet-20 for CIFAR-10 the AUROC against flowers,
        MNIST and noise was .885, .978 and .806 with 2.5, .645, .914 and .703 with 0.1.
    random_state : int, RandomState or None, default=None
        Draws the heads, and the k-means clusters that stand in for classes where ``model=None``
        gets no y. None draws the same heads as 0, so that detectors can merge.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; its buffers are ``weight`` (n_heads, n_classes, D), and ``edges``
        (n_bins + 1,) and ``mean`` (n_bins,) of ``of_features`` and ``of_logits``.

    See Also
    --------
    OptFSDetector : Features weighted by what features of their size contribute to a logit.

    Notes
    -----
    Bins and mean histograms are those of all rows if they have no more than :math:`2^{24}` features
    or are no more than 256, else of a random sample of that size. A number outside of the bins
    counts in none. The mean histogram is not smoothed, as in the authors' code. For the threshold
    rows of the sample are scored by the mean of the others, in the same bins; of more than 6000
    rows a random sample of that size is. Labels are not used.

    At 1000 classes and 2048 features the heads take 820 MB in float32, and a row
    :math:`2 \cdot 10^8` products, a few heads at a time.

    The authors' code computes ``msp_weight=0.1``, with other heads. In float32 its bins leave out
    the largest number of `fit`.

    References
    ----------
    Granz et al., "WeiPer: OOD Detection using Weight Perturbations of Class Projections", NeurIPS
    2024.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import WeiPerDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = WeiPerDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [5.0, 7.0, 5.0, 0.0]])
    array([ 1, -1])
    """

    n_heads: int = param(Interval(Integral, 1, None, closed="left"), default=100)
    distance: float = param(Interval(Real, 0, None, closed="left"), default=1.8)
    n_bins: int = param(Interval(Integral, 1, None, closed="left"), default=100)
    smoothing: int = param(Interval(Integral, 1, None, closed="left"), default=4)
    logits_smoothing: int = param(Interval(Integral, 1, None, closed="left"), default=15)
    logits_weight: float = param(Interval(Real, 0, None, closed="left"), default=2.5)
    msp_weight: float = param(Interval(Real, 0, None, closed="left"), default=2.5)

    def _make_scorer(self, head):
        # Detectors that learn from parts of the data have the same heads, so that they can merge.
        random_state = check_random_state(0 if self.random_state is None else self.random_state)
        seed, smoothing = random_state.randint(2**31 - 1), (self.smoothing, self.logits_smoothing)
        weights = (self.logits_weight, self.msp_weight)
        heads = (self.n_heads, self.distance)
        return WeiPerScorer(head, *heads, self.n_bins, smoothing, weights, seed)
