"""Looking at a model and data: what there is to choose a detector by."""

from typing import Any

import numpy as np
import torch

from skood._typing import Model
from skood.advice.rules import FEW_VALUES, Situation
from skood.data.labels import encode_labels, is_label_map
from skood.data.lazy import is_dask
from skood.data.streams import as_loader, is_stream, split_batch
from skood.decisions.rows import n_rows as count_rows
from skood.decisions.rows import take
from skood.estimators.looking import looking_into, outputs
from skood.network.ensemble import NetworkEnsemble
from skood.network.model import fitted_module, is_network, is_trained

# So many rows tell whether features are signed or of length 1.
N_LOOKED_AT = 128


def look(model: Model, X: Any, y: Any) -> Situation:
    """Return what there is."""
    X, y, n_all = first_rows(X, y)
    n_seen = count_rows(X)
    rows, sizes = np.arange(n_seen), np.empty(0)
    if y is not None and not is_label_map(y):
        rows, classes, codes = encode_labels(y, n_seen)
        sizes = np.sort(np.bincount(codes, minlength=len(classes)))
    # As many times more as there are rows beyond those that were seen.
    more = 1 if n_all is None else n_all / n_seen
    found: dict[str, Any] = {
        "n_rows": None if n_all is None else round(len(rows) * more),
        "class_sizes": tuple((sizes * more).round().astype(int).tolist()),
    }
    few = rows[np.unique(np.linspace(0, len(rows) - 1, N_LOOKED_AT).astype(int))]
    if not is_trained(model) and model is not None:
        # Nothing is there yet to look into.
        kind = "classifier" if is_network(model) else "head"
        return Situation(kind, type(model).__name__, **found)
    with looking_into(model, take(X, few)) as (source, network):
        found["row_shape"] = () if source.is_named else tuple(source.row_shape)
        if network.module is not None:
            found |= look_into(network, fitted_module(model, source.device, source.dtype))
            if network._no_logits is not None and not network.returns_features:
                raise network._no_logits
        else:
            found["what"] = "embeddings"
        if found.get("has_features", True):
            features = outputs(network.features(), source, network).double()
            lengths = features.norm(dim=1)
            found["n_features"] = features.shape[1]
            found["is_signed"] = bool(features.amin() < 0)
            found["is_unit"] = bool(((lengths - 1).abs() < 1e-2).all())
            n_values = len(features.unique())
            found["is_raw"] = n_values <= FEW_VALUES and 2 * n_values < features.numel()
    return Situation(**found)


def first_rows(X, y):
    """Return rows as an array, their labels, and how many there are in all, None if unknown."""
    if is_dask(X):
        n_rows = len(X)
        X = X.head(N_LOOKED_AT) if hasattr(X, "head") else X[:N_LOOKED_AT].compute()
        y = y.compute()[: len(X)] if is_dask(y) else None if y is None else y[: len(X)]
        return X, y, n_rows
    if not is_stream(X):
        return X, y, count_rows(X)
    # Which rows a loader draws next must not depend on whether one asked for advice.
    with torch.random.fork_rng(devices=[]):
        loader = as_loader(X, N_LOOKED_AT)
        X, labels = split_batch(next(iter(loader)))
    try:
        n_rows = len(loader.dataset)
    except TypeError:
        n_rows = None
    return X, labels if y is None else y[: count_rows(X)], n_rows


def look_into(network, module):
    """Return what a trained network tells, as parameters of `Situation`."""
    several = [m for m in module.modules() if isinstance(m, NetworkEnsemble)]
    return {
        "what": "head" if network.takes_features else "network",
        "name": type(module).__name__,
        "has_logits": not network.returns_features,
        "has_features": network.returns_features or network.has_head,
        "gives_maps": not network.returns_features and not network.returns_vectors,
        "is_several": any(len(one.networks) > 1 for one in several),
        "has_stages": len(network.stages()) > 1,
    }
