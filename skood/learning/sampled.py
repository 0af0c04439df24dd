"""Scorers that learn from a sample of the rows with their classes, once all have been seen."""

from skood.learning.learning import LearningScorer
from skood.learning.reservoir import Reservoir


class SampledScorer(LearningScorer):
    """A scorer whose state is a `Reservoir` of its inputs and class indices.

    For what takes several passes over rows, or which logit is that of a label: that may not be
    known before all labels are.
    """

    needs_row_keys = True

    def n_sampled(self, inputs):
        """Return the size of the sample, from a first batch."""
        raise NotImplementedError

    def init_state(self, inputs, n_classes, n_expected):
        """Return an empty sample."""
        return Reservoir(self.n_sampled(inputs), n_expected, with_codes=True)

    def update(self, state, inputs, class_indices, keys):
        """Add the rows that are drawn to the sample, with their classes."""
        chosen = state.choose(keys)
        state.add([tensor[chosen] for tensor in (*inputs, class_indices)], keys[chosen])
