"""Gram matrices: how far the correlations of channels lie outside of those of a class."""

from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real

import torch
from torch import nn

from skood._compat import Interval, StrOptions
from skood._warnings import warn
from skood.estimators.kinds import ClassifierDetector, ReadsStages
from skood.estimators.parameters import param
from skood.functional import clip_to, counting_positions, msp
from skood.learning.agreement import check_some_known, row_columns
from skood.learning.blocks import block_rows, score_in_blocks, takes_plain_path
from skood.learning.bounds import ClassBounds
from skood.learning.learning import LearningScorer
from skood.learning.moments import check_squares
from skood.learning.thresholds import N_ULPS
from skood.network.modules import Pool

# What is divided by is not less. ONNX has such numbers, and not the smallest of float64.
TINY = torch.finfo(torch.float32).tiny
# Of the mean bound of a layer.
AUTO_EPS = 0.1


def gram_sums(z, powers):
    """Return the sums of the rows of Gram matrices of powers of z, without these matrices.

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_channels, n_positions)
        What a layer gives.
    powers : sequence of int
        From 1 on.

    Returns
    -------
    roots : Tensor of shape (n_samples, n_channels, n_powers)
        The square roots, with sign, of the sums g: these are as large as squares of z, which
        float32 might not hold.
    """
    if takes_plain_path(z):
        return roots_of_sums(z, powers)
    # Each power reads and writes as much as z: in cache that takes a quarter of the time.
    size = block_rows(8 * z.shape[1] * z.shape[2] * z.element_size(), z.device)
    roots = z.new_empty(len(z), z.shape[1], len(powers))
    for part, block in zip(roots.split(size), z.split(size), strict=True):
        part.copy_(roots_of_sums(block, powers))
    return roots


def roots_of_sums(z, powers):
    """Return what `gram_sums` does, of a few rows."""
    # Of each channel and each row: powers of what is at most 1 do not overflow.
    sizes = torch.maximum(z.amax(2, True), -z.amin(2, True)).clamp(min=TINY)
    size = sizes.amax(1, True)
    scaled, shares = z / sizes, (sizes / size).mT
    power, weights, roots = scaled, shares, []
    for p in range(1, max(powers) + 1):
        if p > 1:
            power, weights = power * scaled, weights * shares
        if p in powers:
            sums = (power @ (weights @ power).mT)[:, :, 0]
            # A root has no gradient at 0.
            sizes_of_sums = sums.abs().clamp(min=torch.finfo(sums.dtype).tiny)
            roots.append(sums.sign() * sizes_of_sums ** (0.5 / p))
    return torch.stack(roots, 2) * (sizes.sqrt() * size.sqrt())


def gram_rows(output, powers, *, channel_axis, mask):
    """Return the Gram sums of a layer as one row a sample; positions that are padding are left out.

    Parameters
    ----------
    output : Tensor of shape (n_samples, D), (n_samples, T, D) or (n_samples, C, H, W, ...)
        What a layer gives.
    powers, channel_axis, mask
        See `gram_sums` and `skood.functional.pool`.
    """
    if output.ndim == 2:
        return gram_sums(output[:, :, None], powers).flatten(1)
    axis = (channel_axis or (2 if output.ndim == 3 else 1)) % output.ndim
    positions = tuple(other for other in range(1, output.ndim) if other != axis)
    counts = counting_positions(output.shape, positions, mask)
    output = output if counts is None else output.where(counts, 0)
    return gram_sums(output.movedim(axis, 1).flatten(2), powers).flatten(1)


def squares(roots):
    """Return what roots with sign are of, in float64: it holds the squares of float32."""
    return roots.double() * roots.double().abs()


def relative_distances(roots, low, high, eps):
    """Return how far sums are below the least or above the largest, in units of these.

    Parameters
    ----------
    roots, low, high : Tensor of shape (n_samples, n_sums)
        Of the sums as `gram_sums` gives them.
    eps : Tensor of shape (n_sums,)
        Added to what is divided by.
    """
    # A training row is inside, however it is rounded in another batch.
    slack = 2 * N_ULPS * torch.finfo(roots.dtype).eps
    sums, low, high = map(squares, (roots, low, high))
    below, above = (low - sums) / (low.abs() + eps), (sums - high) / (high.abs() + eps)
    return (below - slack).clamp(min=0) + (above - slack).clamp(min=0)


class GramScorer(LearningScorer):
    """Gram sums of layers, and logits → minus their distances from those of the predicted class."""

    learned = ("eps", "expected")

    def __init__(self, layers, by, divide_by_msp, eps):
        super().__init__()
        self.layers, self.by, self.divide_by_msp, self.given_eps = layers, by, divide_by_msp, eps
        self.bounds = ClassBounds()
        # The label of each logit, where it is known.
        self.known = None

    def check(self, inputs):
        """Raise if sums would overflow."""
        for roots in inputs[:-1]:
            check_squares(roots)

    def init_state(self, inputs, n_classes, n_expected):
        """Return the extremes of no rows by logit."""
        *layers, logits = inputs
        return self.bounds.init_state(layers, logits.shape[1])

    def _own(self, inputs, class_indices):
        """Return the logit that each training row counts to; -1 if none."""
        if self.by == "predicted":
            return inputs[-1].argmax(1)
        return row_columns(class_indices, self.labels, inputs[-1], self.known)

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        own = self._own(inputs, class_indices)
        is_known = own >= 0
        self.bounds.update(state, [roots[is_known] for roots in inputs[:-1]], own[is_known])

    def finalize(self, state, classes):
        """Set the bounds, and by how much each layer of a training row misses those of others."""
        self.labels, bounds = classes, self.bounds
        check_some_known(bool(state.counts.any()), classes)
        bounds.finalize(state)
        n_few = int((bounds.counts < 2).sum())
        if n_few:
            warn(
                f"To {n_few} of {len(bounds.counts)} classes fewer than two rows of fit count: "
                "rows that are predicted so are compared with the extremes of all rows."
            )
        widths = [extremes.high.shape[2] for extremes in state.extremes]
        if self.given_eps == "auto":
            sizes = [squares(bound).abs().mean(0) for bound in (bounds.low, bounds.high)]
            means = [part.mean() for part in (sum(sizes) / 2).split(widths)]
            self.eps = (AUTO_EPS * torch.stack(means)).clamp(min=TINY)
        else:
            self.eps = torch.full((len(widths),), self.given_eps).to(bounds.low.device).double()
        self.expected = self._expected(widths)

    def _expected(self, widths):
        """Return the mean deviation of training rows at each layer, each row left out."""
        total = self.eps.new_zeros(len(widths))
        for roots, own in self.bounds.holders():
            total += self._deviations(roots, self.bounds.without(roots, own, own), widths).sum(0)
        is_none = total == 0
        if is_none.all():
            return torch.ones_like(total)
        if is_none.any():
            names = [name for name, none in zip(self.layers, is_none.tolist(), strict=True) if none]
            warn(f"At {names} no training row is outside of what the others span: left out.")
        return torch.where(is_none, torch.inf, total / self.bounds.counts.sum())

    def _deviations(self, roots, bounds, widths):
        """Return the relative distances of rows from bounds, summed over each layer."""
        eps = torch.cat([e.expand(width) for e, width in zip(self.eps, widths, strict=True)])
        parts = relative_distances(roots, *bounds, eps).split(widths, 1)
        return clip_to(torch.stack([part.sum(1) for part in parts], 1), torch.float64)

    def clear_cache(self):
        """Drop what only learning needs."""
        self.bounds.clear_cache()

    def forward(self, *inputs):
        """Score rows."""
        return self._in_blocks(self._score, *inputs)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each left out of the extremes."""
        own = self._own(inputs, class_indices)
        return self._in_blocks(lambda own, *inputs: self._score(*inputs, own=own), own, *inputs)

    def _in_blocks(self, score, *inputs):
        return score_in_blocks(score, 64 * self.bounds.low.shape[1], *inputs)

    @property
    def part_names(self):
        """The names of the layers."""
        return ["features" if name is None else name for name in self.layers]

    def explain(self, *inputs):
        """Return what each layer adds to the score."""
        parts = self._by_layer(*inputs)
        return {"contributions": parts, "base": torch.zeros_like(parts[:, 0])}

    def _score(self, *inputs, own=None):
        """Return minus the deviations of all layers."""
        return clip_to(self._by_layer(*inputs, own=own).sum(1), torch.float64)

    def _by_layer(self, *inputs, own=None):
        """Return minus the deviation of each layer."""
        *layers, logits = inputs
        roots, predicted = torch.cat(layers, 1), logits.argmax(1)
        if own is None:
            bounds = self.bounds(predicted)
        else:
            bounds = self.bounds.without(roots, own, predicted)
        widths = [layer.shape[1] for layer in layers]
        deviations = self._deviations(roots, bounds, widths) / self.expected
        if self.divide_by_msp:
            deviations = deviations / msp(logits.double())[:, None]
        # Not -0.
        return 0 - deviations


class GramDetector(ReadsStages, ClassifierDetector):
    r"""Distance of the Gram matrices of several layers from those of the predicted class.

    With the output :math:`z` of a layer, N channels by P positions, the row sums of the Gram matrix
    of its powers are :math:`g_c^p = (\sum_t z_{ct}^p \sum_{c'} z_{c't}^p)^{1/p}`, with the sign of
    what is in brackets. With the least and largest of each over the training rows that are
    predicted as the row is, it deviates at layer i by

    .. math:: \delta_i = \sum_{c, p} \frac{\max(\mathrm{low} - g, 0)}{|\mathrm{low}| + \epsilon}
       + \frac{\max(g - \mathrm{high}, 0)}{|\mathrm{high}| + \epsilon},

    and the score is :math:`-\sum_i \delta_i / E_i / \max p`, where :math:`E_i` is the mean
    :math:`\delta_i` of training rows, each left out.

    Parameters
    ----------
    powers : sequence of int, default=(1, 2, 3)
        Each p, from 1 on. The authors have 1 to 10. On CIFAR-10 these three reached a mean AUROC of
        .916, 1 to 5 .916, 1 to 10 .913 and 1 alone .912; memory is in proportion to how many.
    by : {"predicted", "label"}, default="predicted"
        Whose extremes a training row counts to: those of the class that it is predicted as, or of
        its label's.
    divide_by_msp : bool, default=True
        Divide by the largest softmax probability. Without it CIFAR-10 has .912.
    eps : "auto" or float, default="auto"
        :math:`\epsilon`, in units of z². "auto" is a tenth of the mean bound of the layer: by a
        channel that is silent in all rows of a class the authors' 1e-6 divides. On digits it
        reached .993, 1.00 and .998 where 1e-6 did .990, .996 and .997, on CIFAR-10 .916 for .912.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps the square roots of the sums of each layer, and logits, to scores. ``bounds.low`` and
        ``bounds.high`` (C, sums of all layers) are the square roots, with sign, of the bounds of
        each class, and ``expected`` (n_layers,) is E.

    Raises
    ------
    ValueError
        If `powers` are no integers from 1 on.

    Warns
    -----
    UserWarning
        If fewer than two rows count to a class: rows that are predicted so are compared with the
        extremes of all training rows.

    See Also
    --------
    LayersDetector : A detector on features at each of several layers, such as nearest neighbours.

    Notes
    -----
    No Gram matrix is made: a power takes time in proportion to N·P. Sums are taken where the layer
    is called, and its output is not kept. On outputs of a ReLU they are exact to rounding; where z
    has both signs, roots of odd powers above 1 are steep at 0 (1e-6 in float32 for p = 5).
    Learning keeps four numbers for each class and sum, what is learned two.

    With ``by="predicted"`` all rows of ``fit`` score 0. For the threshold each is left out of the
    extremes, exactly: the second least takes the place of the least. Without that 71 % of fresh
    digits would be called out-of-distribution. E is the mean over these rows, in closed form; the
    authors take it from a tenth of the test rows, pytorch-ood and OpenOOD from a random tenth of
    the training rows of each class. Where it is 0, the layer is left out.

    Otherwise the authors have ``eps=1e-6, powers=range(1, 11)`` and all convolutions and ReLUs as
    layers, OpenOOD the same with ``by="label"`` and powers of its own, and pytorch-ood
    ``eps=1e-6, by="label", divide_by_msp=False`` and powers from 1 to the number of layers.

    References
    ----------
    Sastry and Oore, "Detecting Out-of-Distribution Examples with Gram Matrices", ICML 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import GramDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = GramDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    powers: Sequence[int] = param("array-like", default=(1, 2, 3))
    by: str = param(StrOptions({"predicted", "label"}), default="predicted")
    divide_by_msp: bool = param("boolean", default=True)
    eps: float | str = param(
        StrOptions({"auto"}), Interval(Real, 0, None, closed="neither"), default="auto"
    )

    def _build(self, network):
        powers = sorted(set(self.powers))
        if not powers or not all(isinstance(p, Integral) and p >= 1 for p in powers):
            raise ValueError(f"powers must be integers from 1 on, got {self.powers}.")
        layers, axes = self._layers_and_axes(network.stages())
        body = network.require_logits().layers(
            layers, partial(gram_rows, powers=powers), with_logits=True, channel_axes=axes
        )
        if network.takes_features:
            # Their positions are averaged, as they are for the head.
            body = nn.Sequential(Pool("avg"), body)
        scorer = GramScorer(layers, self.by, self.divide_by_msp, self.eps)
        scorer.known = network.classes
        return body, scorer
