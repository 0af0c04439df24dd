"""The scores of transformed inputs, combined."""

from collections.abc import Callable, Sequence

from skood._compat import StrOptions
from skood.detectors.inputs.combining import (
    Combination,
    LearningTransformsScorer,
    TransformsBody,
    TransformsScorer,
)
from skood.detectors.inputs.images import OF_IMAGES, TRANSFORMS
from skood.detectors.inputs.wrapping import ScoresByDetector
from skood.estimators.parameters import param
from skood.learning.cross_fitting import scorer_of_changed_rows
from skood.learning.learning import LearningScorer


def unchanged(x):
    """Return a batch as it is."""
    return x


class TransformsDetector(ScoresByDetector):
    r"""The mean score of another detector over transformed inputs.

    With transforms :math:`t_1, \ldots, t_m` and the score s of the detector the score is
    :math:`\frac{1}{m + 1} \left( s(x) + \sum_i s(t_i(x)) \right)`, or the least of these.

    Parameters
    ----------
    transforms : sequence of str or callable
        Callables map a batch of X, as the network gets it, to one of the same shape, each row by
        itself and always in the same way; pixels of maps of scores stay where they are. By name,
        of images (n, C, H, W) but for the last two:

        - "mirror": reversed along the last axis.
        - "shift": four, by one pixel in each direction, with zeros behind.
        - "blur": pixels averaged with their neighbours, by weights 1, 2, 1 along both axes.
        - "contrast": half of the distances to the mean of a channel, or of a row of features.
        - "noise": one fixed field of Gaussian noise, a tenth of what a row's entries spread by.
    combine : {"mean", "min"}, default="mean"
        How scores become one. "min" helped nowhere.
    include_input : bool, default=True
        Whether the score of X as it is counts too.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps what the method consumes of all transforms to scores; ``scorer_.scorer`` is that of the
        detector.

    See Also
    --------
    PerturbedDetector : Inputs moved by the gradient of the score.

    Notes
    -----
    It takes a pass through the network a transform. A detector that learns does so from rows as
    they are. The threshold is that of transformed training rows, each scored as if it had not been
    learned from: left out of a bank, or by what the rows of nine other folds teach. With Gaussians
    it keeps ten states.

    Transforms should keep what the network knows of a class: the mean of the energy and that of
    mirror images reached a mean AUROC of .915 for .902 with a ResNet-20 of CIFAR-10, GEN .920 for
    .905; shifts helped on digits (.994 .992 .989 for .992 .988 .980), not there. CoVer, the mean
    confidence over corruptions of ImageNet-C, is ``TransformsDetector(MSPDetector(net), [...])``
    with these as callables; on digits small networks broke first (.811 for .988 on textures).

    References
    ----------
    Zhang et al., "What If the Input is Expanded in OOD Detection?", NeurIPS 2024.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import EnergyDetector, TransformsDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = TransformsDetector(EnergyDetector(), ["noise"]).fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [5.0, 3.0, 4.0, 2.0]])
    array([ 1, -1])
    """

    transforms: Sequence[str | Callable] = param(list, tuple, kw_only=False)
    combine: str = param(StrOptions({"mean", "min"}), default="mean")
    include_input: bool = param("boolean", default=True)

    def _functions(self, network):
        """Return the transforms as functions of a batch."""
        names = [transform for transform in self.transforms if not callable(transform)]
        for name in names:
            if name not in list(TRANSFORMS):
                known = ", ".join(map(repr, TRANSFORMS))
                raise ValueError(f"transforms has {name!r}: name {known}, or give a callable.")
        if names and (network.takes_named or not network.input_dtype.is_floating_point):
            raise ValueError(
                f"transforms={names} take arrays of floats, and X is none.\nGive callables, of a "
                "batch as the network gets it."
            )
        if not self.transforms:
            raise ValueError("transforms names no transform: give one at least.")
        return [f for t in self.transforms for f in ([t] if callable(t) else TRANSFORMS[t])]

    def _build(self, network):
        body, scorer = self._parts_inside(network)
        if hasattr(body, "unmoved"):
            raise ValueError(
                f"{type(self.detector).__name__} moves rows by what it has learned from them as "
                "they are.\nTransform inside of it: PerturbedDetector(TransformsDetector(...))."
            )
        learns = isinstance(scorer, LearningScorer)
        transforms = self._functions(network)
        if learns or self.include_input:
            transforms.append(unchanged)
        cls = LearningTransformsScorer if learns else TransformsScorer
        how = Combination(transforms, self.combine, self.include_input or not learns)
        combined = cls(scorer_of_changed_rows(scorer), how)
        of_images = [name for name in self.transforms if name in list(OF_IMAGES)]
        return TransformsBody(body, transforms, of_images), combined

    def _inspect(self, scorer, inputs):
        super()._inspect(scorer.scorer, scorer.combination.groups(inputs)[-1])

    def _fitted_attributes(self, scorer):
        return super()._fitted_attributes(scorer.scorer)
