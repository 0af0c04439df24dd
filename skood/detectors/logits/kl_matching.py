"""KL matching: divergence from the mean softmax of the rows of a predicted class."""

import torch

from skood._compat import StrOptions
from skood.estimators.kinds import LogitsDetector
from skood.estimators.parameters import param
from skood.functional import clip_to, log_probabilities
from skood.learning.blocks import score_in_blocks
from skood.learning.learning import LearningScorer
from skood.learning.states import LogSums, State


def entropy_of(log_p):
    """Return the entropy of rows of logarithms of probabilities."""
    return -(log_p.exp() * log_p).sum(1)


class KLMatchingScorer(LearningScorer):
    """Logits → minus the divergence from the closest, or the predicted, class."""

    learned = ("log_sums", "counts")

    def __init__(self, assign):
        super().__init__()
        self.assign = assign

    def init_state(self, inputs, n_classes, n_expected):
        """Return sums of the probabilities of no rows, by the class that is predicted."""
        n_logits, device = inputs[0].shape[1], inputs[0].device
        counts = torch.zeros(n_logits, dtype=torch.float64, device=device)
        return State(log_sums=LogSums(n_logits, n_logits, device), counts=counts)

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        predicted = inputs[0].argmax(1)
        state.log_sums.update(log_probabilities(inputs[0])[0], predicted)
        state.counts += torch.bincount(predicted, minlength=len(state.counts))

    def finalize(self, state, classes):
        """Keep the sums, as logarithms: the mean of a class that is never predicted is unknown."""
        self.counts = state.counts.clone()
        self.log_sums = torch.where(state.counts[:, None] > 0, state.log_sums.values, 0.0)

    def forward(self, logits):
        """Score logits of shape (n_samples, n_classes)."""
        return score_in_blocks(self._score, 32 * logits.shape[1], logits)

    def _score(self, logits):
        log_p, divergences = self._divergences(logits)
        return self._assigned(logits, entropy_of(log_p), divergences)

    def _divergences(self, logits):
        """Return log p, and KL(p || d) of the mean d of each class, infinite where unknown."""
        log_p, _ = log_probabilities(logits)
        p = log_p.exp()
        log_means = self.log_sums - self.counts.clamp(min=1).log()[:, None]
        divergences = -entropy_of(log_p)[:, None] - p @ log_means.T
        return log_p, divergences.masked_fill(self.counts == 0, torch.inf)

    def _assigned(self, logits, entropies, divergences):
        """Return scores by the divergence from the closest class, or the predicted one."""
        # What is left of the entropy in float64: equal rows are at no distance of their mean.
        rounding = 16 * torch.finfo(divergences.dtype).eps * entropies
        divergences = divergences.masked_fill(divergences < rounding[:, None], 0.0)
        chosen = divergences.amin(1)
        if self.assign == "predicted":
            predicted = divergences.gather(1, logits.argmax(1, keepdim=True))[:, 0]
            chosen = torch.where(predicted.isinf(), chosen, predicted)
        return clip_to(-chosen, torch.float64)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows without each: its part of the sum of its class is taken away."""
        return score_in_blocks(self._leave_out, 64 * inputs[0].shape[1], inputs[0])

    def _leave_out(self, logits):
        log_p, divergences = self._divergences(logits)
        own, p = logits.argmax(1), log_p.exp()
        sums, count = self.log_sums[own], self.counts[own]
        # What the rounding of a sum leaves of the other rows' part, where it is smaller.
        left = (-torch.expm1(log_p - sums)).clamp(min=torch.finfo(sums.dtype).eps)
        log_means = sums + left.log() - (count - 1).clamp(min=1).log()[:, None]
        divergence = (p * (log_p - log_means)).sum(1).masked_fill(count == 1, torch.inf)
        divergences = divergences.scatter(1, own[:, None], divergence[:, None])
        return self._assigned(logits, entropy_of(log_p), divergences)


class KLMatchingDetector(LogitsDetector):
    r"""Divergence of the softmax from its mean over the training rows of a class.

    With :math:`p` the softmax and :math:`d_k` its mean over the training rows that are predicted
    k, the score is :math:`-\min_k \mathrm{KL}(p \,\|\, d_k)`.

    Parameters
    ----------
    assign : {"closest", "predicted"}, default="closest"
        Whether k is the class of the least divergence (the paper), or the predicted one; the
        closest too where that was never predicted in `fit`.

    See Also
    --------
    EntropyDetector : Learns nothing.

    Notes
    -----
    Labels do not count, only what is predicted. As in the paper `fit` should get rows that the
    network has not seen. Sums of probabilities are kept as logarithms, since those of a confident
    network underflow. The threshold of ``predict`` is that of scores without each row, in closed
    form.

    pytorch-ood and OpenOOD compute the same, edadaltocg/detectors ``assign="predicted"``; OpenOOD
    takes a one-hot :math:`d_k` for a class that is never predicted, which here is no candidate.

    References
    ----------
    Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import KLMatchingDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = KLMatchingDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [4.5, 2.0, 3.0, 0.0]])
    array([ 1, -1])
    """

    assign: str = param(StrOptions({"closest", "predicted"}), default="closest")

    def _make_scorer(self, network):
        return KLMatchingScorer(self.assign)
