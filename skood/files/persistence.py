"""Saving what is fitted to files that hold data alone, and loading it without running any code."""

import os
from typing import Any

from skood._typing import Model
from skood.estimators.network_estimator import computing
from skood.files.nested import describe, restore
from skood.files.networks import join_networks, separate_networks, with_weights
from skood.files.storage import import_safetensors, read, reading, write

__all__ = ["load", "save"]


def save(
    detector: Any,
    path: str | os.PathLike[str],
    *,
    include_model: bool = False,
) -> None:
    """Save a fitted detector to a file from which nothing is run when it is loaded.

    Parameters
    ----------
    detector : detector, FeatureExtractor, or estimator around these
        Fitted: one of skood's, a `ConformalDetector`, `EnsembleDetector`, `OpenSetClassifier`,
        `FitOnInliers`, `FrozenEstimator` or scikit-learn ``Pipeline``. scikit-learn's own
        estimators inside of these are saved by skops, where it trusts all of their types. What is
        saved is what ``fit`` made of it, with the parameters of ``fit``.
    path : str or path-like
        The file, in safetensors format. One that is there is replaced at once when the new one is
        complete: a process that is killed and a disk that is full leave it as it was.
    include_model : bool, default=False
        Save the weights of the network too. A linear layer, as ``model=None`` or a scikit-learn
        classifier gives, is always saved.

    Raises
    ------
    TypeError
        If it or a part is none of these, holds types that skops does not trust, such as the trees
        of `IsolationForest`, or a parameter that cannot be saved as text, such as a callable; or if
        its parts have networks of different layers.
    FileExistsError
        If `path` is a folder, a pipe or a device.

    See Also
    --------
    load : The way back.

    Notes
    -----
    pickle and joblib save more, such as callables, whole networks and searches; but a pickle can
    run any code when it is loaded.

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
    import_safetensors()
    meta, tensors = describe(detector, include_model)
    join_networks(meta, tensors)
    write(path, meta, tensors)


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
    detector : object
        Of the type that was saved. Gives the same scores. Its ``model`` is the network, or the
        linear layer that took the place of a scikit-learn classifier.

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
    meta, tensors = read(path)
    with reading(path):
        networks = separate_networks(meta, tensors)
    if networks and model is None:
        raise ValueError(
            f"The {meta['class']} in {path} was fitted with a network: give it as `model`."
        )
    if not networks and model is not None:
        raise ValueError(f"{path} holds all of its {meta['class']}: it takes no `model`.")
    modules = {
        key: with_weights(model, layout, weights, path)
        for key, (layout, weights) in networks.items()
    }
    with reading(path), computing():
        return restore(meta, tensors, modules)
