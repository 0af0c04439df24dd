"""Random samples of rows, whatever their order, in chunks that merge."""

import math
import weakref
from numbers import Integral

import torch

from skood.learning.states import State, from_numpy, to_numpy_where_possible

# Columns of a sample that are put in order at a time: a second copy of the sample is not needed.
SORTED_COLUMNS = 64

# Of a share of the rows as many of the smallest keys are kept, however many copies there are.
LEAST_KEYS = 100


def evenly(most, *tensors):
    """Return at most so many entries of tensors of one length, evenly spaced; None is all."""
    n = len(tensors[0])
    if most is None or n <= most:
        return tensors
    # Of the copies of a row, which are next to each other in a sample, their share.
    chosen = torch.arange(most, device=tensors[0].device) * n // most
    return tuple(tensor[chosen] for tensor in tensors)


class Reservoir(State):
    """A random sample of rows: those of the smallest keys, which `row_keys` makes of the rows.

    Which rows these are does not depend on the order in which rows and samples come together. As
    equal rows have equal keys, a row is kept once and its copies are counted; the sample holds
    copies in their share.

    Parameters
    ----------
    size : int, float or None
        The number of rows, their share, or all of them.
    n_expected : int, default=0
        How many rows there will be in all, where that is known: of a part of them no more is kept
        than may be needed in the end.
    with_codes : bool, default=False
        Whether the last that is kept of a row is its class index, which tells equal rows apart.

    Attributes
    ----------
    keys : Tensor of shape (n_kept,), dtype float64
        Of the rows that are kept, at least those of the sample.
    counts : Tensor of shape (n_kept,), dtype int64
        The number of rows that each stands for.
    rows : list of Tensor of shape (n_kept, ...)
        What is kept of each row.
    """

    def __init__(self, size, n_expected=0, with_codes=False):
        super().__init__()
        self.size, self.n_expected, self.with_codes = size, n_expected, with_codes
        self.n_seen = self.n_kept = 0
        self._buffers = []
        # Rows of keys up to this have all been kept, as those of keys below `bound` are.
        self._reach = 0.0 if n_expected else math.inf
        # What `sample` gave last.
        self._given: list[weakref.ref] = []

    @property
    def keys(self):
        """The keys of the rows that are kept."""
        return self._buffers[0][: self.n_kept]

    @property
    def counts(self):
        """The number of rows that each stands for."""
        return self._buffers[1][: self.n_kept]

    @property
    def rows(self):
        """What is kept of each row."""
        return [buffer[: self.n_kept] for buffer in self._buffers[2:]]

    def _n_wanted(self, n_rows):
        """Return the size of the sample of so many rows."""
        if self.size is None:
            return n_rows
        size = self.size
        return min(n_rows, size if isinstance(size, Integral) else max(1, round(size * n_rows)))

    @property
    def n_wanted(self):
        """The size of the sample of all rows seen."""
        return self._n_wanted(self.n_seen)

    @property
    def is_complete(self):
        """False when rows may be missing: fewer than expected, or many copies of few rows."""
        if not self.n_expected or self.n_kept == self.n_seen:
            return True
        return int((self.keys.unique() < self.bound).sum()) >= self.n_wanted

    @property
    def bound(self):
        """A key that no row of the sample exceeds, but for a chance below e⁻⁵⁰ (Chernoff's).

        That is without copies; see `_n_least`.
        """
        n_rows = max(self.n_seen, self.n_expected, 1)
        wanted = self._n_wanted(n_rows)
        return (wanted + 12 * math.sqrt(wanted) + 100) / n_rows

    @property
    def _n_least(self):
        """How many of the smallest keys are kept though they exceed the bound.

        Of rows with many copies few keys, or none, lie below it. Then a second pass, for which no
        number of rows is expected, keeps these.
        """
        if self.n_expected:
            return 0
        return self.size if isinstance(self.size, Integral) else LEAST_KEYS

    def choose(self, keys):
        """Count rows by their keys as seen; return the index of those to `add`."""
        self.n_seen += len(keys)
        if 0 < self._n_least < len(keys) and self.bound < 1:
            # Of many rows at once most are not needed.
            smallest = keys.unique()[: self._n_least]
            if len(smallest) == self._n_least:
                self._reach = min(self._reach, float(smallest[-1]))
        chosen = keys <= max(self.bound, self._reach)
        # All, as of the first rows, need no copy.
        return slice(None) if bool(chosen.all()) else chosen.nonzero().squeeze(1)

    def add(self, rows, keys):
        """Keep rows that were chosen: a list of tensors, and their keys."""
        self._append([keys, torch.ones_like(keys, dtype=torch.int64), *rows])

    def _append(self, new):
        """Keep rows with their keys and counts; drop those that are no longer needed."""
        if not self._buffers:
            self._buffers = [tensor[:0] for tensor in new]
        n_rows = self.n_kept + len(new[0])
        if n_rows > len(self._buffers[0]):
            self._grow(n_rows, new)
        for buffer, tensor in zip(self._buffers, new, strict=True):
            buffer[self.n_kept : n_rows] = tensor
        self.n_kept = n_rows
        if n_rows > self._most:
            self._condense()

    @property
    def _most(self):
        """How many rows are held, at most, before those that are not needed are dropped."""
        return math.ceil(2 * max(self.bound * max(self.n_seen, self.n_expected), self._n_least))

    def _grow(self, n_rows, like):
        """Make room for rows like these."""
        # What is not written to takes no memory.
        needed = math.ceil(min(1.0, self.bound) * self.n_expected)
        capacity = max(n_rows, needed, min(self._most, 2 * len(self._buffers[0])))
        for i, tensor in enumerate(like):
            grown = tensor.new_empty(capacity, *tensor.shape[1:])
            grown[: self.n_kept] = self._buffers[i][: self.n_kept]
            self._buffers[i] = grown

    def _sort(self):
        """Put the rows in the order of their keys, and equal ones in that of their classes."""
        order = torch.argsort(self.keys)
        if self.with_codes:
            order = torch.argsort(self.rows[-1], stable=True)
            order = order[torch.argsort(self.keys[order], stable=True)]
        if not bool((order.diff() < 0).any()):
            return
        if any(given() is not None for given in self._given):
            # Another thread may be scoring with it.
            self._buffers = [t.clone() for t in (self.keys, self.counts, *self.rows)]
        for tensor in (self.keys, self.counts, *self.rows):
            columns = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
            for part in columns.split(SORTED_COLUMNS, dim=1):
                part.copy_(part.index_select(0, order))

    def _condense(self):
        """Keep each row once, and of those in the order of keys what may be needed."""
        self._sort()
        kept = [self.keys, self.counts, *self.rows]
        is_first = torch.ones_like(self.keys, dtype=torch.bool)
        is_first[1:] = self.keys.diff() > 0
        if self.with_codes:
            is_first[1:] |= self.rows[-1].diff() != 0
        if not bool(is_first.all()):
            numbers = is_first.cumsum(0) - 1
            kept = [tensor[is_first] for tensor in kept]
            kept[1] = torch.zeros_like(kept[1]).index_add_(0, numbers, self.counts)
        keys, n_least = kept[0], self._n_least
        n_kept = max(n_least, int((keys < self.bound).sum()))
        if 0 < n_least <= n_kept < len(keys):
            self._reach = float(keys[n_least - 1])
        # Clones: a view would hold the memory of what is dropped.
        self._buffers = [tensor[:n_kept].clone() for tensor in kept]
        self.n_kept = len(self._buffers[0])

    def merge(self, other):
        """Take in the sample of other rows."""
        self.n_seen += other.n_seen
        self._reach = min(self._reach, other._reach)
        if not other.n_kept:
            return
        chosen = other.keys <= max(self.bound, self._reach)
        device = self._buffers[0].device if self._buffers else chosen.device
        self._append([t[chosen].to(device) for t in (other.keys, other.counts, *other.rows)])

    def recoded(self, class_indices, n_classes):
        """Return a sample in which class k has become `class_indices[k]`."""
        recoded = super().recoded(class_indices, n_classes)
        recoded._buffers = [*self._buffers]
        if self.with_codes and self.n_kept:
            own = self.rows[-1]
            recoded._buffers = [*self._buffers[:-1], class_indices.to(own.device)[own]]
            # A shorter last one would be taken for all of the room.
            recoded._buffers = [buffer[: self.n_kept] for buffer in recoded._buffers]
        return recoded

    def sample(self):
        """Return the keys and rows of the sample, ascending by key: in random order."""
        n_wanted = self.n_wanted
        if self.n_kept == n_wanted == self.n_seen:
            self._sort()
        else:
            self._condense()
        counts = self.counts[:n_wanted]
        sample = [tensor[:n_wanted] for tensor in (self.keys, *self.rows)]
        self._given = [weakref.ref(tensor) for tensor in sample]
        if len(counts) < n_wanted or bool((counts > 1).any()):
            sample = [t.repeat_interleave(self._n_copies(counts), 0) for t in sample]
        return sample[0], sample[1:]

    def _n_copies(self, counts):
        """Return how often rows of these counts are in the sample, in their share of all rows."""
        weights = counts.double()
        # A row with more copies than rows for each place of the sample counts as what it is; the
        # others stand for all else, which keeps a blank image from filling the sample.
        is_light = counts * self.n_wanted < self.n_seen
        light = float(weights[is_light].sum())
        if light:
            heavy = float(weights.sum()) - light
            weights[is_light] *= (self.n_seen - heavy) / light
        places = (weights.cumsum(0) * (self.n_wanted / weights.sum())).round().long()
        return places.diff(prepend=places.new_zeros(1))

    def to(self, device):
        """Move to a device."""
        self._buffers = [buffer.to(device) for buffer in self._buffers]

    def __getstate__(self):
        kept = [buffer[: self.n_kept] for buffer in self._buffers]
        return {**vars(self), "_buffers": list(map(to_numpy_where_possible, kept)), "_given": []}

    def __setstate__(self, state):
        # Pickles of earlier versions have no such entry.
        state = {"_given": [], **state, "_buffers": list(map(from_numpy, state["_buffers"]))}
        if "_reach" not in state:
            # Nor did they count copies.
            state["_reach"] = 0.0
            counts = [torch.ones_like(b, dtype=torch.int64) for b in state["_buffers"][:1]]
            state["_buffers"][1:1] = counts
        vars(self).update(state)
