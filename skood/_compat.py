"""The private names of scikit-learn that skood relies on, in one place."""

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import _fit_context
from sklearn.externals.array_api_compat import is_array_api_obj
from sklearn.utils import _safe_indexing
from sklearn.utils._array_api import get_namespace_and_device, move_estimator_to, move_to
from sklearn.utils._param_validation import HasMethods, Options, StrOptions
from sklearn.utils._param_validation import Interval as _Interval
from sklearn.utils.metaestimators import _BaseComposition

__all__ = [
    "HasMethods",
    "Interval",
    "Options",
    "StrOptions",
    "_BaseComposition",
    "_fit_context",
    "_safe_indexing",
    "array_api_dispatch",
    "get_namespace_and_device",
    "move_estimator_to",
    "move_to",
    "move_to_numpy",
]


class Interval(_Interval):
    """scikit-learn's interval of numbers, in which True is no 1."""

    def is_satisfied_by(self, val):
        """Tell whether a value lies inside."""
        return not isinstance(val, (bool, np.bool_)) and super().is_satisfied_by(val)


def array_api_dispatch():
    """Tell whether results follow the array library of X."""
    return bool(get_config()["array_api_dispatch"])


def move_to_numpy(array):
    """Return an array of any library and device as a numpy array."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if array_api_dispatch() and is_array_api_obj(array):
        return move_to(array, xp=get_namespace_and_device(np.empty(0))[0], device="cpu")
    return np.asarray(array)
