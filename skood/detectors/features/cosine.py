"""Cosine: similarity of directions to class means, or to the weights of the classes."""

from numbers import Real

import torch
from torch import nn

from skood._compat import Interval, StrOptions
from skood._typing import RandomState
from skood.estimators.kinds import FeatureDetector
from skood.estimators.parameters import param
from skood.functional import all_finite, clip_to, radial
from skood.learning.learning import LearningScorer
from skood.learning.moments import OVERFLOW, check_squares
from skood.learning.norms import lengths
from skood.learning.states import State


def cosines(rows, others):
    """Return the cosine of each row to each of others, as float64; 0 for zero rows.

    Products of float32 are float32's: those of float64, with the lengths of the weights of 1000
    classes, took three times as long.
    """
    dtype = torch.promote_types(torch.promote_types(rows.dtype, others.dtype), torch.float32)
    return (radial(rows, 1, dtype) @ radial(others, 1, dtype).T).double()


def plus_lengths(similarities, features, norm_weight):
    """Return the largest cosine of each row plus its weighted length."""
    return clip_to(similarities.amax(1) + norm_weight * lengths(features), torch.float64)


class CosineToMeans(LearningScorer):
    """Features → largest cosine similarity to a class mean, plus their weighted length."""

    learned = ("sums",)

    def __init__(self, norm_weight):
        super().__init__()
        self.norm_weight = norm_weight

    def check(self, inputs):
        """Raise if sums would overflow."""
        check_squares(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return the sums of no rows."""
        sums = inputs[0].new_zeros(n_classes, inputs[0].shape[1], dtype=torch.float64)
        return State(per_class=["sums"], sums=sums)

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        state.sums.index_add_(0, class_indices, inputs[0].double())

    def finalize(self, state, classes):
        """Keep the sums, whose directions are those of the means."""
        if not all_finite(state.sums):
            raise ValueError(OVERFLOW)
        self.sums = state.sums.clone()

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        return plus_lengths(cosines(features, self.sums), features, self.norm_weight)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each left out of the sum of its class."""
        features = inputs[0].double()
        directions = radial(features, 1)
        own = (directions * radial(self.sums[class_indices] - features, 1)).sum(1, keepdim=True)
        similarities = cosines(features, self.sums).scatter(1, class_indices[:, None], own)
        return plus_lengths(similarities, features, self.norm_weight)


class CosineToWeights(nn.Module):
    """Features → largest cosine similarity to the weights of a class, plus weighted length."""

    def __init__(self, head, norm_weight):
        super().__init__()
        self.head, self.norm_weight = head, norm_weight

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        return plus_lengths(cosines(features, self.head.weight), features, self.norm_weight)


class CosineDetector(FeatureDetector):
    r"""Largest cosine similarity between the features and the means, or the weights, of classes.

    The score is :math:`\max_c \langle h, \mu_c \rangle / (\|h\| \|\mu_c\|) + w \|h\|` with the
    class means :math:`\mu_c` of the features :math:`h`, or the rows of the last linear layer's
    weight in their place.

    Parameters
    ----------
    to : {"means", "weights"}, default="means"
        What features are compared with. "weights" learns nothing, and takes no `layer`; without a
        network they are those of a logistic regression on (X, y).
    norm_weight : float, default=0.0
        The weight w of the length of the features. DML adds it to "weights"; its authors train the
        network for that. Added to other networks it hurts: .996 became .774 on noise beside digits.
    random_state : int, RandomState or None, default=None
        For the k-means clusters that stand in for classes where "weights" gets neither a network
        nor y.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; with "means" its buffer ``sums`` (n_classes, n_features) holds the
        sums of the classes.

    See Also
    --------
    KNNDetector : Similarity to single training rows.

    Notes
    -----
    Without y there is one mean, that of all rows. For the threshold each training row is left out
    of the mean of its class. With "weights" the ranking is that of the cosine logits of networks
    with a cosine head, as Techapanurak et al. train them, and of MCM but for its softmax.

    References
    ----------
    Techapanurak et al., "Hyperparameter-Free Out-of-Distribution Detection Using Cosine
    Similarity", ACCV 2020.

    Zhang and Xiang, "Decoupling MaxLogit for Out-of-Distribution Detection", CVPR 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import CosineDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> CosineDetector().fit(X, y).predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    to: str = param(StrOptions({"means", "weights"}), default="means")
    norm_weight: float = param(Interval(Real, None, None, closed="neither"), default=0.0)
    random_state: RandomState = param("random_state", default=None)

    @property
    def _needs_logits(self):
        return self.to == "weights"

    def _build(self, network):
        if self.to == "means":
            return super()._build(network)
        if self.layer is not None:
            raise ValueError(
                f"The weights are those of the last linear layer, got layer={self.layer!r}.\n"
                'Leave layer=None, or use to="means".'
            )
        return network.features(), CosineToWeights(network.head, self.norm_weight)

    def _make_scorer(self):
        return CosineToMeans(self.norm_weight)
