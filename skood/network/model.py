"""From the `model` parameter to a torch module: nothing, a network, skorch, scikit-learn."""

import sys

import numpy as np
import torch
from sklearn import config_context
from sklearn.base import clone, is_classifier
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skood.data.arrays import move
from skood.functional import pool
from skood.network.modules import linear_head

# Folds of training rows, each scored by a head that has not seen it.
N_FOLDS = 5


def _is_skorch(model):
    """Tell a skorch net without importing skorch: who has one has imported it."""
    skorch = sys.modules.get("skorch")
    return skorch is not None and isinstance(model, skorch.NeuralNet)


def is_network(model):
    """Tell a torch module or a skorch net, frozen or not, from other estimators."""
    model = model.estimator if isinstance(model, FrozenEstimator) else model
    return isinstance(model, nn.Module) or _is_skorch(model)


def is_trained(model):
    """Tell a model that is used as it is from one that ``fit`` clones and fits."""
    return isinstance(model, (nn.Module, FrozenEstimator))


def fitted_module(model, device, dtype):
    """Return the torch module of a model that is trained already.

    Parameters
    ----------
    model : nn.Module, fitted skorch net, fitted scikit-learn linear classifier, or FrozenEstimator
        Not None.
    device : torch.device
        Where a scikit-learn classifier's head is put.
    dtype : torch.dtype
        The head's dtype.
    """
    if isinstance(model, FrozenEstimator):
        model = model.estimator
    if isinstance(model, nn.Module):
        return model
    if _is_skorch(model):
        if not getattr(model, "initialized_", False):
            raise NotFittedError(
                "The frozen skorch net is not fitted. Call its fit first, or pass the net without "
                "FrozenEstimator so that it is fitted here."
            )
        return model.module_
    check_is_fitted(model)
    if not _has_one_row_a_class(model):
        raise TypeError(
            f"model is a {type(model).__name__}, which has no coef_ and intercept_ with one row a "
            "class. Use a torch module, a skorch net, a linear scikit-learn classifier such as "
            "LogisticRegression, or None."
        )
    return linear_head(*_two_sided(model.coef_, model.intercept_), device, dtype)


def _has_one_row_a_class(model):
    """Tell linear classifiers from regressors and from SVC, which has one row a pair."""
    if not all(hasattr(model, name) for name in ("coef_", "intercept_", "classes_")):
        return False
    n_classes = len(model.classes_)
    return len(np.atleast_2d(model.coef_)) == (1 if n_classes == 2 else n_classes)


def _two_sided(coef, intercept):
    """Turn one row of binary coefficients into two: [-z/2, z/2] has the right energy."""
    coef, intercept = np.atleast_2d(coef), np.atleast_1d(intercept)
    if len(intercept) != len(coef):
        intercept = np.broadcast_to(intercept, len(coef))
    if len(coef) == 1:
        coef, intercept = np.vstack([-coef, coef]) / 2, np.hstack([-intercept, intercept]) / 2
    return coef, intercept


def fit_model(model, source):
    """Clone and fit a skorch net or scikit-learn classifier on the in-distribution rows.

    Parameters
    ----------
    model : estimator
        Not fitted, or to be fitted anew.
    source : LabelledRows
        The rows.
    """
    classes, class_indices = source.classes, source.class_indices
    if not (_is_skorch(model) or (hasattr(model, "fit") and is_classifier(model))):
        kind = "a class" if isinstance(model, type) else type(model).__name__
        several = isinstance(model, (list, tuple))
        raise TypeError(
            f"model is {kind}; it must be None, a torch nn.Module, a skorch net, a linear "
            "scikit-learn classifier, or a FrozenEstimator of one of these."
            + (" For several networks: skood.network.NetworkEnsemble(*model)." if several else "")
        )
    if classes is None or len(classes) < 2:
        raise ValueError(
            f"model={type(model).__name__} is a classifier to be fitted, which takes labels of at "
            f"least two classes in y; got {'no y' if classes is None else 'one class'}. Pass y, or "
            "a model that is trained already (FrozenEstimator), or model=None."
        )
    X = source.take()
    with config_context(array_api_dispatch=False), torch.enable_grad():
        if _is_skorch(model):
            X = move(X, "cpu", torch.float32)
            X = {n: part.numpy() for n, part in X.items()} if source.is_named else X.numpy()
            if isinstance(model, sys.modules["skorch"].NeuralNetBinaryClassifier):
                # Its loss takes labels in the dtype of the one logit.
                class_indices = class_indices.astype(np.float32)
            return clone(model).fit(X, class_indices)
        require_array(source)
        X = X.to(source.dtype)
        return clone(model).fit(pool(X).numpy(), classes[class_indices])


def fit_head(source, device, random_state):
    """Fit the linear head of ``model=None``: logistic regression on the features as they are.

    Without at least two classes the classes are k-means clusters.

    Parameters
    ----------
    source : LabelledRows
        The rows, which hold the features.
    device : torch.device
        Where the head is put.
    random_state : int, RandomState or None
        For k-means.
    """
    classes, class_indices = source.classes, source.class_indices
    H = pool(source.take().to(source.dtype)).numpy()
    if classes is None or len(classes) < 2:
        n_clusters = _count_distinct(H, 8)
        # k-means does not depend on the scale, but squares of 1e30 overflow: scale by a power of
        # two, which rounds nothing.
        _, exponent = np.frexp(np.abs(H).max())
        with config_context(array_api_dispatch=False):
            class_indices = KMeans(n_clusters, random_state=random_state).fit_predict(
                np.ldexp(H, -exponent)
            )
    return _regress(H, class_indices, device, source.dtype)


def _regress(H, class_indices, device, dtype, weight=1.0, solver="lbfgs"):
    """Return the linear head of a logistic regression of class_indices of classes on features."""
    if (class_indices == class_indices[0]).all():
        return linear_head(np.zeros((2, H.shape[1])), np.zeros(2), device, dtype)
    if np.abs(H).max() > 1e12:
        # In float32 the steps of its search overflow.
        H = H.astype(np.float64)
    with config_context(array_api_dispatch=False):
        classifier = LogisticRegression(C=weight, max_iter=1000, solver=solver)
        classifier.fit(H, class_indices)
    return linear_head(*_two_sided(classifier.coef_, classifier.intercept_), device, dtype)


def cross_fitted_heads(source, head, rows):
    """Yield places in `rows`, each once, heads fitted without these rows, and their classes.

    Parameters
    ----------
    source : LabelledRows
        The rows, which hold the features.
    head : nn.Linear
        What `fit_head` made of all of them; without classes, its own decisions are the classes.
    rows : ndarray of int
        The rows to hold out; all others are in every fit.
    """
    features = pool(source.take().to(source.dtype))
    class_indices = source.class_indices
    if source.classes is None or len(source.classes) < 2:
        class_indices = head(features.to(head.weight)).argmax(1).cpu().numpy()
    # Every class spreads over the folds, as far as it has rows.
    folds = np.empty(len(rows), dtype=np.int64)
    folds[np.argsort(class_indices[rows], kind="stable")] = np.arange(len(rows)) % N_FOLDS
    for fold in range(min(N_FOLDS, len(rows))):
        held_out = np.flatnonzero(folds == fold)
        H, others = (
            np.delete(part, rows[held_out], axis=0) for part in (features.numpy(), class_indices)
        )
        # Or the penalty would weigh more beside fewer rows.
        weight = len(class_indices) / len(others)
        # On so few coefficients Newton's method takes a quarter of the time.
        is_small = head.weight.numel() <= 64 and 0.01 < np.abs(H).max() < 100
        solver = "newton-cholesky" if is_small else "lbfgs"
        head_of_others = _regress(H, others, head.weight.device, source.dtype, weight, solver)
        yield held_out, head_of_others, np.unique(others)


def require_array(source):
    """Raise if X is a dict where features are needed."""
    if source.is_named:
        raise TypeError(
            "X is a dict of arrays, which only a network takes; pass a network as `model`, or "
            "features as one array."
        )


def _count_distinct(H, most):
    """Count distinct rows, up to a number."""
    count = 0
    while count < most and len(H):
        H = H[(H != H[0]).any(axis=1)]
        count += 1
    return count


def frozen_classes(model):
    """Return the classes that a frozen classifier knows; None where that cannot be told."""
    return (
        getattr(model.estimator, "classes_", None) if isinstance(model, FrozenEstimator) else None
    )
