"""MaxLogit: the largest logit."""

from skood.estimators.kinds import LogitsDetector
from skood.functional import max_logit


class MaxLogitDetector(LogitsDetector):
    r"""Largest logit.

    The score is :math:`\max_c l_c`. Unlike the softmax probability it tells a row with one large
    logit from one with several.

    See Also
    --------
    MSPDetector : The largest softmax probability.
    LogitGapDetector : The largest logit less the mean of the next ones.

    Notes
    -----
    The same as in pytorch-ood, and as ``mls`` in OpenOOD.

    References
    ----------
    Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import MaxLogitDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = MaxLogitDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [6.0, 3.0, 4.8, 1.6]])
    array([ 1, -1])
    """

    def _make_score(self):
        return max_logit
