"""DICE: a head of the weights that contribute most."""

from numbers import Real

import torch
from torch.nn.functional import linear

from skood._compat import Interval
from skood._warnings import warn
from skood.estimators.kinds import HeadDetector, ScoresLogits, logit_scorer
from skood.estimators.parameters import param
from skood.learning.blocks import score_in_folds
from skood.learning.learning import LearningScorer
from skood.learning.moments import FoldMoments
from skood.learning.quantiles import quantile_of

# A mean below this share of those of the folds is that of centred features, in float32 too.
ROUNDING = 1e-4


def sparse_weight(weight, mean, percentile):
    """Return the weights that contribute most, and 0 in place of the others.

    Parameters
    ----------
    weight : Tensor of shape (C, D)
        Of the last linear layer.
    mean : Tensor of shape (D,), dtype float64
        Of the features of training rows.
    percentile : float
        The share of the weights to remove; 0 keeps the least too.
    """
    if percentile == 0:
        return weight.clone()
    contributions = weight.double() * mean
    return torch.where(contributions > quantile_of(contributions.flatten(), percentile), weight, 0)


def is_centred(moments):
    """Tell whether the mean of rows is 0 but for rounding, beside the means of the folds.

    Without a fold it is then the opposite of that fold's mean, which tells nothing of other rows.
    """
    largest = moments.means.abs().amax(0)
    return bool((moments.without()[1][0].abs() <= ROUNDING * largest).all() & largest.any())


class DICEScorer(LearningScorer):
    """Features → scores of the logits that the largest contributions make."""

    learned = ("weight",)
    needs_row_keys = folds_by_key = True

    def __init__(self, head, percentile, logit_score):
        super().__init__()
        self.head, self.percentile, self.logit_score = head, percentile, logit_score
        self.clear_cache()

    def init_state(self, inputs, n_classes, n_expected):
        """Return means of no rows."""
        return FoldMoments(inputs[0].shape[1], "mean", inputs[0].device)

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        state.update(inputs[0], keys)

    def finalize(self, state, classes):
        """Choose the weights by the mean of all rows, and by those without each fold."""
        self.weight = self._weight(state.without())
        self.folds_of, folds = state.folds, state.counts.nonzero()[:, 0].tolist()
        if is_centred(state):
            warn(
                "The features are centred: of contributions to the logits that are 0 on average, "
                "DICE chooses by rounding.\nGive the features as the head takes them in a network."
            )
            self.without_fold = dict.fromkeys(folds, self.weight)
        else:
            self.without_fold = {fold: self._weight(state.without(fold)) for fold in folds}

    def _weight(self, moments):
        return sparse_weight(self.head.weight, moments[1][0], self.percentile)

    def forward(self, features):
        """Score features of shape (n_samples, D)."""
        return self._score(features, self.weight)

    def _score(self, features, weight):
        return self.logit_score(linear(features, weight, self.head.bias))

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows by the weights that the other folds choose."""
        return score_in_folds(
            lambda fold, features: self._score(features, self.without_fold[fold]),
            self.folds_of(keys),
            inputs[0],
        )

    def clear_cache(self):
        """Drop the weights of the folds."""
        self.without_fold, self.folds_of = {}, None


class DICEDetector(ScoresLogits, HeadDetector):
    r"""Directed sparsification: logits of the weights that contribute most to them.

    With the mean features :math:`\mu` of the training rows, the weight :math:`W_{cj}` contributes
    :math:`W_{cj}\,\mu_j`. Those whose contribution exceeds a quantile of all
    :math:`C \cdot D` stay, the others become 0. The score is the energy of the logits of these.

    Parameters
    ----------
    percentile : float, default=0.1
        The level of the quantile, the share of weights to remove, in [0, 1); 0 keeps all, and gives
        the energy. The authors take 0.9 for CIFAR and 0.7 for ImageNet. On the 64 features of a
        ResNet-20 for CIFAR-10 0.1, 0.7 and 0.9 gave an AUROC of .908, .899 and .854 (flowers) and
        .820, .867 and .925 (noise), on digits .987, .970 and .623 (other digits).

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features to scores; its buffer ``weight`` (C, D) holds the weights that stay, and 0.

    See Also
    --------
    LINeDetector : Chooses weights for each class, and features too.

    Notes
    -----
    For the threshold of ``predict`` the rows are divided into ten folds by a hash of their content,
    and each is scored by the weights that the other folds choose. Of centred features, as of a PCA,
    the mean is rounding: a warning says so.

    pytorch-ood and OpenOOD compute the same, the latter with the percentile in percent and 90 as
    its default. edadaltocg/detectors chooses by the weights alone, in each row of W.

    References
    ----------
    Sun and Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection", ECCV 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import DICEDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = DICEDetector().fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [0.0, 0.0, 0.0, 0.0]])
    array([ 1, -1])
    """

    percentile: float = param(Interval(Real, 0, 1, closed="left"), default=0.1)

    def _make_scorer(self, head):
        return DICEScorer(head, self.percentile, logit_scorer(self.logit_score))
