"""Scores of several transforms of a row, combined by a scorer around that of a detector."""

import torch
from torch import nn
from torch.utils._pytree import tree_map

from skood.detectors.inputs.images import map_back
from skood.functional import clip_to
from skood.learning.learning import as_inputs
from skood.learning.wrapping import WrappedScorer


class TransformsBody(nn.Module):
    """X → what a scorer takes of each transform of it, side by side in a tuple."""

    def __init__(self, body, transforms, of_images):
        super().__init__()
        self.body, self.transforms, self.of_images = body, transforms, of_images

    def forward(self, x):
        """Return a tuple."""
        if self.of_images and x.ndim < 4:
            raise ValueError(
                f"transforms={self.of_images} take images (n, C, H, W), and X has shape "
                f"{tuple(x.shape)}.\nUse 'contrast', 'noise' or callables."
            )
        inputs = []
        for transform in self.transforms:
            # A transform, or the network, may write to what it is given.
            transformed = transform(tree_map(torch.clone, x))
            shapes = [getattr(each, "shape", None) for each in (transformed, x)]
            if isinstance(x, torch.Tensor) and shapes[0] != shapes[1]:
                raise ValueError(
                    f"A transform maps X of shape {tuple(x.shape)} to {shapes[0]}. It must keep "
                    "the shape of a batch."
                )
            inputs += as_inputs(self.body(transformed))
        return tuple(inputs)


class Combination:
    """How scores of transforms become one.

    Parameters
    ----------
    transforms : list of callable
        The last one leaves rows as they are where the scorer learns.
    how : {"mean", "min"}
        What is taken of the scores.
    include_last : bool
        Whether those of the last transform count.
    """

    def __init__(self, transforms, how, include_last):
        self.transforms, self.how, self.include_last = transforms, how, include_last
        self.n_scored = len(transforms) - (not include_last)

    def groups(self, inputs):
        """Return the inputs of the scorer for each transform.

        What tells which pixels count, after all others, goes with rows as they are.
        """
        m = len(self.transforms)
        n = len(inputs) // m
        groups = [inputs[i * n : (i + 1) * n] for i in range(m)]
        groups[-1] += inputs[n * m :]
        return groups

    def scores(self, score, inputs):
        """Return what a function gives of each transform that counts, side by side."""
        groups = self.groups(inputs)
        if not self.include_last:
            groups.pop()
        scores = [score(group).double() for group in groups]
        # Maps; two axes are scores of several layers.
        if scores[0].ndim > 2:
            scores = [map_back(*pair) for pair in zip(self.transforms, scores, strict=False)]
        return torch.stack(scores, 1)

    def combined(self, scores):
        """Combine scores (n_samples, n_transforms, ...)."""
        scores = scores.mean(1) if self.how == "mean" else scores.amin(1)
        return clip_to(scores, torch.float64)


class TransformsScorer(nn.Module):
    """What a scorer takes of several transforms → its scores, combined."""

    def __init__(self, scorer, combination):
        super().__init__()
        self.scorer, self.combination = scorer, combination

    def forward(self, *inputs):
        """Score rows."""
        scores = self.combination.scores(lambda group: self.scorer(*group), inputs)
        return self.combination.combined(scores)


class LearningTransformsScorer(WrappedScorer):
    """The same of a scorer that learns: from rows as they are."""

    def __init__(self, scorer, combination):
        super().__init__(scorer)
        self.combination, self.groups = combination, combination.groups
        self.of_layers = False

    def start(self, training):
        """Let the scorer start."""
        self.scorer.start(Untransformed(training, self.groups))

    def check(self, inputs):
        """Raise if rows are too large."""
        for group in self.groups(inputs):
            self.scorer.check(group)

    def init_state(self, inputs, n_classes, n_expected):
        """Return the state of the scorer."""
        return self.scorer.init_state(self.groups(inputs)[-1], n_classes, n_expected)

    def update(self, state, inputs, class_indices, keys):
        """Let the scorer learn from rows as they are."""
        self.scorer.update(state, self.groups(inputs)[-1], class_indices, keys)

    forward = TransformsScorer.forward

    def leave_one_out(self, inputs, class_indices, keys):
        """Score transformed training rows, each as if the scorer had not learned from it."""
        scores = self.combination.scores(
            lambda group: self.scorer.leave_one_out(group, class_indices, keys), inputs
        )
        # Those of pixels are combined at once, those of layers lie side by side until then.
        self.of_layers = scores.ndim == 3
        return self.combination.combined(scores) if scores.ndim > 3 else scores.flatten(1)

    def calibrate(self, scores):
        """Return the scores of training rows, after the scorer has compared all transforms."""
        if scores.ndim > 2:
            return scores
        n_rows, n_transforms = len(scores), self.combination.n_scored
        scores = scores.view(n_rows * n_transforms, -1)
        calibrated = super().calibrate(scores if self.of_layers else scores[:, 0])
        return self.combination.combined(calibrated.view(n_rows, n_transforms))


class Untransformed:
    """A `Training` as the scorer inside takes it."""

    def __init__(self, training, groups):
        self._training, self._groups = training, groups

    def __getattr__(self, name):
        return getattr(self._training, name)

    def sample(self, n_rows):
        """Return a sample of rows as they are."""
        return self._groups(self._training.sample(n_rows))[-1]

    def passed(self, X):
        """Return what the scorer takes of other rows."""
        return self._groups(self._training.passed(X))[-1]
