"""Scorers of logits that follow shaped activations, where the shaping is learned from rows."""

from skood.learning.learning import LearnedModule, LearningScorer


class LearnedShaping(LearnedModule):
    """A module that shapes the activations of a layer, as it learned from those of training rows.

    ``forward`` maps activations (n_samples, ...) to a tensor of the same shape.

    Attributes
    ----------
    per_channel : bool
        Whether each channel is shaped by what was learned of it alone.
    channel_axis : int
        The axis of the channels.
    """

    per_channel, channel_axis = False, 1

    def check(self, activations):
        """Raise if activations are finite but too large to learn from."""

    def init_state(self, activations, n_expected):
        """Return the `State` of no rows; see `LearningScorer`."""
        raise NotImplementedError

    def update(self, state, activations, keys):
        """Add the activations of a batch, with the keys of its rows, to the state."""
        raise NotImplementedError

    def finalize(self, state):
        """Set what ``forward`` needs from the state, which is not changed."""
        raise NotImplementedError

    def leave_one_out(self, activations, keys):
        """Shape the activations of training rows, each as if it had not been learned from."""
        raise NotImplementedError

    def clear_cache(self):
        """Drop what only `leave_one_out` needs."""


class ShapingScorer(LearningScorer):
    """Activations, and what else the rest of the network takes → scores of its logits.

    Parameters
    ----------
    shaping : LearnedShaping
        Shapes the activations.
    rest : nn.Module
        Maps shaped activations, and what else it takes, to logits; see `skood.network.Network.cut`.
    logit_score : callable
        Maps logits to scores.
    """

    needs_row_keys = True

    def __init__(self, shaping, rest, logit_score):
        super().__init__()
        self.shaping, self.rest, self.logit_score = shaping, rest, logit_score

    def check(self, inputs):
        """Let the shaping raise if activations are too large."""
        self.shaping.check(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return the state of the shaping."""
        return self.shaping.init_state(inputs[0], n_expected)

    def update(self, state, inputs, class_indices, keys):
        """Let the shaping learn from activations."""
        self.shaping.update(state, inputs[0], keys)

    def finalize(self, state, classes):
        """Let the shaping set what it needs."""
        self.shaping.finalize(state)

    def forward(self, activations, *others):
        """Score rows."""
        return self.logit_score(self.rest(self.shaping(activations), *others))

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each shaped as if it had not been learned from."""
        activations, *others = inputs
        shaped = self.shaping.leave_one_out(activations, keys)
        return self.logit_score(self.rest(shaped, *others))

    def clear_cache(self):
        """Drop what only learning needs."""
        self.shaping.clear_cache()
