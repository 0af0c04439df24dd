"""Moments of classes, accumulated stably over batches, and the factors of covariances."""

import math
import os

import torch


class ClassMoments:
    """Counts, means and within-class scatters, updated by Chan's pairwise formula in float64.

    Sums of squares would lose everything at an offset: (x - mean)² of data at 1000 standard
    deviations keeps 10 of float64's 16 digits that way, and 1 of float32's 7.

    Parameters
    ----------
    n_classes, n_features : int
        K and D.
    shape : {"full", "tied", "diag"}
        Scatter matrices (K, D, D); their sum (1, D, D); or their diagonals (K, D).
    device : torch.device
        Where they are kept.
    """

    def __init__(self, n_classes, n_features, shape, device):
        def zeros(*size):
            return torch.zeros(size, dtype=torch.float64, device=device)

        self.shape = shape
        self.counts = zeros(n_classes)
        self.means = zeros(n_classes, n_features)
        if shape == "diag":
            self.scatters = zeros(n_classes, n_features)
        else:
            self.scatters = zeros(n_classes if shape == "full" else 1, n_features, n_features)

    def update(self, features, codes):
        """Add rows (n_samples, D) with their class codes (n_samples,)."""
        # Class-sorted segments: one matrix product a class that is present, where padding all
        # classes to one length would cost the largest class's rows for each of them.
        order = torch.argsort(codes, stable=True)
        present, sizes = torch.unique_consecutive(codes[order], return_counts=True)
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
        weight = n_old * n_new / n_total
        if self.shape == "diag":
            self.scatters[k] += centred.square().sum(0) + weight * shift.square()
        else:
            scatter = self.scatters[k if self.shape == "full" else 0]
            scatter.addmm_(centred.T, centred)
            scatter.addr_(shift, shift, alpha=weight)


def inverse_factors(covariances):
    """Return L⁻ᵀ of each covariance L Lᵀ, and log det L, NaN where it is not positive definite.

    Parameters
    ----------
    covariances : Tensor of shape (K, D, D)
        Symmetric.

    Returns
    -------
    factors : Tensor of shape (K, D, D)
        x @ factor is white.
    half_log_dets : Tensor of shape (K,)
        Half the log-determinants.
    """
    # As correlations: a covariance of 1e-60, or columns of 1e-5 and 1e5, are as good as of 1.
    scale = covariances.diagonal(dim1=1, dim2=2).sqrt()
    positive = (scale > 0).all(1)
    scale = torch.where(scale > 0, scale, 1.0)
    lower, info = torch.linalg.cholesky_ex(covariances / scale[:, :, None] / scale[:, None, :])
    n_features = scale.shape[1]
    # What is smaller than this is rounding, not variance.
    rounding = math.sqrt(n_features * torch.finfo(scale.dtype).eps)
    good = (info == 0) & positive & (lower.diagonal(dim1=1, dim2=2).amin(1) > rounding)
    identity = torch.eye(n_features, dtype=lower.dtype, device=lower.device)
    lower = torch.where(good[:, None, None], lower, identity)
    inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    half_log_dets = lower.diagonal(dim1=1, dim2=2).log().sum(1) + scale.log().sum(1)
    half_log_dets = torch.where(good, half_log_dets, torch.nan)
    return inverse.mT / scale[:, :, None], half_log_dets


def whiten(differences, factors):
    """Whiten differences (n_samples, K, D) from the K means.

    Parameters
    ----------
    differences : Tensor of shape (n_samples, K, D)
        Features less each mean.
    factors : Tensor of shape (K, D, D), (1, D, D) or (K, D)
        Factors of full, tied or diagonal covariances.

    Returns
    -------
    white : Tensor of shape (n_samples, K, D)
        Their squared lengths are squared Mahalanobis distances.
    """
    if factors.ndim == 2:
        return differences * factors
    return torch.matmul(differences.transpose(0, 1), factors).transpose(0, 1)


def check_memory(n_classes, n_features, device):
    """Raise unless full covariances fit into memory: scatter, factor and leave-one-out factor."""
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
