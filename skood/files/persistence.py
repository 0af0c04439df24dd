"""Saving detectors to files that hold data alone, and loading them without running any code."""

import contextlib
import hashlib
import json
import os
import re
import stat
import uuid
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skood import detectors
from skood._compat import move_to_numpy
from skood._typing import Model
from skood._version import __version__
from skood._warnings import warn
from skood.estimators.base import BaseDetector
from skood.estimators.features import FeatureExtractor
from skood.estimators.network_estimator import computing
from skood.network.model import fitted_module
from skood.network.modules import as_linear, private_copy, unwrap

__all__ = ["load", "save"]

FORMAT = 1
CLASSES = {name: getattr(detectors, name) for name in detectors.__all__}
CLASSES["FeatureExtractor"] = FeatureExtractor
# The only value that a file may give to parameters whose others make code run, or read memory
# that is not theirs, when what they name is read: pickles, and faiss's own format.
SAFE_VALUES = {"memory": None, "index": "exact"}
FITTED = re.compile(r"[a-z]\w*_|_row_shape|_namespace|_native_device|_n_features_out")
# What parsing a header takes is some tens of times its size.
MAX_HEADER_BYTES = 16 * 2**20


def save(
    detector: BaseDetector | FeatureExtractor,
    path: str | os.PathLike[str],
    *,
    include_model: bool = False,
) -> None:
    """Save a fitted detector to a file that holds numbers and text alone.

    Parameters
    ----------
    detector : detector or FeatureExtractor
        Fitted. What is saved is what ``fit`` made of it, with the parameters of ``fit``.
    path : str or path-like
        The file, in safetensors format. One that is there is replaced at once when the new one is
        complete: a process that is killed and a disk that is full leave it as it was.
    include_model : bool, default=False
        Save the weights of the network too. A linear layer, as ``model=None`` or a scikit-learn
        classifier gives, is always saved.

    Raises
    ------
    TypeError
        If the detector is none of skood's own, or a parameter cannot be saved as text, such as a
        callable.
    FileExistsError
        If `path` is a folder, a pipe or a device.

    See Also
    --------
    load : The way back.

    Notes
    -----
    pickle and joblib save more, such as callables and whole networks, Pipelines and other
    estimators around detectors; but a pickle can run any code when it is loaded.

    Examples
    --------
    >>> import os, tempfile, skood
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = skood.GMMDetector().fit(X, y)
    >>> path = os.path.join(tempfile.mkdtemp(), "irises.safetensors")
    >>> skood.save(detector, path)
    >>> bool((skood.load(path).score_samples(X) == detector.score_samples(X)).all())
    True
    """
    save_file = import_safetensors("torch").save_file
    meta, tensors = _describe(detector, include_model)
    text = json.dumps(meta)
    # As a text in JSON it may double.
    if len(text) > MAX_HEADER_BYTES // 2:
        raise ValueError(f"{type(detector).__name__} has more than 8 MiB of text to save.")
    metadata = {"skood": text, "checksum": _hash(text.encode(), tensors)}
    with replacing(path) as draft:
        try:
            save_file(tensors, draft, metadata)
        except import_safetensors().SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def load(path: str | os.PathLike[str], model: Model | None = None) -> Any:
    """Load what `save` has written.

    Parameters
    ----------
    path : str or path-like
        The file.
    model : nn.Module, fitted skorch net or FrozenEstimator, default=None
        The network, for a detector that was fitted with one other than a linear layer. If the
        file holds its weights, a copy of `model` gets these, else `model` itself is used.

    Returns
    -------
    detector : detector or FeatureExtractor
        Gives the same scores. Its ``model`` is the network, or the linear layer that took the
        place of a scikit-learn classifier.

    Raises
    ------
    ValueError
        If the file is damaged, is none of ours, or comes from a later version; or if `model` has
        other layers or weights of other shapes than the network of ``fit``.

    Warns
    -----
    UserWarning
        If `model` has other weights than the network of ``fit`` and the file holds none.

    See Also
    --------
    save : The way there, with an example.

    Notes
    -----
    Nothing in the file is run or imported, and no more is read than the file is long. What the
    network computes besides its layers, such as a function called in its ``forward``, is not
    compared.
    """
    meta, tensors = _read(path)
    with _reading(path):
        kind, params = meta["model"], _checked_params(meta["class"], meta["params"])
        if isinstance(kind, dict):
            kind = {key: kind[key] for key in ("layers", "weights", "hash", "held")}
    if isinstance(kind, dict):
        if model is None:
            raise ValueError(
                f"The {meta['class']} in {path} was fitted with a network: give it as `model`."
            )
        model = _with_weights(model, kind, _part(tensors, "network"), path)
    elif model is not None:
        raise ValueError(f"{path} holds all of its {meta['class']}: it takes no `model`.")
    with _reading(path), computing():
        return _restore(meta, params, model, tensors)


def import_safetensors(name=None):
    """Return safetensors, which is optional, or a module of it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "skood.save and skood.load need safetensors: pip install safetensors"
        ) from error
    return safetensors if name is None else getattr(safetensors, name)


@contextlib.contextmanager
def replacing(path):
    """Yield the name of a file to write, which replaces `path` at once when the block ends."""
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        # A pipe, a device or a folder is not ours to remove.
        raise FileExistsError(f"{path} is there and is no regular file: save to another path.")
    folder = os.path.dirname(path)
    # Without the name of the file: that may be as long as names can be.
    draft = os.path.join(folder, f".skood-{uuid.uuid4().hex}")
    try:
        with open(draft, "xb"):
            # Permissions are those of the old file, or of any new one; safetensors gives others.
            mode = os.stat(path if os.path.exists(path) else draft).st_mode
        yield draft
        os.chmod(draft, stat.S_IMODE(mode))
        _to_disk(draft)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    if os.name == "posix":
        _to_disk(folder)


def _to_disk(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _describe(detector, include_model):
    """Return what there is to save: values for JSON, and tensors by name."""
    name = type(detector).__name__
    if CLASSES.get(name) is not type(detector):
        raise TypeError(
            f"{name} cannot be saved: skood.save takes {', '.join(CLASSES)}. Use pickle or joblib "
            "for what lies around them."
        )
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
        "format": FORMAT,
        "version": __version__,
        "class": name,
        "model": "fitted" if detector._fitted_head else "linear",
        **{
            kind: {key: _encode(f"The {key} of {name}", value) for key, value in values.items()}
            for kind, values in plain.items()
        },
    }
    if is_network:
        weights = dict(module.named_parameters())
        meta["model"] = {**_layout(module), "hash": _hash(b"", weights), "held": include_model}
    _checked_params(name, meta["params"])
    return meta, {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _read(path):
    """Return the metadata and the tensors of a file that is as `save` left it."""
    read_tensors = import_safetensors("torch").load
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is no file.")
    with _reading(path):
        # Opened once: the next moment another process may have put a new file there.
        with open(path, "rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            if n_bytes > MAX_HEADER_BYTES:
                raise ValueError("its header is longer than 16 MiB")
            metadata = json.loads(file.read(n_bytes))["__metadata__"]
            file.seek(0)
            tensors = read_tensors(file.read())
        text = metadata["skood"]
        meta = json.loads(text)
        later = meta["format"] != FORMAT
        if not later and metadata["checksum"] != _hash(text.encode(), tensors):
            raise ValueError("its checksum is wrong")
    if later:
        raise ValueError(
            f"{path} has format {meta['format']!r:.20} of skood {meta.get('version')!r:.20}; skood "
            f"{__version__} reads format {FORMAT}."
        )
    return meta, tensors


@contextlib.contextmanager
def _reading(path):
    """Say which file is at fault, whatever damage or forgery brings about."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged, or not from skood.save: {error!r:.300}") from error


def _restore(meta, params, model, tensors):
    """Return the detector."""
    weights = _part(tensors, "network")
    if meta["model"] == "linear":
        rows, columns = weights["weight"].shape
        model = nn.Linear(columns, rows, bias="bias" in weights, device="meta")
        model.load_state_dict(weights, assign=True)
        model.requires_grad_(False).eval()
    network = _decoded(meta["network"])
    for key in ("dtype", "input_dtype"):
        if not isinstance(getattr(torch, network[key]), torch.dtype):
            raise ValueError(f"{network[key]} is no dtype")
    arrays = {name: move_to_numpy(value) for name, value in weights.items()}
    is_head = meta["model"] == "fitted" and arrays
    network["weights"] = [arrays["weight"], arrays["bias"]] if is_head else None
    network["buffers"] = arrays
    fitted = _decoded(meta["fitted"])
    fitted["_row_shape"] = tuple(fitted["_row_shape"])
    if not all(map(FITTED.fullmatch, fitted)):
        raise ValueError("it has other fitted attributes")
    parts = (_part(tensors, kind) for kind in ("scorer", "kept"))
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
    return detector


def _part(tensors, kind):
    """Return the tensors whose names start with a kind, by the rest of their names."""
    return {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{kind}.")}


def _checked_params(name, encoded):
    """Return parameters that are valid and safe to restore."""
    if name not in CLASSES:
        raise ValueError(f"{name!r:.50} is no class that skood {__version__} has")
    params = _decoded(encoded)
    for key in SAFE_VALUES.keys() & params.keys():
        if params[key] != SAFE_VALUES[key]:
            raise TypeError(
                f"{name} with {key}={params[key]!r} cannot be saved: to read what it refers to may "
                f"run code. Use {key}={SAFE_VALUES[key]!r}, or pickle."
            )
    CLASSES[name](**params)._validate_params()
    return params


def _encode(what, value):
    """Return a value as one for JSON."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = move_to_numpy(value)
        kind = "str" if value.dtype.kind == "U" else value.dtype.str
        return {"dtype": kind, "values": _encode(what, value.tolist())}
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
        return {"class": name, "params": {k: _encode(f"{k} of {name}", params[k]) for k in params}}
    raise TypeError(f"{type(value).__name__} is no such value")


def _decoded(values):
    """Return values that were encoded one by one."""
    return {
        key: _detector_or_array(**value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def _detector_or_array(**value):
    """Return a detector that is not fitted, or an array."""
    if "class" in value:
        name = value["class"]
        return CLASSES[name](**_checked_params(name, value["params"]))
    return _array(**value)


def _array(dtype, values):
    """Return an array of numbers or texts."""
    if dtype == "str" and len(values) * max(map(len, values), default=0) > MAX_HEADER_BYTES:
        # Each takes as much as the longest.
        raise ValueError("its texts take too much memory")
    if dtype != "str" and (np.dtype(dtype).kind not in "biufO" or np.dtype(dtype).itemsize > 8):
        raise ValueError(f"{dtype!r:.50} is no dtype of numbers or texts")
    return np.array(values, dtype=dtype)


def _layout(module):
    """Return which layers and weights a network has."""
    layers = {
        name: type(part).__name__
        for name, part in module.named_modules()
        if not any(part.children())
    }
    weights = {
        name: f"{str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)}"
        for name, weight in module.named_parameters()
    }
    return {"layers": layers, "weights": weights}


def _hash(text, tensors):
    """Return a hash of bytes and of named tensors."""
    digest = hashlib.blake2b(text, digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _with_weights(model, expected, tensors, path):
    """Return the network given to `load`: itself, or a copy with the weights of the file."""
    module = as_linear(unwrap(fitted_module(model, torch.device("cpu"), torch.float32)))
    given = _layout(module)
    with _reading(path):
        differences = [
            (name, given[kind].get(name), expected[kind].get(name))
            for kind in given
            for name in {**expected[kind], **given[kind]}
            if expected[kind].get(name) != given[kind].get(name)
        ]
    if differences:
        name, here, there = differences[0]
        raise ValueError(
            f"`model` is another network than that of fit: {name or 'the network'} is {here} "
            f"here and {there} in {path}."
        )
    if not expected["held"]:
        if _hash(b"", dict(module.named_parameters())) != expected["hash"]:
            warn(
                f"`model` has other weights than the network of fit, and {path} holds none: what "
                "was fitted does not go with them. Fit again, or save with include_model=True."
            )
        return model
    twin = private_copy(module)
    with _reading(path):
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            tensor.data = tensors[name].to(tensor.device)
        if _layout(twin)["weights"] != expected["weights"]:
            raise ValueError("its weights have other shapes than it says")
    return twin
