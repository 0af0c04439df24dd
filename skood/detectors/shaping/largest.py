"""The largest activations of a row, and how much of its sum they hold."""

import math

import numpy as np
import torch
from torch import nn

# Half of the largest exponent: as much room is left for activations and weights.
EXPONENT_BOUNDS = {
    torch.float64: 350.0,
    torch.float32: 44.0,
    torch.bfloat16: 44.0,
    torch.float16: 5.5,
}


def largest_mask(x, percentile, zeros=True):
    """Find all but the share `percentile` of each sample's activations, the largest ones.

    Parameters
    ----------
    x : Tensor of shape (n_samples, D)
        Activations; not written to.
    percentile : float or Tensor of shape (n_samples, 1)
        The share to leave out, of all rows or of each.
    zeros : bool, default=True
        Whether it matters which zeros are chosen. Where their values are all that is used it does
        not, and after a ReLU that saves most of the work on ties.

    Returns
    -------
    mask : Tensor of shape (n_samples, D), dtype bool
        ``max(1, D - round(D * percentile))`` entries a row; among equal ones, those of the lowest
        index.
    """
    width, exporting = x.shape[1], torch.compiler.is_exporting()
    if exporting and not isinstance(percentile, torch.Tensor):
        k = max(1, width - round(width * percentile))
        return first_largest(x, x.topk(k, dim=1).values[:, -1:], k)
    dropped = (width * torch.as_tensor(percentile, dtype=torch.float64)).round().long()
    dropped = dropped.clamp(max=width - 1).to(x.device).expand(x.shape[0], 1)
    if exporting or not x.is_cpu:
        ordered = x.sort(dim=1).values
    else:
        # numpy sorts 4 to 5 times as fast as torch's kthvalue or topk finds the threshold.
        ordered = torch.from_numpy(np.sort(x.detach().numpy(), axis=1))
    threshold = ordered.gather(1, dropped)
    if exporting:
        return first_largest(x, threshold, width - dropped)
    mask = x >= threshold
    tied = (ordered.gather(1, (dropped - 1).clamp(min=0)) == threshold) & (dropped > 0)
    if not zeros:
        tied &= threshold != 0
    tied = tied.nonzero()[:, 0]
    if len(tied):
        mask[tied] = first_largest(x[tied], threshold[tied], width - dropped[tied])
    return mask


def first_largest(x, threshold, k):
    """Find the k largest of each row by the k-th (n_samples, 1); of equal ones the first."""
    above, equal = x > threshold, x == threshold
    return above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))


def largest(x, percentile):
    """Return activations (n_samples, D) with 0 in place of all but the largest."""
    return torch.where(largest_mask(x, percentile, zeros=False), x, 0)


def sum_ratio(x, kept):
    """Return s1 / s2, the sums of each row before and after removal.

    Parameters
    ----------
    x, kept : Tensor of shape (n_samples, D)
        Activations before and after.

    Returns
    -------
    ratio : Tensor of shape (n_samples, 1), dtype float64
        0 / 0 counts as 0. Of signed activations it may be negative or infinite.
    """
    s1, s2 = (values.sum(1, keepdim=True, dtype=torch.float64) for values in (x, kept))
    return torch.nan_to_num(s1 / s2, nan=0.0, posinf=math.inf, neginf=-math.inf)


def concentration(x, percentile):
    """Return s1 / s2: the sum of each row over that of its largest entries.

    Parameters
    ----------
    x : Tensor of shape (n_samples, D)
        Activations.
    percentile : float or Tensor of shape (n_samples, 1)
        The share that is not among the largest.

    Returns
    -------
    ratio : Tensor of shape (n_samples, 1), dtype float64
        See `sum_ratio`.
    """
    return sum_ratio(x, largest(x, percentile))


def scale_logits(logits, ratio):
    """Return logits (n_samples, ...) times ratio² of (n_samples, 1); as they are where it is 0."""
    factor = torch.where(ratio == 0, 1, ratio).square()
    return logits * factor.to(logits.dtype).view(-1, *(logits.ndim - 1) * [1])


def bounded_exp(exponent, bound, dtype):
    """Return the exponential of a number that is clipped to `bound` in size, in a dtype."""
    return exponent.clamp(-bound, bound).exp().to(dtype)


class ScaledHead(nn.Module):
    """A linear head on features that are multiplied by a number of each row.

    Parameters
    ----------
    head : nn.Linear
        Maps features to logits.
    """

    def __init__(self, head):
        super().__init__()
        self.head = head
        # What a weight can add to a logit's size, for the bound on the exponent.
        self.log_gain = math.log1p(head.in_features * float(head.weight.abs().max()))

    def forward(self, features, exponent):
        """Return the logits of features (n_samples, D) times exp(exponent) of (n_samples, 1)."""
        size = features.abs().amax(1, keepdim=True).double().clamp(min=1).log()
        room = math.log(torch.finfo(features.dtype).max) - self.log_gain - size
        factor = bounded_exp(exponent, room.clamp(min=0), features.dtype)
        # The factor goes to the logits: one pass over D less.
        logits = factor * nn.functional.linear(features, self.head.weight)
        return logits if self.head.bias is None else logits + self.head.bias
