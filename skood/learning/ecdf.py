"""The empirical distribution of one number a row."""

import torch

from skood.learning.learning import LearnedModule
from skood.learning.reservoir import Reservoir


def count_at_most(ascending, values):
    """Return how many of some numbers are no larger than each of others.

    Parameters
    ----------
    ascending : Tensor of shape (..., n)
    values : Tensor of shape (..., m)

    Returns
    -------
    counts : Tensor of shape (..., m), dtype int64
    """
    if not torch.compiler.is_exporting():
        return torch.searchsorted(ascending, values.contiguous(), right=True)
    # ONNX has no such operator. This halves the interval too, all values at a time.
    n = ascending.shape[-1]
    counts, step = torch.zeros_like(values, dtype=torch.int64), 1 << (n.bit_length() - 1)
    while step:
        further = counts + step
        last = ascending.gather(-1, (further - 1).clamp(max=n - 1))
        counts = torch.where((further <= n) & (last <= values), further, counts)
        step //= 2
    return counts


class EmpiricalDistribution(LearnedModule):
    """Numbers → the share of those of training rows that are no larger.

    Parameters
    ----------
    n_rows : int
        How many training rows are kept, a random sample of more.
    """

    learned = ("values",)

    def __init__(self, n_rows):
        super().__init__()
        # The keys of the rows in the sample, ascending.
        self.n_rows, self.keys = n_rows, None

    def init_state(self, n_expected):
        """Return a sample of no rows."""
        return Reservoir(self.n_rows, n_expected)

    def update(self, state, values, keys):
        """Add the numbers (n_samples,) of those rows that are drawn to the sample."""
        chosen = state.choose(keys)
        state.add([values[chosen]], keys[chosen])

    def finalize(self, state):
        """Put the numbers in order."""
        self.keys, (values,) = state.sample()
        self.values = values.sort().values

    def _counts(self, values, rounding):
        """Return how many of the training rows' are no larger."""
        # Those of equal rows in other batches are equal up to rounding.
        values = values + rounding * values.abs()
        return count_at_most(self.values, values).double()

    def forward(self, values, rounding):
        """Return shares of numbers (n_samples,), of which the relative error is `rounding`."""
        return self._counts(values, rounding) / len(self.values)

    def leave_one_out(self, values, keys, rounding):
        """Return shares for training rows, for each of the sample among the others, exactly."""
        n_rows = len(self.keys)
        if n_rows == 1:
            return self(values, rounding)
        place = torch.searchsorted(self.keys, keys).clamp(max=n_rows - 1)
        own = (self.keys[place] == keys).double()
        return (self._counts(values, rounding) - own) / (n_rows - own)

    def clear_cache(self):
        """Drop the keys."""
        self.keys = None
