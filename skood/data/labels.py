"""Class labels in which a negative number means out-of-distribution."""

from decimal import Decimal
from enum import Enum
from fractions import Fraction
from numbers import Real

import numpy as np
import torch
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from skood._compat import move_to_numpy
from skood._warnings import ShownOnce, caller_variables, warn

# What segmentation data sets call pixels of no class.
IGNORED = 255
# Classes of these names are probably meant as marks of OOD rows.
OOD_NAMES = {
    *("abnormal", "anomalous", "anomaly", "novel", "novelty", "ood", "outlier", "unknown"),
    *("out-of-distribution", "out_of_distribution", "out of distribution"),
}


def as_labels(y):
    """Return y as a 1-D array; mixed lists become objects, not strings."""
    if isinstance(y, (list, tuple)):
        # np.asarray(["cat", -1]) would be ['cat', '-1']: the OOD mark would become a class.
        y = np.fromiter(y, object, len(y))
    given, y = type(y).__name__, move_to_numpy(y)
    if y.ndim == 0:
        raise ValueError(f"y should be a 1d array: one label for each row. Got a {given}.")
    if y.dtype.kind == "c":
        raise ValueError("Complex data not supported: y holds complex numbers, not class labels.")
    if y.dtype.kind in "mMV":
        raise TypeError(f"y holds {y.dtype}, which are no class labels.")
    if y.dtype.kind == "T":
        # scikit-learn does not know numpy's strings of any length.
        y = y.astype(object)
    if y.dtype == object and y.ndim == 1:
        y = _plain_labels(y)
    if y.ndim == 2 and y.shape[1] > 1:
        raise ValueError(
            f"y has shape {y.shape}: several labels a row, where one label a row is "
            "expected.\nOf one-hot rows pass y.argmax(1). Of rows with several classes at once "
            "leave y out, or pass 0, and -1 for out-of-distribution rows."
        )
    y = column_or_1d(y, warn=True)
    if y.dtype == object and all(issubclass(kind, Real) for kind in set(map(type, y))):
        y = np.array(y.tolist()) if len(y) else y.astype(float)
    return y


def _plain_labels(y):
    """Return objects with numbers and words in place of what holds one, such as 0-d tensors."""
    kinds = set(map(type, y))
    if any(
        issubclass(kind, (Enum, Decimal, Fraction, np.ndarray, torch.Tensor))
        or hasattr(kind, "__array_namespace__")
        for kind in kinds
    ):
        y = np.fromiter(map(_plain_label, y), object, len(y))
        kinds = set(map(type, y))
    rows = [kind for kind in kinds if issubclass(kind, (list, tuple, np.ndarray))]
    if rows:
        lengths = {np.shape(label) if isinstance(label, tuple(rows)) else () for label in y}
        if len(lengths) == 1:
            return np.array(y.tolist())
    unfit = next((kind.__name__ for kind in kinds if rows or kind.__hash__ is None), None)
    if unfit:
        raise TypeError(f"y holds a {unfit} for some row. Expected one number or word for each.")
    return y


def _plain_label(label):
    """Return the number or word that a label stands for: a member of an Enum for its value."""
    if isinstance(label, Enum):
        label = label.value
    if isinstance(label, (Decimal, Fraction)):
        return float(label)
    return move_to_numpy(label)[()] if hasattr(label, "ndim") else label


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

    Warns
    -----
    UserWarning
        If labels that are no negative numbers look as if they were meant to mark OOD rows.
    """
    y, mask = as_labels(y), is_negative(y)
    if known_classes is None:
        _warn_of_marks(y, mask)
        return mask
    classes = move_to_numpy(known_classes)
    known, labels = set(classes.tolist()), y.tolist()
    if y.dtype.kind == "b" != classes.dtype.kind:
        _warn_of_marks(y, mask)
    else:
        _warn_of_other_kind(set(y[~mask].tolist()) - known, classes)
    return mask | np.array([label not in known for label in labels], dtype=bool)


def is_inside(y, n_rows, known):
    """Return which of n_rows rows are in-distribution, by their labels if there are any.

    `known` as in `is_ood`.
    """
    ood = np.zeros(n_rows, dtype=bool) if y is None else is_ood(y, known)
    if len(ood) != n_rows:
        raise ValueError(f"X has {n_rows} rows and y {len(ood)} labels.")
    return ~ood


def check_any_inside(inside):
    """Raise if no row, or pixel, that a threshold could be set by is in-distribution."""
    if not inside.any():
        raise ValueError(
            "X holds no in-distribution row to set the threshold by: all labels in y are negative "
            "or of classes that fit did not see."
        )


def is_negative(y):
    """Tell which labels are negative numbers, as `is_ood` does, without a look at the others."""
    y = as_labels(y)
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ValueError("Input y contains NaN or infinity. Label every row, OOD rows with -1.")
    if y.dtype.kind in "OUS":
        mask = np.array([isinstance(label, Real) and label < 0 for label in y], dtype=bool)
        for label in set(y[~mask].tolist()):
            if is_missing(label):
                raise ValueError(
                    "Input y contains NaN or None. Label every row, OOD rows with the number -1."
                )
            if isinstance(label, str) and _reads_as_negative(label):
                raise ValueError(
                    f"y holds the string {label!r}. Rows that are out-of-distribution are marked "
                    "by a negative number, not by a string: pass a list or an object array such "
                    "as ['cat', 'dog', -1]."
                )
        return mask
    return np.zeros(len(y), dtype=bool) if y.dtype.kind in "bu" else y < 0


def is_missing(label):
    """Tell None, NaN and pandas' NA."""
    try:
        return label is None or bool(label != label)
    except TypeError:
        # NA is neither equal to itself nor not.
        return True


def _warn_of_marks(y, mask):
    """Warn of labels that are taken for classes, not in the mask, and probably mean OOD rows."""
    if y.dtype.kind == "b":
        warn(
            "y is boolean: False and True are taken for two classes.\nNegative numbers mark OOD "
            "rows. If y tells outliers from others, pass np.where(y, -1, 0);\nif these are "
            "classes, pass y.astype(int).",
            ShownOnce,
        )
    words = set(y[~mask].tolist()) if y.dtype.kind in "OU" else ()
    for name in sorted(w for w in words if isinstance(w, str) and w.casefold() in OOD_NAMES):
        warn(
            f"y holds the label {name!r}, which is taken for a class of its own.\nNegative numbers "
            "mark OOD rows, beside words in an array of objects:\n"
            f"y = np.where(np.equal(y, {name!r}), -1, np.array(y, dtype=object)).",
            ShownOnce,
        )


def warn_of_class_scorer():
    """Warn when the decisions of a detector go to a scorer that takes its labels for classes.

    Of two labels the higher is in-distribution to scikit-learn's "roc_auc", which is right where
    the other is negative. More labels are an error there, which does not name the remedy.
    """
    # The labels that scikit-learn's own scorer compares to what it asks for.
    y = caller_variables("_score", "y_true").get("y_true")
    if y is None:
        return
    labels = np.unique(as_labels(y))
    if len(labels) != 2 or not is_numeric(labels) or labels[0] >= 0 or labels[1] < 0:
        warn(
            "A scorer of scikit-learn, such as scoring='roc_auc', takes y for the classes to be "
            "told apart,\nand a detector tells in-distribution from out-of-distribution rows.\n"
            "Use scoring=skood.metrics.get_scorer('auroc'), or leave scoring out.",
            ShownOnce,
        )


def _warn_of_other_kind(unseen, classes):
    """Warn of labels that cannot be among the classes: numbers beside words, or words beside."""
    other = [label for label in unseen if isinstance(label, Real) != is_numeric(classes)]
    if other and len(classes):
        kind, kinds = ("words", "numbers") if is_numeric(classes) else ("numbers", "words")
        warn(
            f"y holds {kind}, such as {min(map(repr, other))}, but fit was given {kinds}, such as "
            f"{classes.tolist()[0]!r}.\nAll rows of such labels count as out-of-distribution.\n"
            "Label rows as in fit, and OOD rows by negative numbers.",
            ShownOnce,
        )


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


def maps_at(y, size, row_shape):
    """Return label maps as numpy, at the size of maps of scores.

    Larger ones, of the size of X or a whole multiple of `size`, give each pixel the label that is
    nearest to its centre.

    Parameters
    ----------
    y : array of shape (n_samples, H, W)
        Labels of pixels.
    size : tuple of int
        Height and width of the scores.
    row_shape : tuple
        Of the rows of X.
    """
    y, size = move_to_numpy(y), tuple(size)
    given = y.shape[1:]
    if given != row_shape[-len(size) :] and given != tuple(given[0] // size[0] * n for n in size):
        raise ValueError(
            f"y holds labels of pixels, of shape {y.shape}, and scores are maps of shape {size}.\n"
            "Give labels of that size, of a whole multiple of it, or of the size of X."
        )
    for axis, n in enumerate(size, start=1):
        if n != y.shape[axis]:
            y = y.take(((np.arange(n) + 0.5) * y.shape[axis] / n).astype(np.int64), axis)
    return y


def encode_labels(y, n_samples, least=2):
    """Split y into in-distribution rows, classes and class indices.

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
    class_indices : ndarray of shape (n_in_distribution,), dtype int64
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
    if type_of_target(labels) == "continuous":
        raise ValueError(
            "Unknown label type: continuous. y holds numbers that are no class labels, as for a "
            "regression.\nMethods on features need no labels: leave y out, GMMDetector(net).fit(X)."
        )
    check_classification_targets(labels)
    if labels.dtype.kind == "f" and np.signbit(labels).any():
        warn("y holds -0.0, which is the class 0: OOD rows are marked by a number below 0, as -1.")
        labels = labels + 0.0
    # torch takes no foreign byte order.
    labels = labels.astype(labels.dtype.newbyteorder("="), copy=False)
    classes, class_indices = np.unique(labels, return_inverse=True)
    if classes.dtype.kind == "f":
        # -0.0 is 0.0.
        classes = classes + 0.0
    return rows, classes, class_indices.astype(np.int64)
