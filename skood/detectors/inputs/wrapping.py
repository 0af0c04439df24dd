"""What detectors share that score changed inputs by another detector."""

from skood._typing import Model, RandomState
from skood.estimators.base import BaseDetector
from skood.estimators.parameters import param
from skood.learning.cross_fitting import CrossFitted
from skood.learning.pixels import by_pixel


class ScoresByDetector(BaseDetector):
    """Base of detectors that change X and score it by another detector.

    They have the attributes of that detector too.

    Parameters
    ----------
    detector : BaseDetector
        It is not fitted itself: its method and the parameters of that count, and its `model` where
        none is given here; not its `device`, `batch_size`, `verbose` and `false_alarm_rate`.
    model : nn.Module, skorch net, scikit-learn classifier or None, default=None
        The network, as of `detector`. None: that of `detector`.
    random_state : int, RandomState or None, default=None
        Draws what the detector draws. None: its own `random_state` does.
    """

    detector: BaseDetector = param(BaseDetector, kw_only=False)
    model: Model = param(default=None)
    random_state: RandomState = param("random_state", default=None)

    _changes_inputs = True

    @property
    def _given_model(self):
        """The network that parameters name."""
        return self.detector._given_model if self.model is None else self.model

    def _validate_params(self):
        super()._validate_params()
        self.detector._validate_params()

    @property
    def _needs_logits(self):
        """Whether a head is needed."""
        return self.detector._needs_logits

    @property
    def _non_finite_hint(self):
        """The end of the message when a score is not finite."""
        return self.detector._non_finite_hint

    def _random_state(self):
        if self.random_state is None:
            return self.detector._random_state()
        return super()._random_state()

    def _parts_inside(self, network):
        """Return body and scorer of the detector, or raise where it scores pixels as rows."""
        body, scorer = self.detector._build(network)
        if by_pixel(body, scorer) is not scorer:
            raise ValueError(
                f"{type(self.detector).__name__} scores each pixel of this network as a row, and "
                "inputs are changed as a whole.\nTake a method on logits that learns nothing, "
                "such as EnergyDetector(net)."
            )
        return body, scorer

    def _inspect(self, scorer, inputs):
        self.detector._inspect(inner(scorer), inputs)

    def _fitted_attributes(self, scorer):
        return self.detector._fitted_attributes(inner(scorer))


def inner(scorer):
    """Return the scorer as the detector makes it."""
    return scorer.scorer if isinstance(scorer, CrossFitted) else scorer
