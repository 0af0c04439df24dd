"""The empirical distribution of one number a row."""

import torch

from skood.learning.learning import LearnedModule
from skood.learning.reservoir import Reservoir


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
        if torch.compiler.is_exporting():
            return (self.values <= values[:, None]).sum(1).double()
        return torch.searchsorted(self.values, values, right=True).double()

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
