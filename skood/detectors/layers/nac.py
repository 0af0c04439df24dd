"""NAC-UE: neuron activation coverage."""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from skood._compat import Interval, StrOptions
from skood._warnings import warn
from skood.estimators.kinds import ClassifierDetector, ReadsLayers, per_layer
from skood.estimators.parameters import param
from skood.functional import kl_to_uniform_grad, pool
from skood.learning.learning import LearningScorer
from skood.learning.states import State

PILOT_ROWS = 1000
SATURATED = 1e-3
# Spreads that "auto" tries, as standard deviations of log-odds. Logarithmic bins are dense at 0;
# geometric ones are evenly spread over ±13.8 (digits, spread 3: AUROC .92, 12: .98).
AUTO_SPREADS = {"log": (1.0, 2.0, 6.0), "geometric": (12.0, 24.0, 72.0)}
# What is left of the products of a row of which the network is less sure.
DOUBT = 0.25

# Of 512 neurons, 400 MB.
MAX_BINS = 100_000


def bin_edges(bins, n_bins):
    """Return the edges of the bins of [0, 1].

    Parameters
    ----------
    bins : {"log", "geometric"}
        "log": n_bins - 1 bins [a, b), dense around 0.5. "geometric": 2 * (n_bins // 2) bins
        (a, b], dense at 0 and 1.
    n_bins : int
        As the papers count them.

    Returns
    -------
    edges : Tensor of shape (n_edges,), dtype float64
        Ascending.
    """
    half = n_bins // 2
    if bins == "log":
        left = np.log(np.linspace(1, np.sqrt(1e3), half)) / np.log(1e3)
        right = 1 - left[::-1]
        # The authors' last edges: 1 itself must fall below one.
        right[-1] += 0.01
        return torch.from_numpy(np.concatenate([left[:-1], right, [1.2]]))
    left = np.geomspace(1e-6, 0.5, half + 1)
    # float32 puts this edge below 0.5, so that a silent neuron counts in the bin above.
    left[-1] = 0.5 - 3e-8
    return torch.from_numpy(np.concatenate([left, 1 - left[-2::-1]]))


def head_products(features, head):
    """Return h ⊙ ∂KL(u‖p)/∂h of what enters a linear head, in closed form.

    Parameters
    ----------
    features : Tensor of shape (n_samples, D)
        What enters the head.
    head : nn.Linear
        The head.

    Returns
    -------
    products : Tensor of shape (n_samples, D)
        One number a neuron.
    """
    return features * (kl_to_uniform_grad(head(features)).to(features.dtype) @ head.weight)


def pool_separate(z, grad, **how):
    """Sum z and its gradient over positions, each on its own, then multiply."""
    return pool(z, "sum", **how) * pool(grad, "sum", **how)


def pool_product(z, grad, *, channel_axis, mask):
    """Multiply z and its gradient, then average maps over positions; tokens are flattened."""
    if z.ndim == 3 and channel_axis in (None, 2, -1):
        return (z * grad).flatten(1)
    return pool(z * grad, channel_axis=channel_axis, mask=mask)


class NACScorer(LearningScorer):
    """Features, or products of several layers → mean coverage of the neurons' states.

    The neurons of all layers lie side by side; a neuron weighs 1 / (layers · its layer's width).
    """

    learned = ("edges", "alphas", "o_stars", "weights", "counts", "layers")
    settings = ("alphas",)

    def __init__(self, head, names, bins, n_bins, alpha, o_star):
        super().__init__()
        self.head, self.names, self.n_layers = head, names, len(names)
        self.bins, self.n_bins, self.alpha, self.o_star = bins, n_bins, alpha, o_star

    def start(self, training):
        """Set each neuron's alpha, from a pilot sample where it is "auto"."""
        n_bins = per_layer(self.n_bins, self.n_layers)
        edges = [bin_edges(self.bins, n).to(training.device) for n in n_bins]
        # Where layers differ in it, the table of counts is as wide as that of most bins.
        same = len(set(n_bins)) == 1
        self.edges = edges[0] if same else pad_sequence(edges, True, padding_value=np.inf)
        pilot = self._products(training.sample(PILOT_ROWS))
        widths = [p.shape[1] for p in pilot]
        alphas = [
            auto_alpha(p, e, self.bins, n) if a == "auto" else a
            for a, p, e, n in zip(
                per_layer(self.alpha, self.n_layers), pilot, edges, n_bins, strict=True
            )
        ]
        layers = torch.arange(self.n_layers).repeat_interleave(torch.tensor(widths))
        self.layers = layers.to(training.device)
        self.alphas = self._spread(alphas)
        self.weights = self._spread([1 / (self.n_layers * width) for width in widths])
        states = torch.cat(self._states(pilot), dim=1)
        saturated = ((states < SATURATED) | (states > 1 - SATURATED)).double().mean()
        if saturated > 0.5 and not isinstance(self.alpha, str):
            warn(
                f"{saturated:.0%} of the neuron states are saturated at 0 or 1: alpha="
                f"{self.alpha!r} is too large for these features. Use alpha='auto'."
            )

    def _spread(self, values):
        """Return a value of each layer as one of each neuron."""
        values = torch.tensor(values, dtype=torch.float64, device=self.layers.device)
        return values[self.layers]

    def _products(self, inputs):
        """Return z ⊙ gradient of each layer."""
        return inputs if self.head is None else (head_products(*inputs, self.head),)

    def _states(self, products):
        """Return the states of each layer's neurons in [0, 1], (n_samples, width)."""
        alphas = self.alphas.split([p.shape[1] for p in products])
        return [torch.sigmoid(a * p.double()) for a, p in zip(alphas, products, strict=True)]

    def _cells(self, inputs):
        """Return each state's place in the flattened table of neurons and bins."""
        states = self._states(self._products(inputs))
        edges = torch.atleast_2d(self.edges).expand(self.n_layers, -1)
        found = [find_bins(z, e, self.bins) for z, e in zip(states, edges, strict=True)]
        return in_table(torch.cat(found, dim=1), self._n_columns)

    @property
    def _n_columns(self):
        """The number of bins of the layer that has most."""
        return self.edges.shape[-1] - 1

    def init_state(self, inputs, n_classes, n_expected):
        """Return counts of no rows."""
        counts = self.edges.new_zeros(len(self.alphas), self._n_columns, dtype=torch.int64)
        return State(counts=counts)

    def update(self, state, inputs, class_indices, keys):
        """Count the states of a batch."""
        cells = self._cells(inputs).flatten()
        state.counts += torch.bincount(cells, minlength=state.counts.numel()).view_as(state.counts)

    def finalize(self, state, classes):
        """Set each neuron's o_star, from the number of rows where it is "auto"."""
        self.counts = state.counts.clone()
        # A row counts once for each neuron.
        n_rows = int(self.counts[0].sum())
        o_stars, n_bins = (per_layer(v, self.n_layers) for v in (self.o_star, self.n_bins))
        self.o_stars = self._spread(
            [
                auto_o_star(n_rows, n) if o == "auto" else o
                for o, n in zip(o_stars, n_bins, strict=True)
            ]
        )

    def _covered(self, counts, cells):
        """Return the coverage of the bins that the states fall into, (n_samples, n_neurons)."""
        return (counts / self.o_stars.unsqueeze(1)).clamp(0, 1).view(-1)[cells]

    def _coverage(self, counts, cells):
        """Return its weighted mean."""
        return (self._covered(counts, cells) @ self.weights).clamp(0, 1)

    @property
    def part_names(self):
        """The neurons of several layers by layer and number; None of a single layer."""
        if self.n_layers == 1:
            return None
        names = ["features" if name is None else name for name in self.names]
        widths = torch.bincount(self.layers).tolist()
        return [f"{n} {i}" for n, width in zip(names, widths, strict=True) for i in range(width)]

    def explain(self, *inputs):
        """Return what each neuron takes from a score of 1, which rows have that are covered."""
        parts = (self._covered(self.counts, self._cells(inputs)) - 1) * self.weights
        return {"contributions": parts, "base": torch.ones_like(parts[:, 0])}

    def forward(self, *inputs):
        """Score rows."""
        return self._coverage(self.counts, self._cells(inputs))

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each one's own count taken out of its bins."""
        return self._coverage(self.counts - 1, self._cells(inputs))


def find_bins(states, edges, bins):
    """Return the bin that each state falls into."""
    if bins == "geometric":
        states = states.clamp(1e-6, 1 - 1e-6)
    index = torch.bucketize(states, edges, right=bins == "log") - 1
    return index.clamp_(0, len(edges) - 2)


def in_table(index, n_columns):
    """Turn the bins of neurons into places in the flattened table of neurons and bins."""
    neurons = torch.arange(index.shape[1], device=index.device)
    return index.add_(neurons * n_columns)


def auto_o_star(n_rows, n_bins):
    """Return the rows that a bin would hold if all held as many, at least one."""
    return max(1.0, n_rows / n_bins)


def auto_alpha(products, edges, bins, n_bins):
    """Return the least steepness at which rows in doubt do not look more familiar than rows.

    The bins around 0 are the fullest where products are small: there a row of which the network
    is less sure, whose products are those of a training row shrunk, would be covered better than
    the training row itself. Steeper states move the training rows away from 0.

    Parameters
    ----------
    products : Tensor of shape (n_samples, n_neurons)
        z ⊙ gradient of some training rows.
    edges : Tensor of shape (n_edges,)
        The edges of the bins.
    bins : {"log", "geometric"}
        Their kind.
    n_bins : int
        Their number as the papers count them.

    Returns
    -------
    alpha : float
        The first of `AUTO_SPREADS`, over the standard deviation of the products, at which at most
        half of the rows are covered less than they are shrunk; else the last. 1 where the products
        are all equal.
    """
    products = products.double()
    deviation, n_columns = float(products.std(correction=0)), len(edges) - 1
    alpha, o_star = 1.0, auto_o_star(len(products), n_bins)
    if not (deviation > 0 and np.isfinite(AUTO_SPREADS[bins][-1] / deviation)):
        return alpha
    for spread in AUTO_SPREADS[bins]:
        alpha = spread / deviation
        sure, doubted = (
            in_table(find_bins(torch.sigmoid(alpha * p), edges, bins), n_columns)
            for p in (products, DOUBT * products)
        )
        counts = torch.bincount(sure.flatten(), minlength=products.shape[1] * n_columns)
        coverage = (counts / o_star).clamp(max=1)
        # Sums of the same numbers in another order differ by rounding.
        gain = coverage[doubted].double().mean(1) - coverage[sure].double().mean(1)
        if (gain > 1e-6).double().mean() <= 0.5:
            break
    return alpha


class NACDetector(ReadsLayers, ClassifierDetector):
    r"""Neuron activation coverage (NAC-UE): how often training rows put neurons in these states.

    For a layer with output :math:`z` the state of a neuron is
    :math:`\hat z = \mathrm{sigmoid}(\alpha\, z \odot \partial \mathrm{KL}(u\|p)/\partial z)`.
    ``fit`` counts, for each neuron, the training rows whose state falls into each bin of [0, 1];
    the coverage of a bin is :math:`\min(\mathrm{count} / O^*, 1)`. The score is the mean coverage
    of a row's bins over neurons, averaged over layers.

    Parameters
    ----------
    layers : list of str or None, default=None
        The submodules whose outputs are read, from one forward and one backward pass; an entry
        None is what enters the last linear layer. None: that alone, in closed form.
    n_bins : int, or list of these, default=50
        The resolution M, or one a layer; even and at least 4 for ``bins="log"``.
    alpha : "auto", float, or list of these, default="auto"
        The steepness, or one a layer. "auto" measures it, see Notes; the authors' 100 is for one
        layer of one network.
    o_star : "auto", float, or list of these, default="auto"
        The count that covers a bin, or one a layer. "auto" is max(1, n / n_bins), what each bin
        would hold if all held as many; the authors' 50 is that of 2500 rows.
    bins : {"log", "geometric"}, default="log"
        "log" is the authors' code, dense around 0.5; "geometric" is pytorch-ood's, dense at 0
        and 1.
    pooling : {"separate", "product"}, default="separate"
        Maps and tokens become one number a neuron. "separate", the authors' code: sums of z and
        of its gradient, then their product; tokens that are 0 in ``X["attention_mask"]`` do not
        count. "product", pytorch-ood: the mean of the product over
        maps, tokens flattened.
    random_state : int, RandomState or None, default=None
        Draws the pilot sample for "auto", and the k-means clusters that stand in for classes
        where ``model=None`` gets no y.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features (or the layers' products) to scores; its buffers ``counts`` (n_neurons,
        number of bins), ``edges``, ``alphas`` and ``o_stars`` hold what was learned.

    See Also
    --------
    GradNormDetector : The size of the same loss's gradient with respect to weights.

    Notes
    -----
    Scores step from bin to bin. A fixed ``o_star`` fits one number of rows, a fixed ``alpha`` one
    scale and width: with many more rows than ``o_star * n_bins`` every bin is covered and most
    rows score exactly 1. Features of a ResNet-20 on CIFAR-10 against MNIST: AUROC .81 with 1000
    rows and .47 with 50 000 where ``o_star`` is at most 50, .90 and .89 with "auto". The authors
    count 1000 rows, balanced over the classes.

    ``alpha="auto"`` is 1, 2 or 6 (geometric bins: 12, 24 or 72) over the standard deviation of
    :math:`z \odot \partial \mathrm{KL} / \partial z` of a layer, over up to 1000 training rows: the
    first with which at most half of these rows are covered less than they would be with products
    a quarter as large, which is how a row looks of which the network is less sure. 1 is enough for
    the features of ReLU networks. Where features have length 1, as sentence embeddings do, OOD rows
    differ in little else than small products, and the bins around 0 are the fullest: with 1 the
    ranking is upside down (AUROC .23; .78 with the 2 that is chosen).

    pytorch-ood sums over layers instead of averaging, the same ranking. The authors' settings for
    CIFAR-10, avgpool, layer3, layer2 and layer1, are ``o_star=[50, 100, 5, 100]``,
    ``n_bins=[50, 500, 50, 500]`` and ``alpha=[100, 1000, 0.001, 0.001]``.

    References
    ----------
    Liu et al., "Neuron Activation Coverage: Rethinking Out-of-distribution Detection and
    Generalization", ICLR 2024.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import NACDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = NACDetector(random_state=0).fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [9.0, 0.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    n_bins: int | Sequence[int] = param(
        Interval(Integral, 2, None, closed="left"), "array-like", default=50
    )
    alpha: float | Sequence[float] | str = param(
        StrOptions({"auto"}),
        Interval(Real, 0, None, closed="neither"),
        "array-like",
        default="auto",
    )
    o_star: float | Sequence[float] | str = param(
        StrOptions({"auto"}),
        Interval(Real, 0, None, closed="neither"),
        "array-like",
        default="auto",
    )
    bins: str = param(StrOptions({"log", "geometric"}), default="log")
    pooling: str = param(StrOptions({"separate", "product"}), default="separate")

    def _threshold(self, scores, *args):
        """Return the threshold; warn where it cannot tell rows apart."""
        share = float(torch.unique(scores, return_counts=True)[1].max() / scores.numel())
        # With both "auto" half of the rows of iris are covered in full, by its four neurons.
        measured = isinstance(self.alpha, str) and isinstance(self.o_star, str)
        # Of few rows many score the same by chance.
        if len(scores) >= 100 and share > (0.9 if measured else 0.5):
            warn(
                f"{share:.0%} of the training rows score the same with o_star={self.o_star!r}, "
                f"alpha={self.alpha!r}.\nRows are told apart only where some bins are covered in "
                "part: use 'auto' for both, or more n_bins."
            )
        return super()._threshold(scores, *args)

    def _build(self, network):
        layers, axes = self._layers_and_axes([None])
        for name in ("n_bins", "alpha", "o_star"):
            check_per_layer(name, getattr(self, name), len(layers))
        for n in per_layer(self.n_bins, len(layers)):
            if n > MAX_BINS:
                raise ValueError(
                    f"n_bins={n} is more than {MAX_BINS}: each neuron keeps a count of each bin. "
                    "The authors' settings are 50 to 1000."
                )
            if self.bins == "log" and (n % 2 or n < 4):
                raise ValueError(
                    f"n_bins={n} must be even and at least 4 with bins='log', whose edges are "
                    "symmetric around 0.5."
                )
        settings = (layers, self.bins, self.n_bins, self.alpha, self.o_star)
        if layers == [None]:
            scorer = NACScorer(network.head, *settings)
            network.require_logits()
            return network.features(), scorer
        combine = {"separate": pool_separate, "product": pool_product}[self.pooling]
        body = network.require_logits().gradients(
            layers, kl_to_uniform_grad, combine, channel_axes=axes
        )
        body.not_exportable += " Without `layers` NACDetector does not."
        return body, NACScorer(None, *settings)


def check_per_layer(name, value, n_layers):
    """Raise unless a parameter is valid, once or once a layer."""
    for entry in per_layer(value, n_layers, name):
        if name == "n_bins":
            valid, what = isinstance(entry, Integral) and entry >= 2, "integers from 2 on"
        else:
            valid = entry == "auto" or (isinstance(entry, Real) and 0 < entry < np.inf)
            what = "'auto' or positive numbers"
        if not valid:
            raise ValueError(f"{name} must be {what}, got {entry!r}.")
