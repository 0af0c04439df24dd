"""scikit-learn's own estimators, by skops: of types that skops trusts, without a pickle."""

import io
import zipfile

import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted


def import_skops():
    """Return skops.io, which is optional."""
    try:
        import skops.io
    except ImportError as error:
        raise ImportError(
            "skood.save and skood.load need skops for scikit-learn's estimators: pip install skops"
        ) from error
    return skops.io


def describe_foreign(estimator):
    """Return the name of an estimator of scikit-learn, and the bytes that skops makes of it."""
    name = type(estimator).__name__
    check_is_fitted(estimator)
    skops = import_skops()
    try:
        content = skops.dumps(estimator)
        untrusted = skops.get_untrusted_types(data=content)
    except Exception as error:
        raise TypeError(f"{name} cannot be saved by skops: {error!r:.300}") from error
    remedy = "Save its best_estimator_" if hasattr(estimator, "best_estimator_") else "Use pickle"
    if untrusted:
        raise TypeError(
            f"{name} cannot be saved: skops does not trust {', '.join(untrusted)}, which it "
            f"holds.\n{remedy}, or joblib."
        )
    if has_memory(estimator):
        raise TypeError(
            f"{name} with memory cannot be saved: what it remembers is pickled. Use memory=None."
        )
    # A copy, as torch warns of tensors that lie in bytes.
    held = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return {"class": "scikit-learn"}, {"skops": held}


def restore_foreign(meta, tensors):
    """Return an estimator of scikit-learn."""
    content = tensors["skops"].numpy().tobytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(file.file_size for file in archive.infolist()) > len(content):
            raise ValueError("it holds compressed files")
    # Nothing is trusted but what skops trusts by default.
    estimator = import_skops().loads(content, trusted=[])
    if not is_of_scikit_learn(type(estimator)) or has_memory(estimator):
        raise ValueError(f"it holds a {type(estimator).__name__}")
    check_is_fitted(estimator)
    return estimator


def is_of_scikit_learn(cls):
    """Tell scikit-learn's estimators from others."""
    return issubclass(cls, BaseEstimator) and cls.__module__.split(".")[0] == "sklearn"


def has_memory(estimator):
    """Tell whether an estimator, or one inside, remembers results in files, which are pickles."""
    params = estimator.get_params(deep=True).items()
    return any(name.split("__")[-1] == "memory" and value is not None for name, value in params)
