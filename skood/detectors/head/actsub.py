"""ActSub: the energy of what the head sees of features, times how familiar the rest is."""

from functools import cached_property
from numbers import Integral, Real

import torch

from skood._compat import Interval
from skood._warnings import warn
from skood.detectors.shaping.scale import ScaledFeaturesScorer
from skood.estimators.kinds import HeadDetector, SearchesBank
from skood.estimators.parameters import param
from skood.functional import all_finite, clip_to, energy, radial
from skood.learning.moments import OVERFLOW, check_squares
from skood.learning.neighbours import BankScorer
from skood.learning.states import State
from skood.learning.subspaces import head_directions, part_norms


def familiarity(similarity, power):
    """Return (-log(1 - similarity))^power, with the sign of the similarity, in float64."""
    logs = -(1 - similarity).clamp(min=torch.finfo(similarity.dtype).eps).log()
    # Without the sign an even power would take rows opposite to all others for familiar ones.
    return logs.sign() * logs.abs().pow(power) if power else torch.ones_like(logs)


class ActSubScorer(BankScorer):
    """Features → energy of their decisive part, times the familiarity of the rest."""

    learned = (*BankScorer.learned, "basis")

    def __init__(self, head, percentile, power, k, bank_size, index):
        super().__init__(k, bank_size, index)
        self.head, self.power = head, power
        self.decisive = ScaledFeaturesScorer(head, percentile, energy)

    @cached_property
    def _directions(self):
        """The directions among which the cut is: the head's, less one if these are all there is."""
        return head_directions(self.head)[: max(1, self.head.in_features - 1)]

    def check(self, inputs):
        """Raise if squares would overflow."""
        check_squares(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return a bank without rows, and norms for each number of directions."""
        norms = torch.zeros(2, len(self._directions)).to(inputs[0].device, torch.float64)
        return State(bank=super().init_state(inputs, n_classes, n_expected), norms=norms)

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        super().update(state.bank, inputs, class_indices, keys)
        state.norms += part_norms(inputs[0].double(), self._directions).sum(1)

    def finalize(self, state, classes):
        """Cut where both parts are equally long on average, and store the bank."""
        inside, outside = state.norms
        if not all_finite(state.norms):
            raise ValueError(OVERFLOW)
        n_components = 1 + int((inside - outside).abs().argmin())
        self.basis = self._directions[:n_components].T.contiguous()
        super().finalize(state.bank, classes)

    def bank_rows(self, features):
        """Return features: where the cut is will be known at the end."""
        return features

    def prepare(self, rows):
        """Return the directions of the parts that the head hardly sees."""
        prepared = torch.empty_like(rows, dtype=torch.float64)
        for out, block in zip(prepared.split(1024), rows.split(1024), strict=True):
            out.copy_(self.parts(block)[1])
        return prepared

    def parts(self, features):
        """Return the decisive part of features, and the direction of the rest in float64.

        Of a cosine next to 1 float32 holds no digit of the difference, which the logarithm tells.
        """
        rows = features.double()
        inside = rows @ self.basis @ self.basis.T
        return inside.to(features.dtype), radial(rows - inside, 1)

    def compare(self, inputs, k, own=None):
        """Score features by k rows of the bank, without the `own` row of each."""
        inside, rest = self.parts(inputs[0])
        similarity = self.reduced(lambda products, *_: products.mean(1), rest, k, own)
        scores = self.decisive(inside).double() * familiarity(similarity, self.power)
        return clip_to(scores, torch.float64)

    def clear_cache(self):
        """Drop what only learning needs."""
        super().clear_cache()
        vars(self).pop("_directions", None)


class ActSubDetector(SearchesBank, HeadDetector):
    r"""Activation subspaces: energy of the part that decides, times similarity of the rest.

    The right singular vectors of the head's weights, strongest first, are cut at the k where what
    features have in the first k is as long, on average over the training rows, as what they have
    outside: :math:`h = h_d + h_i`, the decisive and the insignificant part. With :math:`s_1 / s_2`,
    the sum of the entries of :math:`h_d` over that of the largest as in `SCALEDetector`, and
    :math:`S`, the mean of the largest cosines of :math:`h_i` with those of a bank of training rows,
    the score is :math:`E(e^{s_1 / s_2} h_d)\,(-\log(1 - S))^{\mathrm{power}}`, where :math:`E` is
    the energy of the logits.

    Parameters
    ----------
    percentile : float, default=0.65
        The share of the entries of :math:`h_d` that are not among the largest, in [0, 1). The
        authors report 0.95 for ResNet-50 and 0.975 for ViT, chosen on validation rows. On narrow
        features that hurts: on the 64 of a ResNet-20 for CIFAR-10 the AUROC against flowers, MNIST
        and noise was .912, .989 and .981 with 0.65, .786, .971 and .941 with 0.95.
    power : float, default=2.0
        The exponent, 1 for the authors' ViT. 0: the energy alone.
    k : int, default=10
        How many cosines. More than the bank holds: all of it, with a warning.
    random_state : int, RandomState or None, default=None
        Draws the bank, and the k-means clusters that stand in for classes where ``model=None``
        gets no y.

    Attributes
    ----------
    n_components_ : int
        The number of decisive directions.
    scorer_ : nn.Module
        Maps features to scores; its buffers are ``basis`` ``(D, n_components_)``, the decisive
        directions, and ``bank`` (n_bank, D), directions of insignificant parts, or
        ``index_bytes``, faiss's index.

    See Also
    --------
    SCALEDetector : The energy, of all of the features.
    NNGuideDetector : The energy times the similarity of all of the features.

    Notes
    -----
    The cut is at most at the rank of the weights, where nothing is left that the head sees: beyond
    it singular vectors are arbitrary. The authors' search goes there where features lie mostly
    outside of what the head sees. A similarity of 1, as of a row with copies in the bank, counts as
    1 less a rounding, where theirs gives infinity. Where all cosines are negative, so is what the
    energy is multiplied by, which an even power of theirs hides. Else both are equal. The variant
    with GEN and that with class prototypes in place of the bank are not offered.

    The bank is kept in float64. A large one is searched in float32, in a copy that is kept too, and
    what is found is compared in float64: scores are the same. For the threshold of ``predict`` a
    training row is compared to the bank less itself, at the same cut; of more than 6000 rows a
    random sample of that size is. Signed entries may sum to nearly zero; then the exponent is
    clipped so that logits stay finite. `NNGuideDetector` says what an `index` finds.

    References
    ----------
    Zöngür et al., "Activation Subspaces for Out-of-Distribution Detection", ICCV 2025.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import ActSubDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = ActSubDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [5.0, 7.0, 5.0, 0.0]])
    array([ 1, -1])
    """

    percentile: float = param(Interval(Real, 0, 1, closed="left"), default=0.65)
    power: float = param(Interval(Real, 0, None, closed="left"), default=2.0)
    k: int = param(Interval(Integral, 1, None, closed="left"), default=10)

    def _fitted_attributes(self, scorer):
        n_components = scorer.basis.shape[1]
        return {**super()._fitted_attributes(scorer), "n_components_": n_components}

    def _inspect(self, scorer, inputs):
        energies = scorer.decisive(scorer.parts(inputs[0])[0])
        # Fewer hardly show among 5 % false alarms.
        if self.power and float((energies < 0).double().mean()) > 0.01:
            warn(
                "Some energies are negative, which ActSub does not assume: the more familiar such "
                "a row is, the lower is its score.\nAnother detector suits this head."
            )

    def _make_scorer(self, head):
        return ActSubScorer(head, self.percentile, self.power, self.k, self.bank_size, self.index)
