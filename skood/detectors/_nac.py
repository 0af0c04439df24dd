"""NAC-UE: neuron activation coverage."""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch

from skood._compat import Interval, StrOptions
from skood._kinds import ClassifierDetector
from skood._learning import LearningScorer
from skood._parameters import param
from skood._states import State
from skood._warnings import warn
from skood.functional import kl_to_uniform_grad, pool

PILOT_ROWS = 1000
SATURATED = 1e-3
# What "auto" makes of a standard deviation, as log-odds of the state. Logarithmic bins are dense
# at 0. Geometric ones are evenly spread over ±13.8: with 0.5 two of them hold nearly all states
# and the AUROC is that of chance (digits .50; .67 with 3).
AUTO_SPREAD = {"log": 0.5, "geometric": 3.0}

POSITIVE_OR_AUTO = (
    StrOptions({"auto"}),
    Interval(Real, 0, None, closed="neither"),
    "array-like",
)


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

    def __init__(self, head, n_layers, bins, n_bins, alpha, o_star):
        super().__init__()
        self.head, self.n_layers = head, n_layers
        self.bins, self.n_bins, self.alpha, self.o_star = bins, n_bins, alpha, o_star
        for name in ("edges", "alphas", "o_stars", "weights", "counts", "layers"):
            self.register_buffer(name, None)
        self.settings = ("alphas",)

    def start(self, training):
        """Set each neuron's alpha, from a pilot sample where it is "auto"."""
        self.edges = bin_edges(self.bins, self.n_bins).to(training.device)
        pilot = self._products(training.sample(PILOT_ROWS))
        widths = [p.shape[1] for p in pilot]
        alphas = [
            auto_alpha(p, self.bins) if a == "auto" else a
            for a, p in zip(per_layer(self.alpha, self.n_layers), pilot, strict=True)
        ]
        layers = torch.arange(self.n_layers).repeat_interleave(torch.tensor(widths))
        self.layers = layers.to(training.device)
        self.alphas = self._spread(alphas)
        self.weights = self._spread([1 / (self.n_layers * width) for width in widths])
        states = self._states(pilot)
        saturated = ((states < SATURATED) | (states > 1 - SATURATED)).double().mean()
        if saturated > 0.5:
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
        """Return the state of each neuron in [0, 1], (n_samples, n_neurons)."""
        return torch.sigmoid(self.alphas * torch.cat([p.double() for p in products], dim=1))

    def _cells(self, inputs):
        """Return each state's place in the flattened table of neurons and bins."""
        states = self._states(self._products(inputs))
        n_bins = len(self.edges) - 1
        if self.bins == "log":
            index = torch.bucketize(states, self.edges, right=True) - 1
        else:
            index = torch.bucketize(states.clamp(1e-6, 1 - 1e-6), self.edges) - 1
        neurons = torch.arange(len(self.alphas), device=index.device)
        return index.clamp_(0, n_bins - 1).add_(neurons * n_bins)

    def empty(self, inputs, n_classes, n_expected):
        """Return counts of no rows."""
        counts = self.edges.new_zeros(len(self.alphas), len(self.edges) - 1, dtype=torch.int64)
        return State(counts=counts)

    def update(self, state, inputs, codes, keys):
        """Count the states of a batch."""
        cells = self._cells(inputs).flatten()
        state.counts += torch.bincount(cells, minlength=state.counts.numel()).view_as(state.counts)

    def finish(self, state, classes):
        """Set each neuron's o_star, from the number of rows where it is "auto"."""
        self.counts = state.counts.clone()
        # A row counts once for each neuron.
        auto = min(50.0, max(1.0, int(self.counts[0].sum()) / self.n_bins))
        self.o_stars = self._spread(
            [auto if o == "auto" else o for o in per_layer(self.o_star, self.n_layers)]
        )

    def _coverage(self, counts, cells):
        """Return the weighted mean coverage of the bins that the states fall into."""
        table = (counts / self.o_stars.unsqueeze(1)).clamp(0, 1)
        return (table.view(-1)[cells] @ self.weights).clamp(0, 1)

    def forward(self, *inputs):
        """Score rows."""
        return self._coverage(self.counts, self._cells(inputs))

    def leave_one_out(self, inputs, codes, keys):
        """Score training rows, each one's own count taken out of its bins."""
        return self._coverage(self.counts - 1, self._cells(inputs))


def per_layer(value, n_layers):
    """Return a value, or a list of one a layer, as a list."""
    single = value is None or isinstance(value, (str, Real))
    return [value] * n_layers if single else list(value)


def auto_alpha(products, bins):
    """Return the steepness that spreads products of this standard deviation over the bins."""
    deviation = float(products.double().std(correction=0))
    alpha = AUTO_SPREAD[bins] / deviation if deviation > 0 else 1.0
    return alpha if np.isfinite(alpha) else 1.0


class NACDetector(ClassifierDetector):
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
    n_bins : int, default=50
        The resolution M; even and at least 4 for ``bins="log"``.
    alpha : "auto", float, or list of these, default="auto"
        The steepness, or one a layer. "auto" is 0.5 / the standard deviation of
        :math:`z \odot \partial \mathrm{KL} / \partial z` over up to 1000 training rows, 3 / it
        for geometric bins: a fixed value depends on the scale and width of the network (with 100,
        60-96 % of the states saturated).
    o_star : "auto", float, or list of these, default="auto"
        The count that covers a bin, or one a layer. "auto" is min(50, max(1, n / n_bins)).
    bins : {"log", "geometric"}, default="log"
        "log" is the authors' code, dense around 0.5; "geometric" is pytorch-ood's, dense at 0
        and 1.
    pooling : {"separate", "product"}, default="separate"
        Maps and tokens become one number a neuron. "separate", the authors' code: sums of z and
        of its gradient, then their product; tokens that are 0 in ``X["attention_mask"]`` do not
        count. "product", pytorch-ood: the mean of the product over
        maps, tokens flattened.
    channel_axis : int, list of int or None, default=None
        The axis of a layer's output that holds the neurons, where it has positions too: 1 for
        (n, C, H, W) and (n, C, L), -1 for (n, H, W, C) and (n, T, C); or one a layer. None: what
        the layers of torch inside of it or before it tell; a warning says where it was guessed.
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
    Scores step from bin to bin. The authors count 1000 rows, balanced over the classes: with many
    more rows than ``o_star * n_bins`` every bin is covered and most rows score exactly 1.
    pytorch-ood sums over layers instead of averaging, the same ranking. The authors' settings for
    CIFAR-10 (layer: o_star, n_bins, alpha) are avgpool: 50, 50, 100; layer3: 100, 500, 1000;
    layer2: 5, 50, 0.001; layer1: 100, 500, 0.001.

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
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [0.0, 0.0, 0.0, 0.0]])
    array([ 1, -1])
    """

    layers: Sequence[str | None] | None = param(list, tuple, None, default=None, kw_only=False)
    n_bins: int = param(Interval(Integral, 2, None, closed="left"), default=50)
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
    channel_axis: int | Sequence[int | None] | None = param(
        Integral, "array-like", None, default=None
    )

    def _build(self, network):
        layers = [None] if self.layers is None else list(self.layers)
        if self.bins == "log" and (self.n_bins % 2 or self.n_bins < 4):
            raise ValueError(
                f"n_bins={self.n_bins} must be even and at least 4 with bins='log', whose edges "
                "are symmetric around 0.5."
            )
        if len(set(layers)) < len(layers) or not layers:
            raise ValueError(f"layers={layers} must name at least one layer, each once.")
        for name in ("alpha", "o_star"):
            check_per_layer(name, getattr(self, name), len(layers))
        axes = check_number("channel_axis", self.channel_axis, len(layers))
        settings = (len(layers), self.bins, self.n_bins, self.alpha, self.o_star)
        if layers == [None]:
            return network.features(), NACScorer(network.head, *settings)
        taps = network.require_logits().taps(
            layers, {"separate": pool_separate, "product": pool_product}[self.pooling], axes
        )
        return taps, NACScorer(None, *settings)


def check_number(name, value, n_layers):
    """Return a parameter as a list of one value a layer, or raise if it has another number."""
    values = per_layer(value, n_layers)
    if len(values) != n_layers:
        raise ValueError(
            f"{name} has {len(values)} entries for {n_layers} layers: give one number, or one a "
            "layer in the order of `layers`."
        )
    return values


def check_per_layer(name, value, n_layers):
    """Raise unless a parameter is positive or "auto", once or once a layer."""
    for entry in check_number(name, value, n_layers):
        if not (entry == "auto" or (isinstance(entry, Real) and 0 < entry < np.inf)):
            raise ValueError(f"{name} must be 'auto' or positive numbers, got {entry!r}.")
