"""MSP: the largest softmax probability, at a temperature that may be fitted."""

import math
from functools import partial
from numbers import Real

import torch
from scipy.optimize import brentq

from skood._compat import Interval, StrOptions
from skood._warnings import warn
from skood.estimators.kinds import LogitsDetector
from skood.estimators.parameters import param
from skood.functional import log_odds, msp, tempered
from skood.learning.agreement import label_columns
from skood.learning.sampled import SampledScorer

# The temperature is fitted to at most so many rows.
N_ROWS = 20_000
# Between these a temperature is searched. Outside the cross-entropy may fall without end.
COLDEST, HOTTEST = 0.01, 100.0


def fit_temperature(logits, columns):
    """Return the temperature of the least cross-entropy.

    Where all rows are classified right it falls without end as the temperature does. So targets are
    Platt's: of n rows the label has the probability 1 - 1/(n + 2), and all classes share the rest.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Unnormalised class scores.
    columns : Tensor of shape (n_samples,)
        The logit of each row's class.
    """
    n_samples, n_classes = logits.shape
    rest = 1 / (n_samples + 2)
    # So that sums over rows do not overflow.
    logits = tempered(logits).clamp(min=-1e150)
    of_labels = logits.gather(1, columns[:, None]).sum()
    wanted = float((1 - rest) * of_labels + rest / n_classes * logits.sum())

    def slope(log_temperature):
        # The derivative of the cross-entropy with respect to 1 / T, in which it is convex.
        p = torch.softmax(logits / math.exp(log_temperature), dim=1)
        return float(p.mul_(logits).sum()) - wanted

    bounds = math.log(COLDEST), math.log(HOTTEST)
    if slope(bounds[0]) > 0 > slope(bounds[1]):
        return math.exp(brentq(slope, *bounds, xtol=1e-13))
    bound = COLDEST if slope(bounds[0]) <= 0 else HOTTEST
    warn(
        f"The cross-entropy still falls at the bound temperature={bound:g}, which is used.\nAre "
        "these rows of the classes that the network was trained on?"
    )
    return bound


class TemperatureScorer(SampledScorer):
    """Logits → scores at the temperature that fits the training rows best."""

    learned = ("temperature",)

    def __init__(self, score, classes):
        super().__init__()
        self.score, self.classes = score, classes

    def init_state(self, inputs, n_classes, n_expected):
        """Return an empty sample; raise without labels."""
        if self.labels is None:
            raise ValueError(
                'temperature="fit" compares logits with labels: pass y, one class for each row or '
                "pixel.\nWithout labels pass a number."
            )
        return super().init_state(inputs, n_classes, n_expected)

    def n_sampled(self, inputs):
        """Return the size of the sample."""
        return N_ROWS

    def finalize(self, state, classes):
        """Fit the temperature to the rows whose class the network knows."""
        _, (logits, class_indices) = state.sample()
        columns = label_columns(class_indices, classes, logits.shape[1], self.classes)
        known = columns >= 0
        temperature = fit_temperature(logits[known], columns[known])
        self.temperature = torch.tensor(temperature, dtype=torch.float64, device=logits.device)

    def forward(self, logits):
        """Score logits."""
        return self.score(logits, self.temperature)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows as they are: one row hardly moves the one number that is learned."""
        return self(*inputs)


def probability(logits, temperature):
    """Return the largest softmax probability, in float64."""
    return msp(tempered(logits, temperature))


class MSPDetector(LogitsDetector):
    r"""Maximum softmax probability, the baseline of Hendrycks and Gimpel.

    With logits :math:`l` and :math:`p = \max_c \mathrm{softmax}(l / T)_c` the score is the log-odds
    :math:`\log(p / (1 - p))`, which ranks rows as :math:`p` does.

    Parameters
    ----------
    temperature : float or "fit", default=1.0
        T, what the logits are divided by. "fit" is temperature scaling: the temperature with the
        least cross-entropy on (X, y), which should be rows that the network was not trained on.
    log : bool, default=True
        True: the log-odds, which tell rows apart where the network is so confident that p rounds
        to 1. With all logits multiplied by 4 the AUROC of p fell from .96 to .82 in float32, that
        of the log-odds did not. False: p itself, the paper's score.

    Attributes
    ----------
    temperature_ : float
        The temperature that is used.

    See Also
    --------
    ASHDetector : Energy, with ``variant="p", percentile=0``.

    Notes
    -----
    The temperature is searched in (0.01, 100), to the last digits; of more than 20 000 rows on a
    random sample of that size. The targets of the cross-entropy are Platt's: with 1 and 0 no
    temperature is best where every row is classified right. pytorch-ood and OpenOOD stop their
    search after 50 steps, in one case at 1.29 where 7.21 is best. Rows of classes that `model` does
    not know, which a frozen classifier tells, are left out of the fit.

    References
    ----------
    Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples
    in Neural Networks", ICLR 2017.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import MSPDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = MSPDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [6.0, 3.0, 4.8, 1.6]])
    array([ 1, -1])
    """

    temperature: float | str = param(
        Interval(Real, 0, None, closed="neither"), StrOptions({"fit"}), default=1.0
    )
    log: bool = param("boolean", default=True)

    def _make_score(self):
        score = log_odds if self.log else probability
        return score if self.temperature == "fit" else partial(score, temperature=self.temperature)

    def _make_scorer(self, network):
        if self.temperature == "fit":
            return TemperatureScorer(self._make_score(), network.classes)
        return super()._make_scorer(network)

    def _fitted_attributes(self, scorer):
        return {"temperature_": float(getattr(scorer, "temperature", self.temperature))}
