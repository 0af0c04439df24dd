"""Rows of any kind of X, by their positions."""

from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.validation import _num_samples

from skood.data.arrays import is_named
from skood.data.labels import encode_labels
from skood.data.streams import is_stream


def n_rows(X):
    """Return the number of rows of an array, a frame, a list or a dict of these."""
    return _num_samples(next(iter(X.values())) if is_named(X) else X)


def take(X, rows):
    """Return rows of X, ascending indices; all of them are not copied."""
    if len(rows) == n_rows(X):
        return X
    if is_named(X):
        return {name: _safe_indexing(values, rows) for name, values in X.items()}
    return _safe_indexing(X, rows)


def in_distribution(X, y):
    """Return the in-distribution rows of X and their labels, None without y."""
    if is_stream(X):
        # Detectors leave out rows themselves, by the labels of its batches.
        return X, y
    X = X if is_named(X) else indexable(X)[0]
    if n_rows(X) < 2:
        raise ValueError(f"Found {n_rows(X)} sample in X while a minimum of 2 is required.")
    rows, classes, codes = encode_labels(y, n_rows(X))
    return take(X, rows), None if classes is None else classes[codes]
