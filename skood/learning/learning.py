"""Rows as a method consumes them, and scorers that learn from them as a fold over batches."""

import copy

import numpy as np
import torch
from torch import nn

from skood.data.arrays import (
    CHUNK_BYTES,
    GPU_FEATURE_BATCH_BYTES,
    feature_batch_rows,
    move,
)
from skood.data.labelled_rows import LabelledRows
from skood.data.labels import map_kinds, maps_at
from skood.data.store import TensorStore
from skood.functional import all_finite
from skood.learning.agreement import Agreement, columns_of
from skood.learning.keys import row_keys


class LearnedModule(nn.Module):
    """A module that keeps what is learned in buffers: a scorer, or a part of one."""

    # The names of the buffers, which are None until they are set.
    learned: tuple[str, ...] = ()

    def __init__(self):
        super().__init__()
        for name in self.learned:
            self.register_buffer(name, None)


class LearningScorer(LearnedModule):
    """A scorer that learns from rows, as a fold over batches.

    Learning adds to a `State`; states of disjoint rows merge, on whatever machines they were made.
    Subclasses keep what they make of it in buffers, whose names are `learned`. `inputs` is the
    tuple that ``forward`` takes: features, logits or activations. `keys` are the `row_keys` of X,
    one uniform random number a row, which depends on the row's content alone; samples and folds are
    drawn by them.
    """

    # The scores of at most so many rows of ``fit`` set the threshold; None is all. For methods that
    # compare each row with all others.
    n_threshold_rows: int | None = None
    # Whether `update` takes keys; whether a sample of the rows is drawn by them; and folds.
    needs_row_keys = samples_by_key = folds_by_key = False
    # Whether `leave_one_out` takes the inputs of rows out of sums, though it gets keys.
    subtracts_inputs = False
    # Whether inputs that are maps (n_samples, H, W) come with one more, which tells the pixels that
    # count: those whose label is neither negative nor 255.
    learns_pixels = False
    # What is called with each batch of X before `start`, a method of the scorer's own.
    note_rows = None
    # Maps inputs to a dict: "contributions" (n_samples, n_parts) and "base" (n_samples,), which add
    # up to the scores, and others of `Explanation`. None where a method cannot say.
    explain = None
    # The buffers that `start` sets: only states of scorers that agree in them can be merged.
    settings: tuple[str, ...] = ()
    # What the class indices that `update` gets stand for: the labels by now, sorted; None without.
    labels = None

    def start(self, training):
        """Set what must be known before the first row is learned from, from a `Training`."""

    def check(self, inputs):
        """Raise if rows are finite but too large to learn from."""

    def init_state(self, inputs, n_classes, n_expected):
        """Return the `State` of no rows.

        The inputs are those of a first batch, for widths, dtype and device. `n_expected` is how
        many rows will come, 0 if that is not known.
        """
        raise NotImplementedError

    def update(self, state, inputs, class_indices, keys):
        """Add a batch to the state: its inputs, class indices and keys."""
        raise NotImplementedError

    def finalize(self, state, classes):
        """Set what ``forward`` needs from the state, which is not changed."""
        raise NotImplementedError

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows, each as if it had not been learned from."""
        raise NotImplementedError

    def score_fresh(self, inputs):
        """Score rows that were not learned from, as `leave_one_out` does those that were."""
        return self(*inputs)

    def calibrate(self, scores):
        """Return the scores of training rows, from all that `leave_one_out` gave.

        It may set buffers by them, where a score says how others lie among those of training rows.
        """
        return scores

    def clear_cache(self):
        """Drop what only `leave_one_out` needs."""


def learned_parts(scorer):
    """Return a scorer and its parts that keep what is learned in buffers, by name."""
    parts = scorer.named_modules()
    return {n: part for n, part in parts if part is scorer or isinstance(part, LearnedModule)}


def learned_buffers(scorer):
    """Return the buffers that hold what was learned, by name, not those of the network's head."""
    return {
        name: buffer
        for prefix, part in learned_parts(scorer).items()
        for name, buffer in part.named_buffers(prefix, recurse=False)
    }


def unlearned(scorer):
    """Return a scorer that may learn while this one scores: it sets other buffers."""
    if scorer is None or not any(isinstance(part, LearnedModule) for part in scorer.modules()):
        return scorer
    twin = copy.copy(scorer)
    twin._buffers = scorer._buffers.copy()
    twin._modules = {name: unlearned(part) for name, part in scorer._modules.items()}
    return twin


def threshold_rows(n_rows, most):
    """Return the positions of the training rows whose scores set the threshold, ascending.

    Of more than `most` a random sample: the same in every detector, and smaller samples are part
    of larger ones, so that scores of several detectors can be brought together.
    """
    if n_rows <= most:
        return np.arange(n_rows)
    return np.sort(np.random.RandomState(0).permutation(n_rows)[:most])


class Training:
    """The in-distribution rows as a method consumes them, from one pass through the network.

    Parameters
    ----------
    source : LabelledRows or Stream
        The rows and their classes.
    body : nn.Module
        Maps a batch of X to what the method consumes. Where that depends on what is learned, its
        attribute ``unmoved`` is what rows that are learned from pass through.
    network : Network
        The network inside of the body.
    batch_size : int or None
        Rows a batch.
    random_state : RandomState, default=None
        For methods that draw.
    seed : int, default=None
        The seed of the rows' keys; None where keys are not needed.
    compares : bool, default=False
        Whether to note the largest logits, for `agreement`.
    watch : callable, default=None
        Maps (name, number of batches, batches) to the same batches, and reports progress.
    """

    def __init__(
        self,
        source,
        body,
        network,
        batch_size,
        random_state=None,
        seed=None,
        *,
        compares=False,
        watch=None,
    ):
        self.device = network.device
        self.random_state, self.seed = random_state, seed
        self._network = network
        self._body, self._body_of_scored = getattr(body, "unmoved", body), body
        # What is scored otherwise than learned from is read twice.
        is_read_once = self._body is body or isinstance(source, LabelledRows)
        self.source = source if is_read_once else source.gather()
        self._batch_size, self._watch = batch_size, watch or (lambda name, n, batches: batches)
        self._store, self._keys, self._keys_read = None, None, []
        self._largest = None if compares else []
        # See `LearningScorer.learns_pixels`.
        self.by_pixel, self._maps, self.note_rows = False, None, None

    def as_scored(self):
        """Return the rows as a scorer that has learned takes them."""
        if self._body is self._body_of_scored:
            return self
        twin = copy.copy(self)
        twin._body, twin._store = self._body_of_scored, None
        return twin

    def agreement(self, known=None):
        """Return how well labels and largest logits agree, once the rows have been read.

        Parameters
        ----------
        known : array-like, default=None
            The class of each logit, where a frozen classifier tells.
        """
        agreement, n_logits = Agreement(), self._network.n_logits
        if self.classes is not None and self.n_samples:
            columns = n_logits and columns_of(self.classes, n_logits, known)
            largest = torch.cat(self._largest).cpu().numpy() if self._largest else ()
            agreement.add(largest, self.classes, self.source.class_indices, columns, n_logits)
        return agreement

    @property
    def n_samples(self):
        """The number of rows."""
        return len(self.source)

    @property
    def n_rows(self):
        """The number of rows as far as it is known before they are read, else None."""
        return self.source.n_samples

    @property
    def n_classes(self):
        """The number of classes, 1 without labels."""
        return 1 if self.source.classes is None else len(self.source.classes)

    @property
    def classes(self):
        """The labels of the classes, sorted; None without."""
        return self.source.classes

    @property
    def keys(self):
        """The keys of all rows, once these have been read."""
        if self._keys is None:
            self._keys = torch.cat(self._keys_read) if self._keys_read else torch.empty(0)
        return self._keys

    def run(self):
        """Run the network over the rows and keep what the method consumes.

        Features in memory are not kept but read again. It is run once.
        """
        in_memory = isinstance(self.source, LabelledRows) and self._network.takes_features
        if in_memory or self._store is not None:
            return
        store = TensorStore()
        for _, inputs in self.fresh("network"):
            store.append(inputs)
        self._store = store

    def check(self, scorer):
        """Raise if a row holds NaN or is too large for the scorer, before any is learned from."""
        if self._store is None or type(scorer).check is not LearningScorer.check:
            for inputs, _ in self.passes("check"):
                scorer.check(inputs)

    def fresh(self, name):
        """Yield ``(positions, inputs)`` of a pass through the network that is not kept."""
        size = batch_rows(self.source, self._network, self._batch_size)
        notes = [] if self.note_rows is None else [self.note_rows]
        if self.seed is not None and self._keys is None:
            self._keys_read = []
            notes.append(lambda batch: self._keys_read.append(row_keys(batch, self.seed)))
        pairs = read(self.source, self._body, self._network, size, notes)
        if self._largest is None:
            pairs = self._note_largest(pairs)
        yield from self._watch(name, self.source.n_batches(size), pairs)
        if notes:
            _ = self.keys

    def _note_largest(self, pairs):
        """Yield pairs, and note the columns of the largest logits; none unless of all rows."""
        self._largest, is_complete = [], True
        with self._network.largest_logits.asked() as noted:
            for positions, inputs in pairs:
                yield positions, inputs
                # By now a scorer that runs the network itself has run it, perhaps after tests of
                # its own.
                n_rows = positions.stop - positions.start
                of_batch = torch.cat(noted)[-n_rows:] if noted else ()
                noted.clear()
                is_complete = is_complete and len(of_batch) == n_rows
                if is_complete:
                    self._largest.append(of_batch)
                else:
                    self._largest.clear()

    def passes(self, name):
        """Yield ``(inputs, positions)``; the name is what callbacks are told."""
        if self._store is None:
            pairs = self.fresh(name)
        else:
            size = self._batch_size or feature_batch_rows(self._store.row_bytes, CHUNK_BYTES)
            pairs = self._store.batches(size, self.device)
            pairs = self._watch(name, -(-self.n_samples // size), pairs)
        for positions, inputs in pairs:
            yield self._with_counting(inputs, positions), positions

    def _with_counting(self, inputs, positions):
        """Add to inputs that are maps which of their pixels count."""
        if not self.by_pixel or inputs[0].ndim == 1:
            return inputs
        maps, counts = self.maps_of(positions), torch.ones_like(inputs[0], dtype=torch.bool)
        if maps is not None:
            maps = maps_at(maps, inputs[0].shape[1:], self.source.row_shape)
            counts = torch.from_numpy(map_kinds(maps) > 0).to(self.device)
        return (*inputs, counts)

    def maps_of(self, positions):
        """Return the labels of pixels of rows, of a first pass those of the present batch."""
        if self._store is None:
            return self.source.labels_of(positions)[0]
        if self._maps is None:
            # A stream joins them.
            self._maps = self.source.maps
        return None if self._maps is None else self._maps[positions]

    def batches(self, name, most=None):
        """Yield ``(inputs, class_indices, keys)``; keys are None where not needed.

        Of more rows than `most`, those of `threshold_rows`.
        """
        class_indices = torch.from_numpy(self.source.class_indices)
        if most is None or most >= self.n_samples:
            passes = self.passes(name)
        else:
            passes = self._watch(name, None, self._sampled(most))
        for inputs, positions in passes:
            yield inputs, class_indices[positions].to(self.device), self.keys_of(positions)

    def keys_of(self, positions):
        """Return the keys of rows of the present batch."""
        if self.seed is None:
            return None
        return self._keys_read[-1] if self._keys is None else self._keys[positions]

    def _sampled(self, n_rows):
        """Yield the inputs of the rows that set the threshold and their positions, in batches."""
        row_bytes = sum(tensor.nbytes for tensor in self._take(np.arange(1)))
        size = self._batch_size or feature_batch_rows(row_bytes)
        chosen = threshold_rows(self.n_samples, n_rows)
        for start in range(0, n_rows, size):
            positions = chosen[start : start + size]
            yield self._take(positions), positions

    def _take(self, positions):
        """Return the inputs of these rows."""
        if self._store is not None:
            return self._store.take(positions, self.device)
        X = self.source.take(positions)
        return as_inputs(self._body(move(X, self.device, self._network.input_dtype)))

    def passed(self, X):
        """Return what the method consumes of other rows of X."""
        return as_inputs(self._body(X))

    def sample(self, n_rows):
        """Return the inputs of a random sample of rows, all of them if there are fewer."""
        if n_rows >= self.n_samples:
            return self._take(np.arange(self.n_samples))
        return self._take(np.sort(self.random_state.choice(self.n_samples, n_rows, replace=False)))


def learn(scorer, training):
    """Let a scorer learn from all rows of a `Training`."""
    training.by_pixel, training.note_rows = scorer.learns_pixels, scorer.note_rows
    training.run()
    scorer.start(training)
    scorer.labels = training.classes
    # Where rows have many copies a sample is drawn in a second pass.
    for n_expected in (training.n_samples, 0):
        state = None
        for inputs, class_indices, keys in training.batches("learn"):
            if state is None:
                state = scorer.init_state(inputs, training.n_classes, n_expected)
            scorer.check(inputs)
            scorer.update(state, inputs, class_indices, keys)
        if state.is_complete:
            break
    scorer.finalize(state, training.classes)


def as_inputs(output):
    """Return what a body gives as the tuple of a scorer's inputs."""
    return output if isinstance(output, tuple) else (output,)


def batch_rows(rows, network, batch_size):
    """Return how many rows of X to pass at once; `batch_size` where it is given."""
    if batch_size is not None:
        return batch_size
    if not network.takes_features:
        return network.batch_rows
    n_features = int(np.prod(rows.row_shape))
    if network.device.type == "cpu":
        return feature_batch_rows(n_features * network.dtype.itemsize)
    # Logits, and what is computed of them in float64, may take more than features.
    width = max(n_features, 4 * (network.n_logits or 0))
    return feature_batch_rows(width * network.dtype.itemsize, GPU_FEATURE_BATCH_BYTES)


def read(rows, body, network, batch_size, notes=()):
    """Yield ``(positions, inputs)`` for the rows of X, passed through the body.

    Each of `notes` is called with each batch of X before the network, which may write to it.
    """
    # A network may write to its input; our own modules do not.
    batches = rows.batches(
        batch_size,
        device=network.device,
        dtype=network.input_dtype,
        own=not network.takes_features,
    )
    for positions, batch in batches:
        for note in notes:
            note(batch)
        inputs = as_inputs(body(batch))
        for tensor in inputs:
            # A body that passes X on gives what was checked, perhaps a dict.
            if tensor is not batch and not all_finite(tensor):
                raise ValueError(
                    "The network gives NaN or infinity for finite rows of X (the first of them "
                    f"lies in rows {positions.start} to {positions.stop - 1}). Are the rows "
                    "scaled as in its training?"
                )
        yield positions, inputs
