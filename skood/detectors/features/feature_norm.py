"""Feature norm: the length of the features."""

import math
from functools import partial
from numbers import Real

import torch
from torch import nn

from skood._compat import Options
from skood.estimators.kinds import FeatureDetector, LogitScorer
from skood.estimators.parameters import param
from skood.functional import clip_to
from skood.learning.norms import lengths


def clipped_lengths(features, order):
    """Return the norm of each row."""
    return clip_to(lengths(features, order), torch.float64)


class FeatureNormDetector(FeatureDetector):
    r"""Length of the features: a baseline that shows whether it tells anything.

    The score is :math:`\|h\|_p`. Networks that are trained by cross-entropy often give
    in-distribution rows longer features; where others are longer the AUROC is below .5, such as
    .38 (order 1) on noise beside digits.

    Parameters
    ----------
    order : {1, 2, inf}, default=2
        The p of the norm: the sum of absolute values, the Euclidean length or the largest absolute
        value.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores. Nothing is learned but the threshold.

    See Also
    --------
    CosineDetector, KNNDetector : May add the length to, or multiply it by, a similarity.

    Notes
    -----
    The ``L1Norm`` of the package ``detectors`` gives :math:`-\|h\|_1`.

    References
    ----------
    Yu et al., "Block Selection Method for Using Feature Norm in Out-of-Distribution Detection",
    CVPR 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import FeatureNormDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> FeatureNormDetector().fit(X).predict([[5.1, 3.5, 1.4, 0.2], [0.0, 0.0, 0.0, 0.0]])
    array([ 1, -1])
    """

    order: float = param(Options(Real, {1, 2, math.inf}), default=2)

    def _make_scorer(self):
        return LogitScorer(nn.Identity(), partial(clipped_lengths, order=self.order))
