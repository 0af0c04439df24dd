"""All that is learned from rows: a method's state, the classes, the rows that set the threshold."""

import copy

import numpy as np
import torch

from skood.data.arrays import feature_batch_rows
from skood.data.labels import is_numeric, map_kinds
from skood.learning.agreement import Agreement
from skood.learning.reservoir import Reservoir

# Of rows that come in chunks this many set the threshold: the share of false alarms of a 5 %
# threshold has a standard error of 0.15 %.
N_THRESHOLD_ROWS = 20_000
# Of images, where those as a whole are needed to score their pixels.
N_THRESHOLD_IMAGES = 100

MIXED = "Some rows come with labels and some without: give y always or never."


class AccumulatedState:
    """What was learned from some rows; that from disjoint rows merges.

    Parameters
    ----------
    seed : int
        Of the rows' keys.
    learns : bool
        Whether the scorer is a `LearningScorer`.
    n_expected : int, default=0
        How many rows there will be in all, where that is known.

    Attributes
    ----------
    n_rows : int
        The number of in-distribution rows.
    classes : ndarray of shape (n_classes,) or None
        Their labels, sorted; None without.
    agreement : Agreement
        Of labels and logits.
    state : State or None
        The scorer's, where it learns.
    sample : Reservoir
        Of the rows that set the threshold: inputs and class indices, or else scores.
    rounding : float
        By how much rounding changes these scores.
    """

    rounding = 0.0
    # Whether images have maps of scores, that all pixels of an image are needed for; and whether
    # these come with labels of pixels: then the sample tells which of them count.
    scores_maps = has_maps = False

    def __init__(self, seed, learns, n_expected=0):
        self.n_rows, self.classes, self.state = 0, None, None
        self.agreement = Agreement()
        self.sample = Reservoir(N_THRESHOLD_ROWS, n_expected, with_codes=learns)
        self.n_expected, self._learns, self._seed = n_expected, learns, seed

    @property
    def seed(self):
        """That of the rows' keys."""
        return self._seed

    def new(self, n_expected=0):
        """Return what no rows have taught, for others of those that there will be in all."""
        new = AccumulatedState(self._seed, self._learns, n_expected)
        new.scores_maps = self.scores_maps
        return new

    @property
    def is_complete(self):
        """False when samples lack rows because there were fewer than `n_expected`."""
        return self.sample.is_complete and (self.state is None or self.state.is_complete)

    def admit(self, classes):
        """Take in labels; return the code that each has among all of them."""
        if self.n_rows and (classes is None) != (self.classes is None):
            raise ValueError(MIXED)
        if classes is None or self.classes is None:
            self.classes = classes
        elif is_numeric(classes) != is_numeric(self.classes):
            raise TypeError(
                f"y holds labels of {classes.dtype} where those before are {self.classes.dtype}."
            )
        if classes is None:
            return torch.zeros(1, dtype=torch.int64)
        known = np.union1d(self.classes, classes)
        if self.state is not None and len(known) > len(self.classes):
            class_indices = torch.from_numpy(np.searchsorted(known, self.classes))
            self.state = self.state.recoded(class_indices, len(known))
            self.sample = self.sample.recoded(class_indices, len(known))
        self.classes = known
        return torch.from_numpy(np.searchsorted(known, classes))

    @property
    def n_classes(self):
        """The number of classes, 1 without labels."""
        return 1 if self.classes is None else len(self.classes)

    def add(self, scorer, training):
        """Learn from the rows of a `Training`, or raise before any is learned from."""
        training.run()
        if not training.n_samples:
            return
        training.by_pixel = scorer.learns_pixels
        training.check(scorer)
        has_maps = training.source.maps is not None
        if self.n_rows and has_maps != self.has_maps:
            raise ValueError(MIXED)
        index_of = self.admit(training.classes)
        scorer.labels, self.has_maps, stop = self.classes, has_maps, 0
        for inputs, class_indices, keys in training.batches("learn"):
            class_indices = index_of.to(class_indices.device)[class_indices]
            start, stop = stop, stop + len(class_indices)
            counts = []
            if has_maps:
                counts = [torch.from_numpy(map_kinds(training.maps_of(slice(start, stop))) > 0)]
            self._update(scorer, inputs, class_indices, keys, *counts)
            self.n_rows += len(class_indices)

    def add_pixels(self, scorer, batches):
        """Learn from pixels, `batches_of_pixels`; if that fails some have been learned from."""
        for n_rows, rows, classes, class_indices, keys in batches:
            index_of = self.admit(classes).to(class_indices.device)
            scorer.labels = self.classes
            self.n_rows += n_rows
            size = feature_batch_rows(sum(part[:1].nbytes for part in rows))
            parts = (*rows, index_of[class_indices], keys)
            for *inputs, indices, some in zip(*(part.split(size) for part in parts), strict=True):
                if len(some):
                    scorer.check(inputs)
                    self._update(scorer, tuple(inputs), indices, some)

    def _update(self, scorer, inputs, class_indices, keys, *counts):
        """Learn from a batch, and draw what sets the threshold."""
        if self.state is None:
            self.state = scorer.init_state(inputs, self.n_classes, self.n_expected)
            if self.scores_maps and inputs[0].ndim > 2:
                self.sample.size = N_THRESHOLD_IMAGES
        scorer.update(self.state, inputs, class_indices, keys)
        chosen = self.sample.choose(keys)
        kept = (*inputs, *(part.to(keys.device) for part in counts), class_indices)
        self.sample.add([part[chosen] for part in kept], keys[chosen])

    def add_scores(self, sample, training):
        """Note a sample of the scores of rows, or of pixels, where scorers learn nothing."""
        if not training.n_samples:
            return
        self.admit(training.classes)
        self.sample.merge(sample)
        self.n_rows += training.n_samples

    def merge(self, other):
        """Take in what was learned from other rows, which stays as it is."""
        if other.n_rows == 0:
            return
        if self.n_rows == 0:
            vars(self).update(vars(copy.deepcopy(other)), n_expected=self.n_expected)
            return
        if self.has_maps != other.has_maps:
            raise ValueError(MIXED)
        class_indices = self.admit(other.classes)
        if other.state is not None:
            self.state.merge(other.state.recoded(class_indices, self.n_classes))
        self.sample.merge(other.sample.recoded(class_indices, self.n_classes))
        self.rounding = max(self.rounding, other.rounding)
        self.n_rows += other.n_rows
        self.agreement.merge(other.agreement)

    def __setstate__(self, state):
        # Pickles of earlier versions have none.
        vars(self).update({"agreement": Agreement(), **state})

    def to(self, device):
        """Move to a device."""
        self.sample.to(device)
        if self.state is not None:
            self.state.to(device)


# What pickles of before refer to.
Learned = AccumulatedState
