"""CF-OOD: the share of training rows that are nearer to a training row than a new row is."""

import math
from numbers import Real

import torch

from skood._compat import Interval
from skood.estimators.kinds import FeatureDetector, KeepsBank
from skood.estimators.parameters import param
from skood.functional import radial
from skood.learning.blocks import block_rows, score_in_blocks
from skood.learning.gaussians import squared_distances, squared_norms
from skood.learning.moments import check_squares
from skood.learning.neighbours import BankScorer
from skood.learning.norms import lengths

# Of a larger bank each row keeps its distances to some of the others, not to all.
MOST_EXACT = 5000
# These are OpenOOD's, 230 shares.
GRID = ((0.001, 0.1, 100), (0.105, 0.5, 81), (0.51, 0.99, 49))


class CFOODScorer(BankScorer):
    """Features → minus the share of the bank that is nearer to some of its rows than they are."""

    learned = (*BankScorer.learned, "center")

    def __init__(self, share, normalize, bank_size):
        super().__init__(1, bank_size, "exact")
        self.share, self.normalize = share, normalize
        # Made of the bank where they are needed: of n rows they may be n² numbers.
        self._distances = self._centred = None

    def check(self, inputs):
        """Raise if squares would overflow."""
        if not self.normalize:
            check_squares(inputs[0])

    def bank_rows(self, features):
        """Return directions, or features as they are."""
        return radial(features, 1) if self.normalize else features

    def finalize(self, state, classes):
        """Store the bank."""
        super().finalize(state, classes)
        self.center, self._distances, self._centred = self.bank.double().mean(0), None, None

    def _sorted_distances(self):
        """Return squared distances (n_shares - 1, n) of rows of the bank to others, and shares.

        Down the columns distances ascend.
        """
        if self._distances is None or self._distances[0].device != self.bank.device:
            n, rows = len(self.bank), self.bank.double()
            if n <= MOST_EXACT:
                at = torch.arange(1, n)
                shares = torch.arange(n, dtype=torch.float64) / n
            else:
                shares = torch.cat([torch.linspace(*part, dtype=torch.float64) for part in GRID])
                at = (shares * n).long()
                shares = torch.cat([shares, shares.new_ones(1)])
            distances = self.bank.new_empty(len(at), n)
            size = block_rows(3 * 8 * n, rows.device)
            for part, block in zip(distances.split(size, 1), rows.split(size), strict=True):
                # The first is the row itself.
                ordered = squared_distances(block, rows, self.center).sort(1).values
                part.copy_(ordered[:, at.to(ordered.device)].T)
            self._distances = distances, shares.to(distances.device)
        return self._distances

    def compare(self, inputs, k, own=None):
        """Score features; a row of the bank against the others."""
        rows = self.bank_rows(*inputs)
        if torch.compiler.is_exporting():
            return self._score(rows)
        if own is None:
            own = torch.full((len(rows),), -1, device=rows.device)
        return score_in_blocks(self._score, 3 * 8 * len(self.bank), rows, own)

    def _centred_bank(self):
        """Return the bank around its mean, in float64, and squared lengths of its rows.

        Made once: for each batch that took longer than all the rest.
        """
        if self._centred is None or self._centred[0].device != self.bank.device:
            bank = self.bank - self.center
            self._centred = bank, squared_norms(bank)
        return self._centred

    def _score(self, rows, own=None):
        """Score rows of a block: all are in the bank, or none."""
        bank, sizes = self._centred_bank()
        distances, shares = self._sorted_distances()
        far = squared_distances(rows.double() - self.center, bank, mean_sizes=sizes)
        far, n = far.to(distances.dtype).sqrt_(), len(bank)
        # Equal rows, or equal distances, differ by rounding: they are not nearer.
        ulps = 100 * torch.finfo(far.dtype).eps
        far.mul_(1 - ulps).sub_(ulps * lengths(rows)[:, None]).clamp_(min=0).square_()
        if own is not None and bool((own >= 0).any()):
            # The row itself counts as farthest.
            far[torch.arange(len(own), device=own.device), own] = torch.inf
            if len(shares) == n:
                shares = shares * n / (n - 1)
            n -= 1
        k = math.ceil(self.share * n)
        # The least number of distances that are nearer than the row, with k rows of the bank. By
        # bisection: a quarter of the time of counting for all rows of the bank and selecting.
        least = torch.zeros_like(far[:, 0], dtype=torch.int64)
        most = least + len(distances)
        not_nearer = torch.empty_like(far)
        for _ in range(len(distances).bit_length()):
            middle = (least + most) // 2
            at = middle.clamp(max=len(distances) - 1)
            # As numbers: with booleans, whose sum is slow, it takes twice as long.
            torch.ge(distances[at], far, out=not_nearer)
            is_enough = not_nearer.sum(1) >= k
            # The last share is beyond all distances.
            is_enough |= middle == len(distances)
            least = torch.where(is_enough, least, middle + 1)
            most = torch.where(is_enough, middle, most)
        return -shares[least]


class CFOODDetector(KeepsBank, FeatureDetector):
    r"""Share of the training rows that are nearer to a training row than the features are.

    For each row of a bank of n training rows let :math:`r_i` be the share of the bank that lies
    nearer to it than the direction :math:`\hat h = h / \|h\|_2` of the features. The score is
    minus the :math:`\lceil \mathrm{share}\, n \rceil`-th smallest of these.

    Parameters
    ----------
    share : float, default=0.01
        In (0, 1): how many rows of the bank must count the features among their near ones.
    normalize : bool, default=True
        Compare directions. False: the features as they are.
    bank_size : int, float or None, default=None
        How many training rows the bank keeps, drawn at random; a float is a share. None: all, whose
        distances to each other are computed: of 10 000 rows 10⁸. Of pixels it is 20 000.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; its buffer ``bank`` is the bank.

    See Also
    --------
    KNNDetector : Distance to the k-th nearest row, which costs less.

    Notes
    -----
    Scores are whole numbers over n: many are equal. Exact up to a bank of 5000 rows; of a larger
    one each row keeps its distances at 230 shares from .001 to .99, as OpenOOD does with any bank,
    and the share is that of the next in this grid. For the threshold each training row is compared
    with the others. OpenOOD draws a bank of a tenth of the rows, ``bank_size=0.1``, and its counts
    are larger by 1.

    References
    ----------
    Angiulli et al., "CF-OOD", 2026.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import CFOODDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> CFOODDetector().fit(X).predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    share: float = param(Interval(Real, 0, 1, closed="neither"), default=0.01)
    normalize: bool = param("boolean", default=True)

    def _make_scorer(self):
        return CFOODScorer(self.share, self.normalize, self.bank_size)
