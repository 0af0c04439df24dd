"""Class labels in which a negative number means out-of-distribution."""

from numbers import Real

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from skood._compat import move_to_numpy

# What segmentation data sets call pixels of no class.
IGNORED = 255


def as_labels(y):
    """Return y as a 1-D array; mixed lists become objects, not strings."""
    if isinstance(y, (list, tuple)):
        # np.asarray(["cat", -1]) would be ['cat', '-1']: the OOD mark would become a class.
        objects = np.empty(len(y), dtype=object)
        objects[:] = y
        y = objects
    y = column_or_1d(move_to_numpy(y), warn=True)
    if y.dtype == object and all(isinstance(label, Real) for label in y):
        y = y.astype(np.result_type(*{np.asarray(label).dtype for label in y}) if len(y) else float)
    return y


def is_numeric(classes):
    """Tell classes that are numbers from words."""
    return classes.dtype.kind in "biuf"


def _reads_as_negative(label):
    """Tell whether a string spells a negative number."""
    try:
        return float(label) < 0
    except ValueError:
        return False


def is_ood(y, known_classes=None):
    """Tell which labels mean out-of-distribution.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Class labels of any kind; negative numbers mean out-of-distribution.
    known_classes : array-like of shape (n_classes,), default=None
        The in-distribution classes. When given, every other label is out-of-distribution too.

    Returns
    -------
    mask : ndarray of shape (n_samples,), dtype bool
        True for out-of-distribution rows.

    Raises
    ------
    ValueError
        If y holds NaN, None, or a string that spells a negative number.
    """
    y = as_labels(y)
    if y.dtype.kind in "fc" and not np.isfinite(y).all():
        raise ValueError("Input y contains NaN or infinity. Label every row, OOD rows with -1.")
    if y.dtype.kind in "mM":
        raise TypeError(f"y holds {y.dtype}, which are no class labels.")
    if y.dtype.kind in "OUST":
        mask = np.array([isinstance(label, Real) and label < 0 for label in y], dtype=bool)
        for label in set(y[~mask].tolist()):
            if label is None or label != label:
                raise ValueError(
                    "Input y contains NaN or None. Label every row, OOD rows with the number -1."
                )
            if isinstance(label, str) and _reads_as_negative(label):
                raise ValueError(
                    f"y holds the string {label!r}. Rows that are out-of-distribution are marked "
                    "by a negative number, not by a string: pass a list or an object array such "
                    "as ['cat', 'dog', -1]."
                )
    else:
        mask = np.zeros(len(y), dtype=bool) if y.dtype.kind in "bu" else y < 0
    if known_classes is not None:
        known = set(move_to_numpy(known_classes).tolist())
        mask |= np.array([label not in known for label in y.tolist()], dtype=bool)
    return mask


def check_classes(found, maps, classes):
    """Raise if labels that were found, or those in label maps, are none of the classes."""
    if maps is not None:
        found = np.unique(move_to_numpy(maps)[map_kinds(maps) > 0])
    known = set(as_labels(classes).tolist())
    for label in [] if found is None else found.tolist():
        if label not in known:
            raise ValueError(f"y holds the label {label!r}, which is none of the given classes.")


def is_label_map(y):
    """Tell labels of pixels, (n_samples, H, W), from labels of rows."""
    return getattr(y, "ndim", 0) > 2


def map_kinds(y):
    """Return +1 for in-distribution, -1 for OOD, 0 for ignored pixels of label maps.

    Parameters
    ----------
    y : array of shape (n_samples, H, W)
        Class labels; negative means out-of-distribution, 255 is ignored.
    """
    y = move_to_numpy(y)
    return np.where(y < 0, -1, np.where(y == IGNORED, 0, 1))


def encode_labels(y, n_samples, least=2):
    """Split y into in-distribution rows, classes and class codes.

    Parameters
    ----------
    y : array-like of shape (n_samples,) or None
        Class labels; negative numbers mean out-of-distribution.
    n_samples : int
        The number of rows of X.
    least : int, default=2
        Fewer in-distribution rows are an error.

    Returns
    -------
    rows : ndarray of shape (n_in_distribution,)
        The indices of the in-distribution rows, ascending.
    classes : ndarray of shape (n_classes,) or None
        The sorted in-distribution labels; None without y.
    codes : ndarray of shape (n_in_distribution,), dtype int64
        The position of each row's label in `classes`; zeros without y.
    """
    if y is None:
        return np.arange(n_samples), None, np.zeros(n_samples, dtype=np.int64)
    mask = is_ood(y)
    if len(mask) != n_samples:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: [{n_samples}, "
            f"{len(mask)}]. X and y need one label for each row."
        )
    rows = np.flatnonzero(~mask)
    if len(rows) < least:
        raise ValueError(
            f"Found {len(rows)} in-distribution sample(s) (a label that is not negative) among "
            f"n_samples={n_samples}, while a minimum of {least} is required: detectors learn from "
            "in-distribution rows. If your classes are coded by negative numbers, code them "
            "0, 1, ... first, for example by sklearn.preprocessing.LabelEncoder."
        )
    if len(rows) == 0:
        return rows, None, rows
    labels = as_labels(y)[rows]
    if labels.dtype == object:
        kinds = {type(label).__name__ for label in labels.tolist()}
        if len(kinds) > 1:
            raise TypeError(
                f"The in-distribution labels of y mix the types {', '.join(sorted(kinds))}. Use "
                "one type for all classes; only the negative numbers of OOD rows may differ."
            )
        labels = np.asarray(labels.tolist())
    check_classification_targets(labels)
    # torch takes no foreign byte order.
    labels = labels.astype(labels.dtype.newbyteorder("="), copy=False)
    classes, codes = np.unique(labels, return_inverse=True)
    return rows, classes, codes.astype(np.int64)
