"""Energy: the logarithm of the sum of the exponentials of the logits."""

from functools import partial
from numbers import Real

import torch
from numpy.typing import ArrayLike
from sklearn.utils import check_array
from torch import nn

from skood._compat import Interval
from skood.estimators.kinds import LogitScorer, LogitsDetector
from skood.estimators.parameters import param


def weighted_energy(logits, temperature, log_weights=None):
    """Return T log Σ w exp(l / T), in float64: at a large T logits show in the last digits."""
    logits = logits.double()
    largest = logits.amax(1, keepdim=True)
    # Less the largest, since l / T may overflow.
    terms = (logits - largest) / temperature
    if log_weights is not None:
        terms = terms + log_weights.to(terms).view(-1, *[1] * (logits.ndim - 2))
    return temperature * torch.logsumexp(terms, 1) + largest.squeeze(1)


class EnergyDetector(LogitsDetector):
    r"""Free energy of the logits, with the sign that is higher for in-distribution rows.

    With logits :math:`l` the score is :math:`T \log \sum_c w_c\, e^{l_c / T}`.

    Parameters
    ----------
    temperature : float, default=1.0
        T. The authors advise 1: a larger one makes the scores of all rows more alike.
    weights : array-like of shape (n_classes,), default=None
        The :math:`w_c`, those that a network was trained with, as by VOS; negative ones count as 0.
        None: 1 for each class.

    See Also
    --------
    MSPDetector : The softmax probability of the same logits.
    ASHDetector, ReActDetector : Energies of activations that are shaped.

    Notes
    -----
    With `weights` it is pytorch-ood's ``WeightedEBO``, whose exponentials overflow in float32 from
    logits of 89 on. Its scores, and those of its ``EnergyBased``, have the other sign.

    References
    ----------
    Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.

    Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import EnergyDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = EnergyDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [5.0, 3.0, 4.0, 2.0]])
    array([ 1, -1])
    """

    temperature: float = param(Interval(Real, 0, None, closed="neither"), default=1.0)
    weights: ArrayLike | None = param("array-like", None, default=None)

    def _make_scorer(self, network):
        log_weights = self._log_weights(network.n_logits)
        score = partial(weighted_energy, temperature=self.temperature, log_weights=log_weights)
        return LogitScorer(nn.Identity(), score)

    def _log_weights(self, n_logits):
        """Return the logarithms of the weights, minus infinity for those that count as 0."""
        if self.weights is None:
            return None
        weights = check_array(self.weights, ensure_2d=False, dtype="float64").clip(0)
        if weights.shape != (n_logits,) or not weights.any():
            raise ValueError(
                f"weights has shape {weights.shape} and {(weights > 0).sum()} positive entries. "
                f"Expected one entry for each of {n_logits} logits, at least one of them positive."
            )
        return torch.from_numpy(weights).log()
