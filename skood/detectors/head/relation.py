"""Relation: how similar features and predictions are to those of training rows."""

from numbers import Real

import torch
from torch.nn.functional import threshold

from skood._compat import Interval
from skood.estimators.kinds import HeadDetector, KeepsBank
from skood.estimators.network_estimator import PoolsLayer
from skood.estimators.parameters import param
from skood.functional import radial, tempered
from skood.learning.blocks import takes_plain_path
from skood.learning.neighbours import BankScorer
from skood.learning.products import inner_products, tile_shape


class RelationScorer(BankScorer):
    """Features, or (features, logits) → mean edge to the rows of the bank."""

    learned = (*BankScorer.learned, "probabilities")

    def __init__(self, head, power, threshold, bank_size):
        super().__init__(1, bank_size, "exact")
        self.head, self.power, self.threshold = head, power, threshold
        # Where in the bank its rows are, in the order of their keys.
        self.places = None

    def _parts(self, features, logits=None):
        """Return directions and probabilities."""
        logits = self.head(features) if logits is None else logits
        return radial(features, 1), torch.softmax(tempered(logits), 1).to(features.dtype)

    def update(self, state, inputs, class_indices, keys):
        """Put the rows of a batch that are drawn into the bank."""
        chosen = state.choose(keys)
        state.add(self._parts(*(tensor[chosen] for tensor in inputs)), keys[chosen])

    def finalize(self, state, classes):
        """Store the bank, sorted by the predicted class: a row has edges in few of its tiles."""
        self.keys, (directions, probabilities) = state.sample()
        order = probabilities.argmax(1).argsort(stable=True)
        self.places, self.n_bank = order.argsort(), len(order)
        self.bank, self.probabilities = directions[order], probabilities[order]

    def compare(self, inputs, k, own=None):
        """Score rows by the bank, without the `own` row of each: all are in the bank, or none."""
        directions, p = self._parts(*inputs)
        if takes_plain_path(p):
            return self._edges((p @ self.probabilities.T) * (directions @ self.bank.T)).mean(1)
        n_others = len(self.bank)
        if own is None:
            own = torch.full((len(p),), -1, device=p.device)
        elif bool((own >= 0).any()):
            own, n_others = self.places[own], n_others - 1
        totals = torch.zeros(len(p), dtype=torch.float64, device=p.device)
        n_rows, _ = tile_shape(p)
        for part, *block in zip(
            *(x.split(n_rows) for x in (totals, directions, p, own)), strict=True
        ):
            self._add_edges(part, *block)
        return totals / n_others

    def _add_edges(self, totals, directions, p, own):
        """Add up the edges of rows to the bank, in tiles."""
        _, n_columns = tile_shape(p)
        for first in range(0, len(self.bank), n_columns):
            tile = slice(first, first + n_columns)
            products = inner_products(p, self.probabilities[tile])
            is_here = ((own >= first) & (own < first + n_columns)).nonzero()[:, 0]
            products[is_here, own[is_here] - first] = 0
            rows = (products.amax(1) > self.threshold).nonzero()[:, 0]
            if len(rows):
                # A slice copies nothing.
                rows = rows if len(rows) < len(p) else slice(None)
                cosines = inner_products(directions[rows], self.bank[tile])
                edges = self._edges(cosines.mul_(products[rows]))
                totals[rows] += edges.sum(1, dtype=torch.float64)
                # What is as large as a tile goes before the next comes.
                del cosines, edges
            del products

    def _edges(self, likeness):
        """Return edges, 0 where they are weak."""
        edges, power = threshold(likeness, self.threshold, 0.0), self.power
        # Two squares take a ninth of the time of the fourth power.
        while power > 1 and power % 2 == 0:
            edges, power = edges.square(), power / 2
        return edges if power == 1 else edges.pow(power)

    def clear_cache(self):
        """Drop what only learning needs."""
        super().clear_cache()
        self.places = None


class RelationDetector(KeepsBank, PoolsLayer, HeadDetector):
    r"""Similarity of features and predictions to those of training rows.

    With the directions :math:`\hat h = h / \|h\|_2` of features and the probabilities
    :math:`p = \mathrm{softmax}(l)`, a row is linked to row i of a bank of training rows by
    :math:`e_i = \max(\langle\hat h, \hat h_i\rangle, 0)\,\langle p, p_i\rangle`, or by 0 where that
    is at most `threshold`. The score is the mean of :math:`e_i^{\mathrm{power}}`.

    Parameters
    ----------
    power : float, default=4.0
        The exponent. Higher ones count the nearest rows alone: of CIFAR-10 against flowers 1, 2, 4
        and 8 gave an AUROC of .859, .890, .897 and .901, against noise .976, .947, .946 and .946.
    threshold : float, default=0.03
        In [0, 1): weaker links do not count. The paper's; 0 gave the same AUROC.
    random_state : int, RandomState or None, default=None
        Draws the bank, and the k-means clusters that stand in for classes where ``model=None``
        gets no y.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features, or features and logits, to scores; its buffers ``bank`` (n_bank, D) and
        ``probabilities`` (n_bank, C) are the bank, in the order of the predicted classes.

    See Also
    --------
    NNGuideDetector : The energy times the similarity to the nearest rows.

    Notes
    -----
    Rows without a link have the score 0: of the farthest many are equal. The logits are the
    network's with a `layer` too. For the threshold of ``predict`` a training row is compared to the
    bank less itself; of more than 6000 rows a random sample of that size is. It then has one row of
    its class less than a fresh row has, so that with few rows false alarms are fewer than nominal:
    of 217 digits 4.1 % instead of 5 %, and with ``power=1`` 1.6 %.

    OpenOOD and the authors sum instead of averaging, and OpenOOD has ``power=1``, chosen on
    validation rows.

    References
    ----------
    Kim et al., "Neural Relation Graph: A Unified Framework for Identifying Label Noise and Outlier
    Data", NeurIPS 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import RelationDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> RelationDetector().fit(X, y).predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    power: float = param(Interval(Real, 0, None, closed="neither"), default=4.0)
    threshold: float = param(Interval(Real, 0, 1, closed="left"), default=0.03)

    def _make_scorer(self, head):
        return RelationScorer(head, self.power, self.threshold, self.bank_size)
