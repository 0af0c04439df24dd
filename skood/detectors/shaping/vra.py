"""VRA: activations rectified on both sides."""

from numbers import Real

from skood._compat import Interval, StrOptions
from skood._warnings import warn
from skood.detectors.shaping.rectify import QuantileRectify
from skood.estimators.kinds import ShapingDetector
from skood.estimators.parameters import param


class VRADetector(ShapingDetector):
    r"""Rectified activations: small ones become 0, large ones are cut off, then score the logits.

    With the quantiles :math:`a` and :math:`b` of an activation over the training rows,
    :math:`h` becomes 0 where :math:`h < a`, :math:`b` where :math:`h > b`, and :math:`h` plus a
    constant, the lift, between. The rest of the network gives logits, whose energy is the score.

    Parameters
    ----------
    lower : float, default=0.6
        The level of the quantile :math:`a`, in [0, upper). 0.6 is the authors' for CIFAR.
    upper : float, default=0.95
        The level of the quantile :math:`b`, in (0, 1]. The authors use 0.9 for CIFAR-10, 0.95 for
        CIFAR-100.
    below : {"zero", "clip"}, default="zero"
        Whether activations below :math:`a` become 0, as in the paper, or :math:`a`, which suits
        signed activations: on sentence embeddings the AUROC against other topics was .647 with
        "zero" and .839 with energy alone.
    lift : float, default=0.0
        Added to the activations between the bounds, in their units; the authors' VRA+ adds 0.6.
    per_channel : bool, default=True
        Whether each channel has quantiles of its own instead of one pair for all activations.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps activations, or inputs of the network, to scores; ``scorer_.shaping`` rectifies, and
        its buffers ``low`` and ``high`` are the bounds.

    See Also
    --------
    ReActDetector : Cuts off the large activations alone.

    Notes
    -----
    Quantiles, and for the threshold of ``predict`` those of the other rows, are as in
    `ReActDetector`. Inside of a network a channel has one pair of quantiles for all its positions.

    The authors' code for CIFAR is the default with their levels; for ImageNet it takes 0.5 and 1 as
    the bounds themselves. OpenOOD's ``vra`` is ``lower=0.1, upper=0.9, below="clip",
    per_channel=False``; pytorch-ood's is ``lower=0.01, upper=0.99, below="clip"``, inside of a
    network with quantiles for each position.

    References
    ----------
    Xu et al., "VRA: Variational Rectified Activation for Out-of-distribution Detection", NeurIPS
    2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import VRADetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = VRADetector(lower=0.1).fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [5.0, 3.0, 4.0, 2.0]])
    array([ 1, -1])
    """

    lower: float = param(Interval(Real, 0, 1, closed="left"), default=0.6)
    upper: float = param(Interval(Real, 0, 1, closed="right"), default=0.95)
    below: str = param(StrOptions({"zero", "clip"}), default="zero")
    lift: float = param(Interval(Real, None, None, closed="neither"), default=0.0)
    per_channel: bool = param("boolean", default=True)

    def _make_shaping(self):
        if self.lower >= self.upper:
            raise ValueError(f"lower={self.lower:g} must be less than upper={self.upper:g}.")
        return QuantileRectify(self.lower, self.upper, self.per_channel, self.below, self.lift)

    def _inspect(self, scorer, inputs):
        at_head = self.layer is None and inputs[0].ndim == 2
        if at_head and self.below == "zero" and bool(inputs[0].amin() < 0):
            warn(
                "The features are signed, and setting small ones to 0 raises the negative ones.\n"
                "below='clip' cuts off both sides instead."
            )
