"""GAIA: gradients at the normalisation layers that are dense, or large for what the head makes."""

import torch
from torch import nn

from skood._compat import StrOptions
from skood._warnings import warn
from skood.estimators.kinds import ClassifierDetector, ReadsLayers
from skood.estimators.parameters import param
from skood.functional import clip_to, kl_to_uniform_grad, pool
from skood.network.gradients import FEATURES


def of_the_largest(logits):
    """Return the gradient of each row's largest logit, the first of equal ones."""
    return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)


def of_the_mean(features):
    """Return the gradient of the sum of features, maps averaged."""
    return torch.full_like(features, 1 / features[0, 0].numel())


def share_of_nonzeros(output, grad, *, channel_axis, mask):
    """Return the share of the positions of each channel whose gradient is not 0."""
    return pool((grad != 0).to(grad.dtype), channel_axis=channel_axis, mask=mask)


def mean_gradient(output, grad, *, channel_axis, mask):
    """Return the mean over positions of the gradient of each channel."""
    return pool(grad.double(), channel_axis=channel_axis, mask=mask)


def has_no_zeros(output, grad, *, channel_axis, mask):
    """Tell of each row whether no gradient is 0, but where those of all channels are."""
    nonzero = grad != 0
    axis = channel_axis or 1
    return (nonzero | ~nonzero.any(axis, keepdim=True)).flatten(1).all(1)


class NonzerosScorer(nn.Module):
    """Shares of nonzero gradients, of the channels of each layer → minus their mean square."""

    def __init__(self, layers):
        super().__init__()
        self.layers = list(layers)

    def forward(self, *shares):
        """Score rows."""
        return -torch.cat(shares, 1).double().square().mean(1)


class AttributionScorer(nn.Module):
    """Mean gradients of the features at each layer, 1 without any, and the features → scores."""

    def __init__(self, layers, head):
        super().__init__()
        self.layers, self.head = list(layers), head

    def forward(self, *parts):
        """Score rows."""
        *gradients, features = parts
        logits = self.head(features).double()
        outer = logits.shape[1] * kl_to_uniform_grad(logits) @ self.head.weight.double()
        size = outer.abs().mean(1)
        inner = torch.cat(gradients, 1).square().mean(1) if gradients else torch.ones_like(size)
        return clip_to(-inner / size.clamp(min=torch.finfo(size.dtype).tiny), torch.float64)


class GAIADetector(ReadsLayers, ClassifierDetector):
    r"""Gradients at the normalisation layers: how large, or how many of them are not 0.

    For "a" let :math:`\bar g` be the mean over positions of the gradient of the sum of the features
    :math:`h`, pooled, with respect to a channel. The score is minus the mean of :math:`\bar g^2`
    over the channels of all layers, over the mean of :math:`|\partial \sum_c \log p_c / \partial
    h_k|` over features. For "z" it is minus the mean over channels of the square of the share of
    positions at which the gradient of the largest logit is not 0.

    Parameters
    ----------
    layers : list of str, default=None
        Submodules whose gradients are read. None: all normalisation layers, such as
        ``nn.BatchNorm2d`` and ``nn.LayerNorm``. The authors take all for "z", and for "a" those of
        the last two stages of a ResNet.
    variant : {"a", "z"}, default="a"
        "a" works with any last linear layer, "z" where ReLUs make exact zeros of gradients. In four
        of the six cases below "a" was better.
    channel_axis : int, list of int or None, default=None
        The axis of a layer's output that holds the channels, or one a layer. None: what the layers
        of torch tell.
    random_state : int, RandomState or None, default=None
        Draws the k-means clusters that stand in for classes where ``model=None`` gets no y.

    Attributes
    ----------
    layers_ : list of str
        The layers in use.
    scorer_ : nn.Module
        Maps what is read at the layers to scores.

    Raises
    ------
    ValueError
        For "z", if there is no normalisation layer and `layers` names none, or if on two rows of
        `fit` no gradient is 0, as behind GELU and attention.

    See Also
    --------
    GradNormDetector : The size of the gradient of the weights.

    Notes
    -----
    **It may rank upside down; it is here for comparisons.** A ResNet-20 on CIFAR-10 has an AUROC
    against flowers, MNIST and noise of .758, .150 and .993 with "a", .451, .010 and .245 with "z",
    and .916, .978 and .830 with `EnergyDetector`. Large areas of one value close ReLUs, so that
    gradients are few and small, as of rows that are known: a black image ranks above photographs,
    and MNIST with a little noise rises to .66. It works on small ReLU networks: digits against
    other digits, textures and noise .732, .857, .956 with "a" and .815, .979, .815 with "z";
    energy .992, .973, .979.

    Nothing is learned but the threshold. One forward and one backward pass; the authors' second
    one for "a" has the closed form :math:`C\,|(p - u) W|`. Their scores of "a" are ours times the
    positions of the last maps. Without normalisation layers, as where X holds features, "a" is
    minus 1 over the denominator, with a warning.

    References
    ----------
    Chen et al., "GAIA: Delving into Gradient-based Attribution Abnormality for Out-of-distribution
    Detection", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skood import GAIADetector
    >>> net = nn.Sequential(
    ...     nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    ...     nn.Flatten(), nn.Linear(8, 3),
    ... )
    >>> detector = GAIADetector(net, variant="z").fit(torch.rand(20, 1, 6, 6))
    >>> detector.layers_, detector.score_samples(torch.rand(4, 1, 6, 6)).shape
    (['1'], (4,))
    """

    variant: str = param(StrOptions({"a", "z"}), default="a")

    @property
    def looks_inside(self) -> bool:
        """True, as gradients at layers inside of the network are read."""
        return True

    def _build(self, network):
        network.require_logits()
        norms = network.norms() if self.layers is None else ()
        is_without_layers = self.layers is None and not norms
        if is_without_layers and self.variant == "a":
            return network.features(), AttributionScorer((), network.head)
        name = "X" if network.takes_features else type(network.module).__name__
        if is_without_layers:
            raise ValueError(
                f"{name} has no normalisation layers, such as nn.BatchNorm2d, at which "
                "variant='z' reads gradients.\nPass a whole network that has some, or name layers: "
                "layers=[...]."
            )
        layers, axes = self._layers_and_axes(norms)
        if None in layers:
            raise ValueError(f"layers={layers} must name submodules: gradients are read there.")
        if self.variant == "a":
            how = {"of": FEATURES, "channel_axes": axes}
            body = network.gradients(layers, of_the_mean, mean_gradient, **how)
            return body, AttributionScorer(layers, network.head)
        body, zeros = (
            network.gradients(layers, of_the_largest, combine, channel_axes=axes)
            for combine in (share_of_nonzeros, has_no_zeros)
        )
        found = network.of_sample(zeros)
        if found is not None and all(bool(layer.all()) for layer in found):
            raise ValueError(
                f"{name}: no gradient at its layers {layers[:3]} is 0 on two rows of X, but "
                "variant='z' counts the zeros that ReLUs make.\nBehind GELU, SiLU or attention "
                "there are none: take variant='a', or other layers."
            )
        return body, NonzerosScorer(layers)

    def _inspect(self, scorer, inputs):
        if not scorer.layers:
            warn(
                "There are no normalisation layers, as where X holds features: GAIA's score is "
                "then by the head alone.\nPass a whole network, and name layers: layers=[...]."
            )

    def _fitted_attributes(self, scorer):
        return {"layers_": scorer.layers}
