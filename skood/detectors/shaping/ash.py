"""ASH: activation shaping."""

from numbers import Real

import torch
from torch import nn

from skood._compat import Interval, StrOptions
from skood._warnings import warn
from skood.detectors.shaping.largest import (
    EXPONENT_BOUNDS,
    ScaledHead,
    bounded_exp,
    largest,
    largest_mask,
    sum_ratio,
)
from skood.estimators.kinds import ShapingDetector
from skood.estimators.parameters import param
from skood.functional import at_least_float32


class Shaping(nn.Module):
    """Shape the activations of a layer inside of a network."""

    def __init__(self, variant, percentile):
        super().__init__()
        self.variant, self.percentile = variant, percentile

    def forward(self, activations):
        """Shape activations (n_samples, ...), each sample on its own."""
        x = at_least_float32(activations.flatten(1))
        mask = largest_mask(x, self.percentile, zeros=self.variant == "b")
        kept = binarize(x, mask) if self.variant == "b" else torch.where(mask, x, 0)
        if self.variant == "s":
            bound = EXPONENT_BOUNDS[activations.dtype]
            kept = kept * bounded_exp(sum_ratio(x, kept), bound, x.dtype)
        return kept.to(activations.dtype).view(activations.shape)


def binarize(x, mask):
    """Spread the sum of each row evenly over what was kept, ASH-B."""
    mean = x.sum(1, keepdim=True, dtype=torch.float64) / mask.sum(1, keepdim=True)
    return mask * mean.to(x.dtype)


class ASHSHeadScorer(nn.Module):
    """Features in front of a linear head → scores of the features shaped by ASH-S."""

    def __init__(self, head, percentile, logit_score):
        super().__init__()
        self.head, self.percentile, self.logit_score = ScaledHead(head), percentile, logit_score

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        kept = largest(features, self.percentile)
        return self.logit_score(self.head(kept, sum_ratio(features, kept)))


class ASHDetector(ShapingDetector):
    r"""Activation shaping: drop most activations of a layer, then score the logits.

    Of the :math:`n` activations of a sample the :math:`k = \max(1, n - \mathrm{round}(n p))`
    largest are kept, the rest becomes zero. With the sums :math:`s_1` before and :math:`s_2`
    after, variant "p" keeps their values, "b" sets each to :math:`s_1 / k`, "s" multiplies each by
    :math:`\exp(s_1 / s_2)`. The rest of the network gives logits, whose energy is the score.

    Parameters
    ----------
    variant : {"s", "p", "b"}, default="s"
        What becomes of the kept activations.
    percentile : float, default=0.65
        The share to remove, in [0, 1). The authors use 0.90 for ResNet-50 and 0.95 for CIFAR and
        ViT networks. On narrow features (128 or less) such values hurt many networks: compare with
        0.3 and with energy alone there.

    See Also
    --------
    GradNormDetector : Scores by the size of a gradient.

    Notes
    -----
    The percentages in the paper are shares of *removed* activations, as here. pytorch-ood shapes
    maps in front of the average pooling (``layer="layer4"`` does so here), which is another
    method: rank correlation 0.66 on random maps. Energy alone is ``variant="p", percentile=0``.
    Where signed activations sum to nearly zero the exponent is clipped so that logits stay
    finite; ordinary inputs are not changed by it.

    References
    ----------
    Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection", ICLR
    2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import ASHDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = ASHDetector(percentile=0.5).fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [0.0, 0.0, 0.0, 0.0]])
    array([ 1, -1])
    """

    variant: str = param(StrOptions({"s", "p", "b"}), default="s")
    percentile: float = param(Interval(Real, 0, 1, closed="left"), default=0.65)

    _non_finite_hint = (
        "Shaped activations overflow: lower `percentile`, or use variant='p'. (Or a callable "
        "logit_score gives NaN.)"
    )

    def _make_shaping(self):
        return Shaping(self.variant, self.percentile)

    def _make_head_scorer(self, head, shaping, logit_score):
        if self.variant != "s":
            return super()._make_head_scorer(head, shaping, logit_score)
        return ASHSHeadScorer(head, self.percentile, logit_score)

    def _inspect(self, scorer, inputs):
        at_head = self.layer is None and inputs[0].ndim == 2
        # With percentile=0 variant "p" is the score of the logits as they are.
        shapes = self.percentile > 0 or self.variant != "p"
        if at_head and shapes and bool(inputs[0].amin() < 0):
            warn(
                "The features are signed, which ASH does not assume: it keeps the largest values "
                "and takes them for the strongest. Features after a ReLU suit it, or another "
                "detector suits these features."
            )
