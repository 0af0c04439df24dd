"""The mean of all training rows, from which methods look at rows."""

import torch
from torch.nn.functional import pad

from skood.functional import all_finite
from skood.learning.learning import LearningScorer
from skood.learning.moments import OVERFLOW, check_squares
from skood.learning.norms import lengths
from skood.learning.states import State

# A row that is nearer to the mean than this share of the mean's length lies at it: what is left of
# the difference is the rounding of a sum.
ROUNDING = 1e-12


class CentredScorer(LearningScorer):
    """A scorer that learns the mean of the training rows, whatever their classes.

    Without one of n rows h the mean m is m - (h - m) / (n - 1), so that h lies n / (n - 1) times as
    far from it, in the same direction.

    Attributes
    ----------
    mean : Tensor of shape (D,), dtype float64
        The mean.
    n_rows : int
        How many rows were learned from, until the cache is cleared.
    """

    learned = ("mean",)

    def __init__(self):
        super().__init__()
        self.n_rows = 0

    def check(self, inputs):
        """Raise if sums would overflow."""
        check_squares(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return the sum of no rows, and behind it their number."""
        return State(sums=inputs[0].new_zeros(inputs[0].shape[1] + 1, dtype=torch.float64))

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        state.sums += pad(inputs[0].double(), (0, 1), value=1.0).sum(0)

    def finalize(self, state, classes):
        """Divide the sum by the number of rows."""
        if not all_finite(state.sums):
            raise ValueError(OVERFLOW)
        self.n_rows = int(state.sums[-1])
        self.mean = state.sums[:-1] / self.n_rows

    def clear_cache(self):
        """Forget how many rows there were."""
        self.n_rows = 0

    @property
    def least(self):
        """The distance from the mean that counts as none."""
        return ROUNDING * lengths(self.mean[None]).clamp(min=torch.finfo(torch.float64).tiny)

    def centred(self, features):
        """Return features less the mean, in float64; 0 where they lie at it."""
        delta = features.double() - self.mean
        return torch.where((lengths(delta) > self.least)[:, None], delta, 0.0)
