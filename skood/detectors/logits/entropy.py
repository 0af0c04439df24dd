"""Entropy of the softmax."""

from functools import partial
from numbers import Real

from skood._compat import Interval
from skood.estimators.kinds import LogitsDetector
from skood.estimators.parameters import param
from skood.functional import entropy


class EntropyDetector(LogitsDetector):
    r"""Entropy of the softmax: low where the network is sure of one class.

    With :math:`p = \mathrm{softmax}(l / T)` and its entropy :math:`H = -\sum_c p_c \log p_c` the
    score is :math:`-\log H`.

    Parameters
    ----------
    temperature : float, default=1.0
        T, what the logits are divided by.
    log : bool, default=True
        True: :math:`-\log H`, which tells rows apart where the network is so confident that H
        rounds to 0. False: :math:`-H`, which ranks the others alike.

    See Also
    --------
    GENDetector : A generalised entropy, which weighs small probabilities more.

    Notes
    -----
    The divergence from the uniform distribution, :math:`\log C - H`, ranks rows alike. pytorch-ood
    clips p at 1e-7, which changes scores by 1e-6; edadaltocg/detectors returns the negative.

    References
    ----------
    Chan et al., "Entropy Maximization and Meta Classification for Out-of-Distribution Detection in
    Semantic Segmentation", ICCV 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import EntropyDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = EntropyDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [6.0, 3.0, 4.8, 1.6]])
    array([ 1, -1])
    """

    temperature: float = param(Interval(Real, 0, None, closed="neither"), default=1.0)
    log: bool = param("boolean", default=True)

    def _make_score(self):
        return partial(entropy, temperature=self.temperature, log=self.log)
