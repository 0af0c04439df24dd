"""scikit-learn's transformers and linear classifiers as torch modules, for graphs."""

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from torch import nn

from skood.data.arrays import move
from skood.decisions.fit_on_inliers import FitOnInliers
from skood.estimators.features import FeatureExtractor
from skood.learning.learning import as_inputs
from skood.network.model import fitted_module


class Affine(nn.Module):
    """Rows less a center, times factors, then times a matrix, plus a shift: in float64."""

    def __init__(self, dtype, center=None, factor=None, matrix=None, shift=None, clip=None):
        super().__init__()
        values = {"center": center, "factor": factor, "matrix": matrix, "shift": shift}
        for name, value in values.items():
            tensor = None if value is None else torch.tensor(value, dtype=torch.float64)
            self.register_buffer(name, tensor)
        self.dtype, self.clip = dtype, clip

    def forward(self, X):
        """Map (n_samples, n_features)."""
        X = X.double()
        X = X if self.center is None else X - self.center
        X = X if self.matrix is None else X @ self.matrix
        X = X if self.factor is None else X * self.factor
        X = X if self.shift is None else X + self.shift
        return (X if self.clip is None else X.clamp(*self.clip)).to(self.dtype)


class Normalized(nn.Module):
    """Rows over their norm."""

    def __init__(self, dtype, norm):
        super().__init__()
        self.dtype, self.order = dtype, {"l1": 1, "l2": 2, "max": torch.inf}[norm]

    def forward(self, X):
        """Map (n_samples, n_features)."""
        X = X.double()
        norm = torch.linalg.vector_norm(X, self.order, dim=1, keepdim=True)
        return (X / torch.where(norm == 0, 1.0, norm)).to(self.dtype)


class Features(nn.Module):
    """X → the features of a FeatureExtractor."""

    def __init__(self, extractor, dtype):
        super().__init__()
        self.body, self.dtype = extractor._body, dtype
        self.device, self.input_dtype = extractor.device_, extractor._network.input_dtype

    def forward(self, X):
        """Return (n_samples, n_features_out)."""
        # A copy: a network may write to its input.
        (features,) = as_inputs(self.body(move(X, self.device, self.input_dtype, copy=True)))
        return features.to(self.dtype)


def whitened(pca):
    """Return what PCA divides by, which it does in the order of scikit-learn."""
    if not getattr(pca, "whiten", False):
        return None
    spread = np.sqrt(pca.explained_variance_)
    return 1 / np.maximum(spread, np.finfo(spread.dtype).eps)


def inverse(scale):
    """Return one over a scale, if there is one."""
    return None if scale is None else 1 / np.asarray(scale, dtype=np.float64)


STEPS = {
    StandardScaler: lambda s, d: Affine(d, s.mean_ if s.with_mean else None, inverse(s.scale_)),
    MinMaxScaler: lambda s, d: Affine(
        d, factor=s.scale_, shift=s.min_, clip=s.feature_range if s.clip else None
    ),
    MaxAbsScaler: lambda s, d: Affine(
        d, factor=inverse(s.scale_), clip=(-1, 1) if getattr(s, "clip", False) else None
    ),
    RobustScaler: lambda s, d: Affine(
        d,
        s.center_ if s.with_centering else None,
        inverse(s.scale_) if s.with_scaling else None,
    ),
    PCA: lambda s, d: Affine(d, s.mean_, whitened(s), s.components_.T),
    IncrementalPCA: lambda s, d: Affine(d, s.mean_, whitened(s), s.components_.T),
    TruncatedSVD: lambda s, d: Affine(d, matrix=s.components_.T),
    Normalizer: lambda s, d: Normalized(d, s.norm),
}


def dtype_of(X):
    """Return the torch dtype of an array."""
    return torch.from_numpy(np.empty(0, np.asarray(X).dtype)).dtype


def step_of(step, X):
    """Return a module for a fitted transformer, and what the transformer makes of X.

    Raises
    ------
    TypeError
        If there is none for it.
    """
    if step in ("passthrough", None):
        return nn.Identity(), X
    if isinstance(step, FitOnInliers):
        return step_of(step.estimator_, X)
    if isinstance(step, FrozenEstimator):
        return step_of(step.estimator, X)
    if type(step) is Pipeline:
        return steps_of(step.steps, X)
    made = step.transform(X)
    if isinstance(step, FeatureExtractor):
        return Features(step, dtype_of(made)), made
    if type(step) is FunctionTransformer and step.func is None:
        return nn.Identity(), made
    make = STEPS.get(type(step))
    if make is None:
        known = ", ".join(cls.__name__ for cls in STEPS)
        raise TypeError(
            f"{type(step).__name__} cannot be exported: there are graphs of {known}, "
            "FunctionTransformer() and FeatureExtractor.\nTransform X by it before the graph, and "
            "export what follows."
        )
    return make(step, dtype_of(made)), made


def steps_of(steps, X):
    """Return a module for named transformers in turn, and what they make of X."""
    modules = []
    for _, step in steps:
        module, X = step_of(step, X)
        modules.append(module)
    return nn.Sequential(*modules), X


class Labels(nn.Module):
    """X → the place of the predicted class among those of a classifier."""

    def __init__(self, steps, head):
        super().__init__()
        self.steps, self.head = steps, head

    def forward(self, X):
        """Return (n_samples,)."""
        X = self.steps(X)
        return self.head(X.to(self.head.weight.dtype)).argmax(1)


def labels_of(classifier, X):
    """Return a module that gives what a classifier predicts, as a place in its ``classes_``."""
    steps = nn.Sequential()
    while isinstance(classifier, (FrozenEstimator, Pipeline)):
        if type(classifier) is Pipeline:
            more, X = steps_of(classifier.steps[:-1], X)
            steps.append(more)
            classifier = classifier.steps[-1][1]
        else:
            classifier = classifier.estimator
    try:
        if not is_classifier(classifier):
            raise TypeError
        head = fitted_module(classifier, torch.device("cpu"), torch.float64)
    except TypeError as error:
        raise TypeError(
            f"{type(classifier).__name__} cannot be exported: of classifiers there are graphs of "
            "networks and of linear ones, such as LogisticRegression."
        ) from error
    return Labels(steps, head)
