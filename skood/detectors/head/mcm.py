"""MCM: softmax of the cosines between features and the weights of the classes."""

from functools import partial
from numbers import Real

import torch
from torch import nn

from skood._compat import Interval
from skood.detectors.features.cosine import cosines
from skood.estimators.kinds import HeadDetector
from skood.estimators.parameters import param
from skood.functional import log_odds, tempered


def max_probability(similarities, temperature):
    """Return the largest probability of each row in the softmax of similarities / temperature."""
    return torch.softmax(tempered(similarities, temperature), dim=1).amax(1)


class MCMScorer(nn.Module):
    """Features → a function of their cosines to the weights of the classes."""

    def __init__(self, head, function):
        super().__init__()
        self.head, self.function = head, function

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        return self.function(cosines(features, self.head.weight))


class MCMDetector(HeadDetector):
    r"""Largest softmax probability of the cosines between features and the weights of the classes.

    For networks like CLIP, ``model=torch.nn.Linear(D, C, bias=False)`` with the embeddings of the
    names of the classes as weight; X holds embeddings of images. With the cosines :math:`s_c` of a
    row and these the score is :math:`\max_c p_c`, :math:`p = \mathrm{softmax}(s / T)`.

    Parameters
    ----------
    temperature : float, default=1.0
        T, the paper's. Lower ones made it worse: of CIFAR-10 against flowers 1 gave an AUROC of
        .921, .1 .905 and .01, that of CLIP's own logits, .879. Higher ones change nothing.
    log : bool, default=False
        True: :math:`\log(p / (1 - p))` of the largest p. It ranks alike, and does not tie at low
        temperatures, where p rounds to 1.

    See Also
    --------
    CosineDetector : With ``to="weights"`` the largest cosine, which ranks nearly alike.
    NegLabelDetector : Compares with labels that are far from the classes too.

    Notes
    -----
    Nothing is learned from training rows but the threshold. Biases do not count. Probabilities are
    computed in float64: at T = 1 all are near 1 / C. Zero rows have the score 1 / C.

    pytorch-ood computes the same, with the other sign. OpenOOD takes the softmax of a network's
    logits, which is ``MSPDetector(net, temperature=T, log=False)``.

    References
    ----------
    Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations",
    NeurIPS 2022.

    Examples
    --------
    >>> import torch
    >>> from skood import MCMDetector
    >>> texts = torch.nn.Linear(4, 2, bias=False).requires_grad_(False)
    >>> _ = texts.weight.copy_(torch.eye(4)[:2])
    >>> images = [[0.9, 0.1, 0.1, 0.1], [0.1, 0.9, 0.0, 0.1]] * 10
    >>> MCMDetector(texts).fit(images).predict([[1.0, 0.0, 0.1, 0.0], [0.1, 0.2, 0.9, 0.1]])
    array([ 1, -1])
    """

    temperature: float = param(Interval(Real, 0, None, closed="neither"), default=1.0)
    log: bool = param("boolean", default=False)

    def _make_scorer(self, head):
        function = log_odds if self.log else max_probability
        return MCMScorer(head, partial(function, temperature=self.temperature))
