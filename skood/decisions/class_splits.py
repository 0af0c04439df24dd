"""Splits that hold out classes or keep the share of OOD rows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import check_consistent_length, check_random_state

from skood._typing import Inputs, Labels, RandomState
from skood.data.labels import as_labels, encode_labels


def _strata(X, y):
    """Return the class codes of y, and a negative number for each negative label."""
    check_consistent_length(X, y)
    labels = as_labels(y)
    strata = np.zeros(len(labels), dtype=np.int64)
    rows, _, codes = encode_labels(y, len(labels))
    strata[rows] = codes
    ood = np.delete(np.arange(len(labels)), rows)
    # As floats: beside strings, negative numbers are objects, -1 and -1.0 among them.
    _, kinds = np.unique(labels[ood].astype(np.float64), return_inverse=True)
    strata[ood] = -1 - kinds
    return strata


class OODStratifiedKFold(StratifiedKFold):
    """Stratified folds of labels some of which are negative, strings beside them included.

    :class:`~sklearn.model_selection.StratifiedKFold` for y such as ``["cat", "dog", -1]``, where
    that one raises. Of numbers it makes the same folds. Every negative label is a stratum of its
    own, so train and test folds both hold OOD rows: `fit` leaves them out, `score` counts them.

    Parameters
    ----------
    n_splits : int, default=5
        The number of folds, at least 2.
    shuffle : bool, default=False
        Whether to shuffle the rows of each class before they are dealt out.
    random_state : int, RandomState instance or None, default=None
        The order, where `shuffle` is True.

    See Also
    --------
    LeaveClassesOut : Where there are no OOD rows.

    Examples
    --------
    >>> from skood.model_selection import OODStratifiedKFold
    >>> y = ["cat", "cat", "dog", "dog", -1, -1]
    >>> for train, test in OODStratifiedKFold(2).split(y, y):
    ...     print([y[i] for i in train], [y[i] for i in test])
    ['cat', 'dog', -1] ['cat', 'dog', -1]
    ['cat', 'dog', -1] ['cat', 'dog', -1]
    """

    def split(
        self, X: Inputs, y: Labels, groups: Any = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the indices of train and test rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Only its length matters.
        y : array-like of shape (n_samples,)
            Class labels; negative numbers mean out-of-distribution.
        groups : object
            Ignored.

        Yields
        ------
        train, test : ndarray of int
            The indices, ascending.
        """
        return super().split(X, _strata(X, y), groups)


class LeaveClassesOut(StratifiedKFold):
    """Hold out whole classes, as stand-ins for out-of-distribution rows.

    The train rows of a split lack the classes that it holds out. Its test rows are all rows of
    these classes, which `score` and the scorers of `skood.metrics` count as OOD since `fit` did
    not see them, and one of `n_splits` stratified folds of the other classes. So a search
    tunes a detector with no OOD row at all.

    Every row is a test row at least once, and every class is held out about equally often: at
    least once where ``n_splits * n_classes`` is the number of classes or more. OOD rows
    (negative labels), if there are any, are in every test set and in no train set.

    Parameters
    ----------
    n_splits : int, default=5
        The number of splits, at least 2.
    n_classes : int, default=1
        The number of classes that a split holds out. At least two must be left.
    random_state : int, RandomState instance or None, default=None
        The order in which classes are held out, and the folds.

    See Also
    --------
    OODStratifiedKFold : Where there are OOD rows.

    Notes
    -----
    It says nothing of a network that was trained on the held-out classes: they are no news to
    it. Let each split train its own, as a skorch net does, or use an embedding that was learned
    without labels.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skood import NNGuideDetector
    >>> from skood.model_selection import LeaveClassesOut
    >>> X, y = load_iris(return_X_y=True)
    >>> cv = LeaveClassesOut(3, random_state=0)
    >>> for train, test in cv.split(X, y):
    ...     print(set(y[train].tolist()), len(test))
    {0, 1} 84
    {0, 2} 84
    {1, 2} 84
    >>> search = GridSearchCV(NNGuideDetector(), {"k": [1, 5]}, cv=cv).fit(X, y)
    >>> search.best_params_["k"] in (1, 5)
    True
    """

    def __init__(
        self, n_splits: int = 5, *, n_classes: int = 1, random_state: RandomState = None
    ) -> None:
        super().__init__(n_splits, shuffle=True, random_state=random_state)
        if not isinstance(n_classes, (int, np.integer)) or n_classes < 1:
            raise ValueError(f"n_classes must be a positive integer, got {n_classes!r}.")
        self.n_classes = int(n_classes)

    def split(
        self, X: Inputs, y: Labels, groups: Any = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the indices of train and test rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Only its length matters.
        y : array-like of shape (n_samples,)
            Class labels; negative numbers mean out-of-distribution.
        groups : object
            Ignored.

        Yields
        ------
        train, test : ndarray of int
            The indices, ascending.
        """
        strata = _strata(X, y)
        n_known = strata.max() + 1
        if self.n_classes > n_known - 2:
            raise ValueError(
                f"y holds {n_known} classes: to hold out n_classes={self.n_classes} of them would "
                f"leave {max(n_known - self.n_classes, 0)}, and at least 2 must be left."
            )
        order = check_random_state(self.random_state).permutation(n_known)
        # The next n_classes of the order for each split, from its start again after its end.
        held_out = np.resize(order, (self.n_splits, self.n_classes))
        rows = np.flatnonzero(strata >= 0)
        folds = super().split(rows, strata[rows])
        for classes, (_, fold) in zip(held_out, folds, strict=True):
            test = (strata < 0) | np.isin(strata, classes)
            test[rows[fold]] = True
            yield np.flatnonzero(~test), np.flatnonzero(test)
