"""A scorer that learns nothing, as a part of one that learns."""

from skood.learning.learning import LearningScorer
from skood.learning.states import State


class Unlearned(LearningScorer):
    """A scorer that learns nothing, as a part of one that does."""

    def __init__(self, scorer):
        super().__init__()
        self.scorer = scorer

    def init_state(self, inputs, n_classes, n_expected):
        """Return a state that holds nothing."""
        return State()

    def update(self, state, inputs, class_indices, keys):
        """Learn nothing."""

    def finalize(self, state, classes):
        """Set nothing."""

    def forward(self, *inputs):
        """Score rows."""
        return self.scorer(*inputs)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, from which nothing was learned."""
        return self.scorer(*inputs)
