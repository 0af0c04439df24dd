"""GrOOD: where the gradient at a prototype of OOD rows lies among those of training rows."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from skood._compat import Interval, StrOptions
from skood._warnings import warn
from skood.detectors.features.knn import KNNScorer
from skood.estimators.kinds import HeadDetector, KeepsBank
from skood.estimators.parameters import param
from skood.functional import clip_to, energy, radial
from skood.learning.agreement import label_columns
from skood.learning.gaussians import squared_distances
from skood.learning.moments import ClassSums
from skood.learning.norms import lengths
from skood.learning.reservoir import Reservoir
from skood.learning.states import State

# Noise comes in so many batches of so many rows.
NOISE_BATCHES, NOISE_ROWS = 10, 100
# Rows beyond this are shrunk, as squares would overflow; a smaller share of o is warned of.
FAR, LEAST_SHARE = 1e100, 1e-12


def prototype_gradients(features, prototypes, other, temperature):
    """Return (h - o) / |h - o| of rows h, times the share of o in a softmax of minus distances.

    Of rows (n_samples, D), prototypes (K, D) of classes and o (D,). But for the temperature it is
    the gradient with respect to o of the cross-entropy, whatever the class; at o it is 0.
    """
    delta, prototypes = features.double() - other, prototypes - other
    if not torch.compiler.is_exporting():
        delta = delta * (FAR / delta.abs().amax(1, keepdim=True).clamp(min=FAR))
    total = squared_distances(delta, prototypes).sqrt() + lengths(delta)[:, None]
    # Differences of distances by those of their squares: of far rows they would be rounding.
    further = prototypes.square().sum(1) - 2 * delta @ prototypes.T
    further = further / total.clamp(min=torch.finfo(total.dtype).tiny)
    log_shares = -torch.logsumexp(pad(-further / temperature, (1, 0)), 1)
    return log_shares.exp()[:, None] * radial(delta, 1)


class GrOODScorer(KNNScorer):
    """Features → minus the squared distance to a near gradient of the bank."""

    learned = (*KNNScorer.learned, "prototypes", "other", "noise")
    settings = ("noise",)
    # Its distances are those of gradients, of which features are no parts.
    explain: Any = None

    def __init__(self, head, classes, ood, k, temperature, bank_size):
        super().__init__(k, False, False, False, bank_size, "exact")
        self.head, self.classes, self.ood = head, classes, ood
        self.temperature, self.range = temperature, None
        self.is_noise = isinstance(ood, str) and ood == "noise"
        if not self.is_noise:
            self.noise = torch.zeros(1, dtype=torch.float64)

    def note_rows(self, X):
        """Note the smallest and largest value of each channel: noise is drawn between them."""
        if self.is_noise:
            others = [axis for axis in range(X.ndim) if axis != 1]
            low, high = X.amin(others, keepdim=True), X.amax(others, keepdim=True)
            if self.range is not None:
                low, high = torch.minimum(low, self.range[0]), torch.maximum(high, self.range[1])
            self.range = low, high, X.shape[1:]

    def start(self, training):
        """Set the mean features of noise, where they are the prototype."""
        if self.is_noise:
            features, (low, high, shape) = [], self.range
            for _ in range(NOISE_BATCHES):
                shares = training.random_state.random_sample((NOISE_ROWS, *shape))
                noise = low + torch.from_numpy(shares).to(low) * (high - low)
                features.append(training.passed(noise)[0])
            features = torch.cat(features)
            least = energy(self.head(features)).topk(len(features) // 10, largest=False).indices
            self.noise = features[least].double().mean(0)

    def init_state(self, inputs, n_classes, n_expected):
        """Return sums and a bank of no rows."""
        (n_logits, n_features), device = self.head.weight.shape, inputs[0].device
        sums = ClassSums(n_classes, n_logits, n_features, device)
        return State(sums=sums, bank=Reservoir(self.bank_size, n_expected, with_codes=True))

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        features, predicted = inputs[0], self.head(inputs[0]).argmax(1)
        state.sums.update(features, class_indices, predicted)
        chosen = state.bank.choose(keys)
        kept = [part[chosen] for part in (features, predicted, class_indices)]
        state.bank.add(kept, keys[chosen])

    def finalize(self, state, classes):
        """Set the prototypes, and the bank of gradients of rows that are predicted right."""
        counts, means = state.sums.means(classes is not None)
        self.prototypes = means[counts > 0]
        self._set_other()
        self.keys, (features, predicted, class_indices) = state.bank.sample()
        if classes is not None and len(classes) > 1:
            n_logits, known = self.head.out_features, self.classes
            right = predicted == label_columns(class_indices, classes, n_logits, known)
            if bool(right.any()):
                self.keys, features = self.keys[right], features[right]
        rows = self.bank_rows(features)
        self.bank, self.n_bank = self.prepare(rows), len(rows)
        share = float(lengths(rows).median())
        if share < LEAST_SHARE:
            scale = squared_distances(features.double(), self.prototypes).amin(1).sqrt().mean()
            warn(
                f"The gradients of half of the rows are below {share:.0e}: distances to classes "
                f"are large beside temperature={self.temperature}.\nScores may be equal, or 0. "
                f"Give a temperature of about the distance to the nearest class, {scale:.2g}."
            )

    def _set_other(self):
        """Set the prototype of OOD rows."""
        if isinstance(self.ood, str):
            self.other = self.noise if self.is_noise else self.prototypes.mean(0)
            return
        self.other = torch.as_tensor(np.asarray(self.ood)).to(self.prototypes)
        if self.other.shape != self.prototypes.shape[1:]:
            raise ValueError(
                f"ood has shape {tuple(self.other.shape)}, but there are "
                f"{self.prototypes.shape[1]} features: give one number for each."
            )

    def bank_rows(self, features):
        """Return gradients."""
        return prototype_gradients(features, self.prototypes, self.other, self.temperature)

    def compare(self, inputs, k, own=None):
        """Score features by the k-th nearest gradient, without the `own` row of each."""
        return clip_to(-super().compare(inputs, k, own).square(), torch.float64)


class GrOODDetector(KeepsBank, HeadDetector):
    r"""Distance of gradients at a prototype of OOD rows from those of training rows.

    Features :math:`h` have the scores :math:`s_c = -\|h - \mu_c\| / T` by the class means and
    :math:`s_o` by a prototype :math:`o` of OOD rows. The gradient of their cross-entropy with
    respect to :math:`o` is :math:`G(h) = \mathrm{softmax}(s)_o\, (h - o) / \|h - o\|`. The score is
    :math:`-\|G(h) - G(h_{(k)})\|^2`, by the k-th nearest in a bank of training rows.

    Parameters
    ----------
    k : int, default=2
        Which neighbour. The authors take 1, with which ``predict`` would never call a row of `fit`
        OOD; near OOD texts had an AUROC of .88 with 1, .85 with 2 and .80 with 10, images the same.
    ood : "mean", "noise" or array of shape (n_features,), default="mean"
        The prototype. "mean": the mean of the class means. "noise": the mean features of those
        rows of uniform noise, between the smallest and largest values of each channel of X, whose
        energy is lowest: 100 of 1000. It takes a network whose inputs are an array of floats, and
        was better: see the page.
    temperature : float, default=1.0
        T, in units of the features. Where distances to classes are large beside it gradients
        vanish; a warning says so.
    bank_size : int, float or None, default=None
        How many training rows are drawn for the bank, which keeps those that are predicted right; a
        float is a share. None: all, of pixels 20 000.
    random_state : int, RandomState or None, default=None
        Draws the noise, the bank, and the k-means clusters that stand in for classes where
        ``model=None`` gets no y.

    Attributes
    ----------
    k_ : int
        The neighbour used.
    scorer_ : nn.Module
        Maps features to scores; its buffers are ``bank``, ``prototypes`` (n_classes, n_features)
        and ``other`` (n_features,), the prototype of OOD rows.

    Notes
    -----
    No gradient is computed: it has a closed form, whatever the class. Without y a row's class is
    the predicted one. For the threshold each training row is left out of the bank, and of more
    than 6000 a sample is compared; prototypes stay. A large bank is searched in float32, in a copy
    that is kept too, and what is found is compared in float64. With "noise" `partial_fit` draws by
    its first rows. With k = 1 the same as OpenOOD's, but for its approximate search and its noise,
    which it blurs; by default it takes the prototype of OOD validation rows: give their mean
    features as `ood`. Its ``use_direct_grad`` takes a softmax over one entry.

    References
    ----------
    ElAraby et al., "GROOD: Gradient-Aware Out-of-Distribution Detection", 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import GrOODDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> GrOODDetector().fit(X, y).predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    k: int = param(Interval(Integral, 1, None, closed="left"), default=2)
    ood: str | Sequence[float] = param(StrOptions({"mean", "noise"}), "array-like", default="mean")
    temperature: float = param(Interval(Real, 0, None, closed="neither"), default=1.0)

    def _build(self, network):
        is_array = network.input_dtype.is_floating_point and not network.takes_named
        how = (self.ood, self.k, self.temperature, self.bank_size)
        scorer = GrOODScorer(network.head, network.classes, *how)
        if scorer.is_noise and (network.takes_features or not is_array):
            raise ValueError(
                "ood='noise' draws inputs of a network, which must be one array of floats, not "
                "features,\ntokens or a dict. Give ood='mean', or an array."
            )
        if scorer.is_noise:
            network.require_logits()
        return network.features(), scorer

    def _fitted_attributes(self, scorer):
        return {"k_": scorer.n_neighbours()}
