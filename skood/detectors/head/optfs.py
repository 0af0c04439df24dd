"""OptFS: features weighted by the bin that they lie in, as the predicted logit tells."""

from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch.nn.functional import linear

from skood._compat import Interval, StrOptions
from skood.estimators.kinds import LOGIT_SCORES, HeadDetector, logit_scorer
from skood.estimators.parameters import param
from skood.functional import radial
from skood.learning.blocks import block_rows, score_in_blocks
from skood.learning.histograms import even_edges, find_bins
from skood.learning.learning import LearningScorer
from skood.learning.quantiles import activation_sample, quantile_of


class OptFSScorer(LearningScorer):
    """Features → their contributions to the predicted logit, each weighted by its bin."""

    learned = ("edges", "theta")
    needs_row_keys = subtracts_inputs = True

    def __init__(self, head, n_bins, tails, logit_score):
        super().__init__()
        self.head, self.n_bins, self.tails = head, n_bins, tails
        self.logit_score = logit_score
        self.clear_cache()

    def init_state(self, inputs, n_classes, n_expected):
        """Return a sample of no rows."""
        return activation_sample(inputs[0], n_expected)

    def update(self, state, inputs, class_indices, keys):
        """Add those rows that are drawn to the sample."""
        chosen = state.choose(keys)
        state.add([inputs[0][chosen]], keys[chosen])

    def finalize(self, state, classes):
        """Set the edges, and weigh the bins by what lies in them."""
        self.keys, (rows,) = state.sample()
        bounds = (quantile_of(rows.flatten(), level) for level in (self.tails, 1 - self.tails))
        self.edges = even_edges(*bounds, self.n_bins)
        size = block_rows(self._row_bytes, rows.device)
        self.sums = sum(
            self._by_bin(block, find_bins(block.double(), self.edges)).sum(0)
            for block in rows.split(size)
        )
        self.theta = weights_of(self.sums[None])[0]

    @property
    def _row_bytes(self):
        """The memory that scoring a row takes."""
        return 48 * self.head.in_features + 8 * self.head.out_features

    def _predicted_weights(self, features):
        """Return the weights of the class that is predicted for each row."""
        return self.head.weight[self.head(features).argmax(1)].double()

    def _by_bin(self, features, bins):
        """Return the sums of contributions in each bin (n_samples, n_bins + 2), 0 outside."""
        products = features.double() * self._predicted_weights(features)
        sums = products.new_zeros(len(features), len(self.edges) + 1)
        sums.scatter_add_(1, bins, products)
        sums[:, [0, -1]] = 0
        return sums

    def _score(self, features, theta):
        """Score rows of a block by a weight for each feature."""
        shaped = features.double() * theta
        if self.logit_score is None:
            return (shaped * self._predicted_weights(features)).sum(1)
        return self.logit_score(linear(shaped.to(features), self.head.weight, self.head.bias))

    def forward(self, features):
        """Score features of shape (n_samples, D)."""

        def score(features):
            return self._score(features, self.theta[find_bins(features.double(), self.edges)])

        return score_in_blocks(score, self._row_bytes, features)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score rows of the sample by the weights of the others, at the same edges."""
        is_own = torch.isin(keys, self.keys)
        return score_in_blocks(self._score_as_new, self._row_bytes, inputs[0], is_own)

    def _score_as_new(self, features, is_own):
        bins = find_bins(features.double(), self.edges)
        theta = weights_of(self.sums - is_own[:, None] * self._by_bin(features, bins))
        return self._score(features, theta.gather(1, bins))

    def clear_cache(self):
        """Drop what only learning needs."""
        self.keys = self.sums = None


def weights_of(sums):
    """Return sums (n_samples, n_bins) scaled to the length 1000, the authors'."""
    return 1000 * radial(sums, 1)


class OptFSDetector(HeadDetector):
    r"""Optimal feature shaping: features weighted by what features of their size contribute.

    The range of all features is cut into bins. With the predicted class :math:`\hat y`,
    :math:`c_b(h) = \sum_{j:\, h_j \in b} W_{\hat y j} h_j` is what the features in bin b
    contribute to the largest logit. With its mean :math:`I_b` over the training rows and
    :math:`\theta = 1000\, I / \|I\|` the score is :math:`\sum_b \theta_b\, c_b(h)`.

    Parameters
    ----------
    n_bins : int, default=100
        The number of bins, of equal width.
    tails : float, default=0.001
        The bins reach from this quantile of all features of the training rows to that of
        1 - `tails`; what lies outside does not count.
    logit_score : str or callable, default=None
        None: the score above, the paper's first. Otherwise, what the score is of the logits of the
        weighted features :math:`\theta_{b(h_j)} h_j`: "energy", the paper's second, "max_logit",
        "entropy", "gen", "msp" or "log_odds", or a function that maps logits
        (n_samples, n_classes) to scores.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; its buffers are ``edges`` (n_bins + 1,) and ``theta``
        (n_bins + 2,), which is 0 below and above all bins.

    Notes
    -----
    Bins and weights are learned from all rows if they have no more than :math:`2^{24}` features or
    are no more than 256, else from a random sample of that size. For the threshold each row of the
    sample is scored by the weights of the others, in closed form, at the same edges. Labels are not
    used.

    The authors' code computes the same; where rounding gives it a bin more, that lies beyond the
    upper quantile.

    References
    ----------
    Zhao et al., "Towards Optimal Feature-Shaping Methods for Out-of-Distribution Detection", ICLR
    2024.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import OptFSDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = OptFSDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [5.0, 7.0, 5.0, 0.0]])
    array([ 1, -1])
    """

    n_bins: int = param(Interval(Integral, 1, None, closed="left"), default=100)
    tails: float = param(Interval(Real, 0, 0.5, closed="left"), default=1e-3)
    logit_score: str | Callable[[torch.Tensor], torch.Tensor] | None = param(
        StrOptions(set(LOGIT_SCORES)), callable, None, default=None
    )

    def _make_scorer(self, head):
        score = None if self.logit_score is None else logit_scorer(self.logit_score)
        return OptFSScorer(head, self.n_bins, self.tails, score)
