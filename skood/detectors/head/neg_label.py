"""NegLabel: similarity to the labels of the classes against that to negative labels."""

from numbers import Integral, Real

import torch
from sklearn.utils import check_random_state
from torch import nn

from skood._compat import Interval
from skood.detectors.features.cosine import cosines
from skood.estimators.kinds import HeadDetector
from skood.estimators.parameters import param
from skood.functional import clip_to, tempered
from skood.learning.blocks import score_in_blocks

# Differences of more than this are infinite, and of two infinite ones there is no difference.
LARGEST_GAP = 1e150


def share_of_known(similarities, n_known, groups, temperature, log):
    """Return the share of the known labels in the softmax with each group, averaged over groups."""
    logits = tempered(similarities, temperature).clamp(min=-LARGEST_GAP)
    known = torch.logsumexp(logits[:, :n_known], 1, keepdim=True)
    negative = torch.logsumexp(logits[:, groups], 2)
    # Not logsigmoid of their difference: in ONNX that is the logarithm of what rounds to 0.
    total = torch.logsumexp(torch.stack([known.expand_as(negative), negative]), 0)
    if not log:
        return (known - total).exp().mean(1)
    odds = torch.logsumexp(known - total, 1) - torch.logsumexp(negative - total, 1)
    return clip_to(odds, torch.float64)


class NegLabelScorer(nn.Module):
    """Features → share of the known labels."""

    def __init__(self, head, n_known, groups, temperature, log):
        super().__init__()
        self.head, self.n_known, self.temperature, self.log = head, n_known, temperature, log
        self.register_buffer("groups", groups)

    def _score(self, features):
        similarities = cosines(features, self.head.weight)
        return share_of_known(similarities, self.n_known, self.groups, self.temperature, self.log)

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        row_bytes = 8 * (2 * self.head.in_features + 4 * self.head.out_features)
        return score_in_blocks(self._score, row_bytes, features)


class NegLabelDetector(HeadDetector):
    r"""Similarity to the labels of the classes against that to labels that are far from them.

    For networks like CLIP, ``model=torch.nn.Linear(D, N, bias=False)`` with the embeddings of the
    labels as weight: first those of the classes, then negative ones. X holds embeddings of images.
    With the cosines :math:`s_c` of a row with the labels and :math:`S = \sum e^{s_c / T}` over the
    known labels, :math:`S_g` that over a group of negative ones, the share of the known is
    :math:`p`, the mean over the groups of :math:`S / (S + S_g)`. The score is
    :math:`\log(p / (1 - p))`.

    Parameters
    ----------
    n_known : int, default=None
        How many labels are those of the classes. None: all but the last, as in networks that have
        one output more than there are classes.
    n_groups : int, default=100
        Into how many groups of equal size the negative labels are cut at random, the remainder
        being dropped; into one a label where they are fewer. 1: no groups.
    temperature : float, default=0.01
        T, CLIP's.
    log : bool, default=True
        False: the paper's score :math:`p`, which ties where it rounds to 1.
    random_state : int, RandomState or None, default=None
        Draws the groups; None: the same ones each time. Also the k-means clusters that stand in for
        classes where ``model=None`` gets no y.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; its buffer ``groups`` (n_groups, size) holds positions of labels.

    See Also
    --------
    CosineDetector : With ``to="weights"`` the largest of these cosines, without negative labels.

    Notes
    -----
    Nothing is learned from training rows but the threshold. Biases do not count. Which words are
    negative, the authors choose by their distance from the names of the classes, in the space of
    the texts; that is not done here.

    References
    ----------
    Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models", ICLR
    2024.

    Examples
    --------
    >>> import torch
    >>> from skood import NegLabelDetector
    >>> texts = torch.nn.Linear(4, 4, bias=False).requires_grad_(False)
    >>> _ = texts.weight.copy_(torch.eye(4))
    >>> images = [[0.9, 0.1, 0.1, 0.1], [0.1, 0.9, 0.0, 0.1]] * 10
    >>> detector = NegLabelDetector(texts, n_known=2).fit(images)
    >>> detector.predict([[1.0, 0.0, 0.1, 0.0], [0.1, 0.2, 0.9, 0.1]])
    array([ 1, -1])
    """

    n_known: int | None = param(Interval(Integral, 1, None, closed="left"), None, default=None)
    n_groups: int = param(Interval(Integral, 1, None, closed="left"), default=100)
    temperature: float = param(Interval(Real, 0, None, closed="neither"), default=0.01)
    log: bool = param("boolean", default=True)

    def _make_scorer(self, head):
        n_labels = head.out_features
        n_known = n_labels - 1 if self.n_known is None else self.n_known
        if not 0 < n_known < n_labels:
            raise ValueError(
                f"n_known={self.n_known}, and the head has {n_labels} outputs.\n"
                "Expected at least one known and one negative label."
            )
        # Detectors that learn from parts of the data have the same groups, so that they can merge.
        random_state = check_random_state(0 if self.random_state is None else self.random_state)
        order = n_known + torch.from_numpy(random_state.permutation(n_labels - n_known))
        n_groups = min(self.n_groups, len(order))
        groups = order[: len(order) // n_groups * n_groups].view(n_groups, -1)
        return NegLabelScorer(
            head, n_known, groups.to(head.weight.device), self.temperature, self.log
        )
