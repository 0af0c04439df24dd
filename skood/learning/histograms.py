"""Bins of equal width, and how far histograms are from a mean one."""

import torch
from torch.nn.functional import pad

from skood.functional import all_finite
from skood.learning.blocks import takes_plain_path
from skood.learning.learning import LearnedModule
from skood.learning.quantiles import ascending, round_down
from skood.learning.subspaces import ROUNDING


def even_edges(low, high, n_bins):
    """Return the edges of bins of equal width; of one bin if all numbers are equal."""
    if high <= low:
        return torch.stack([low, torch.nextafter(low, low.new_tensor(torch.inf))])
    # On the CPU: a GPU rounds otherwise, and numbers may lie on edges.
    device, low, high = low.device, low.cpu(), high.cpu()
    return (low + (high - low) / n_bins * torch.arange(n_bins + 1, dtype=low.dtype)).to(device)


def find_bins(features, edges):
    """Return the bin of each feature: k of [edges[k - 1], edges[k]), 0 below and the last above.

    A division takes a quarter of the time of `torch.bucketize`, but may be off by one at an edge.
    """
    n_bins = len(edges) - 1
    width = (edges[-1] - edges[0]) / n_bins
    bins = ((features - edges[0]) / width).floor().clamp(-1, n_bins).long() + 1
    lower, upper = pad(edges, (1, 0), value=-torch.inf), pad(edges, (0, 1), value=torch.inf)
    return bins - (features < lower[bins]).long() + (features >= upper[bins]).long()


class MeanHistogram(LearnedModule):
    """The mean histogram of training rows, and how far those of other rows are from it.

    Parameters
    ----------
    n_bins : int
        The number of bins.
    smoothing : int
        Over how many bins shares of a row are averaged.
    least : float
        What is added to shares, so that none is 0.

    Attributes
    ----------
    edges : Tensor of shape (n_bins + 1,), dtype float64
        Of the bins.
    mean : Tensor of shape (n_bins,), dtype float64
        The shares of the training rows' numbers that are in the bins.
    """

    learned = ("edges", "mean")

    def __init__(self, n_bins, smoothing, least):
        super().__init__()
        self.n_bins, self.smoothing, self.least = n_bins, smoothing, least

    def set_range(self, low, high):
        """Let the bins reach from the least to the largest number, scalars, and a rounding more."""
        if not all_finite(torch.stack([low, high])):
            raise ValueError("What bins are made of overflows: scale the features, to about 1.")
        # Products that are taken in other blocks differ by that.
        margin = ROUNDING[low.dtype] * torch.maximum(low.abs(), high.abs()).double()
        self.edges = even_edges(low.double() - margin, high.double() + margin, self.n_bins)

    def counts(self, numbers):
        """Return how many numbers of each row (n_samples, n) are in each bin, in float64."""
        if numbers.is_cpu and not takes_plain_path(numbers):
            # In a third of the time. Of numbers in float32 an edge is the next one that it holds.
            edges = -round_down(-self.edges, numbers.dtype).expand(len(numbers), -1)
            return torch.searchsorted(ascending(numbers, 1), edges.contiguous()).diff().double()
        bins = find_bins(numbers.double(), self.edges)
        # torch.export would take len for a constant.
        counts = self.edges.new_zeros(bins.shape[0], len(self.edges) + 1)
        return counts.scatter_add(1, bins, torch.ones_like(bins).to(counts))[:, 1:-1]

    def divergence(self, shares, n_rows=None, is_own=None):
        """Return the symmetric divergence of smoothed shares (n_samples, n_bins) from the mean.

        With `n_rows` this is without the row's own shares where `is_own` says so.
        """
        mean = self.mean
        if n_rows is not None:
            own = is_own.double()[:, None]
            mean = (n_rows * mean - own * shares) / (n_rows - own).clamp(min=1)
        before = (self.smoothing - 1) // 2
        padded = pad(shares[:, None], (before, self.smoothing - 1 - before), mode="replicate")
        # ONNX Runtime has no average pooling of float64.
        q = padded[:, 0].unfold(1, self.smoothing, 1).mean(2) + self.least
        p = mean + self.least
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        return ((p - q) * (p / q).log()).sum(1)
