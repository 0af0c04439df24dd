"""Scorers that learn, around others that do or do not."""

from skood.learning.learning import LearningScorer
from skood.learning.states import State

# Of a scorer, and so of one around it.
SETTINGS = (
    "n_threshold_rows",
    "needs_row_keys",
    "samples_by_key",
    "folds_by_key",
    "learns_pixels",
    "note_rows",
    "settings",
)


class WrappedScorer(LearningScorer):
    """A scorer that learns, with another one around it; what that one has can be asked of this.

    Parameters
    ----------
    scorer : LearningScorer
        The one inside.
    """

    def __init__(self, scorer):
        super().__init__()
        self.scorer = scorer
        for name in SETTINGS:
            setattr(self, name, getattr(scorer, name))

    labels = property(
        lambda self: self.scorer.labels, lambda self, labels: setattr(self.scorer, "labels", labels)
    )

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("scorer"), name)

    def start(self, training):
        """Let the scorer start."""
        self.scorer.start(training)

    def check(self, inputs):
        """Raise if rows are too large."""
        self.scorer.check(inputs)

    def finalize(self, state, classes):
        """Let the scorer finish."""
        self.scorer.finalize(state, classes)

    def clear_cache(self):
        """Drop what only learning needs."""
        self.scorer.clear_cache()

    def forward(self, *inputs):
        """Score rows."""
        return self.scorer(*inputs)

    def calibrate(self, scores):
        """Return the scores of training rows."""
        self.scorer.rounding = self.rounding
        scores = self.scorer.calibrate(scores)
        self.rounding = self.scorer.rounding
        return scores


class FixedScorer(LearningScorer):
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
