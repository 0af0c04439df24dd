"""PNML: the regret of the last layer against one that saw the row."""

import math

import torch
from torch.nn.functional import pad

from skood.estimators.kinds import HeadDetector
from skood.estimators.parameters import param
from skood.functional import log_probabilities, radial
from skood.learning.blocks import score_in_blocks
from skood.learning.gaussians import squared_norms
from skood.learning.learning import LearningScorer
from skood.learning.states import State
from skood.learning.subspaces import principal

# Variances below this share of the largest are rounding.
RANK = 1e-10
# From a leverage of one less this on the other rows do not fill the direction of a row.
ALONE = 1e-7
# A triangular matrix is multiplied by so many columns at a time, without what lies above them.
SLICE = 256


def log_regret(logits, g):
    """Return the logarithm of log Σ_k p_k / (p_k + (1 - p_k) p_k^g) / log C, in float64.

    The sum is 1 and a rest, which is below the last digit of 1 for confident rows. Of each class
    the rest is p (1 - p) (1 - p^g) / (p + (1 - p) p^g), here in logarithms.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, C)
        Unnormalised class scores.
    g : Tensor of shape (n_samples,), dtype float64
        How far each row moves the layer.
    """
    log_p, log_rest = log_probabilities(logits)
    powers = g[:, None] * log_p
    # Numerator and denominator by p^g: then no sum is of two numbers that are both tiny.
    log_p = log_p - powers
    ratios = -torch.expm1(powers) / (log_p.exp() + log_rest.exp())
    rest = torch.logsumexp(log_p + log_rest + ratios.log(), dim=1)
    # Where g is 0 there is no rest.
    rest = rest.clamp(min=torch.finfo(torch.float32).min)
    # log log(1 + e^rest) is rest where that is small.
    log_sum = torch.where(rest < -40, rest, rest.exp().log1p().log())
    return log_sum - math.log(math.log(logits.shape[1]))


class PNMLScorer(LearningScorer):
    """Features → minus the (logarithm of the) regret."""

    learned = ("basis", "is_inside")

    def __init__(self, head, bias, orthogonal, log):
        super().__init__()
        self.head, self.bias, self.orthogonal, self.log = head, bias, orthogonal, log

    def _rows(self, features):
        """Return unit features and a 1 in front of them, whose squares are summed."""
        return pad(radial(features, 1, torch.float64), (int(self.bias), 0), value=1.0)

    def init_state(self, inputs, n_classes, n_expected):
        """Return the sum of the outer products of no rows."""
        size = inputs[0].shape[1] + self.bias
        return State(products=inputs[0].new_zeros(size, size, dtype=torch.float64))

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        rows = self._rows(inputs[0])
        state.products.addmm_(rows.T, rows)

    def finalize(self, state, classes):
        """Find the directions that rows fill, in units of what they hold there, and the others."""
        variances, directions = principal(state.products)
        inside = variances > RANK * variances[0]
        # Of these only what they span counts, so that they may be triangular.
        factor = torch.linalg.qr((directions[:, inside] / variances[inside].sqrt()).T).R.T
        outside = directions[:, ~inside & self.orthogonal]
        # Contiguous, as it is once it is loaded: products are then the same to the last digit.
        self.basis = torch.cat([outside, factor], 1).contiguous()
        self.is_inside = torch.arange(self.basis.shape[1], device=factor.device) >= outside.shape[1]

    def _parts(self, features):
        """Yield the parts of rows outside, and then inside, along some of the basis at a time."""
        rows, n_outside = self._rows(features), int((~self.is_inside).sum())
        yield rows @ self.basis[:, :n_outside]
        factor = self.basis[:, n_outside:]
        for start in range(0, factor.shape[1], SLICE):
            yield rows[:, start:] @ factor[start:, start : start + SLICE]

    def _in_blocks(self, score, features):
        row_bytes = 8 * (3 * self.head.in_features + 8 * self.head.out_features)
        return score_in_blocks(score, row_bytes, features)

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        return self._in_blocks(self._score, features)

    def _score(self, features):
        if torch.compiler.is_exporting():
            squares = (self._rows(features) @ self.basis).square()
            q, outside = (squares @ mask.double() for mask in (self.is_inside, ~self.is_inside))
        else:
            outside, *inside = map(squared_norms, self._parts(features))
            q = sum(inside, torch.zeros_like(outside))
        return self._regret(features, torch.maximum(q / (1 + q), outside))

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each left out of the products."""
        return self._in_blocks(self._score_as_new, inputs[0])

    def _score_as_new(self, features):
        # xᵀ(M⁺)ʲx with the sum M of all rows, j = 1, 2, 3. The first is q / (1 + q) with the q of
        # the other rows; it is 1 if these do not fill the direction of the row, but for a part of
        # the square 1 / b, where q = c / b² - 1.
        inside = torch.cat(list(self._parts(features)), 1) * self.is_inside
        solved = inside @ self.basis.T
        steps = inside, solved, (solved @ self.basis) * self.is_inside
        a, b, c = (step.square().sum(1) for step in steps)
        b = b.clamp(min=torch.finfo(b.dtype).tiny)
        g = 1 - b.square() / c
        if self.orthogonal:
            g = torch.maximum(g, 1 / b)
        return self._regret(features, torch.where(a < 1 - ALONE, a, g))

    def _regret(self, features, g):
        logits = self.head(radial(features, 1))
        regret = log_regret(logits, g)
        return -(regret if self.log else regret.exp())


class PNMLDetector(HeadDetector):
    r"""Regret of the last layer against one that was trained with the row and its true label.

    With the unit features :math:`\hat h`, :math:`x = (1, \hat h)`, the sum
    :math:`M = \sum x x^\top` over the training rows and :math:`q = x^\top M^+ x`, let :math:`g` be
    the larger of :math:`q / (1 + q)` and the squared length of the part of :math:`x` that lies
    outside of the range of :math:`M`. With :math:`p = \mathrm{softmax}(W \hat h + b)` of C classes
    the regret is :math:`\log \sum_k p_k / (p_k + (1 - p_k)\, p_k^g) \,/\, \log C`, and the score
    minus its logarithm.

    Parameters
    ----------
    bias : bool, default=True
        Whether :math:`x` starts with a 1.
    orthogonal : bool, default=True
        Whether what lies outside of the range of :math:`M` counts. Without it a row in a direction
        that no training row fills is no surprise; it matters where features are fewer than rows
        in rank.
    log : bool, default=True
        True: the logarithm, which tells rows apart whose regret is too small for float32. False:
        minus the regret itself, the paper's score, which ranks rows the same.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; its buffers are ``basis`` (D + 1, D + 1), of whose columns
        those that ``is_inside`` (D + 1,) tells are a triangular factor of :math:`M^+`, and others
        lie outside of its range.

    See Also
    --------
    MahalanobisDetector : A distance by a covariance, without the logits.

    Notes
    -----
    Eigenvalues below 1e-10 of the largest count as 0. The sum over the classes is 1 and a rest,
    which is below the last digit of 1 where the network is confident: the rest alone is computed,
    in logarithms, to 14 digits at regrets of 1e-115. Labels are not used. For the threshold each
    training row is left out of :math:`M`, in closed form; by plain scores 30 % of fresh digits were
    called out-of-distribution instead of 5 %.

    The authors compute ``log=False``, pytorch-ood ``bias=False, orthogonal=False, log=False`` with
    probabilities clipped at 1e-12, and with a pseudo-inverse in float32, which on features of
    digits was off by a fifth of the spread of scores.

    References
    ----------
    Bibas et al., "Single Layer Predictive Normalized Maximum Likelihood for Out-of-Distribution
    Detection", NeurIPS 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import PNMLDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> PNMLDetector().fit(X, y).predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    bias: bool = param("boolean", default=True)
    orthogonal: bool = param("boolean", default=True)
    log: bool = param("boolean", default=True)

    def _make_scorer(self, head):
        return PNMLScorer(head, self.bias, self.orthogonal, self.log)
