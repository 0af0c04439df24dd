"""KNN: distance to the k-th nearest training row."""

from functools import partial
from numbers import Integral, Real

import torch
from torch.nn.functional import pad

from skood._compat import Interval
from skood._typing import RandomState
from skood.estimators.kinds import FeatureDetector
from skood.estimators.parameters import param
from skood.functional import radial
from skood.learning.moments import check_squares
from skood.learning.neighbours import BankScorer


def distances(products, queries, n_features, bank_square):
    """Return distances √(q² + b² - 2 q·b), from products and the queries' first columns."""
    squares = queries[:, :n_features].double().square().sum(1, keepdim=True)
    return (squares + bank_square - 2 * products).clamp(min=0).sqrt()


def lengths(rows):
    """Return the lengths of rows, in float64, whose squares may overflow."""
    size = rows.double().abs().amax(1).clamp(min=torch.finfo(rows.dtype).tiny)
    return size * torch.linalg.vector_norm(rows.double() / size[:, None], dim=1)


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

        Rows that are not of length 1 get a column for it: zero rows, or all in float64, then around
        their mean. Without it the longest would be taken for the nearest.
        """
        if not self.normalize:
            self.center = rows.mean(0)
            rows = rows - self.center
            return torch.cat([rows, -rows.square().sum(1, keepdim=True) / 2], 1)
        is_zero = (rows == 0).all(1, keepdim=True)
        if self.times_norm or not bool(is_zero.any()):
            return rows
        return torch.cat([rows, is_zero / 2], 1)

    def compare(self, inputs, k, own=None):
        """Score features by k rows of the bank, without the `own` row of each."""
        queries = self.bank_rows(inputs[0])
        if self.times_norm:
            smallest = self.reduced(lambda products, _: products.amin(1), queries, k, own)
            return smallest * lengths(inputs[0])
        if not self.normalize:
            queries = queries - self.center
        n_features = queries.shape[1]
        queries = pad(queries, (0, self.n_columns - n_features), value=1.0)
        found = partial(distances, n_features=n_features, bank_square=float(self.normalize))

        def reduce(products, queries):
            far = found(products, queries)
            return -(far.mean(1) if self.mean else far.amax(1))

        return self.reduced(reduce, queries, k, own)


class KNNDetector(FeatureDetector):
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
    bank_size : int, float or None, default=None
        How many training rows the bank keeps, drawn at random; a float is a share. None: all.
    index : str, default="exact"
        How to search the bank: "exact", or by faiss; see `NNGuideDetector`.
    random_state : int, RandomState or None, default=None
        Draws the bank.

    Attributes
    ----------
    k_ : int
        The number of neighbours used.
    scorer_ : nn.Module
        Maps features to scores; its buffer ``bank`` is the bank, or ``index_bytes`` faiss's index.

    See Also
    --------
    NNGuideDetector : Similarity to the nearest rows, times the energy.

    Notes
    -----
    For the threshold a training row is compared to the bank less itself; of more than 20 000 rows a
    random sample of that size is. On plain scores with k = 1 all fresh digits were called
    out-of-distribution at a nominal 5 %. Zero rows are at the distance 1 of all others, and 0 of
    each other.

    Directions that are nearer than 0.01, as those of features with a common offset, are lost in
    float32: pass X of float64, or subtract the mean. The same as pytorch-ood's and, but for its
    squares, OpenOOD's.

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
    bank_size: int | float | None = param(
        Interval(Integral, 1, None, closed="left"),
        Interval(Real, 0, 1, closed="neither"),
        None,
        default=None,
    )
    index: str = param(str, default="exact")
    random_state: RandomState = param("random_state", default=None)

    def _make_scorer(self):
        if self.times_norm and (self.mean or not self.normalize):
            raise ValueError(
                "times_norm=True takes the k-th largest cosine: leave normalize=True, mean=False."
            )
        how = (self.normalize, self.mean, self.times_norm, self.bank_size, self.index)
        return KNNScorer(self.k, *how)

    def _fitted_attributes(self, scorer):
        return {"k_": scorer.n_neighbours()}
