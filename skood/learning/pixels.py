"""Pixels as rows: maps of features or logits, scored and learned from by a scorer of rows."""

import numpy as np
import torch
from torch import nn

from skood.data.arrays import CHUNK_BYTES, feature_batch_rows
from skood.data.labels import map_kinds, maps_at
from skood.learning.keys import entry_keys
from skood.learning.learning import LearningScorer
from skood.learning.wrapping import FixedScorer, WrappedScorer

# A bank of all rows would be one of all pixels: of 1000 small maps of 64 × 64 already 4 million.
N_BANK_PIXELS = 20_000


def rows_of(maps):
    """Return maps (n_samples, D, ...) as rows (n_pixels, D), image by image."""
    return maps.movedim(1, -1).flatten(0, -2)


class Pixelwise(WrappedScorer):
    """Maps (n_samples, D, H, W) → scores (n_samples, H, W), each pixel's by a scorer of rows.

    It learns from rows, the pixels that count, and passes rows (n_samples, D) on as they are.

    Parameters
    ----------
    scorer : nn.Module
        Maps rows (n_samples, D) to scores.
    """

    def __init__(self, scorer):
        if getattr(scorer, "bank_size", 0) is None:
            scorer.bank_size, scorer.samples_by_key = N_BANK_PIXELS, True
        super().__init__(scorer if isinstance(scorer, LearningScorer) else FixedScorer(scorer))
        self.needs_row_keys = True

    def init_state(self, inputs, n_classes, n_expected):
        """Return the `State` of no pixels."""
        return self.scorer.init_state(inputs, n_classes, n_expected)

    def update(self, state, inputs, class_indices, keys):
        """Add pixels to the state."""
        self.scorer.update(state, inputs, class_indices, keys)

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training pixels, each as if it had not been learned from."""
        return self.scorer.leave_one_out(inputs, class_indices, keys)

    def forward(self, *maps):
        """Score the pixels of maps, some at a time, or rows."""
        if maps[0].ndim == 2:
            return self.scorer(*maps)
        shape = maps[0].movedim(1, -1).shape[:-1]
        rows = [rows_of(part) for part in maps]
        if torch.compiler.is_exporting():
            return self.scorer(*rows).view(shape)
        size = feature_batch_rows(sum(part[:1].nbytes for part in rows), CHUNK_BYTES)
        chunks = zip(*(part.split(size) for part in rows), strict=True)
        return torch.cat([self.scorer(*chunk) for chunk in chunks]).view(shape)


def by_pixel(body: nn.Module, scorer: nn.Module) -> nn.Module:
    """Return a scorer of rows as one of pixels where a body gives maps; any other as it is.

    Functions of logits take maps as they are.
    """
    maps = getattr(body, "gives_maps", None)
    learns = isinstance(scorer, LearningScorer)
    is_needed = maps == "features" or (maps == "logits" and learns)
    return Pixelwise(scorer) if is_needed else scorer


def batches_of_pixels(training):
    """Yield the number of images and `pixels_that_count` of a `Training`, batch by batch.

    Nothing is kept: the maps of all images may take more than any disk has.
    """
    source = training.source
    source.forgets_maps = True
    for positions, inputs in training.fresh("learn"):
        maps, *labels = source.labels_of(positions)
        if maps is not None:
            maps = maps_at(maps, inputs[0].shape[2:], source.row_shape)
        yield len(inputs[0]), *pixels_that_count(inputs, maps, labels, training.keys_of(positions))


def pixels_that_count(inputs, maps, labels, keys):
    """Return the pixels of a batch as rows, without those whose label is negative or 255.

    Parameters
    ----------
    inputs : tuple of Tensor of shape (n_samples, D, H, W)
        Maps.
    maps : ndarray of shape (n_samples, H, W) or None
        Labels of pixels.
    labels : tuple
        Where there are none: the classes of rows, or None, and the class index of each row.
    keys : Tensor of shape (n_samples,)
        Of the rows of X.

    Returns
    -------
    rows : tuple of Tensor of shape (n_pixels, D)
        The pixels.
    classes : ndarray of shape (n_classes,) or None
        Labels, sorted.
    class_indices : Tensor of shape (n_pixels,)
        The position of each pixel's label in `classes`.
    keys : Tensor of shape (n_pixels,)
        Of the pixels.
    """
    rows, n_pixels = tuple(rows_of(part) for part in inputs), inputs[0].shape[2:].numel()
    keys = entry_keys(keys, n_pixels).flatten()
    if maps is None:
        classes, class_indices = labels
        class_indices = torch.from_numpy(class_indices).to(keys.device)
        return rows, classes, class_indices.repeat_interleave(n_pixels), keys
    counts = np.flatnonzero(map_kinds(maps) > 0)
    classes, class_indices = np.unique(maps.ravel()[counts], return_inverse=True)
    counts, class_indices = (torch.from_numpy(a).to(keys.device) for a in (counts, class_indices))
    return tuple(part[counts] for part in rows), classes, class_indices, keys[counts]
