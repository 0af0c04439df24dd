"""Scorers of logits behind activations that are shaped by what training rows taught."""

from skood.learning.learning import LearnedModule, LearningScorer


class LearnedShaping(LearnedModule):
    """A module that shapes the activations of a layer, and learns how from those of training rows.

    ``forward`` maps activations (n_samples, ...) to others of that shape.

    Attributes
    ----------
    per_channel : bool
        Whether channels are told apart.
    channel_axis : int
        The axis that holds them.
    """

    per_channel, channel_axis = False, 1

    def init_state(self, activations, n_expected):
        """Return the `State` of no rows; see `LearningScorer`."""
        raise NotImplementedError

    def update(self, state, activations, keys):
        """Add a batch to the state: its activations and keys."""
        raise NotImplementedError

    def finalize(self, state):
        """Turn a state into what ``forward`` needs, and leave it as it is."""
        raise NotImplementedError

    def leave_one_out(self, activations, keys):
        """Shape activations that were learned from, each row's as if it had not been."""
        raise NotImplementedError

    def clear_cache(self):
        """Drop what only `leave_one_out` needs."""


class ShapingScorer(LearningScorer):
    """Activations, and what else the rest of the network takes → scores of the logits.

    Parameters
    ----------
    shaping : LearnedShaping
        What shapes the activations.
    rest : nn.Module
        Maps them, and what else there is, to logits; see `skood.network.Network.cut`.
    logit_score : callable
        Maps logits to scores.
    """

    needs_row_keys = True

    def __init__(self, shaping, rest, logit_score):
        super().__init__()
        self.shaping, self.rest, self.logit_score = shaping, rest, logit_score

    def init_state(self, inputs, n_classes, n_expected):
        """Return the state of the shaping."""
        return self.shaping.init_state(inputs[0], n_expected)

    def update(self, state, inputs, class_indices, keys):
        """Let the shaping learn from activations."""
        self.shaping.update(state, inputs[0], keys)

    def finalize(self, state, classes):
        """Let the shaping take what it needs."""
        self.shaping.finalize(state)

    def forward(self, activations, *others):
        """Score rows."""
        return self.logit_score(self.rest(self.shaping(activations), *others))

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each shaped by what the others taught."""
        activations, *others = inputs
        shaped = self.shaping.leave_one_out(activations, keys)
        return self.logit_score(self.rest(shaped, *others))

    def clear_cache(self):
        """Drop what only learning needs."""
        self.shaping.clear_cache()
