"""Means of the training rows of each class as patterns, and how similar rows are to them."""

import torch
from torch.nn.functional import pad

from skood.detectors.head.hopfield import warn_of_wrong
from skood.functional import all_finite, clip_to, radial
from skood.learning.agreement import check_some_known, row_columns
from skood.learning.blocks import score_in_blocks
from skood.learning.gaussians import squared_distances
from skood.learning.learning import LearningScorer
from skood.learning.moments import OVERFLOW, check_squares
from skood.learning.norms import lengths
from skood.learning.states import State


class PatternScorer(LearningScorer):
    """Features, or (features, logits) → similarity to the means of classes."""

    learned = ("patterns", "has_rows")

    def __init__(self, head, metric, assign):
        super().__init__()
        self.head, self.metric, self.assign = head, metric, assign
        # The label of each logit, where it is known.
        self.known = None
        self.are_unit = metric == "cosine" or (metric == "inner_product" and assign == "softmax")
        self.clear_cache()

    def _logits(self, features, logits=None):
        return self.head(features) if logits is None else logits

    def check(self, inputs):
        """Raise if sums would overflow."""
        check_squares(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return sums of no rows by logit: of those that are predicted right, and of all."""
        size = self._logits(*inputs).shape[1], inputs[0].shape[1] + 1
        right, every = (inputs[0].new_zeros(size, dtype=torch.float64) for _ in range(2))
        return State(right=right, every=every)

    def _columns(self, inputs, class_indices):
        """Return the logit of each row's label, and whether it is the largest."""
        logits = self._logits(*inputs)
        own = row_columns(class_indices, self.labels, logits, self.known)
        return own, own == logits.argmax(1)

    def update(self, state, inputs, class_indices, keys):
        """Add a batch, with a 1 behind each row to count it."""
        own, is_right = self._columns(inputs, class_indices)
        rows, is_known = pad(inputs[0].double(), (0, 1), value=1.0), own >= 0
        state.right.index_add_(0, own[is_right], rows[is_right])
        state.every.index_add_(0, own[is_known], rows[is_known])

    def finalize(self, state, classes):
        """Average the rows of each class that are predicted right; without these, all."""
        if not all_finite(state.every):
            raise ValueError(OVERFLOW)
        check_some_known(bool(state.every[:, -1].any()), classes)
        self.labels, self.every = classes, state.every.clone()
        self.takes_all = (state.right[:, -1] == 0) | (self.assign == "softmax")
        self.sums = torch.where(self.takes_all[:, None], state.every, state.right)
        self.has_rows = self.sums[:, -1] > 0
        if self.assign != "softmax":
            warn_of_wrong(self.takes_all & self.has_rows)
        self.patterns = self._patterns(self.sums)

    def _patterns(self, sums):
        """Return the means of sums that end in a count, of length 1 where lengths do not count."""
        means = sums[:, :-1] / sums[:, -1:].clamp(min=1)
        return radial(means, 1) if self.are_unit else means

    def clear_cache(self):
        """Drop what only learning needs."""
        self.sums = self.every = self.takes_all = None

    def _in_blocks(self, score, *inputs):
        n_classes, n_features = self.patterns.shape
        row_bytes = 8 * (6 * n_features + 4 * n_classes)
        return score_in_blocks(score, row_bytes, *inputs)

    def forward(self, *inputs):
        """Score rows."""
        return self._in_blocks(lambda *inputs: self._score(inputs, self.has_rows), *inputs)

    def _score(self, inputs, has_rows, own=None, moved=None):
        """Score rows of a block, perhaps with other patterns for their own classes."""
        features, logits = inputs[0], self._logits(*inputs)
        if self.assign == "predicted":
            predicted = logits.masked_fill(~has_rows, -torch.inf).argmax(1)
            patterns = self.patterns[predicted]
            if own is not None:
                patterns = torch.where((predicted == own)[:, None], moved, patterns)
            return clip_to(self._similarity(features, patterns), torch.float64)
        values = self._similarities(features)
        if own is not None:
            at = torch.arange(values.shape[1], device=own.device) == own[:, None]
            values = torch.where(at, self._similarity(features, moved)[:, None], values)
        # Infinity times a probability of 0 is NaN.
        values = clip_to(values, torch.float64)
        if self.assign == "any":
            return values.masked_fill(~has_rows, -torch.inf).amax(1)
        p = torch.softmax(logits.double(), dim=1)
        return clip_to((p * values.masked_fill(~has_rows, 0.0)).sum(1), torch.float64)

    def _similarity(self, features, patterns):
        """Return how similar each row is to a pattern of its own, (n_samples, D)."""
        if self.metric == "euclidean":
            return -lengths(features.double() - patterns)
        return self._with_length((radial(features, 1, torch.float64) * patterns).sum(1), features)

    def _similarities(self, features):
        """Return how similar each row is to each class, (n_samples, n_classes)."""
        if self.metric == "euclidean":
            return -squared_distances(features.double(), self.patterns).sqrt()
        return self._with_length(radial(features, 1, torch.float64) @ self.patterns.T, features)

    def _with_length(self, cosines, features):
        if self.metric == "cosine":
            return cosines
        sizes = lengths(features)
        return cosines * (sizes if cosines.ndim == 1 else sizes[:, None])

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each left out of the pattern of its class."""
        return self._in_blocks(
            lambda class_indices, *inputs: self._score_as_new(inputs, class_indices),
            *(class_indices, *inputs),
        )

    def _score_as_new(self, inputs, class_indices):
        own, is_right = self._columns(inputs, class_indices)
        at = own.clamp(min=0)
        counts = is_right | (self.takes_all[at] & (own >= 0))
        # Without its only row that is predicted right, a class has the others of its label.
        is_last = (self.sums[at, -1] == 1)[:, None]
        rest = torch.where(is_last, self.every[at], self.sums[at])
        rest = rest - pad(inputs[0].double(), (0, 1), value=1.0)
        classes = torch.arange(len(self.patterns), device=own.device)
        has_rows = self.has_rows & ~(
            (classes == own[:, None]) & (counts & (rest[:, -1] < 1))[:, None]
        )
        # A row that no other class has a pattern for is scored by its own.
        counts &= has_rows.any(1)
        has_rows = torch.where(has_rows.any(1, keepdim=True), has_rows, self.has_rows)
        return self._score(inputs, has_rows, torch.where(counts, own, -1), self._patterns(rest))
