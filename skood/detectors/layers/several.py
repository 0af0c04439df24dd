"""Several layers: a detector on features at each, and their scores combined."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.base import clone
from torch import nn

from skood._compat import StrOptions
from skood._typing import RandomState
from skood._warnings import warn
from skood.detectors.features.knn import KNNDetector
from skood.estimators.base import BaseDetector
from skood.estimators.kinds import FeatureDetector, ReadsStages, per_layer
from skood.estimators.parameters import param
from skood.functional import clip_to, pool, radial
from skood.learning.ecdf import count_at_most
from skood.learning.learning import LearningScorer
from skood.learning.states import StateList
from skood.learning.thresholds import N_ULPS, epsilon
from skood.learning.wrapping import FixedScorer


def mean_and_deviation(output, *, channel_axis, mask):
    """Return mean and standard deviation of each channel over positions, side by side."""
    mean, squares = (pool(x, channel_axis=channel_axis, mask=mask) for x in (output, output**2))
    return torch.cat([mean, (squares - mean.square()).clamp(min=0).sqrt()], 1)


def flattened(output, *, channel_axis, mask):
    """Return all that a layer gives as one vector a row."""
    return output.flatten(1)


POOLS = {"avg": "avg", "max": "max", "avg_std": mean_and_deviation, "flatten": flattened}


def log_p_values(scores, calibration):
    """Return logarithms of the shares of calibration scores that are as low, (n_samples, L).

    Below all of them these fall in proportion to the distance, by the mean excess of the lowest
    tenth of the calibration scores.

    Parameters
    ----------
    scores : Tensor of shape (n_samples, L)
        Of each layer.
    calibration : Tensor of shape (L, n_calibration)
        Ascending.
    """
    n = calibration.shape[1]
    counts = count_at_most(calibration, scores.T).T
    k = min(n - 1, max(10, n // 10))
    lowest = calibration[:, 0]
    scale = (calibration[:, k : k + 1] - calibration[:, :k]).sum(1) / max(k, 1)
    scale = torch.maximum(scale, torch.finfo(scale.dtype).eps * lowest.abs())
    tail = (scores - lowest) / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    p = torch.log1p(counts.to(scores.dtype)) - np.log(n + 1)
    return torch.where(counts == 0, p + tail.clamp(max=0.0), p)


class LayersScorer(LearningScorer):
    """Features of several layers → the combined scores of a scorer at each."""

    # Of the scores of each layer, for all ways of combining them but sums.
    learned = ("centers", "scales", "calibration")

    def __init__(self, layers, parts, combine, weights, normalize):
        super().__init__()
        self.layers, self.parts = layers, nn.ModuleList(parts)
        self.combine, self.normalize = combine, normalize
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        one = parts[0]
        self.needs_row_keys, self.n_threshold_rows = one.needs_row_keys, one.n_threshold_rows
        self.samples_by_key, self.folds_by_key = one.samples_by_key, one.folds_by_key

    def rows_of(self, layers):
        """Return the inputs of each part, from what the layers gave."""
        rows = [radial(features, 1) for features in layers] if self.normalize else list(layers)
        return [(torch.cat(rows, 1),)] if self.combine == "concat" else [(one,) for one in rows]

    def each(self, layers):
        """Yield the parts and their inputs."""
        return zip(self.parts, self.rows_of(layers), strict=True)

    def check(self, inputs):
        """Raise if rows are too large for a part."""
        for part, rows in self.each(inputs):
            part.check(rows)

    def init_state(self, inputs, n_classes, n_expected):
        """Return the states of the parts."""
        pairs = self.each(inputs)
        return StateList(part.init_state(rows, n_classes, n_expected) for part, rows in pairs)

    def update(self, state, inputs, class_indices, keys):
        """Let each part learn from a batch."""
        for (part, rows), own in zip(self.each(inputs), state, strict=True):
            part.update(own, rows, class_indices, keys)

    def finalize(self, state, classes):
        """Let each part finish."""
        self.centers = self.scales = self.calibration = None
        for part, own in zip(self.parts, state, strict=True):
            part.finalize(own, classes)

    def clear_cache(self):
        """Drop what only learning needs."""
        for part in self.parts:
            part.clear_cache()

    def forward(self, *layers):
        """Score rows, from the features of each layer."""
        scores = [part(*rows).double() for part, rows in self.each(layers)]
        return self.combined(torch.stack(scores, 1))

    def terms(self, scores):
        """Return what scores of the layers (n_samples, L) are combined of."""
        if self.scales is not None:
            # A constant layer tells nothing.
            units = torch.where(self.scales > 0, 1 / self.scales, 0.0)
            scores = (scores - self.centers) * units
        elif self.calibration is not None:
            scores = log_p_values(scores, self.calibration)
        return scores if self.weights is None else scores * self.weights.to(scores.device)

    def combined(self, scores):
        """Combine scores of the layers (n_samples, L); before `calibrate` a sum of them."""
        terms = self.terms(scores)
        if self.combine == "min" and self.calibration is not None:
            return clip_to(terms.amin(1), torch.float64)
        return clip_to(terms.sum(1), torch.float64)

    @property
    def part_names(self):
        """The names of the layers; None where there is one scorer for all."""
        names = ["features" if name is None else name for name in self.layers]
        return None if self.combine == "concat" else names

    def explain(self, *layers):
        """Return what each layer adds to the score."""
        if self.combine == "concat":
            (part,), (rows,) = self.parts, self.rows_of(layers)
            if part.explain is None:
                raise TypeError("The detector on all layers does not say what its scores are of.")
            found = part.explain(*rows)
            # Of rows side by side, which are told by no layer alone.
            found.pop("in_bank", None)
            return found
        scores = torch.stack([part(*rows).double() for part, rows in self.each(layers)], 1)
        parts = self.terms(scores)
        if self.combine == "min":
            lowest = torch.arange(parts.shape[1], device=parts.device) == parts.argmin(1)[:, None]
            parts = torch.where(lowest, parts, 0.0)
        return {"contributions": parts, "base": parts.new_zeros(len(parts))}

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows without themselves; for what is to be calibrated, of each layer."""
        return self._summed(
            part.leave_one_out(rows, class_indices, keys) for part, rows in self.each(inputs)
        )

    def score_fresh(self, inputs):
        """Score other rows; for what is to be calibrated, of each layer."""
        return self._summed(part.score_fresh(rows) for part, rows in self.each(inputs))

    def _summed(self, scores):
        scores = torch.stack([of_layer.double() for of_layer in scores], 1)
        return self.combined(scores) if self.combine in ("sum", "concat") else scores

    def calibrate(self, scores):
        """Combine the scores of training rows, after taking from them what that needs."""
        if scores.ndim == 1:
            return scores
        scores = scores.double()
        if self.combine == "std":
            self.centers, self.scales = scores.mean(0), scores.std(0, correction=0)
            rounding = N_ULPS * epsilon(torch.float64) * scores.abs().amax(0)
            self.scales = torch.where(self.scales > rounding, self.scales, 0.0)
            constant = [n for n, s in zip(self.layers, self.scales.tolist(), strict=True) if not s]
            if constant:
                warn(f"All training rows score the same at {constant}, which are left out.")
            positive = self.scales[self.scales > 0]
            if len(positive):
                self.rounding = self.rounding / float(positive.amin())
        else:
            # What equals a training row is no further out, however both are rounded.
            slack = self.rounding + N_ULPS * epsilon(torch.float64) * scores.abs().median(0).values
            self.calibration, self.rounding = (scores - slack).sort(0).values.T.contiguous(), 0.0
        return self.combined(scores)


class LayersDetector(ReadsStages, BaseDetector):
    r"""A detector on features at each of several layers of a network, their scores combined.

    What a layer gives is averaged over positions and, by default, given length 1. Each layer has a
    clone of `detector`, which learns from these rows, in one pass for all layers. With the scores
    :math:`s_i` of a row at the layers the score is :math:`\sum_i w_i s_i`.

    Parameters
    ----------
    layers : sequence of str or None, default=None
        Names of submodules, and None for what enters the last linear layer. Without a sequence the
        last layer of each size of maps, such as layer1, layer2, layer3 and layer4 of a ResNet: on
        CIFAR-10 the three of a ResNet-20 reached a mean AUROC of .961, all nine blocks .949, and
        the last alone .946. The features alone where there are no maps, as in transformers and
        without a network.
    detector : detector on features, default=None
        What is learned of each layer: `KNNDetector`, `GMMDetector`, `MahalanobisDetector` and
        others, without a `model` and a `layer` of its own; its `false_alarm_rate`, `device` and
        `batch_size` do not count. None is ``KNNDetector()``.
    combine : {"sum", "concat", "std", "fisher", "min"}, default="sum"
        How scores become one. Those of unit rows share a scale, so that a sum is fair to them.

        - "sum": :math:`\sum_i w_i s_i`.
        - "concat": one `detector`, on the rows of all layers side by side.
        - "std": a sum of scores less their mean and over their standard deviation, both of training
          rows. For rows that are not normalised.
        - "fisher": a sum of :math:`\log p_i`, the share of training rows that score as low.
        - "min": the smallest :math:`\log p_i`. One layer is enough.
    weights : array-like of shape (n_layers,), default=None
        Positive :math:`w_i` for "sum", "std" and "fisher". None: all 1. Weights that the authors of
        single methods learned from OOD rows can be given here.
    normalize : bool, default=True
        Give the rows of each layer length 1. Without it Mahalanobis distances of the last layer of
        the ResNet-20 had an AUROC of .756 instead of .947.
    pool : {"avg", "max", "avg_std", "flatten"}, default="avg"
        What is taken of maps: the average or maximum of each channel, average and standard
        deviation side by side, or all entries.
    random_state : int, RandomState or None, default=None
        Draws the rows of banks.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps the features of the layers to scores; ``scorer_.parts`` are those of each.

    Raises
    ------
    ValueError
        If `detector` has a `model` or `layer`, or `weights` do not go with `layers` or `combine`.
    TypeError
        If `detector` is not one on features.

    See Also
    --------
    skood.ensemble.EnsembleDetector : Combines detectors of any kind.

    Notes
    -----
    For the threshold each layer scores training rows as if it had not learned from them, by the
    closed form of its detector.

    Layer weights by logistic regression (Lee et al.) need OOD rows. Stand-ins without them, such as
    noise or puzzles of patches, did worse than the plain sum. Theirs is `MahalanobisDetector` with
    ``normalize=False`` there and here, and `weights`. OpenOOD's MDSEns has ``reg_covar=0`` there;
    pytorch-ood does not divide the covariance by n: ``reg_covar=1e-6 / n`` gives its scores over n.

    References
    ----------
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks", NeurIPS 2018.

    Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.

    Examples
    --------
    >>> from skood import GMMDetector
    >>> from skood.benchmark import train_digits_network
    >>> from skood.datasets import load_digits_ood
    >>> from skood.detectors import LayersDetector
    >>> data = load_digits_ood(random_state=0)
    >>> net = train_digits_network(data.X_train, data.y_train, max_epochs=10).module_
    >>> detector = LayersDetector(net, detector=GMMDetector()).fit(data.X_train, data.y_train)
    >>> detector.layers_
    ['body.5', 'body']
    """

    detector: FeatureDetector | None = param(default=None)
    combine: str = param(StrOptions({"sum", "concat", "std", "fisher", "min"}), default="sum")
    weights: Sequence[float] | None = param("array-like", None, default=None)
    normalize: bool = param("boolean", default=True)
    pool: str = param(StrOptions(set(POOLS)), default="avg")
    random_state: RandomState = param("random_state", default=None)

    _needs_logits = False

    def _part(self):
        """Return the detector whose clones learn."""
        detector = KNNDetector() if self.detector is None else self.detector
        if not isinstance(detector, FeatureDetector):
            raise TypeError(
                "detector must be one on features, such as KNNDetector(), GMMDetector() or "
                f"MahalanobisDetector(), got {type(detector).__name__}."
            )
        if detector._needs_logits:
            raise ValueError(
                f"detector={detector!r:.60} compares with the weights of the head, which the "
                "features of other layers do not go with."
            )
        if detector.model is not None or detector.layer is not None:
            raise ValueError(
                f"detector={detector!r:.60} has a model or layer of its own.\nGive these to "
                "LayersDetector: LayersDetector(net, layers, detector=...)."
            )
        detector = clone(detector)
        detector._validate_params()
        return detector

    def _build(self, network):
        layers, axes = self._layers_and_axes(network.stages())
        if self.weights is not None:
            weights = np.asarray(per_layer(self.weights, len(layers), "weights"), dtype=np.float64)
            if not (np.isfinite(weights) & (weights > 0)).all():
                raise ValueError(f"weights must be positive numbers, got {self.weights}.")
            if self.combine in ("concat", "min"):
                raise ValueError(f"combine={self.combine!r} has no weights: leave them out.")
        n_parts = 1 if self.combine == "concat" else len(layers)
        parts = [self._part()._make_scorer() for _ in range(n_parts)]
        if not isinstance(parts[0], LearningScorer):
            parts = [FixedScorer(part) for part in parts]
        body = network.layers(layers, POOLS[self.pool], channel_axes=axes)
        return body, LayersScorer(layers, parts, self.combine, self.weights, self.normalize)

    def _fitted_attributes(self, scorer):
        self._part()._fitted_attributes(scorer.parts[0])
        return super()._fitted_attributes(scorer)
