"""Between which values the rows of each class lie, and without one of them."""

import torch

from skood.learning.blocks import block_rows
from skood.learning.learning import LearnedModule
from skood.learning.states import Extremes, State, StateList


class ClassBounds(LearnedModule):
    """The least and largest value of each column among the rows of each class.

    Those of all rows stand in for a class of fewer than two. Columns come in parts, such as one a
    layer, and lie side by side in the bounds.

    Attributes
    ----------
    low, high : Tensor of shape (n_classes, n_columns)
        The bounds.
    counts : Tensor of shape (n_classes,)
        How many rows there were.
    """

    learned = ("low", "high", "counts")

    def __init__(self):
        super().__init__()
        self.clear_cache()

    def clear_cache(self):
        """Drop what only training rows need."""
        self.lowest = self.highest = None

    def init_state(self, parts, n_classes):
        """Return the extremes of no rows, of each class and, last, of all."""
        counts = torch.zeros(n_classes, dtype=torch.int64, device=parts[0].device)
        extremes = [Extremes(n_classes + 1, x.shape[1], x.dtype, x.device) for x in parts]
        return State(counts=counts, extremes=StateList(extremes))

    def update(self, state, parts, classes):
        """Add the parts of rows, each of a class."""
        state.counts += torch.bincount(classes, minlength=len(state.counts))
        for extremes, rows in zip(state.extremes, parts, strict=True):
            extremes.update(rows, classes)
            extremes.update(rows, torch.full_like(classes, len(state.counts)))

    def finalize(self, state):
        """Set the bounds, where there was a row."""
        self.counts = state.counts.clone()
        # The least and the second, and the largest and the second: (n_classes + 1, 2, n_columns).
        self.lowest = torch.cat([extremes.low for extremes in state.extremes], 2)
        self.highest = torch.cat([extremes.high for extremes in state.extremes], 2)
        is_few = (self.counts < 2)[:, None]
        self.low = torch.where(is_few, self.lowest[-1, 0], self.lowest[:-1, 0])
        self.high = torch.where(is_few, self.highest[-1, 0], self.highest[:-1, 0])

    def forward(self, classes):
        """Return the bounds of a class for each row."""
        return self.low[classes], self.high[classes]

    def without(self, rows, own, classes):
        """Return the bounds of classes as if each row had not been among those of its own.

        Parameters
        ----------
        rows : Tensor of shape (n_samples, n_columns)
            Training rows.
        own, classes : Tensor of shape (n_samples,)
            The class that each row counts to, -1 if none, and the one that it gets the bounds of.
        """
        n_others = self.counts[classes] - (own == classes).long()
        left_out = torch.where(n_others < 2, own >= 0, own == classes)[:, None]
        at = torch.where(n_others < 2, len(self.counts), classes)
        (low, next_low), (high, next_high) = self.lowest[at].unbind(1), self.highest[at].unbind(1)
        # Of two rows that hold it the other is as low. A single row has no other.
        return (
            torch.where(left_out & (rows <= low) & next_low.isfinite(), next_low, low),
            torch.where(left_out & (rows >= high) & next_high.isfinite(), next_high, high),
        )

    def holders(self):
        """Yield blocks of (values, classes): of each class the least values, and the largest.

        They stand for the training rows, of which others are inside of the bounds also without
        themselves. A class of one row comes once.
        """
        size = block_rows(8 * self.low.nbytes // len(self.counts), self.low.device)
        for values, least in ((self.lowest, 1), (self.highest, 2)):
            for classes in (self.counts >= least).nonzero()[:, 0].split(size):
                yield values[classes, 0], classes
