"""One fitted detector or FeatureExtractor as text and tensors."""

import re

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skood._compat import move_to_numpy
from skood.estimators.base import BaseDetector
from skood.files.networks import layout_of
from skood.files.storage import hash_of, part_of
from skood.files.values import CLASSES, checked_params, decoded, encode

FITTED = re.compile(r"[a-z]\w*_|_row_shape|_namespace|_native_device|_n_features_out")


def describe_one(detector, include_model):
    """Return what there is to save: values for JSON, and tensors by name."""
    name = type(detector).__name__
    check_is_fitted(detector)
    # Other threads may go on learning.
    detector = detector._snapshot()
    state, module = detector.__getstate__(), detector._network.module
    fitted = {k: v for k, v in state.items() if FITTED.fullmatch(k) and k != "model_"}
    if "known_classes_" in fitted:
        # Those of a frozen classifier too, which is not in the file.
        fitted["known_classes_"] = detector._known_labels()
    params = {key: value for key, value in state["_fitted_params"].items() if key != "model"}
    network = state["_saved_network"]
    plain = {"params": params, "fitted": fitted, "network": network}
    tensors = {f"scorer.{key}": value for key, value in state.get("_saved_scorer", {}).items()}
    tensors |= {f"kept.{key}": value for key, value in state.get("_kept_scores", {}).items()}
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}
    del network["buffers"], network["weights"]
    is_network = not detector._network.takes_features
    if module is not None:
        held = dict(module.named_buffers())
        if include_model or not is_network:
            held.update(module.named_parameters())
        tensors.update({f"network.{key}": value for key, value in held.items()})
    meta = {
        "class": name,
        "output": state.get("_sklearn_output_config", {}),
        "model": "fitted" if detector._fitted_head else "linear",
        **{
            kind: {key: encode(f"The {key} of {name}", value) for key, value in values.items()}
            for kind, values in plain.items()
        },
    }
    if is_network:
        weights = dict(module.named_parameters())
        meta["model"] = {**layout_of(module), "hash": hash_of(b"", weights), "held": include_model}
    checked_params(name, meta["params"])
    return meta, {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def restore_one(meta, tensors, model):
    """Return the detector, on a network if it was fitted with one."""
    params = checked_params(meta["class"], meta["params"])
    weights = part_of(tensors, "network")
    if meta["model"] == "linear":
        rows, columns = weights["weight"].shape
        model = nn.Linear(columns, rows, bias="bias" in weights, device="meta")
        model.load_state_dict(weights, assign=True)
        model.requires_grad_(False).eval()
    network = decoded(meta["network"])
    for key in ("dtype", "input_dtype"):
        if not isinstance(getattr(torch, network[key]), torch.dtype):
            raise ValueError(f"{network[key]} is no dtype")
    arrays = {name: move_to_numpy(value) for name, value in weights.items()}
    is_head = meta["model"] == "fitted" and arrays
    network["weights"] = [arrays["weight"], arrays["bias"]] if is_head else None
    network["buffers"] = arrays
    fitted = decoded(meta["fitted"])
    fitted["_row_shape"] = tuple(fitted["_row_shape"])
    if not all(map(FITTED.fullmatch, fitted)):
        raise ValueError("it has other fitted attributes")
    parts = (part_of(tensors, kind) for kind in ("scorer", "kept"))
    scorer, kept = ({name: value.numpy() for name, value in part.items()} for part in parts)
    # An empty one may have an axis of any length.
    if not all(value.size for value in scorer.values()):
        raise ValueError("it has an empty tensor")
    cls = CLASSES[meta["class"]]
    params = {"model": model, **params}
    detector = cls(**params)
    state = {**fitted, "_fitted_params": params, "_saved_network": network}
    if issubclass(cls, BaseDetector):
        state.update(_saved_scorer=scorer, _kept_scores=kept)
    detector.__setstate__(state)
    if meta.get("output"):
        detector.set_output(**meta["output"])
    return detector
