"""Scores of several passes: how sure their mean probability is, and how far they disagree."""

import math

import torch

from skood._compat import StrOptions
from skood.estimators.kinds import ClassifierDetector
from skood.estimators.parameters import param
from skood.functional import entropy, log_odds, log_probabilities
from skood.learning.blocks import score_in_blocks
from skood.learning.learning import LearnedModule

# Scores of the mean probability, which its logarithm tells as logits do.
OF_THE_MEAN = {"msp": log_odds, "entropy": entropy}
CRITERIA = {*OF_THE_MEAN, "mutual_information", "variance"}


def mean_log_probability(passes):
    """Return the logarithm of the mean softmax of several passes, in float64."""
    total, n_passes = None, 0
    for logits in passes:
        log_p = torch.log_softmax(logits.double(), 1)
        total = log_p if total is None else torch.logaddexp(total, log_p)
        n_passes += 1
    return total - math.log(n_passes)


def mean_of(log_a, log_b, n_before):
    """Return the mean of p and 1 - p over one more pass, all as logarithms.

    Parameters
    ----------
    log_a : Tensor of shape (2, n_samples, n_classes, ...)
        Logarithms of p and 1 - p of the mean of the passes before.
    log_b : Tensor of shape (2, n_samples, n_classes, ...)
        Those of the pass.
    n_before : int
        The number of the passes before.
    """
    log_p, log_rest = torch.logaddexp(log_a + math.log(n_before), log_b) - math.log(n_before + 1)
    # Near 1 the sum of p has rounded 1 - p away.
    return torch.stack([torch.where(log_rest < -1, torch.log1p(-log_rest.exp()), log_p), log_rest])


def difference(log_a, log_b):
    """Return by how much probabilities p are larger, from logarithms of p and 1 - p."""
    (p, rest), (q, other_rest) = log_a.exp(), log_b.exp()
    return torch.where(p > 0.5, other_rest - rest, p - q)


def divergence(log_a, log_b):
    """Return KL(p || q) of each row, as a sum over classes of numbers that are not negative."""
    terms = log_a[0].exp() * (log_a[0] - log_b[0]) - difference(log_a, log_b)
    return terms.clamp(min=0).sum(1)


def score_passes(passes, criterion):
    """Score the logits of several passes, which are looked at one by one.

    Parameters
    ----------
    passes : iterable of Tensor of shape (n_samples, n_classes, ...)
        Logits.
    criterion : {"msp", "entropy", "mutual_information", "variance"}
        See `PassesDetector`.

    Returns
    -------
    scores : Tensor of shape (n_samples, ...), dtype float64
        Higher means more in-distribution.
    log_p : Tensor of shape (n_samples, n_classes, ...), dtype float64
        The logarithm of the mean probability.
    """
    if criterion in OF_THE_MEAN:
        log_p = mean_log_probability(passes)
        return OF_THE_MEAN[criterion](log_p), log_p
    mean, spread, n_passes = None, 0.0, 0
    for logits in passes:
        log_p = torch.stack(log_probabilities(logits))
        before, mean = mean, log_p if mean is None else mean_of(mean, log_p, n_passes)
        if n_passes and criterion == "mutual_information":
            # Of the passes before, KL to the new mean is KL to theirs and theirs to the new one.
            spread = spread + n_passes * divergence(before, mean) + divergence(log_p, mean)
        elif n_passes:
            squares = difference(log_p, before).square().mean(1)
            spread = spread + squares * (n_passes / (n_passes + 1))
        n_passes += 1
    return -spread / (n_passes - (criterion == "variance")), mean[0]


class PassesScorer(LearnedModule):
    """What gives the logits of several passes → scores.

    Parameters
    ----------
    passes : nn.Module
        Its ``each(seed, *inputs)`` maps what the scorer takes to an iterable of logits.
    criterion : str
        See `PassesDetector`.
    note : callable
        Told the logarithm of the mean probability.
    seed : int, default=0
        Of the masks: kept, as `random_state` may have gone on when a detector is loaded.
    n_logits : int, default=None
        Where what the scorer takes are features: their logits are computed in blocks.
    """

    learned = ("seed",)

    def __init__(self, passes, criterion, note, seed=0, n_logits=None):
        super().__init__()
        self.passes, self.criterion, self.note = passes, criterion, note
        self.seed, self.n_logits = torch.tensor(seed), n_logits

    def forward(self, *inputs):
        """Score rows."""
        if self.n_logits is None or torch.compiler.is_exporting():
            return self._score(*inputs)
        # Of a pass there are up to ten numbers a logit.
        return score_in_blocks(self._score, 80 * self.n_logits, *inputs)

    def _score(self, *inputs):
        scores, log_p = score_passes(self.passes.each(self.seed, *inputs), self.criterion)
        self.note(log_p)
        return scores


class PassesDetector(ClassifierDetector):
    r"""Base of detectors that score the logits of several passes.

    Parameters
    ----------
    criterion : str, default="entropy"
        What the score is, with :math:`p_r` the softmax of pass r of R, :math:`\bar p` their mean:

        - "msp": the log-odds of the largest :math:`\bar p_c`.
        - "entropy": :math:`-\log H(\bar p)`.
        - "mutual_information": :math:`-\frac{1}{R} \sum_r \mathrm{KL}(p_r \,\|\, \bar p)`, by
          how much the passes disagree.
        - "variance": minus the mean over classes of the variance (n - 1) of :math:`p_r`.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps what its passes take to scores; maps of logits to maps of scores.
    """

    criterion: str = param(StrOptions(CRITERIA), default="entropy")
