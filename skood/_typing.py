"""The types of the public interface."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import DataLoader, Dataset

__all__ = [
    "BaseEstimator",
    "CallbackSupportMixin",
    "ClassNamePrefixFeaturesOutMixin",
    "Device",
    "Inputs",
    "Labels",
    "Model",
    "OutlierMixin",
    "RandomState",
    "Scores",
    "TransformerMixin",
]

Inputs: TypeAlias = ArrayLike | torch.Tensor | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]
Labels: TypeAlias = ArrayLike | torch.Tensor
Scores: TypeAlias = ArrayLike | torch.Tensor
# A torch module, a skorch net or scikit-learn classifier, frozen or not: the latter have no types.
Model: TypeAlias = Any
Device: TypeAlias = str | torch.device
RandomState: TypeAlias = int | np.random.RandomState | None

if TYPE_CHECKING:
    # scikit-learn's classes have no types. With such a base a checker takes any argument of a
    # constructor, misspelled ones too.

    class BaseEstimator:
        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...
        def __getattr__(self, name: str) -> Any: ...

    class OutlierMixin: ...

    class TransformerMixin:
        def fit_transform(self, X: Inputs, y: Labels | None = None, **params: Any) -> Any: ...
        def set_output(self, *, transform: str | None = None) -> Self: ...

    class ClassNamePrefixFeaturesOutMixin:
        def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray: ...

    class CallbackSupportMixin:
        def set_callbacks(self, *callbacks: Any) -> Self: ...

else:
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        OutlierMixin,
        TransformerMixin,
    )
    from sklearn.callback import CallbackSupportMixin
