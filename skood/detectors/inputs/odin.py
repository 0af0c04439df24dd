"""ODIN: the softmax of inputs that were moved so that the network is surer of its class."""

from functools import partial
from numbers import Real

from torch import nn

from skood._compat import Interval
from skood.detectors.inputs.moving import MovesInputs
from skood.detectors.logits.msp import probability
from skood.estimators.kinds import LogitsDetector
from skood.estimators.parameters import param
from skood.functional import log_odds


class ODINDetector(MovesInputs, LogitsDetector):
    r"""Maximum softmax probability of inputs moved towards the predicted class.

    With logits :math:`l`, :math:`p = \mathrm{softmax}(l / T)` and the predicted class
    :math:`\hat y = \arg\max_c l_c`, a row x is moved to

    .. math:: x' = x + \epsilon\, \mathrm{sign}\, \partial \log p_{\hat y}(x) / \partial x,

    and the score is :math:`\max_c p_c(x')`. Rows of the known classes gain more by it than others.

    Parameters
    ----------
    temperature : float, default=1000.0
        T. The authors' 1000 tells near rows apart better (a ResNet-20 of CIFAR-10 against flowers:
        .932, with 1 .912), 1 uniform noise (.984, with 1000 .942) and digits.
    epsilon : float, default=0.0014
        How far each input is moved, in units of X over those of `scale`; 0: not at all, which
        saves two of three passes. 0.0014 is the authors' for pixels between 0 and 1. What raises
        the scores of training rows most is no guide: that was the largest of each grid, and worse.
    log : bool, default=False
        True: the log-odds :math:`\log(p / (1 - p))`, which rank rows as p does, without ties where
        the network is so confident that p rounds to 1, as at T = 1.

    See Also
    --------
    PerturbedDetector : The score of any other detector at inputs moved by its own gradient.
    MSPDetector : The probability of inputs as they are.

    Notes
    -----
    It takes two passes through the network and one back, learns nothing, and takes inputs that are
    one array of floats. The direction is found by log-odds, whose gradient has the sign of that of
    :math:`\log p_{\hat y}` and does not underflow: of confident networks that of
    :math:`\log p_{\hat y}` is 0 in float32, for inputs ten times larger in one entry of five. Where
    logits are maps there is one score a pixel, and the sum of the log-odds of all pixels is raised.

    Where a gradient is exactly 0 nothing moves; the authors move by :math:`-\epsilon`. ``ODIN`` of
    pytorch-ood 0.4.0 computes the same, with ``norm_std`` as `scale`. That of OpenOOD divides by
    the standard deviations of its data set: give them as `scale`; its iODIN is ``n_inputs=1``.
    detectors by edadaltocg moves by the gradient of the largest logit instead.

    References
    ----------
    Liang et al., "Enhancing The Reliability of Out-of-distribution Image Detection in Neural
    Networks", ICLR 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import ODINDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = ODINDetector(epsilon=0.1).fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [5.8, 3.0, 4.7, 1.6]])
    array([ 1, -1])
    """

    temperature: float = param(Interval(Real, 0, None, closed="neither"), default=1000.0)
    epsilon: float = param(Interval(Real, 0, None, closed="left"), default=0.0014)
    log: bool = param("boolean", default=False)

    def _make_score(self):
        return partial(log_odds if self.log else probability, temperature=self.temperature)

    def _build(self, network):
        body = network.logits()
        if self.epsilon:
            odds = partial(log_odds, temperature=self.temperature)
            step = self._step(self.epsilon)
            body = nn.Sequential(network.moved(odds, step, n_inputs=self.n_inputs, body=body), body)
        return body, self._make_scorer(network)
