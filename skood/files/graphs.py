"""Detectors, and estimators around them, as modules: X → score, decision and what more there is."""

import math

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from torch import nn

from skood.data.arrays import move
from skood.decisions.conformal import ConformalDetector
from skood.decisions.ensemble import EnsembleDetector
from skood.decisions.fit_on_inliers import FitOnInliers
from skood.decisions.open_set import OpenSetClassifier
from skood.decisions.p_values import LARGEST, tail_scale
from skood.estimators.base import BaseDetector
from skood.files.steps import Features, dtype_of, labels_of, steps_of
from skood.functional import clip_to
from skood.learning.ecdf import count_at_most
from skood.learning.learning import as_inputs


class DetectorGraph(nn.Module):
    """Map a batch of X to its scores and decisions."""

    names = ("score", "decision")

    def __init__(self, detector, X):
        super().__init__()
        self.dtype = detector._check_rows(X, "export").dtype
        self.body, self.scorer = detector._body, detector.scorer_
        self.device, self.input_dtype = detector.device_, detector._network.input_dtype
        self.offset = detector.offset_

    def forward(self, X):
        """Return two tensors of shape (n_samples,), or of maps."""
        # A copy: a network may write to its input.
        batch = move(X, self.device, self.input_dtype, copy=True)
        scores = clip_to(self.scorer(*as_inputs(self.body(batch))), self.dtype)
        return scores, clip_to(scores.double() - self.offset, self.dtype)


class PipelineGraph(nn.Module):
    """Transformers, and what scores behind them."""

    def __init__(self, pipeline, X):
        super().__init__()
        self.steps, X = steps_of(pipeline.steps[:-1], X)
        self.last = graph_of(pipeline.steps[-1][1], X)
        self.names = self.last.names

    def forward(self, X):
        """Return what the last step does."""
        return self.last(self.steps(X))


def as_compared(scores):
    """Return scores as calibration scores are kept."""
    return scores.double().clamp(-LARGEST, LARGEST)


class PValues(nn.Module):
    """Scores under the detector of each fold → conformal p-values and their logarithms.

    Parameters
    ----------
    calibration : list of ndarray of shape (n_calibration,)
        Of each fold, ascending.
    tail : {"none", "exponential"}
    """

    def __init__(self, calibration, tail):
        super().__init__()
        self.folds = nn.ParameterList(
            nn.Parameter(torch.from_numpy(fold), requires_grad=False) for fold in calibration
        )
        self.scales = [float(tail_scale(fold)) if len(fold) else 1.0 for fold in calibration]
        self.n, self.tail = sum(map(len, calibration)), tail

    def forward(self, scores):
        """Return two tensors of shape (n_samples,)."""
        folds = [item for item in zip(self.folds, scores, self.scales, strict=True) if len(item[0])]
        below = torch.zeros_like(scores[0], dtype=torch.int64)
        for calibration, own, _ in folds:
            below = below + count_at_most(calibration, own)
        p = (1.0 + below.double()) / (1 + self.n)
        if self.tail == "none" or not folds:
            return p, p.log()
        tails = [((s - c[0]) / scale).clamp(min=-LARGEST) for c, s, scale in folds]
        factor = torch.logsumexp(torch.stack(tails), 0) - math.log(len(tails))
        factor = torch.where(below == 0, factor, 0.0)
        return p * factor.exp(), p.log() + factor


class ConformalGraph(nn.Module):
    """Conformal p-values of the scores of detectors."""

    names = ("score", "decision", "p_value")

    def __init__(self, detector, X):
        super().__init__()
        if detector.fdr is not None:
            raise TypeError(
                f"ConformalDetector with fdr={detector.fdr!r} cannot be exported: its decisions "
                "depend on all rows of a batch.\nExport it with set_params(fdr=None), and adjust "
                "the p-values by scipy.stats.false_discovery_control."
            )
        self.graphs = nn.ModuleList(graph_of(inside, X) for inside in detector.detectors_)
        self.tail, self.offset = detector.tail, detector.offset_
        groups = detector._calibration
        self.p_values = nn.ModuleList(PValues(folds, self.tail) for _, folds in groups)
        self.labels = None
        if detector._within_predicted:
            self.labels = labels_of(detector.class_conditional, X)
            classes = np.asarray(detector.class_conditional.classes_).tolist()
            # A class that none is predicted to be of has no place.
            self.places = [classes.index(name) if name in classes else -1 for name, _ in groups]

    def forward(self, X):
        """Return p-values as scores, decisions and p-values."""
        scores = [as_compared(graph(X)[0]) for graph in self.graphs]
        predicted = None if self.labels is None else self.labels(X)
        found = [p_values(scores) for p_values in self.p_values]
        p, log_p = (torch.stack(values) for values in zip(*found, strict=True))
        if predicted is not None:
            places = torch.tensor(self.places, device=predicted.device)
            other = predicted != places[:, None]
            # Nothing speaks against a row whose predicted class has no calibration row.
            none = other.all(0)
            p = torch.where(other, -torch.inf, p).masked_fill(none, 1.0)
            log_p = torch.where(other, -torch.inf, log_p).masked_fill(none, 0.0)
        p, log_p = p.amax(0), log_p.amax(0)
        score = log_p if self.tail == "exponential" else p
        return score, score - self.offset, p


class EnsembleGraph(nn.Module):
    """The combined p-values of several detectors."""

    names = ("score", "decision")

    def __init__(self, ensemble, X):
        super().__init__()
        if ensemble.method not in COMBINED:
            raise TypeError(
                f"EnsembleDetector(method={ensemble.method!r}) cannot be exported: ONNX has no "
                f"normal quantiles.\nFit it with one of {', '.join(map(repr, COMBINED))}."
            )
        self.method, self.offset = ensemble.method, ensemble.offset_
        self.on_features = list(ensemble._on_features)
        features = ensemble.extractor_.transform(X)
        self.features = Features(ensemble.extractor_, dtype_of(features))
        pairs = zip(ensemble.detectors_, self.on_features, strict=True)
        self.graphs = nn.ModuleList(graph_of(one, features if on else X) for one, on in pairs)
        self.p_values = nn.ModuleList(PValues([c], "exponential") for c in ensemble._calibration)

    def forward(self, X):
        """Return scores and decisions."""
        features, log_p = self.features(X) if any(self.on_features) else None, []
        parts = zip(self.graphs, self.p_values, self.on_features, strict=True)
        for graph, p_values, on_features in parts:
            scores = as_compared(graph(features if on_features else X)[0])
            _, own = p_values([scores])
            # The quantile of 1 is infinite.
            log_p.append(own.clamp(max=math.log1p(-0.5 / (p_values.n + 1))))
        score = COMBINED[self.method](torch.stack(log_p))
        return score, score - self.offset


# Log p-values (n_detectors, n_samples) → scores (n_samples,).
COMBINED = {
    "min": lambda log_p: log_p.amin(0),
    "fisher": lambda log_p: log_p.sum(0),
    "mean_rank": lambda log_p: torch.logsumexp(log_p, 0) - math.log(log_p.shape[0]),
}


class OpenSetGraph(nn.Module):
    """Scores and decisions of the detector, and the class."""

    def __init__(self, classifier, X):
        super().__init__()
        features = classifier._read(X)
        self.features, self.labels = None, None
        if classifier._is_network:
            self.features = Features(classifier.classifier_, dtype_of(features))
            self.head = classifier.classifier_.head
        else:
            self.labels = labels_of(classifier.classifier_, X)
        self.on_features = classifier._on_features and classifier._is_network
        self.detector = graph_of(classifier.detector_, features if self.on_features else X)
        self.names = (*self.detector.names, "label")

    def forward(self, X):
        """Return what the detector gives, and places in ``classes_``, -1 where unknown."""
        features = None if self.features is None else self.features(X)
        outputs = self.detector(features if self.on_features else X)
        if self.labels is not None:
            labels = self.labels(X)
        else:
            labels = self.head(features.to(self.head.weight.dtype)).argmax(1)
        return *outputs, torch.where(outputs[1] < 0, -1, labels)


GRAPHS = {
    BaseDetector: DetectorGraph,
    Pipeline: PipelineGraph,
    ConformalDetector: ConformalGraph,
    EnsembleDetector: EnsembleGraph,
    OpenSetClassifier: OpenSetGraph,
    FitOnInliers: lambda estimator, X: graph_of(estimator.estimator_, X),
    FrozenEstimator: lambda frozen, X: graph_of(frozen.estimator, X),
}


def graph_of(estimator, X):
    """Return the module of a fitted estimator that takes batches like X.

    Its ``names`` are those of what it returns.
    """
    make = next((make for cls, make in GRAPHS.items() if isinstance(estimator, cls)), None)
    if make is None:
        raise TypeError(
            f"{type(estimator).__name__} cannot be exported: there are graphs of skood's "
            f"detectors, {', '.join(cls.__name__ for cls in list(GRAPHS)[1:])}.\nOf scikit-learn's "
            "detectors there are none: take one of skood's, such as GMMDetector or KNNDetector."
        )
    return make(estimator, X)


def first_of(estimator):
    """Return what sees X first: an estimator of skood that computes, or one of scikit-learn."""
    while True:
        if isinstance(estimator, Pipeline):
            steps = [step for _, step in estimator.steps if step not in ("passthrough", None)]
            estimator = steps[0]
        elif isinstance(estimator, ConformalDetector):
            estimator = estimator.detectors_[0]
        elif isinstance(estimator, EnsembleDetector):
            return estimator.extractor_
        elif isinstance(estimator, OpenSetClassifier):
            estimator = estimator.classifier_
        elif isinstance(estimator, FitOnInliers):
            estimator = estimator.estimator_
        elif isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        else:
            return estimator


def devices_of(graph):
    """Return the devices that the detectors of a graph compute on."""
    parts = [part for part in graph.modules() if isinstance(part, (DetectorGraph, Features))]
    return {part.device for part in parts}
