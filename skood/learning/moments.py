"""Counts, means and scatters of classes and of folds, accumulated stably over batches."""

import torch

from skood.data.arrays import feature_batch_rows
from skood.functional import all_finite
from skood.learning.states import State

# The squares of larger differences, summed over 10⁷ rows, overflow.
LARGEST_FEATURE = 1e150
OVERFLOW = "The squares of the features overflow: scale them, to about 1."


class ClassMoments(State):
    """Counts, means and within-class scatters, updated by Chan's pairwise formula in float64.

    Sums of squares would lose everything at an offset: (x - mean)² of data at 1000 standard
    deviations keeps 10 of float64's 16 digits that way, and 1 of float32's 7.

    Parameters
    ----------
    n_classes, n_features : int
        K and D.
    shape : {"full", "tied", "diag", "mean"}
        Scatter matrices (K, D, D); their sum (1, D, D); their diagonals (K, D); or none.
    device : torch.device
        Where they are kept.
    """

    def __init__(self, n_classes, n_features, shape, device):
        def zeros(*size):
            return torch.zeros(size, dtype=torch.float64, device=device)

        size = {"diag": (n_features,), "mean": ()}.get(shape, (n_features, n_features))
        super().__init__(
            ("counts", "means", *(() if shape == "tied" else ("scatters",))),
            counts=zeros(n_classes),
            means=zeros(n_classes, n_features),
            scatters=zeros(1 if shape == "tied" else n_classes, *size),
        )
        self.shape = shape

    def update(self, features, class_indices):
        """Add rows (n_samples, D) with their class indices (n_samples,)."""
        if self.shape != "full":
            self._add_to_all(features, class_indices)
            return
        # Class-sorted segments: one matrix product a class that is present, where padding all
        # classes to one length would cost the largest class's rows for each of them.
        order = torch.argsort(class_indices, stable=True)
        present, sizes = torch.unique_consecutive(class_indices[order], return_counts=True)
        segments = features[order].split(sizes.tolist())
        for k, segment in zip(present.tolist(), segments, strict=True):
            self._add(k, segment.double())

    def _add(self, k, segment):
        """Merge the rows of one class."""
        n_old, n_new = float(self.counts[k]), len(segment)
        mean = segment.mean(0)
        centred = segment - mean
        shift = mean - self.means[k]
        n_total = n_old + n_new
        self.counts[k] = n_total
        self.means[k] += shift * (n_new / n_total)
        self.scatters[k].addmm_(centred.T, centred)
        self.scatters[k].addr_(shift, shift, alpha=n_old * n_new / n_total)

    def _add_to_all(self, features, class_indices):
        """Merge rows of all classes at once: there may be more of them than rows."""
        present, place, n_new = class_indices.unique(return_inverse=True, return_counts=True)
        n_old = self.counts[present]
        n_total = n_old + n_new
        centred = features - self.means[class_indices]
        sums = torch.zeros_like(self.means[present]).index_add_(0, place, centred)
        self.counts[present] = n_total
        self.means[present] += sums / n_total[:, None]
        if self.shape == "mean":
            return
        shifts = sums / n_new[:, None]
        centred -= shifts[place]
        between = (n_old * n_new / n_total).sqrt()[:, None] * shifts
        if self.shape == "diag":
            self.scatters[present] += between.square()
            self.scatters.index_add_(0, class_indices, centred.square())
        else:
            between = between[n_old > 0]
            self.scatters[0].addmm_(centred.T, centred).addmm_(between.T, between)

    def merge(self, other):
        """Take in the moments of other rows, whose classes have the same indices."""
        counts, means, scatters = (
            value.to(self.counts.device) for value in (other.counts, other.means, other.scatters)
        )
        n_total = self.counts + counts
        share = counts / n_total.clamp(min=1)
        shift = means - self.means
        between = (self.counts * share).sqrt()[:, None] * shift
        if self.shape == "full":
            self.scatters.baddbmm_(between[:, :, None], between[:, None])
        elif self.shape == "tied":
            self.scatters[0].addmm_(between.T, between)
        elif self.shape == "diag":
            self.scatters += between.square()
        self.scatters += scatters
        self.means += share[:, None] * shift
        self.counts = n_total


class FoldMoments(ClassMoments):
    """Moments of each of ten folds of the rows, so that a fold is scored by what the others teach.

    A row's key tells its fold, so that folds do not depend on the order of rows, and equal rows are
    in the same fold. Scatters of D features take 80 D² bytes; from D = 1024 on there are five
    folds, of 40 D² bytes.

    Parameters
    ----------
    n_features : int
        D.
    shape : {"full", "diag", "mean"}
        See `ClassMoments`.
    device : torch.device
        Where they are kept.
    n_groups : int, default=1
        The number of groups of rows whose moments are kept apart, such as the columns of the
        logits. (Not the classes of y, whose number may grow.)
    """

    def __init__(self, n_features, shape, device, n_groups=1):
        self.n_folds = 10 if n_features < 1024 or shape != "full" else 5
        super().__init__(self.n_folds * n_groups, n_features, shape, device)
        self.per_class, self.n_groups = (), n_groups

    def folds(self, keys):
        """Return the fold of rows, from their keys."""
        return (keys * self.n_folds).long()

    def update(self, features, keys, groups=0):
        """Add rows (n_samples, D) by their keys (n_samples,) and groups (n_samples,)."""
        super().update(features, self.folds(keys) * self.n_groups + groups)

    def without(self, fold=None):
        """Return the moments of the rows that are not in a fold; of all for None.

        Of all too where no row is in another fold, as when all rows are equal.

        Returns
        -------
        counts : Tensor of shape (n_groups,)
            Numbers of rows.
        means : Tensor of shape (n_groups, D)
            0 where there are none.
        scatters : Tensor of shape (n_groups, D, D), (n_groups, D) or (n_groups,)
            Around these means; 0 with ``shape="mean"``.
        """
        by_fold = [
            value.unflatten(0, (self.n_folds, self.n_groups))
            for value in (self.counts, self.means, self.scatters)
        ]
        others = [other for other in range(self.n_folds) if other != fold]
        if bool(by_fold[0][others].any()):
            by_fold = [value[others] for value in by_fold]
        counts, means, scatters = by_fold
        total = counts.sum(0)
        mean = torch.einsum("fg,fgd->gd", counts / total.clamp(min=1), means)
        shifts = counts.sqrt()[:, :, None] * (means - mean)
        scatter = scatters.sum(0)
        if self.shape == "full":
            scatter += torch.einsum("fgd,fge->gde", shifts, shifts)
        elif self.shape == "diag":
            scatter += shifts.square().sum(0)
        return total, mean, scatter


class ClassSums(State):
    """Numbers and sums of rows by label, and by prediction: that is the class without labels.

    Parameters
    ----------
    n_classes, n_logits, n_features : int
        How many labels and predictions there are, and D.
    device : torch.device
        Where they are kept.
    """

    def __init__(self, n_classes, n_logits, n_features, device):
        by_label, by_prediction = (
            torch.zeros(n, n_features + 1, dtype=torch.float64, device=device)
            for n in (n_classes, n_logits)
        )
        super().__init__(["by_label"], by_label=by_label, by_prediction=by_prediction)

    def update(self, rows, class_indices, predicted):
        """Add rows (n_samples, D) with their labels and predictions (n_samples,)."""
        rows = torch.nn.functional.pad(rows.double(), (0, 1), value=1.0)
        self.by_label.index_add_(0, class_indices, rows)
        self.by_prediction.index_add_(0, predicted, rows)

    def means(self, has_labels):
        """Return the number of rows and the mean of each class, by label or by prediction."""
        totals = self.by_label if has_labels else self.by_prediction
        if not all_finite(totals):
            raise ValueError(OVERFLOW)
        counts = totals[:, -1]
        return counts.clone(), totals[:, :-1] / counts.clamp(min=1)[:, None]


def group_means(rows, groups, n_groups):
    """Return the number of rows (n_groups,) and the mean (n_groups, D) of groups, 0 without rows.

    Of rows in memory, in float64.
    """
    counts = torch.bincount(groups, minlength=n_groups)
    sums = rows.new_zeros(n_groups, rows.shape[1], dtype=torch.float64)
    size = feature_batch_rows(8 * rows.shape[1])
    for some, of in zip(rows.split(size), groups.split(size), strict=True):
        sums.index_add_(0, of, some.double())
    return counts, sums / counts.clamp(min=1)[:, None]


def check_squares(features):
    """Raise if squares of features, summed over rows, would overflow."""
    # Those of float32 are too small by far: nothing is read.
    if torch.finfo(features.dtype).max < LARGEST_FEATURE:
        return
    if bool((features.abs() > LARGEST_FEATURE).any()):
        raise ValueError(OVERFLOW)
