"""Parameters and fitted attributes as text, and the classes that files may name."""

import json

import numpy as np
import torch

from skood import detectors
from skood._compat import move_to_numpy
from skood._version import __version__
from skood.estimators.features import FeatureExtractor
from skood.files.storage import MAX_HEADER_BYTES

CLASSES = {name: getattr(detectors, name) for name in detectors.__all__}
CLASSES["FeatureExtractor"] = FeatureExtractor
# The only value that a file may give to parameters whose others make code run, or read memory
# that is not theirs, when what they name is read: pickles, and faiss's own format.
SAFE_VALUES = {"memory": None, "index": "exact"}


def checked_params(name, encoded):
    """Return parameters that are valid and safe to restore."""
    if name not in CLASSES:
        raise ValueError(f"{name!r:.50} is no class that skood {__version__} has")
    params = decoded(encoded)
    for key in SAFE_VALUES.keys() & params.keys():
        if params[key] != SAFE_VALUES[key]:
            raise TypeError(
                f"{name} with {key}={params[key]!r} cannot be saved: to read what it refers to may "
                f"run code. Use {key}={SAFE_VALUES[key]!r}, or pickle."
            )
    CLASSES[name](**params)._validate_params()
    return params


def encode(what, value):
    """Return a value as one for JSON."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = move_to_numpy(value)
        kind = "str" if value.dtype.kind == "U" else value.dtype.str
        return {"dtype": kind, "values": encode(what, value.tolist())}
    try:
        return json.loads(json.dumps(value, default=_as_plain))
    except TypeError as error:
        raise TypeError(
            f"{what} cannot be saved: {error}. Numbers, text and lists of these can; use pickle or "
            "joblib for others."
        ) from error


def _as_plain(value):
    """Return scalars of numpy, devices and detectors that are not fitted as JSON has them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.device):
        return str(value)
    name = type(value).__name__
    if CLASSES.get(name) is type(value):
        params = {**value.get_params(deep=False), "model": None}
        return {"class": name, "params": {k: encode(f"{k} of {name}", params[k]) for k in params}}
    raise TypeError(f"{type(value).__name__} is no such value")


def decoded(values):
    """Return values that were encoded one by one."""
    return {
        key: _detector_or_array(**value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def _detector_or_array(**value):
    """Return a detector that is not fitted, or an array."""
    if "class" in value:
        name = value["class"]
        return CLASSES[name](**checked_params(name, value["params"]))
    return _array(**value)


def _array(dtype, values):
    """Return an array of numbers or texts."""
    if dtype == "str" and len(values) * max(map(len, values), default=0) > MAX_HEADER_BYTES:
        # Each takes as much as the longest.
        raise ValueError("its texts take too much memory")
    if dtype != "str" and (np.dtype(dtype).kind not in "biufO" or np.dtype(dtype).itemsize > 8):
        raise ValueError(f"{dtype!r:.50} is no dtype of numbers or texts")
    return np.array(values, dtype=dtype)
