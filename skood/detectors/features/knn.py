"""KNN: distance to the k-th nearest training row."""

from numbers import Integral

import torch
from torch.nn.functional import pad

from skood._compat import Interval
from skood.estimators.kinds import FeatureDetector, SearchesBank
from skood.estimators.parameters import param
from skood.functional import radial
from skood.learning.blocks import takes_plain_path
from skood.learning.moments import check_squares
from skood.learning.neighbours import BankScorer
from skood.learning.norms import lengths
from skood.learning.products import TILE


def distances(queries, bank, found):
    """Return the distances (n_samples, k) of queries to rows of the bank, by differences."""
    if takes_plain_path(queries):
        return torch.linalg.vector_norm(queries[:, None] - bank[found], dim=2)
    far = torch.empty(found.shape, dtype=torch.float64, device=found.device)
    n_columns = max(1, TILE * TILE // queries.numel())
    for part, some in zip(far.split(n_columns, 1), found.split(n_columns, 1), strict=True):
        part.copy_(torch.linalg.vector_norm(queries[:, None] - bank[some], dim=2))
    return far


class KNNScorer(BankScorer):
    """Features → minus a distance to near rows of the bank, or a similarity times their length."""

    learned = (*BankScorer.learned, "center")

    def __init__(self, k, normalize, mean, times_norm, bank_size, index):
        super().__init__(k, bank_size, index)
        self.normalize, self.mean, self.times_norm = normalize, mean, times_norm

    def check(self, inputs):
        """Raise if squares would overflow."""
        if not self.normalize:
            check_squares(inputs[0])

    def bank_rows(self, features):
        """Return directions, or features in float64: small differences of these keep digits."""
        return radial(features, 1) if self.normalize else features.double()

    def prepare(self, rows):
        """Return rows whose largest product with another is that of the nearest.

        They are centred, since of small differences of long rows no digit is left in products, and
        get a column for their length, or else the longest would be taken for the nearest.
        """
        if self.times_norm:
            return rows
        self.center = rows.mean(0, dtype=torch.float64).to(rows.dtype)
        prepared = rows.new_empty(len(rows), rows.shape[1] + 1)
        centred = torch.sub(rows, self.center, out=prepared[:, :-1])
        prepared[:, -1] = torch.linalg.vector_norm(centred, dim=1).square_().div_(-2)
        return prepared

    def compare(self, inputs, k, own=None):
        """Score features by k rows of the bank, without the `own` row of each."""
        queries = self.bank_rows(inputs[0])
        if self.times_norm:
            smallest = self.reduced(lambda products, *_: products.amin(1), queries, k, own)
            return smallest * lengths(inputs[0])
        queries = pad(queries - self.center, (0, 1), value=1.0)
        scores = self.reduced(self._by_products, queries, k, own)
        if self.bank is not None and not takes_plain_path(queries):
            lost = scores.isnan().nonzero()[:, 0]
            if len(lost):
                own = None if own is None else own[lost]
                scores[lost] = self.reduced(self._by_rows, queries[lost], k, own, with_rows=True)
        return scores

    def as_in_bank(self, features):
        """Return the rows that the bank would hold, but for the column of lengths."""
        return self.bank_rows(features) - (0 if self.times_norm else self.center)

    def explain(self, features):
        """Return distances to neighbours, and what each feature adds to the score."""
        rows = self.as_in_bank(features)
        found = self.nearest(rows if self.times_norm else pad(rows, (0, 1), value=1.0))
        near, rows = self.bank[found].double()[..., : rows.shape[1]], rows.double()
        differences = rows[:, None] - near
        far = torch.linalg.vector_norm(differences, dim=2)
        far, order = far.sort(1)
        found, last = found.gather(1, order), order[:, -1]
        at = torch.arange(len(rows), device=rows.device)
        if self.times_norm:
            parts = rows * near[at, last] * lengths(features).double()[:, None]
        else:
            # Squares over their root add up to it.
            squares = (
                differences.square() / far.gather(1, order.argsort(1)).clamp(min=1e-300)[..., None]
            )
            parts = -(squares.mean(1) if self.mean else squares[at, last])
        base = parts.new_zeros(len(parts))
        return {"contributions": parts, "base": base, "distances": far, "in_bank": found}

    def _by_products(self, products, queries, found):
        """Return scores of queries by the products; NaN where too few digits are left in them."""
        if takes_plain_path(queries):
            return self._by_rows(products, queries, found)
        sizes = queries[:, :-1].double().square().sum(1, keepdim=True)
        squares = (sizes - 2 * products).clamp(min=0)
        scores = -(squares.sqrt().mean(1) if self.mean else squares.amax(1).sqrt())
        if self.bank is None:
            return scores
        # A square is off by some eps of the size: a score by 1e-4 in float32, by 1e-9 in float64.
        least = (squares.amin(1) if self.mean else squares.amax(1)) / sizes[:, 0]
        return scores.masked_fill(~(least > 10 * torch.finfo(queries.dtype).eps ** 0.5), torch.nan)

    def _by_rows(self, products, queries, found):
        """Return scores of queries by the rows that are found."""
        if not self.mean:
            found = found.gather(1, products.argmin(1, keepdim=True))
        far = distances(queries[:, :-1], self.bank[:, :-1], found)
        return -(far.mean(1) if self.mean else far.amax(1))


class KNNDetector(SearchesBank, FeatureDetector):
    r"""Distance to the k-th nearest training row.

    With the directions :math:`\hat h = h / \|h\|_2` of features, and :math:`\hat h_{(k)}` the k-th
    nearest in a bank of training rows, the score is :math:`-\|\hat h - \hat h_{(k)}\|_2`.

    Parameters
    ----------
    k : int, default=10
        Which neighbour. It should be well below the number of rows of a class: with classes of 108
        digits the AUROC fell from .990 with k = 1 to .918 with k = 100. The authors take 50 of
        CIFAR-10, 200 of CIFAR-100 and 1000 of ImageNet. More than the bank holds: all of it, with a
        warning.
    normalize : bool, default=True
        Compare directions. False: the features as they are, in float64.
    mean : bool, default=False
        Take the mean distance of the k nearest rows instead of the k-th.
    times_norm : bool, default=False
        The k-th largest cosine times the length of the features instead: kNN-projection, and with
        k = 1 the part of CSI that needs no training. Where OOD rows are longer it fails.

    See Also
    --------
    NNGuideDetector : Similarity to the nearest rows, times the energy.

    Notes
    -----
    For the threshold a training row is compared to the bank less itself; of more than 6000 rows a
    random sample of that size is. On plain scores with k = 1 all fresh digits were called
    out-of-distribution at a nominal 5 %. Zero rows are at the distance 1 of all others, and 0 of
    each other.

    Distances are those of differences, after a search by products of centred rows: a common offset
    of the features takes no digits from them. Without `normalize` a large bank is searched in
    float32, in a copy that is kept too, and what is found is compared in float64. The same as
    pytorch-ood's and, but for its squares, OpenOOD's.

    References
    ----------
    Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.

    Tack et al., "CSI: Novelty Detection via Contrastive Learning on Distributionally Shifted
    Instances", NeurIPS 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import KNNDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> KNNDetector().fit(X).predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    k: int = param(Interval(Integral, 1, None, closed="left"), default=10)
    normalize: bool = param("boolean", default=True)
    mean: bool = param("boolean", default=False)
    times_norm: bool = param("boolean", default=False)

    def _make_scorer(self):
        if self.times_norm and (self.mean or not self.normalize):
            raise ValueError(
                "times_norm=True takes the k-th largest cosine: leave normalize=True, mean=False."
            )
        how = (self.normalize, self.mean, self.times_norm, self.bank_size, self.index)
        return KNNScorer(self.k, *how)
