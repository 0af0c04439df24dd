"""Monte-Carlo dropout: how sure and how much of one mind the passes with dropout are."""

from numbers import Integral, Real

from sklearn.utils import check_random_state

from skood._compat import Interval
from skood._typing import RandomState
from skood.detectors.logits.passes import PassesDetector, PassesScorer
from skood.estimators.parameters import param


class MCDropoutDetector(PassesDetector):
    r"""Passes with dropout: rows on which the network is unsure once units are missing.

    Each of the :math:`R` passes drops other units, and gives the probabilities :math:`p_r`. The
    score is minus the logarithm of the entropy of their mean, or another one by `criterion`.

    Parameters
    ----------
    n_passes : int, default=30
        R. Each costs a pass of the network; with `rate` a product with the last linear layer.
    rate : float, default=None
        Drop this share, between 0 and 1, of what enters the last linear layer: needs no network,
        but features and a head. It costs as little where the network's only dropout lies there.
        None: the network's own ``nn.Dropout`` layers, at their rates; where X holds features, which
        have passed these, 0.5.
    random_state : int, RandomState or None, default=None
        Draws what is dropped; None: the same each time. Also the k-means clusters that stand in for
        classes where ``model=None`` gets no y.

    Raises
    ------
    ValueError
        If `rate` is None and the network has no ``nn.Dropout``. Dropout by a function, or inside of
        ``nn.LSTM`` and ``nn.MultiheadAttention``, cannot be found.

    See Also
    --------
    DeepEnsembleDetector : The same of several networks, which cost as many trainings.
    EntropyDetector : The entropy of one pass without dropout.

    Notes
    -----
    Each pass has one mask a dropout layer, made of `random_state`, the number of the pass and the
    layer's name, and shared by all rows: R fixed networks, some of whose units are missing. The
    probabilities of a row are distributed as if masks were its own, and its score depends on
    neither batch nor call. Drawn anew for each batch, as in other libraries, two runs of 30
    passes differed by .04 where scores spread by .18. Everything but dropout stays in eval mode.

    pytorch-ood's ``MCD`` is ``criterion="variance"`` and, with ``mode="mean"``, the ranking of
    "msp", with the other sign; OpenOOD's ``dropout`` takes the MSP of mean logits;
    edadaltocg/detectors counts its first pass twice.

    References
    ----------
    Gal and Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep
    Learning", ICML 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import MCDropoutDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = MCDropoutDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [7.0, 2.0, 4.0, 2.0]])
    array([ 1, -1])
    """

    n_passes: int = param(Interval(Integral, 2, None, closed="left"), default=30)
    rate: float | None = param(Interval(Real, 0, 1, closed="neither"), None, default=None)
    random_state: RandomState = param("random_state", default=None)

    @property
    def looks_inside(self) -> bool:
        """True when the network's own dropout is switched on."""
        return self.rate is None

    def _build(self, network):
        rate = 0.5 if self.rate is None and network.takes_features else self.rate
        body, passes = network.passes(self.n_passes, rate=rate)
        # Detectors that learn from parts of the data have the same masks, so that they can merge.
        random_state = check_random_state(0 if self.random_state is None else self.random_state)
        seed = random_state.randint(2**31 - 1)
        note = network.largest_logits.note
        n_logits = network.n_logits if rate and network.returns_vectors else None
        return body, PassesScorer(passes, self.criterion, note, seed, n_logits)
