"""Fisher-Rao distances between softmaxes, of which IGEOOD takes the mean over classes."""

import torch

from skood.functional import tempered
from skood.learning.blocks import score_in_blocks
from skood.learning.gaussians import squared_distances, squared_norms
from skood.learning.learning import LearningScorer
from skood.learning.moments import ClassSums, check_squares


def root_probabilities(logits, temperature):
    """Return the square roots of softmaxes: points of a sphere."""
    return (torch.log_softmax(tempered(logits, temperature), dim=1) / 2).exp()


def arcs(squares):
    """Return Fisher-Rao distances from squared distances of root probabilities.

    Of the arc cosine of a product half of the digits would be left.
    """
    halves = squares.sqrt() / 2
    if torch.compiler.is_exporting():
        # ONNX Runtime has no arc sine of float64.
        return 4 * torch.asin(halves.float()).double()
    return 4 * torch.asin(halves.clamp(max=1.0))


class SoftmaxScorer(LearningScorer):
    """Logits → mean distance of their softmax to those of the mean logits of classes."""

    learned = ("means", "counts")

    def __init__(self, temperature):
        super().__init__()
        self.temperature, self.has_labels = temperature, None

    def check(self, inputs):
        """Raise if sums would overflow."""
        check_squares(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return the sums of no rows."""
        n_logits = inputs[0].shape[1]
        return ClassSums(n_classes, n_logits, n_logits, inputs[0].device)

    def update(self, state, inputs, class_indices, keys):
        """Add a batch."""
        state.update(inputs[0], class_indices, inputs[0].argmax(1))

    def finalize(self, state, classes):
        """Average the logits of each class."""
        # Far from all but one class is known: one alone tells nothing.
        self.has_labels = classes is not None and len(classes) > 1
        self.counts, self.means = state.means(self.has_labels)

    @property
    def _row_bytes(self):
        """The memory that scoring a row takes."""
        return 8 * (6 * self.means.shape[1] + 4 * len(self.means))

    def _distances(self, logits):
        """Return distances to classes, 0 for those without rows, and the rows' points."""
        points, centers = (root_probabilities(x, self.temperature) for x in (logits, self.means))
        return arcs(squared_distances(points, centers)) * (self.counts > 0), points

    def forward(self, logits):
        """Score logits of shape (n_samples, n_classes)."""

        def score(logits):
            return self._distances(logits)[0].sum(1) / (self.counts > 0).sum()

        return score_in_blocks(score, self._row_bytes, logits)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each left out of the mean of its class."""
        return score_in_blocks(self._leave_out, self._row_bytes, inputs[0], class_indices)

    def _leave_out(self, logits, class_indices):
        own = class_indices if self.has_labels else logits.argmax(1)
        distances, points = self._distances(logits)
        n_rows, means = self.counts[own], self.means[own]
        moved = means - (logits.double() - means) / (n_rows - 1).clamp(min=1)[:, None]
        squares = squared_norms(points - root_probabilities(moved, self.temperature))
        # A class that loses its only row has no mean.
        without = torch.where(n_rows > 1, arcs(squares), 0.0)
        distances = distances.scatter(1, own[:, None], without[:, None])
        n_left = (self.counts > 0).sum() - (n_rows == 1).long()
        return distances.sum(1) / n_left.clamp(min=1)
