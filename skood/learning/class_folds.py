"""Means of the features of each logit's class, without each fold of the rows."""

import torch
from torch.nn.functional import pad

from skood.learning.agreement import label_columns
from skood.learning.states import State

N_FOLDS = 10


class ClassFolds(State):
    """Sums of rows by fold, of the classes of y and of those that are predicted.

    Which logit is whose is told only once all labels are known.

    Parameters
    ----------
    n_classes, n_logits, n_features : int
        Of y, of the network, and of the rows.
    device : torch.device
        Where they are kept.
    """

    def __init__(self, n_classes, n_logits, n_features, device):
        # The last column counts.
        by_label, by_prediction = (
            torch.zeros(n, N_FOLDS, n_features + 1, dtype=torch.float64, device=device)
            for n in (n_classes, n_logits)
        )
        super().__init__(["by_label"], by_label=by_label, by_prediction=by_prediction)

    def update(self, features, class_indices, predicted, keys):
        """Add rows (n_samples, D) with their classes, predicted classes and keys."""
        rows, folds = pad(features.double(), (0, 1), value=1.0), folds_of(keys)
        for sums, groups in ((self.by_label, class_indices), (self.by_prediction, predicted)):
            sums.flatten(0, 1).index_add_(0, groups * N_FOLDS + folds, rows)

    def of_logits(self, classes, known):
        """Return the sums of the class of each logit (n_logits, N_FOLDS, D + 1).

        Parameters
        ----------
        classes : ndarray of shape (n_classes,) or None
            The labels; without, a row belongs to the class that is predicted.
        known : array-like or None
            `Network.classes`; empty where clusters stand in for classes.
        """
        if classes is None or (known is not None and not len(known)):
            return self.by_prediction
        index = torch.arange(len(classes), device=self.by_label.device)
        columns = label_columns(index, classes, len(self.by_prediction), known)
        sums = torch.zeros_like(self.by_prediction)
        sums[columns[columns >= 0]] = self.by_label[columns >= 0]
        return sums


def folds_of(keys):
    """Return the fold of rows, from their keys."""
    return (keys * N_FOLDS).long()


def means_without(sums, columns, fold=None):
    """Return counts (n, 1) and means (n, D) of some logits' classes, less the rows of a fold.

    Of all rows for None, or where no row is in another fold, as when all rows are equal.
    """
    others = [other for other in range(N_FOLDS) if other != fold]
    if not bool(sums[:, others, -1].any()):
        others = list(range(N_FOLDS))
    totals = sums[columns][:, others].sum(1)
    counts = totals[:, -1:]
    return counts, totals[:, :-1] / counts.clamp(min=1)
