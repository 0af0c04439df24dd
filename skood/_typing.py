"""The types of the public interface."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import DataLoader, Dataset

__all__ = ["Device", "Inputs", "Labels", "Model", "RandomState", "Scores"]

Inputs: TypeAlias = ArrayLike | torch.Tensor | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]
Labels: TypeAlias = ArrayLike | torch.Tensor
Scores: TypeAlias = ArrayLike | torch.Tensor
# A torch module, a skorch net or scikit-learn classifier, frozen or not: the latter have no types.
Model: TypeAlias = Any
Device: TypeAlias = str | torch.device
RandomState: TypeAlias = int | np.random.RandomState | None
