"""Subspaces that hold most of the variance of features, and what lies outside of them."""

from numbers import Integral

import torch

from skood._warnings import warn
from skood.learning.learning import LearnedModule

# Singular values of a head below this share of the first are rounding. A softmax ignores what all
# logits have in common and a penalty removes it, so that a logistic regression has rank C - 1: on
# digits its last singular value is 4e-6 of the first in float32 and 6e-14 in float64, and 5e-5 with
# features of size 16 000. Of networks trained with weight decay it was 3e-3 and more.
ROUNDING_OF_HEADS = 1e-4
# A norm below this share of that of the features, or a variance below its square, is rounding.
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-12}


def head_origin(head):
    """Return -W⁺b, the shortest features whose logits are as close to 0 as they come, in float64.

    Parameters
    ----------
    head : nn.Linear
        The last linear layer.
    """
    weight = head.weight.double()
    if head.bias is None:
        return weight.new_zeros(weight.shape[1])
    return -torch.linalg.pinv(weight, rtol=ROUNDING_OF_HEADS) @ head.bias.double()


def scatter_around(center, count, mean, scatter):
    """Return the scatter of rows around a point, from that around their mean.

    Parameters
    ----------
    center : Tensor of shape (D,) or None
        The point; None is the mean.
    count, mean, scatter : Tensor of shape (1,), (1, D) and (1, D, D)
        See `FoldMoments.without`.

    Returns
    -------
    center : Tensor of shape (D,)
        The point.
    scatter : Tensor of shape (D, D)
        The sum of outer products.
    """
    if center is None:
        return mean[0], scatter[0]
    shift = mean[0] - center
    return center, scatter[0] + count * torch.outer(shift, shift)


def principal(scatter):
    """Return the eigenvalues of a scatter, largest first, and eigenvectors (D, D) as columns."""
    # Scaled to entries around 1: the squares of features of 1e-150 are near the smallest float64.
    size = scatter.abs().amax().clamp(min=torch.finfo(scatter.dtype).tiny)
    variances, directions = torch.linalg.eigh(scatter / size)
    return variances.flip(0).clamp(min=0) * size, directions.flip(1)


def n_leading(variances, n_components):
    """Return the dimension of the subspace of leading directions.

    Parameters
    ----------
    variances : Tensor of shape (D,)
        Of all directions, largest first.
    n_components : int, float or None
        The dimension, less than D. A share in (0, 1): as few directions as hold this share of the
        variance, at most D - 1. None: what the authors of ViM take, and D / 2 below 768.
    """
    n_features = len(variances)
    if n_components is None:
        return 1000 if n_features >= 2048 else 512 if n_features >= 768 else n_features // 2
    if not isinstance(n_components, Integral):
        shares = variances.cumsum(0)
        return min(n_features - 1, 1 + int((shares < n_components * shares[-1]).sum()))
    if n_components >= n_features:
        raise ValueError(
            f"n_components={n_components} must be less than n_features={n_features}, or nothing "
            "lies outside of the subspace."
        )
    return n_components


class Residual(LearnedModule):
    """Rows → the norm of their residual, outside of the subspace of most of the variance.

    Parameters
    ----------
    n_components : int, float or None
        See `n_leading`.

    Attributes
    ----------
    center : Tensor of shape (D,), dtype float64
        A point of the subspace.
    basis : Tensor of shape (D, D - k), dtype float64
        Orthonormal, the directions outside of the subspace.
    """

    learned = ("center", "basis")

    def __init__(self, n_components):
        super().__init__()
        self.n_components = n_components
        # Center and basis learned without each fold, by fold; and the function of keys that gives
        # the folds of rows.
        self.without_fold, self.folds_of = {}, None

    def finalize(self, moments, center=None):
        """Find the subspace through a point, None for the mean, of all rows and without each fold.

        Parameters
        ----------
        moments : FoldMoments
            Of the rows.
        center : Tensor of shape (D,), default=None
            The point.
        """
        self.center, scatter = scatter_around(center, *moments.without())
        variances, directions = principal(scatter)
        k = n_leading(variances, self.n_components)
        self.basis = directions[:, k:].contiguous()
        rounding = (
            1e-9 * variances[k - 1] + len(variances) * torch.finfo(scatter.dtype).eps * variances[0]
        )
        if k and bool(variances[k - 1] - variances[k] <= rounding):
            n_rows = int(moments.counts.sum())
            warn(
                f"The directions {k} and {k + 1} of {len(variances)} have equal variance in "
                f"{n_rows} rows, so that what lies outside of the first {k} is arbitrary.\n"
                "Give more rows, or another n_components."
            )
        self.without_fold, self.folds_of = {}, moments.folds
        for fold in moments.counts.nonzero()[:, 0].tolist():
            center_then, scatter = scatter_around(center, *moments.without(fold))
            _, directions = principal(scatter)
            self.without_fold[fold] = center_then, directions[:, k:].contiguous()

    def forward(self, rows):
        """Return norms (n_samples,), in float64."""
        return residual_norm(rows, self.center, self.basis)

    def leave_one_out(self, rows, keys):
        """Return the norms of training rows, each outside of the subspace of the other folds."""
        norms = rows.new_empty(len(rows), dtype=torch.float64)
        folds = self.folds_of(keys)
        for fold, (center, basis) in self.without_fold.items():
            chosen = folds == fold
            norms[chosen] = residual_norm(rows[chosen], center, basis)
        return norms

    def clear_cache(self):
        """Drop what only `leave_one_out` needs."""
        self.without_fold, self.folds_of = {}, None


def residual_norm(rows, center, basis):
    """Return the norm of the residual of rows, in float64.

    Not as √(‖z‖² - ‖zP‖²) with the leading directions P: in float32 that is off by 2 % where 4 of
    64 directions are outside.
    """
    return torch.linalg.vector_norm((rows.double() - center) @ basis, dim=1)
