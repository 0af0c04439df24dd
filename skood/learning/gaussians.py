"""Factors of covariances, and distances to classes by them."""

import math
import os

import torch
from torch import nn

from skood._warnings import warn
from skood.functional import all_finite
from skood.learning.blocks import block_rows, takes_plain_path
from skood.learning.moments import OVERFLOW

# How many white dimensions of each class one product computes. Of 256 dimensions, slices of 64 take
# .63 of all multiplications, of 32 .56; 16 gains no more.
SLICE_COLUMNS = 32
# A GPU takes so many slices at once: of vectors of 32 numbers it computes lengths slowly.
GPU_SLICES = 4
# A product is of as many classes as stay in cache with it. Blocks of rows that are small enough for
# products with 1000 classes at once wait for the factors of all: 1.6 times as long.
PRODUCT_BYTES = 4 * 2**20
# After so many slices far classes are dropped, if at most this share of all pairs of a row and a
# class are near: finishing these one by one then costs less than going on with all pairs.
LEADING_SLICES, NEAR_SHARE = 2, 0.25
# Of 2048 columns at once or at a time: .55 of the time of a product with the whole.
TRIANGLE_COLUMNS = 256
# Up to this `stretch` products are computed in float32. A score is then off by 3e-8 times the
# stretch, relatively or for each feature, whichever is larger.
LARGEST_STRETCH = 300
FAR = 1e10
# |x|² - 2xμ + |μ|² below this share of |x|² is computed anew; others lose at most four digits.
CANCELLED = 1e-3
# The first ridge of a covariance that has no Cholesky factor, and how it grows until it has one.
RIDGE_START, RIDGE_STEP = 1e-10, 10.0


def inverse_factor(covariance, ridge=0.0):
    """Return L⁻ᵀ of a covariance L Lᵀ and log det L, or None where it is not positive definite.

    Parameters
    ----------
    covariance : Tensor of shape (D, D) or (D,)
        Symmetric, or the diagonal of a diagonal one.
    ridge : float, default=0
        To add to the diagonal.

    Returns
    -------
    factor : Tensor of the same shape
        x @ factor, or x * factor, is white. Upper triangular.
    half_log_det : Tensor of shape ()
        Half the log-determinant.
    """
    scale = ((covariance if covariance.ndim == 1 else covariance.diagonal()) + ridge).sqrt()
    if not bool((scale > 0).all()):
        return None
    if covariance.ndim == 1:
        return scale.reciprocal(), scale.log().sum()
    # As a correlation: a covariance of 1e-60, or columns of 1e-5 and 1e5, are as good as of 1.
    correlation = covariance / scale[:, None] / scale
    lower, info = torch.linalg.cholesky_ex(correlation.fill_diagonal_(1.0))
    # What is smaller than this is rounding, not variance: sums over rows in another order differ by
    # some eps, of which a variance is to keep three digits.
    rounding = math.sqrt(max(1000, len(scale)) * torch.finfo(scale.dtype).eps)
    if bool(info) or not bool(lower.diagonal().amin() > rounding):
        return None
    identity = torch.eye(len(scale), dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.T / scale[:, None], lower.diagonal().log().sum() + scale.log().sum()


def ridges_of(moments, reg_covar):
    """Return the ridge of covariances, and the least that a singular one is tried with.

    Parameters
    ----------
    moments : ClassMoments
        Of all rows.
    reg_covar : "auto" or float
        "auto" is 0.01 times the mean variance within the classes.
    """
    scatters = moments.scatters
    if not all_finite(scatters):
        raise ValueError(OVERFLOW)
    variances = scatters if moments.shape == "diag" else scatters.diagonal(dim1=1, dim2=2)
    within = float(variances.sum() / (moments.counts.sum() * variances.shape[1]))
    ridge = 0.01 * within if reg_covar == "auto" else float(reg_covar)
    # Where nothing varies within a class, the size of the features is the only scale left.
    return ridge, RIDGE_START * (within or float(moments.means.square().mean()) or 1.0)


def factor_covariance(scatter, divisor, ridge, least_ridge, name=None):
    """Factor scatter / divisor + ridge, with a larger ridge where that is singular.

    Returns the factor, half the log-determinant and the ridge; warns where there is a name.
    """
    used = ridge
    while (solved := inverse_factor(scatter / divisor, used)) is None:
        used = max(RIDGE_STEP * used, least_ridge)
    if used != ridge and name is not None:
        warn(
            f"The covariance of {name} ({int(divisor)} rows, {scatter.shape[0]} features) is "
            f"singular: reg_covar={used:.3g} was used for it instead of {ridge:.3g}."
        )
    return *solved, used


def triangular_product(rows, factor):
    """Return rows @ factor of an upper triangular factor, without what lies below its diagonal."""
    if takes_plain_path(rows) or len(factor) <= TRIANGLE_COLUMNS:
        return rows @ factor
    white = rows.new_empty(len(rows), factor.shape[1])
    for start in range(0, factor.shape[1], TRIANGLE_COLUMNS):
        stop = start + TRIANGLE_COLUMNS
        part = factor[:stop, start:stop]
        torch.mm(rows[:, :stop], part, out=white[:, start:stop])
    return white


def nearest_to_zero(moments):
    """Return the mean of the class that is nearest to 0, a point to subtract from rows.

    The mean of all rows is no good where one class holds a row of 1e30: subtracting it takes all
    digits from the rows of other classes. The mean of a class is as close to the others as classes
    are to each other, in any coordinates; the least value of each feature over the classes is not.
    """
    means = moments.means[moments.counts > 0]
    sizes = means.abs() / means.abs().median(0).values.clamp(min=torch.finfo(means.dtype).tiny)
    # A view would keep all means in memory and in exported files.
    return means[sizes.amax(1).argmin()].clone()


def distances_without_own(white, class_indices, means, counts):
    """Return squared distances to class means under Gaussians refitted without each row.

    These share a covariance, whose ridge is kept. See `GMMDetector` for the algebra.

    Parameters
    ----------
    white : Tensor of shape (n_samples, D)
        Training rows times `inverse_factor` of the scatter divided by one row less.
    class_indices : Tensor of shape (n_samples,)
        Their classes.
    means : Tensor of shape (K, D)
        Of the classes, times the same.
    counts : Tensor of shape (K,)
        Numbers of rows.

    Returns
    -------
    distances : Tensor of shape (n_samples, K)
        Of a class that has lost its only row, that to this row.
    room : Tensor of shape (n_samples,)
        The share of the determinant of the covariance that is left without each row.
    """
    at = torch.arange(len(class_indices), device=class_indices.device)
    alone = counts[class_indices] == 1
    grow = torch.where(alone, 1.0, counts[class_indices] / (counts[class_indices] - 1))
    change = torch.where(alone, 0.0, grow / (counts.sum() - 1))
    delta = white - means[class_indices]
    room = room_left(1 - change * squared_norms(delta))
    # delta @ (white - mean) for all means, without their differences.
    cross = delta @ means.T
    cross = squared_norms(delta)[:, None] + cross[at, class_indices][:, None] - cross
    distances = squared_distances(white, means) + (change / room)[:, None] * cross.square()
    # The own mean moves too, by the same factor in both places of the product.
    distances[at, class_indices] *= grow.square()
    return distances, room


def room_left(room):
    """Keep the share of a variance that is left positive: without a ridge it may become 0."""
    return room.clamp(min=1e-12)


def leading_directions(means):
    """Return an orthogonal (D, D) whose first columns tell means (K, D) apart, the best first."""
    between = torch.linalg.svd(means, full_matrices=False).Vh
    return torch.linalg.qr(between.T, mode="complete").Q


def stretch(factors, means):
    """Return by how much whitening stretches rounding: white values err by about as many eps.

    Parameters
    ----------
    factors : list of K Tensors of shape (D, D)
        For rows whose pooled covariance is the identity.
    means : Tensor of shape (K, D)
        Of such rows.
    """
    root = math.sqrt(means.shape[1])
    largest = max(float(torch.linalg.vector_norm(factor)) for factor in factors)
    return (1 + float(torch.linalg.vector_norm(means, dim=1).amax()) / root) * largest / root


def stack_factors(factors, means):
    """Lay out triangular factors so that a product whitens rows by 32 columns of all of them.

    Parameters
    ----------
    factors : list of K Tensors of shape (D, D)
        Upper triangular.
    means : Tensor of shape (K, D)
        Of the classes.

    Returns
    -------
    stacked : Tensor of shape (1 + D, n_slices, K, width)
        The columns of -mean @ factor above those of the factor, cut into slices.
    """
    n_classes, n_features = means.shape
    width = min(SLICE_COLUMNS, n_features)
    n_slices = -(-n_features // width)
    stacked = means.new_zeros(1 + n_features, n_slices, n_classes, width)
    for k, factor in enumerate(factors):
        columns = torch.cat([-(means[k] @ factor)[None], factor])
        columns = nn.functional.pad(columns, (0, n_slices * width - n_features))
        stacked[:, :, k] = columns.view(1 + n_features, n_slices, width)
    return stacked


def log_joint(rows, stacked, log_scales, margin, left_out=None):
    """Return log-scale minus half the squared Mahalanobis distance of rows to each class.

    Parameters
    ----------
    rows : Tensor of shape (n_samples, D), dtype float64
        White but for the class, the directions between the classes first.
    stacked : Tensor of shape (1 + D, n_slices, K, width)
        From `stack_factors`.
    log_scales : Tensor of shape (K,)
        What a class's value is at its mean.
    margin : float
        What lies more than this below the row's largest value may be a bound from above instead,
        which lies as far below.
    left_out : Tensor of shape (n_samples,), default=None
        A class for each row whose value is of no use.

    Returns
    -------
    joint : Tensor of shape (n_samples, K), dtype float64
        Higher is closer.
    """
    n_features, (n_slices, n_classes, width) = len(stacked) - 1, stacked.shape[1:]
    # Squares overflow float32 from 1e19 on: rows beyond 1e10 are shrunk, and their 1 with them.
    shrink = rows.abs().amax(1, keepdim=True).clamp(min=FAR) / FAR
    rows = (nn.functional.pad(rows, (1, 0), value=1.0) / shrink).to(stacked.dtype)

    def values(squares):
        return log_scales - squares * shrink.square() / 2

    def few(pairs):
        return int(pairs.sum()) <= NEAR_SHARE * pairs.numel()

    if takes_plain_path(rows):
        white = rows @ stacked.flatten(1)
        return values(squared_norms(white.view(-1, n_slices, n_classes, width)).sum(1))
    squares = shrink.new_zeros(len(rows), n_classes)
    n_at_once = 1 if rows.device.type == "cpu" else min(GPU_SLICES, n_slices)
    size = block_rows(len(rows) * n_at_once * width * rows.itemsize, rows.device, PRODUCT_BYTES)
    white = rows.new_empty(len(rows) * n_at_once * width * min(size, n_classes))
    for i in range(0, n_slices, n_at_once):
        # On a GPU finishing classes one by one takes four times as long as all of the work.
        if i == LEADING_SLICES and n_classes > 1 and rows.device.type == "cpu":
            # Squares only grow: the leading dimensions bound every class from above. Finish the
            # best, then what may still come near: a fifth of the work where classes separate.
            bounds = values(squares)
            if left_out is not None:
                bounds.scatter_(1, left_out[:, None], -torch.inf)
            largest, best = bounds.max(1, keepdim=True)
            # Whether that is worth trying: a later dimension adds about 1 to the best's square.
            later = n_features - i * width
            if few(bounds > largest - later / 2 - margin):
                best = torch.zeros_like(bounds, dtype=torch.bool).scatter_(1, best, True)
                finished = squares + _later_squares(rows, stacked, best)
                near = (bounds > values(finished)[best][:, None] - margin) & ~best
                if few(near):
                    return values(finished + _later_squares(rows, stacked, near))
        # Rows of a triangular factor below its diagonal do not enter: .56 of the work for 8 slices.
        used = 1 + (i + n_at_once) * width
        columns = stacked[:used, i : i + n_at_once].split(size, 2)
        for part, some in zip(squares.split(size, 1), columns, strict=True):
            factors = some.transpose(1, 2).flatten(1)
            out = white[: len(rows) * factors.shape[1]].view(len(rows), -1)
            torch.mm(rows[:, :used], factors, out=out)
            part += squared_norms(out.view(*part.shape, -1))
    return values(squares)


def _later_squares(rows, stacked, wanted):
    """Return what the slices after the leading ones add for pairs of row and class, else 0."""
    squares = torch.zeros(wanted.shape, dtype=torch.float64, device=wanted.device)
    pairs = wanted.T.nonzero()[:, 1].split(wanted.sum(0).tolist())
    for k, chosen in enumerate(pairs):
        if len(chosen):
            white = rows[chosen] @ stacked[:, LEADING_SLICES:, k].flatten(1)
            squares[chosen, k] = squared_norms(white)
    return squares


def squared_norms(vectors):
    """Return squared lengths along the last axis, in float64."""
    # In cache vector_norm costs a quarter of square and sum.
    return torch.linalg.vector_norm(vectors, dim=-1).double().square()


def squared_distances(rows, means, center=None, mean_sizes=None):
    """Return squared Euclidean distances (n_samples, K), exact to 11 digits.

    Parameters
    ----------
    rows : Tensor of shape (n_samples, D), dtype float64
        Vectors.
    means : Tensor of shape (K, D), dtype float64
        Others.
    center : Tensor of shape (D,), default=None
        A point near them. None: 0.
    mean_sizes : Tensor of shape (K,), default=None
        Squared lengths of the means less the center, where these are known.
    """
    if torch.compiler.is_exporting():
        # No branches on data.
        return squared_norms(rows[:, None] - means)
    if takes_plain_path(rows):
        return torch.cdist(rows, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    x, mu = (rows, means) if center is None else (rows - center, means - center)
    sizes = squared_norms(x)[:, None]
    # A tenth of the time of sums of squared differences, which are needed where this cancels. Where
    # squares overflow it is infinite or NaN.
    mean_sizes = squared_norms(mu) if mean_sizes is None else mean_sizes
    distances = torch.addmm(mean_sizes, x, mu.T, alpha=-2).add_(sizes)
    suspects = (~(distances.amin(1, keepdim=True) > CANCELLED * sizes)).nonzero()[:, 0]
    if len(suspects):
        # |μ| is that of x where they are near.
        cancelled = ~(distances[suspects] > CANCELLED * sizes[suspects])
        if int(cancelled.sum()) > NEAR_SHARE * distances.numel():
            return torch.cdist(rows, means, compute_mode="donot_use_mm_for_euclid_dist").square()
        for at in cancelled.nonzero().split(len(rows)):
            i, k = suspects[at[:, 0]], at[:, 1]
            distances[i, k] = squared_norms(rows[i] - means[k])
    return distances


def nearest_squared_distance(rows, means):
    """Return the squared Euclidean distance of each row to the closest mean (n_samples,).

    As exact as `squared_distances`, of which it is the least, and in half of its time.
    """
    if takes_plain_path(rows):
        return squared_distances(rows, means).amin(1)
    sizes = squared_norms(rows)
    nearest = sizes - torch.addmm(-squared_norms(means), rows, means.T, alpha=2).amax(1)
    suspects = (~(nearest > CANCELLED * sizes)).nonzero()[:, 0]
    if len(suspects):
        nearest[suspects] = squared_distances(rows[suspects], means).amin(1)
    return nearest


def check_memory(n_classes, n_features, device):
    """Raise unless full covariances fit into memory: scatters, and factors in three forms."""
    needed = 5 * 8 * n_classes * n_features**2
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    elif hasattr(os, "sysconf"):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        free = math.inf
    if needed > free:
        raise ValueError(
            f"{n_classes} full covariances of {n_features} features take {needed / 2**30:.1f} GiB "
            f"while fitting, more than the {free / 2**30:.1f} GiB here. Use covariance_type='tied' "
            "or 'diag'."
        )
