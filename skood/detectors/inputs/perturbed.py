"""The score of a detector at inputs that are moved by its gradient."""

from numbers import Integral, Real

import torch
from sklearn.base import clone
from torch import nn

from skood._compat import Interval, StrOptions
from skood.detectors.inputs.moving import MovesInputs
from skood.detectors.inputs.wrapping import ScoresByDetector
from skood.estimators.parameters import param
from skood.learning.cross_fitting import scorer_of_changed_rows
from skood.learning.learning import LearningScorer, as_inputs, learned_parts


class MovedBody(nn.Module):
    """X → what a scorer takes of moved X.

    Parameters
    ----------
    body, scorer : nn.Module
        Those of a detector: X → what the scorer takes → scores.
    moved : Moved
        Moves X by the gradient of such scores.
    n_steps : int
        How often.
    keep : {"last", "min"}
        What the scorer shall score: the last inputs, or those of the lowest score on the way.
    """

    def __init__(self, body, scorer, moved, n_steps, keep):
        super().__init__()
        self.body, self.scorer, self.moved = body, scorer, moved
        self.n_steps, self.keep = n_steps, keep
        if isinstance(scorer, LearningScorer):
            self.unmoved = body

    def forward(self, x):
        """Return a tuple of inputs of the scorer."""
        lowest = None
        for _ in range(self.n_steps):
            gradient, inputs = self.moved.gradient.with_inputs(x)
            if self.keep == "min":
                lowest = self._lower(lowest, inputs)
            x = self.moved.move(x, gradient)
        inputs = as_inputs(self.body(x))
        return inputs if lowest is None else self._lower(lowest, inputs)[1]

    def _lower(self, lowest, inputs):
        """Return the scores and inputs with the lower score of each row."""
        scores = self.scorer(*inputs)
        if scores.ndim > 1:
            raise ValueError('keep="min" takes one score a row, not maps: use keep="last".')
        if lowest is None:
            return scores, inputs
        is_lower = scores < lowest[0]
        kept = (
            torch.where(is_lower.view(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(inputs, lowest[1], strict=True)
        )
        return torch.minimum(scores, lowest[0]), tuple(kept)


def steeper(detector):
    """Return a detector of the same ranking, the gradients of whose scores do not round to 0."""
    params = detector.get_params(deep=False)
    changes = {}
    if params.get("log") is False:
        changes["log"] = True
    if params.get("logit_score") == "msp":
        changes["logit_score"] = "log_odds"
    return clone(detector).set_params(**changes) if changes else detector


class PerturbedDetector(MovesInputs, ScoresByDetector):
    r"""The score of another detector at inputs moved by its own gradient.

    With the score :math:`s` of the detector a row x takes steps
    :math:`x \leftarrow x \pm \epsilon\, \mathrm{sign}\, \partial s(x) / \partial x`, and is scored
    where it ends, or by the lowest score on its way.

    Parameters
    ----------
    epsilon : float
        How far each input is moved in a step, in units of X over those of `scale`.
    direction : {"up", "down"}, default="up"
        Towards higher scores, as in ODIN and the Mahalanobis detector of Lee et al., where rows of
        the known classes gain more than others; or lower ones, as in PRO, where they lose less.
    n_steps : int, default=1
        How many steps.
    keep : {"last", "min"}, default="last"
        The score at the end, or the lowest of all points, that of the start among them (PRO).

    Attributes
    ----------
    scorer_ : nn.Module
        That of the detector, or one around it: maps what its method consumes to scores.

    Raises
    ------
    ValueError
        If X is not one array of floats, there is no network, the scores of the detector are
        constant but for jumps, as those of `NACDetector`, or ``partial_fit`` or dask are used with
        a detector that learns.

    See Also
    --------
    ODINDetector : Moves by the log-odds and scores by the softmax.
    TransformsDetector : Scores transformed inputs.

    Notes
    -----
    It takes n_steps + 1 passes through the network, and n_steps back. A detector that learns does
    so from rows as they are. Then these are read once more for the threshold, for which data that
    comes in batches is kept: moved as the fitted detector moves fresh rows, and scored as if it had
    not learned from them, as in `TransformsDetector`. ``partial_fit`` cannot go back to earlier
    rows.

    What has the logarithm of a score is moved by that: the gradient of a probability near 1 rounds
    to 0. Where a gradient is 0 nothing moves.

    **Which way.** For Mahalanobis distances up helped a little: on digits .992 .999 1.00 at 0.02
    (near, textures, noise), .988 .997 .999 without. Down hurts on networks that were trained as
    usual: for a ResNet-20 of CIFAR-10 the mean AUROC of the probability fell from .883 to .822 (one
    step of 0.01) and .780 (three), that of GEN from .905 to .847. The authors' largest gains are on
    networks that were trained to be robust.

    pytorch-ood's ``MahalanobisODIN``, with ``norm_std`` as `scale`, is this of a
    `MahalanobisDetector` with the settings that its Notes name, as is OpenOOD's MDSEns of one
    layer, with ``scale=0.5``. PRO-MSP is ``PerturbedDetector(MSPDetector(net), 0.003, "down",
    keep="min")``; the authors' steps are not divided by a standard deviation.

    References
    ----------
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks", NeurIPS 2018.

    Chen et al., "Leveraging Perturbation Robustness to Enhance Out-of-Distribution Detection",
    CVPR 2025.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import EnergyDetector, PerturbedDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = PerturbedDetector(EnergyDetector(), 0.1).fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [5.0, 3.0, 4.0, 2.0]])
    array([ 1, -1])
    """

    epsilon: float = param(Interval(Real, 0, None, closed="neither"), kw_only=False)
    direction: str = param(StrOptions({"up", "down"}), default="up", kw_only=False)
    n_steps: int = param(Interval(Integral, 1, None, closed="left"), default=1)
    keep: str = param(StrOptions({"last", "min"}), default="last")

    def _build(self, network):
        body, scorer = self._parts_inside(network)
        climbed = scorer
        if (climber := steeper(self.detector)) is not self.detector:
            climbed = climber._build(network)[1].eval().to(network.device)
            # It knows what the other one learns.
            for name, part in learned_parts(scorer).items():
                learned_parts(climbed)[name]._buffers = part._buffers
        step = self._step(self.epsilon if self.direction == "up" else -self.epsilon)
        moved = network.moved(climbed, step, n_inputs=self.n_inputs, body=body)
        scorer = scorer_of_changed_rows(scorer)
        return MovedBody(body, scorer, moved, self.n_steps, self.keep), scorer

    def _begin(self, source, pilot=None):
        training = super()._begin(source, pilot)
        if isinstance(self._scorer, LearningScorer):
            raise ValueError(
                f"{type(self.detector).__name__} learns, and only when it has learned from all "
                "rows can these be moved for the threshold.\nUse fit, on arrays, a Dataset or a "
                "DataLoader."
            )
        return training
