"""GradNorm: the size of the gradient of the divergence from uniform."""

from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import nn

from skood._compat import Interval, StrOptions
from skood.estimators.kinds import ClassifierDetector
from skood.estimators.parameters import param
from skood.functional import clip_to, kl_to_uniform_grad, power_sum
from skood.network.layers import closest_names
from skood.network.parameter_gradients import PerSampleGradientNorm


def bce_to_uniform_grad(logits, temperature=1.0):
    """Gradient of Σ_c BCE(p_c, 1/C), p = softmax(logits / temperature), w.r.t. the logits.

    Exact at any confidence: 1 - p of the largest class is the sum of the others, and its quotient
    with a p_k is the softmax over the others. Autograd through the loss loses this (float32, 10
    classes: 1.3e5 instead of 3.6 at a gap of 18 between logits).

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Unnormalised class scores.
    temperature : float, default=1.0
        What the logits are divided by.

    Returns
    -------
    grad : Tensor of shape (n_samples, n_classes), dtype float64
        Its L1 norm tends to 4 (1 - 1/C) for confident samples.
    """
    logits = logits.double()
    n_classes = logits.shape[1]
    if n_classes == 1:
        return torch.zeros_like(logits)
    uniform = 1 / n_classes
    p = torch.softmax((logits - logits.amax(1, keepdim=True)) / temperature, dim=1)
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, -torch.inf)
    among_others = torch.softmax((others - others.amax(1, keepdim=True)) / temperature, dim=1)
    p_top = p.gather(1, top)
    # (p_j - u) / (1 - p_j); no p_j but the largest exceeds 1/2.
    q = ((p - uniform) / (1 - p)).scatter(1, top, 0)
    q_sum = q.sum(1, keepdim=True)
    grad = (p - uniform) - among_others * (p_top - uniform) - p * (q_sum - q)
    grad = grad.scatter(1, top, (p_top - uniform) - p_top * q_sum)
    return grad / temperature


def ones_grad(logits, temperature=1.0):
    """Gradient of -Σ_c log p_c, p = softmax(logits / temperature), w.r.t. the logits.

    The cross-entropy against a label of ones. Its gradient is C times that of the divergence.
    """
    return logits.shape[1] * kl_to_uniform_grad(logits, temperature)


LOSSES = {"kl": kl_to_uniform_grad, "bce": bce_to_uniform_grad, "ones": ones_grad}
ORDERS = {"l1": 1, "l2": 2}


class GradNormHeadScorer(nn.Module):
    """Features in front of a linear head → norm of the gradient of its weight and bias.

    The gradient of the weight is the outer product of the gradient g of the logits and the
    features h, so its norm is ‖g‖ ‖h‖: no backward pass. With the order 2 norms are squared.
    """

    def __init__(self, head, logits_grad, temperature, order, weight, bias):
        super().__init__()
        self.head, self.logits_grad = head, logits_grad
        self.temperature, self.order = temperature, order
        self.weight, self.bias = weight, bias

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        grad = power_sum(self.logits_grad(self.head(features), self.temperature), self.order)
        factor = self.weight * power_sum(features, self.order) + self.bias
        return clip_to(grad * factor, torch.float64)


class GradNormDetector(ClassifierDetector):
    r"""Norm of the gradient of the divergence between the softmax and the uniform distribution.

    The score is :math:`\|\partial L / \partial \theta\|_1` of each sample with
    :math:`L = \mathrm{KL}(u \,\|\, \mathrm{softmax}(l / T))`. For the last layer's weight, with
    features :math:`h`, it is :math:`\|\mathrm{softmax}(l/T) - u\|_1\, \|h\|_1 / T`. With
    ``norm="l2"`` it is :math:`\|\partial L / \partial \theta\|_2^2`, a sum of squares.

    Parameters
    ----------
    params : {"head", "all"}, list of str or callable, default="head"
        Which parameters: the last linear layer's weight (the paper, closed form), all, the named
        ones, or those for whose name the callable is true.
    norm : {"l1", "l2"}, default="l1"
        "l2" is the square of the L2 norm. It ranked OOD rows of the digits and of CIFAR-10 a little
        better: see the page of the method.
    loss : {"kl", "bce", "ones"}, default="kl"
        "bce" is that of pytorch-ood 0.3.3: binary cross-entropy of the softmax probabilities
        against 1/C. "ones" is :math:`-\sum_c \log p_c` of GradUncertainty, whose gradient is C
        times that of "kl": the same ranking.
    temperature : float, default=1.0
        What the logits are divided by.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features, or inputs of the network, to scores.

    See Also
    --------
    ASHDetector : Energy of shaped activations.

    Notes
    -----
    Parameters of linear and convolution layers, normalisations and embeddings that are called once
    take one forward and one backward pass for all samples; others take one for each. The authors'
    code sums the divergence over classes instead of averaging: a factor C, the same ranking. A
    network whose logits are maps of a 1×1 convolution gets one score a pixel, from each pixel's own
    loss, with "head" alone. ``GradNorm`` of pytorch-ood 0.4.0 is ``params="all", loss="kl"``; that
    of 0.3.3, and its ``GradNormKL``, are ``params="all", loss="bce"``. Its ``GradUncertainty`` is
    ``params="all", norm="l2", loss="ones"``, but where its autograd through a confident softmax
    loses the gradient: in float32 a tenth of it is left at a gap of 30 between logits. Lee and
    AlRegib train a classifier on such norms of each layer, with OOD rows; their sum needs none.
    A classifier of one logit has a head of two rows, :math:`\mp w/2`: that is what "head" means
    there; other values of `params` mean the network's own parameters.

    References
    ----------
    Huang et al., "On the Importance of Gradients for Detecting Distributional Shifts in the
    Wild", NeurIPS 2021.

    Lee and AlRegib, "Gradients as a Measure of Uncertainty in Neural Networks", ICIP 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import GradNormDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = GradNormDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [0.0, 0.0, 0.0, 0.0]])
    array([ 1, -1])
    """

    params: str | Sequence[str] | Callable[[str], bool] = param(
        StrOptions({"head", "all"}), list, tuple, callable, default="head"
    )
    norm: str = param(StrOptions(set(ORDERS)), default="l1")
    loss: str = param(StrOptions(set(LOSSES)), default="kl")
    temperature: float = param(Interval(Real, 0, None, closed="neither"), default=1.0)

    def _build(self, network):
        names = [name for name, _ in network.module.named_parameters()]
        of_head = {}
        if network.has_head or network.map_head_is_sure or self.params == "head":
            head_name = network.map_head if network.map_head_is_sure else network.head_name
            prefix = f"{head_name}." if head_name else ""
            of_head = {f"{prefix}weight": "weight", f"{prefix}bias": "bias"}
        chosen = self._choose(names, next(iter(of_head), None))
        if not chosen <= set(of_head):
            norm = PerSampleGradientNorm(
                network.require_logits().module,
                chosen,
                LOSSES[self.loss],
                self.temperature,
                ORDERS[self.norm],
            )
            return nn.Identity(), norm
        parts = {of_head[name] for name in chosen}
        # One logit l stands for (-l/2, l/2), a head of two rows, each of whose gradients is as
        # large as that of the one row that the network has.
        share = 0.5 if network.one_logit and self.params != "head" else 1.0
        scorer = GradNormHeadScorer(
            network.head,
            LOSSES[self.loss],
            self.temperature,
            ORDERS[self.norm],
            weight=share * ("weight" in parts),
            bias=share * ("bias" in parts),
        )
        return network.features(), scorer

    def _choose(self, names, head_weight):
        """Return the names of the parameters that `params` selects."""
        if self.params == "head":
            return {head_weight}
        if self.params == "all":
            chosen = set(names)
        elif callable(self.params):
            chosen = {name for name in names if self.params(name)}
        else:
            chosen = set(self.params)
            for name in chosen - set(names):
                raise ValueError(
                    f"params names {name!r}, which the network does not have. "
                    f"{closest_names(name, names)}"
                )
        if not chosen:
            raise ValueError(
                f"params={self.params!r} selects no parameter. {closest_names('', names)}"
            )
        return chosen
