"""CADRef: differences of features from their class's mean, with and against its weights."""

import torch
from torch.nn.functional import pad

from skood._warnings import warn
from skood.estimators.kinds import HeadDetector, ScoresLogits, logit_scorer
from skood.estimators.parameters import param
from skood.functional import all_finite, clip_to, power_sum
from skood.learning.learning import LearningScorer
from skood.learning.moments import OVERFLOW
from skood.learning.states import State

# A score of logits below this share of the mean counts as this much.
LEAST_SHARE = 1e-3
# Shorter features are as this: ONNX has such numbers, and not the smallest of float64.
SHORTEST = torch.finfo(torch.float32).tiny


def relative_errors(delta, features, weights):
    """Return by how much features exceed a mean along weights, and against them.

    Parameters
    ----------
    delta, features, weights : Tensor of shape (n_samples, D), dtype float64
        The difference from a mean, what differs, and the weights whose signs count.

    Returns
    -------
    positive, negative : Tensor of shape (n_samples,)
        Sums of absolute values over those of the features.
    """
    signed = delta * weights.sign()
    size = power_sum(features).clamp(min=SHORTEST)
    return signed.clamp(min=0).sum(1) / size, (-signed).clamp(min=0).sum(1) / size


class CADRefScorer(LearningScorer):
    """Features → minus their errors, those along the weights by the score of the logits."""

    learned = ("means", "counts", "mean_score")

    def __init__(self, head, decoupled, logit_score):
        super().__init__()
        self.head, self.decoupled, self.logit_score = head, decoupled, logit_score

    def init_state(self, inputs, n_classes, n_expected):
        """Return sums of no rows, by the class that is predicted, and sums of logit scores."""
        features, n_logits = inputs[0].double(), self.head.out_features
        by_prediction = features.new_zeros(n_logits, features.shape[1] + 1)
        return State(by_prediction=by_prediction, logit_scores=features.new_zeros(2))

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        logits = self.head(inputs[0])
        rows = pad(inputs[0].double(), (0, 1), value=1.0)
        state.by_prediction.index_add_(0, logits.argmax(1), rows)
        scores = self.logit_score(logits).double()
        state.logit_scores += torch.stack([scores.sum(), (scores <= 0).sum().double()])

    def finalize(self, state, classes):
        """Average."""
        self.counts = state.by_prediction[:, -1].clone()
        self.means = state.by_prediction[:, :-1] / self.counts.clamp(min=1)[:, None]
        self.mean_score, n_rows = state.logit_scores[:1] / self.counts.sum(), self.counts.sum()
        if not all_finite(self.means):
            raise ValueError(OVERFLOW)
        share, divides = float(state.logit_scores[1] / n_rows), bool(self.mean_score > 0)
        # Fewer hardly show among 5 % false alarms.
        if self.decoupled and (share > 0.01 or not divides):
            instead = "where a thousandth of its mean" if divides else "nor on average: 1"
            warn(
                "The score of the logits, which errors are divided by, is not positive in "
                f"{share:.1%} of the rows of fit, {instead} stands in.\nGive logit_score='msp', or "
                "decoupled=False."
            )

    def _predicted(self, logits):
        """Return the class of the largest logit, of those that were predicted in `fit`."""
        return logits.masked_fill(self.counts == 0, -torch.inf).argmax(1)

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        logits = self.head(features)
        own, features = self._predicted(logits), features.double()
        return self._score(features - self.means[own], features, own, logits, self.mean_score)

    def _score(self, delta, features, own, logits, mean_score):
        if not self.decoupled:
            scores = -power_sum(delta) / power_sum(features).clamp(min=SHORTEST)
        else:
            weights = self.head.weight.double()[own]
            positive, negative = relative_errors(delta, features, weights)
            score = torch.maximum(self.logit_score(logits).double(), LEAST_SHARE * mean_score)
            is_positive = self.mean_score > 0
            score, mean_score = (torch.where(is_positive, s, 1.0) for s in (score, mean_score))
            scores = -(positive / score + negative / mean_score)
        return clip_to(scores, torch.float64)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each left out of the mean of its class and that of the scores."""
        features, logits = inputs[0].double(), self.head(inputs[0])
        own = self._predicted(logits)
        # The only row of a class leaves it without a mean, and counts to the next one.
        alone = self.counts[own] == 1
        others = self._predicted(logits.scatter(1, own[:, None], -torch.inf))
        counts, own = self.counts[own], torch.where(alone, others, own)
        factor = torch.where(alone, 1.0, counts / (counts - 1).clamp(min=1))
        n_rows = self.counts.sum()
        scores = self.logit_score(logits).double()
        mean_score = (self.mean_score * n_rows - scores) / (n_rows - 1)
        mean_score = torch.maximum(mean_score, LEAST_SHARE * self.mean_score)
        delta = (features - self.means[own]) * factor[:, None]
        return self._score(delta, features, own, logits, mean_score)


class CADRefDetector(ScoresLogits, HeadDetector):
    r"""Difference of features from the mean of their class, with and against its weights.

    With :math:`\hat y` the predicted class, :math:`\mu` the mean features of the training rows that
    are predicted so and :math:`\delta = (h - \mu)\,\mathrm{sign}\,W_{\hat y}`, the errors are
    :math:`e_\pm = \sum_j \max(\pm\delta_j, 0) / \|h\|_1`, and the score is
    :math:`-(e_+ / S + e_- / \bar S)` with a score :math:`S` of the logits and its mean
    :math:`\bar S` over the training rows. What exceeds the mean along the weights raises the
    logits: it counts less where these are large.

    Parameters
    ----------
    decoupled : bool, default=True
        False: CARef, the score :math:`-(e_+ + e_-)`, for which logits tell the class alone. Of
        CIFAR-10 against flowers it gave an AUROC of .873, and True .904.
    logit_score : str or callable, default="energy"
        S, the score of the logits, which must be positive: "energy", "max_logit" or "msp", or
        another of the functions of `skood.functional`, or a function that maps logits
        (n_samples, n_classes) to scores, higher = more in-distribution.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; its buffers ``means`` (C, D), ``counts`` (C,) and ``mean_score``
        (1,) hold what was learned.

    See Also
    --------
    FDBDDetector : Distances to the boundaries of the predicted class.

    Notes
    -----
    Labels do not count, only what is predicted. A class that is not predicted in `fit` has no mean:
    rows go to the next one. Each training row is left out of both means for the threshold, in
    closed form. S counts as a thousandth of its mean where it is below that, and both as 1 where
    the mean is not positive, with a warning if S is not in more than 1 % of the training rows.

    The authors' code computes the same. Their score "GEN" is
    ``lambda logits: skood.functional.gen(logits, n_classes=max(10, C // 10)).exp()``, but where
    1 - p rounds to 0.

    References
    ----------
    Ling et al., "CADRef: Robust Out-of-Distribution Detection via Class-Aware Decoupled Relative
    Feature Leveraging", CVPR 2025.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import CADRefDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> CADRefDetector().fit(X, y).predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    decoupled: bool = param("boolean", default=True)

    def _make_scorer(self, head):
        return CADRefScorer(head, self.decoupled, logit_scorer(self.logit_score))
