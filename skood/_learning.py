"""Rows as a method consumes them, and scorers that learn from them as a fold over batches."""

import numpy as np
import torch
from torch import nn

from skood._arrays import NETWORK_BATCH_ROWS, TensorStore, feature_batch_rows, move


class LearningScorer(nn.Module):
    """A scorer that learns from rows, as a fold over batches.

    Subclasses keep what they learn in buffers, registered as None in ``__init__``. ``inputs`` is
    the tuple that ``forward`` takes, what the detector's method consumes.
    """

    def start(self, training):
        """Prepare to learn from a `Training`."""
        raise NotImplementedError

    def update(self, inputs, codes, positions):
        """Learn from a batch: its inputs, class codes and positions among the training rows."""
        raise NotImplementedError

    def finish(self):
        """Turn the state into what ``forward`` needs."""

    def leave_one_out(self, inputs, codes, positions):
        """Score training rows, each as if it had not been learned from."""
        raise NotImplementedError

    def forget(self):
        """Drop what only learning needs."""


class Training:
    """The in-distribution rows as a method consumes them, from one pass through the network.

    Parameters
    ----------
    rows : Rows
        All rows.
    index : ndarray of shape (n_samples,)
        Which of them are in-distribution.
    classes : ndarray of shape (n_classes,) or None
        The labels.
    codes : ndarray of shape (n_samples,)
        Each row's position in `classes`.
    body : nn.Module
        Maps a batch of X to what the method consumes.
    network : Network
        The network inside of the body.
    batch_size : int or None
        Rows a batch.
    random_state : RandomState
        For methods that draw.
    watch : callable
        Maps (name, number of batches, batches) to the same batches, to report them.
    """

    def __init__(self, rows, index, classes, codes, body, network, batch_size, random_state, watch):
        self.n_samples = len(index)
        self.n_classes = 1 if classes is None else len(classes)
        self.device = network.device
        self.random_state = random_state
        self._rows, self._index, self._body, self._network = rows, index, body, network
        self._batch_size, self._watch = batch_size, watch
        self._classes, self._codes = classes, torch.from_numpy(codes)
        self._store = None

    def class_name(self, k):
        """Return how to call a class in a message."""
        return "all rows" if self._classes is None else f"class {self._classes[k]!s}"

    def run(self):
        """Run the network over the rows and keep what the method consumes.

        X that holds features already is not kept but read again.
        """
        if not self._network.takes_features:
            store = TensorStore(self.n_samples)
            for _, inputs in self._read("network"):
                store.append(inputs)
            self._store = store

    def _read(self, name):
        size = batch_rows(self._rows, self._network, self._batch_size)
        pairs = read(self._rows, self._body, self._network, size, self._index)
        return self._watch(name, -(-self.n_samples // size), pairs)

    def batches(self, name):
        """Yield ``(inputs, codes, positions)``; the name is what callbacks are told."""
        if self._store is None:
            pairs = self._read(name)
        else:
            size = self._batch_size or feature_batch_rows(self._store.row_bytes)
            pairs = self._store.batches(size, self.device)
            pairs = self._watch(name, -(-self.n_samples // size), pairs)
        for positions, inputs in pairs:
            yield inputs, self._codes[positions].to(self.device), positions

    def sample(self, n_rows):
        """Return the inputs of a random sample of rows, all of them if there are fewer."""
        chosen = np.arange(self.n_samples)
        if n_rows < self.n_samples:
            chosen = np.sort(self.random_state.choice(self.n_samples, n_rows, replace=False))
        if self._store is not None:
            return self._store.take(chosen, self.device)
        X = self._rows.take(self._index[chosen])
        return as_inputs(self._body(move(X, self.device, self._network.dtype)))


def as_inputs(output):
    """Return what a body gives as the tuple of a scorer's inputs."""
    return output if isinstance(output, tuple) else (output,)


def batch_rows(rows, network, batch_size):
    """Return how many rows of X to pass at once; `batch_size` where it is given."""
    if batch_size is not None:
        return batch_size
    if not network.takes_features:
        return NETWORK_BATCH_ROWS
    itemsize = torch.finfo(network.dtype).bits // 8
    return feature_batch_rows(int(np.prod(rows.row_shape)) * itemsize)


def read(rows, body, network, batch_size, index=None):
    """Yield ``(positions, inputs)`` for the rows of X, passed through the body."""
    # A network may write to its input; our own modules do not.
    batches = rows.batches(
        batch_rows(rows, network, batch_size),
        device=network.device,
        dtype=network.dtype,
        rows=index,
        own=not network.takes_features,
    )
    for positions, batch in batches:
        inputs = as_inputs(body(batch))
        for tensor in inputs:
            # A body that passes X on gives what was checked, perhaps a dict.
            if tensor is not batch and not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    "The network gives NaN or infinity for finite rows of X (the first of them "
                    f"lies in rows {positions.start} to {positions.stop - 1}). Are the rows "
                    "scaled as in its training?"
                )
        yield positions, inputs
