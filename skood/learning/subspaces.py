"""Subspaces that hold most of the variance of features, and what lies outside of them."""

from numbers import Integral

import torch

from skood._warnings import warn
from skood.functional import all_finite
from skood.learning.blocks import score_in_folds
from skood.learning.learning import LearnedModule
from skood.learning.moments import OVERFLOW

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


def head_directions(head):
    """Return the directions that logits depend on, strongest first, in float64.

    Parameters
    ----------
    head : nn.Linear
        The last linear layer.

    Returns
    -------
    directions : Tensor of shape (rank, D)
        The right singular vectors of the weights, without those of rounding; one at least.
    """
    _, strengths, directions = torch.linalg.svd(head.weight.double(), full_matrices=False)
    rank = int((strengths > ROUNDING_OF_HEADS * strengths[0]).sum())
    return directions[: max(1, rank)]


def part_norms(rows, directions):
    """Return the norms of what lies in the first k directions, and outside, for each k.

    Parameters
    ----------
    rows : Tensor of shape (n_samples, D), dtype float64
        Features.
    directions : Tensor of shape (n_directions, D), dtype float64
        Orthonormal.

    Returns
    -------
    norms : Tensor of shape (2, n_samples, n_directions)
        Inside and outside.
    """
    coordinates = rows @ directions.T
    beyond = torch.linalg.vector_norm(rows - coordinates @ directions, dim=1, keepdim=True)
    squares = coordinates.square()
    after = torch.cat([squares[:, 1:], beyond.square()], 1).flip(1).cumsum(1).flip(1)
    return torch.stack([squares.cumsum(1), after]).sqrt()


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
    if not all_finite(scatter):
        raise ValueError(OVERFLOW)
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


class Subspace(LearnedModule):
    """Rows → a number that tells how they lie to the subspace of most of the variance.

    A subclass chooses the directions that it needs, by `frame`, `dimension` and `chosen`, and
    measures rows by them, in `measure`. A training row is measured by what the other folds teach.

    Parameters
    ----------
    n_components : int, float or None
        See `n_leading`.
    """

    def __init__(self, n_components):
        super().__init__()
        self.n_components = n_components
        # What is learned without each fold, by fold; and the function of keys that gives the folds
        # of rows.
        self.without_fold, self.folds_of = {}, None

    def frame(self, count, mean, scatter):
        """Return tensors that tell how rows are seen, and the scatter of rows seen so.

        The arguments are what `FoldMoments.without` gives of one group.
        """
        raise NotImplementedError

    def dimension(self, variances):
        """Return the dimension of the subspace, by the variances of all directions."""
        return n_leading(variances, self.n_components)

    def chosen(self, directions, k):
        """Return some of the directions (D, D), which are columns: of the subspace, or the rest."""
        raise NotImplementedError

    def measure(self, rows, *learned):
        """Return a number for each row, by the tensors that are `learned`."""
        raise NotImplementedError

    def finalize(self, moments):
        """Find the subspace of all rows, and that without each fold, from their `FoldMoments`.

        Returns
        -------
        variances : Tensor of shape (D,)
            Of all directions, largest first, times the number of rows.
        """
        *frame, scatter = self.frame(*moments.without())
        variances, directions = principal(scatter)
        k = self.dimension(variances)
        for name, value in zip(self.learned, (*frame, self.chosen(directions, k)), strict=True):
            setattr(self, name, value)
        if 0 < k < len(variances):
            warn_of_ties(variances, k, int(moments.counts.sum()))
        self.without_fold, self.folds_of = {}, moments.folds
        for fold in moments.counts.nonzero()[:, 0].tolist():
            *frame, scatter = self.frame(*moments.without(fold))
            self.without_fold[fold] = (*frame, self.chosen(principal(scatter)[1], k))
        return variances

    def forward(self, rows):
        """Return a number for each row, in float64."""
        return self.measure(rows, *(getattr(self, name) for name in self.learned))

    def leave_one_out(self, rows, keys):
        """Return the numbers of training rows, each by the subspace of the other folds."""
        return score_in_folds(
            lambda fold, some: self.measure(some, *self.without_fold[fold]),
            self.folds_of(keys),
            rows,
        )

    def clear_cache(self):
        """Drop what only `leave_one_out` needs."""
        self.without_fold, self.folds_of = {}, None


def warn_of_ties(variances, k, n_rows):
    """Warn where the first k directions are arbitrary."""
    rounding = (
        1e-9 * variances[k - 1] + len(variances) * torch.finfo(variances.dtype).eps * variances[0]
    )
    if bool(variances[k - 1] - variances[k] <= rounding):
        warn(
            f"The directions {k} and {k + 1} of {len(variances)} have equal variance in {n_rows} "
            f"rows, so that what lies outside of the first {k} is arbitrary.\nGive more rows, or "
            "another n_components."
        )


class Residual(Subspace):
    """Rows → the norm of their residual, outside of the subspace of most of the variance.

    Attributes
    ----------
    center : Tensor of shape (D,), dtype float64
        A point of the subspace.
    basis : Tensor of shape (D, D - k), dtype float64
        Orthonormal, the directions outside of the subspace.
    """

    learned = ("center", "basis")

    def __init__(self, n_components):
        super().__init__(n_components)
        self.point = None

    @property
    def n_components_(self):
        """The dimension of the subspace."""
        n_features, n_left = self.basis.shape
        return n_features - n_left

    def finalize(self, moments, point=None):
        """Find the subspace through a point (D,), None for the mean: see `Subspace.finalize`."""
        self.point = point
        return super().finalize(moments)

    def frame(self, count, mean, scatter):
        """Return the center, and the scatter around it."""
        return scatter_around(self.point, count, mean, scatter)

    def chosen(self, directions, k):
        """Return the directions outside of the subspace."""
        return directions[:, k:].contiguous()

    def measure(self, rows, center, basis):
        """Return norms (n_samples,), in float64."""
        return residual_norm(rows, center, basis)


def residual_norm(rows, center, basis):
    """Return the norm of the residual of rows, in float64.

    Not as √(‖z‖² - ‖zP‖²) with the leading directions P: in float32 that is off by 2 % where 4 of
    64 directions are outside.
    """
    return torch.linalg.vector_norm((rows.double() - center) @ basis, dim=1)
