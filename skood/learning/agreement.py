"""Whether the labels of fit go with the logits of the network."""

import numpy as np
import torch

from skood._warnings import warn
from skood.data.labels import is_numeric

# With so few columns a network may well have as many classes as X has features.
FEW_COLUMNS = 4


def check_has_logits(network, classes):
    """Raise if labels have more classes than the network has logits.

    Parameters
    ----------
    network : Network
        Trained already.
    classes : ndarray of shape (n_classes,) or None
        The labels, sorted.
    """
    if classes is None or network.n_logits is None or not network.returns_vectors:
        return
    if len(classes) > network.n_logits:
        regression = " (Of a regressor: GMMDetector(net), y left out.)" if network.one_logit else ""
        raise ValueError(
            f"y has {len(classes)} classes, but the network has logits of {network.n_logits}.\n"
            "Each class in y must be one of the network's; rows of others get a negative label.\n"
            f"Methods on features take any labels, such as GMMDetector(net).{regression}"
        )


def check_is_classifier(network, classes, has_maps):
    """Raise if a network returns the shape of X, and labels do not tell that these are logits.

    Parameters
    ----------
    network : Network
        Trained already.
    classes : ndarray of shape (n_classes,) or None
        All labels, sorted.
    has_maps : bool
        Whether there are labels of pixels.
    """
    if network.n_logits is None or not network.returns_shape_of_X or has_maps:
        return
    n_classes = 0 if classes is None else len(classes)
    is_narrow = network.returns_vectors and network.n_logits <= FEW_COLUMNS
    if not is_narrow and 2 * n_classes < network.n_logits:
        raise ValueError(
            f"The network returns the shape of X, as an autoencoder does, where this method needs "
            f"logits; y has {n_classes} classes.\nIf it is none: work on the output of one of its "
            "layers, GMMDetector(net, layer=...).\nIf it is a classifier: pass y with its classes "
            "(in segmentation, label maps)."
        )


def columns_of(classes, n_logits, known):
    """Return the logit of each class; None where labels do not tell.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The labels, sorted.
    n_logits : int
        The network's.
    known : array-like or None
        The class of each logit, where a frozen classifier tells.
    """
    if known is not None and len(known) == n_logits:
        places = {label: place for place, label in enumerate(np.asarray(known).tolist())}
        columns = [places.get(label) for label in classes.tolist()]
        return None if None in columns else np.array(columns)
    if not is_numeric(classes) or classes.dtype.kind == "b":
        return None
    columns = classes.astype(np.int64)
    fits = (columns == classes).all() and columns[0] >= 0 and columns[-1] < n_logits
    return columns if fits else None


def logit_columns(classes, n_logits, known=None):
    """Return the logit of each class, for methods that compare logits with labels.

    Labels do not tell before all are known: each chunk may lack classes.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        All labels, sorted.
    n_logits : int
        The network's.
    known : array-like, default=None
        `Network.classes`. Where it is None, labels that are whole numbers below `n_logits` are
        those of the logits, and other labels, if as many, are in their order.

    Returns
    -------
    columns : ndarray of shape (n_classes,)
        -1 for a class that `known` lacks.

    Raises
    ------
    ValueError
        If labels do not tell.
    """
    if known is not None:
        places = {label: place for place, label in enumerate(np.asarray(known).tolist())}
        return np.array([places.get(label, -1) for label in classes.tolist()])
    columns = columns_of(classes, n_logits, None)
    if columns is not None:
        return columns
    if len(classes) != n_logits:
        raise ValueError(
            f"y has {len(classes)} classes, {classes[:5].tolist()}..., and the network has "
            f"{n_logits} logits: it cannot be told which are whose.\nGive labels that are the "
            "numbers of the logits, rows of all classes, or a classifier that knows its own "
            "(FrozenEstimator)."
        )
    return np.arange(n_logits)


def label_columns(class_indices, classes, n_logits, known=None):
    """Return the logit of each row's label, for methods that compare logits with labels.

    Parameters
    ----------
    class_indices : Tensor of shape (n_samples,)
        Indices into `classes`.
    classes, n_logits, known
        See `logit_columns`.

    Returns
    -------
    columns : Tensor of shape (n_samples,)
        -1 for rows of a class that the network does not know.

    Raises
    ------
    ValueError
        If labels do not tell their logits, or the network knows none of them.
    """
    columns = torch.from_numpy(logit_columns(classes, n_logits, known))
    columns = columns.to(class_indices.device)[class_indices]
    check_some_known(bool((columns >= 0).any()), classes)
    return columns


def check_some_known(is_known, classes):
    """Raise unless the network knows the class of some row."""
    if not is_known:
        raise ValueError(
            "Labels are compared with logits, and the network has a logit of none of the classes "
            f"{classes[:5].tolist()}.\nGive labels that it knows. Without a network, y needs two "
            "classes."
        )


def row_columns(class_indices, labels, logits, known=None):
    """Return the logit of each row's label; without labels, its largest logit.

    Parameters
    ----------
    class_indices : Tensor of shape (n_samples,)
        Indices into `labels`.
    labels : ndarray of shape (n_classes,) or None
        See `skood.learning.learning.LearningScorer.labels`.
    logits : Tensor of shape (n_samples, n_logits)
        The network's.
    known : array-like, default=None
        `Network.classes`; empty where the logits have no labels.

    Returns
    -------
    columns : Tensor of shape (n_samples,)
        -1 for rows of a class that the network does not know.

    Raises
    ------
    ValueError
        If labels do not tell their logits.
    """
    if labels is None or (known is not None and not len(known)):
        return logits.argmax(1)
    columns = torch.from_numpy(logit_columns(labels, logits.shape[1], known))
    return columns.to(class_indices.device)[class_indices]


class Agreement:
    """How many rows of each class have their largest logit where their label is; these add up.

    Attributes
    ----------
    n_rows, n_right : dict
        By class. Empty where nothing is known.
    n_logits : int
        The network's, 0 before it is known.
    """

    def __init__(self):
        self.n_rows, self.n_right, self.n_logits, self.is_known = {}, {}, 0, True

    def add(self, largest, classes, codes, columns, n_logits):
        """Add rows: the columns of their largest logits, their class codes, those of classes."""
        if columns is None or len(largest) != len(codes):
            self.is_known = False
            return
        right = np.bincount(codes[columns[codes] == largest], minlength=len(classes))
        counts = np.bincount(codes, minlength=len(classes))
        self.n_logits = n_logits
        self._add(*(dict(zip(classes.tolist(), n.tolist(), strict=True)) for n in (counts, right)))

    def _add(self, n_rows, n_right):
        for mine, more in ((self.n_rows, n_rows), (self.n_right, n_right)):
            mine.update({label: mine.get(label, 0) + count for label, count in more.items()})

    def merge(self, other):
        """Add what is known of other rows."""
        self.n_logits = self.n_logits or other.n_logits
        self.is_known = self.is_known and other.is_known
        self._add(other.n_rows, other.n_right)

    def attributes(self):
        """Return the fitted attributes, as a dict."""
        n_rows = sum(self.n_rows.values())
        if not self.is_known or not n_rows:
            return {}
        return {"accuracy_": sum(self.n_right.values()) / n_rows}

    def warn(self, needs_logits):
        """Warn when the network is right less often than guesses by the shares of classes."""
        accuracy = self.attributes().get("accuracy_", 1.0)
        n_rows = sum(self.n_rows.values())
        chance = sum((count / n_rows) ** 2 for count in self.n_rows.values())
        # Methods on features take labels other than the network's, if fewer.
        same = needs_logits or len(self.n_rows) == self.n_logits
        if same and accuracy < min(0.5, chance):
            warn(
                f"The largest logit is that of the label in {accuracy:.1%} of the rows of fit, "
                f"where guesses are right in {chance:.1%}.\nIs X scaled and normalised as when the "
                "network was trained?\nIs the order of its classes that of the labels in y, and "
                "is it the right network?"
            )
