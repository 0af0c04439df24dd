"""What learning adds to: sums over rows and random samples of rows, in pieces that merge."""

import copy
import math
import weakref
from numbers import Integral

import numpy as np
import torch

from skood._labels import is_numeric

# Of rows that come in pieces this many set the threshold: the share of false alarms of a 5 %
# threshold has a standard error of 0.15 %.
N_THRESHOLD_ROWS = 20_000
# Columns of a sample that are put in order at a time: a second copy of the sample is not needed.
SORTED_COLUMNS = 64


class State:
    """Sums over rows, as tensors; of two disjoint sets of rows they add up.

    Parameters
    ----------
    per_class : sequence of str, default=()
        Names of the sums that have an entry for each class along the first axis.
    **sums : Tensor
        By name; they become attributes.
    """

    # Whether nothing is missing; see `Reservoir`.
    is_complete = True

    def __init__(self, per_class=(), **sums):
        self.per_class = per_class
        vars(self).update(sums)

    def merge(self, other):
        """Add the sums of other rows, whose classes have the same codes."""
        for name, value in self._tensors():
            value += getattr(other, name).to(value.device)

    def recoded(self, codes, n_classes):
        """Return a state in which class k has become `codes[k]` of `n_classes`."""
        recoded = object.__new__(type(self))
        vars(recoded).update(vars(self))
        for name in self.per_class:
            value = getattr(self, name)
            grown = value.new_zeros(n_classes, *value.shape[1:])
            grown[codes.to(value.device)] = value
            setattr(recoded, name, grown)
        return recoded

    def to(self, device):
        """Move to a device."""
        for name, value in self._tensors():
            setattr(self, name, value.to(device))

    def _tensors(self):
        return [(k, v) for k, v in vars(self).items() if isinstance(v, torch.Tensor)]

    def __getstate__(self):
        # As numpy: between processes its memory is not copied, and it is the CPU's.
        return {name: _pack(value) for name, value in vars(self).items()}

    def __setstate__(self, state):
        vars(self).update({name: _unpack(value) for name, value in state.items()})


class Reservoir(State):
    """A random sample of rows: those of the smallest keys, uniform random numbers.

    Which rows these are does not depend on the order in which rows and samples come together.

    Parameters
    ----------
    size : int, float or None
        The number of rows, their share, or all of them.
    n_expected : int, default=0
        How many rows there will be in all, where that is known: of a part of them no more is kept
        than may be needed in the end.
    with_codes : bool, default=False
        Whether the last that is kept of a row is its class code.

    Attributes
    ----------
    keys : Tensor of shape (n_kept,), dtype float64
        Of the rows that are kept, at least those of the sample.
    rows : list of Tensor of shape (n_kept, ...)
        What is kept of each row.
    """

    def __init__(self, size, n_expected=0, with_codes=False):
        super().__init__()
        self.size, self.n_expected, self.with_codes = size, n_expected, with_codes
        self.n_seen, self.n_parts = 0, 1
        self._buffers, self.n_kept = [], 0
        # What `sample` gave last.
        self._given: list[weakref.ref] = []

    @property
    def keys(self):
        """The keys of the rows that are kept."""
        return self._buffers[0][: self.n_kept]

    @property
    def rows(self):
        """What is kept of each row."""
        return [buffer[: self.n_kept] for buffer in self._buffers[1:]]

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
        """False when rows are missing because there were fewer than expected."""
        return self.n_kept >= self.n_wanted

    @property
    def bound(self):
        """A key that no row of the sample exceeds, but for a chance below e⁻⁵⁰ (Chernoff's)."""
        n_rows = max(self.n_seen, self.n_expected, 1)
        wanted = self._n_wanted(n_rows)
        return (wanted + 12 * math.sqrt(wanted) + 100) / n_rows

    def choose(self, keys):
        """Count rows by their keys as seen; return the index of those to `add`."""
        self.n_seen += len(keys)
        chosen = keys < self.bound
        # All, as of the first rows, need no copy.
        return slice(None) if bool(chosen.all()) else chosen.nonzero().squeeze(1)

    def add(self, rows, keys):
        """Keep rows that were chosen: a list of tensors, and their keys."""
        new = [keys, *rows]
        if not self._buffers:
            self._buffers = [tensor[:0] for tensor in new]
        n_rows = self.n_kept + len(keys)
        if n_rows > len(self._buffers[0]):
            self._grow(n_rows, new)
        for buffer, tensor in zip(self._buffers, new, strict=True):
            buffer[self.n_kept : n_rows] = tensor
        self.n_kept = n_rows
        if n_rows > 2 * self.bound * max(self.n_seen, self.n_expected):
            self._keep(self.keys < self.bound)

    def _grow(self, n_rows, like):
        """Make room for rows like these."""
        # What is not written to takes no memory.
        needed = math.ceil(min(1.0, self.bound) * self.n_expected)
        capacity = max(n_rows, needed, 2 * len(self._buffers[0]))
        for i, tensor in enumerate(like):
            grown = tensor.new_empty(capacity, *tensor.shape[1:])
            grown[: self.n_kept] = self._buffers[i][: self.n_kept]
            self._buffers[i] = grown

    def _keep(self, mask):
        kept = [tensor[mask] for tensor in (self.keys, *self.rows)]
        self._buffers, self.n_kept = kept, len(kept[0])

    def merge(self, other):
        """Take in the sample of other rows."""
        # Parts whose first rows are equal have equal keys: the last digit tells them apart.
        shift, self.n_parts = self.n_parts * 2**-53, self.n_parts + other.n_parts
        self.n_seen += other.n_seen
        if not other.n_kept:
            return
        keys = other.keys + shift
        chosen = keys < self.bound
        device = self._buffers[0].device if self._buffers else keys.device
        self.add([t[chosen].to(device) for t in other.rows], keys[chosen].to(device))

    def recoded(self, codes, n_classes):
        """Return a sample in which class k has become `codes[k]`."""
        recoded = super().recoded(codes, n_classes)
        recoded._buffers = [*self._buffers]
        if self.with_codes and self.n_kept:
            own = self.rows[-1]
            recoded._buffers = [*self._buffers[:-1], codes.to(own.device)[own]]
            # A shorter last one would be taken for all of the room.
            recoded._buffers = [buffer[: self.n_kept] for buffer in recoded._buffers]
        return recoded

    def sample(self):
        """Return the keys and rows of the sample, ascending by key: in random order."""
        order = torch.argsort(self.keys)
        if bool((order.diff() < 0).any()):
            if any(given() is not None for given in self._given):
                # Another thread may be scoring with it.
                self._buffers = [tensor.clone() for tensor in (self.keys, *self.rows)]
            for tensor in (self.keys, *self.rows):
                columns = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
                for part in columns.split(SORTED_COLUMNS, dim=1):
                    part.copy_(part.index_select(0, order))
        keys, *rows = (tensor[: self.n_wanted] for tensor in (self.keys, *self.rows))
        self._given = [weakref.ref(tensor) for tensor in (keys, *rows)]
        return keys, rows

    def to(self, device):
        """Move to a device."""
        self._buffers = [buffer.to(device) for buffer in self._buffers]

    def __getstate__(self):
        kept = [buffer[: self.n_kept] for buffer in self._buffers]
        return {**vars(self), "_buffers": list(map(_pack, kept)), "_given": []}

    def __setstate__(self, state):
        # Pickles of earlier versions have no such entry.
        vars(self).update({"_given": []}, **state)
        self._buffers = list(map(_unpack, state["_buffers"]))


class Learned:
    """What was learned from some rows; that from disjoint rows merges.

    Parameters
    ----------
    seed : int
        Of what draws the rows' keys. The first row is a seed too: what several processes learn
        does not hang on one sequence of random numbers, and is the same when it is learned again.
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
    state : State or None
        The scorer's, where it learns.
    sample : Reservoir
        Of the rows that set the threshold: inputs and class codes, or else scores.
    """

    def __init__(self, seed, learns, n_expected=0):
        self.n_rows, self.classes, self.state = 0, None, None
        self.sample = Reservoir(N_THRESHOLD_ROWS, n_expected, with_codes=learns)
        self.n_expected, self._learns = n_expected, learns
        self._seed, self._generator = seed, None

    def new(self, n_expected=0):
        """Return what no rows have taught, for others of those that there will be in all."""
        return Learned(self._seed, self._learns, n_expected)

    @property
    def is_complete(self):
        """False when samples lack rows because there were fewer than `n_expected`."""
        return self.sample.is_complete and (self.state is None or self.state.is_complete)

    def admit(self, classes):
        """Take in labels; return the code that each has among all of them."""
        if self.n_rows and (classes is None) != (self.classes is None):
            raise ValueError("Some rows come with labels and some without: give y always or never.")
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
            codes = torch.from_numpy(np.searchsorted(known, self.classes))
            self.state = self.state.recoded(codes, len(known))
            self.sample = self.sample.recoded(codes, len(known))
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
        training.check(scorer)
        codes_of = self.admit(training.classes)
        for inputs, codes, _ in training.batches("learn"):
            codes, keys = codes_of.to(codes.device)[codes], self._keys(codes, training)
            if self.state is None:
                self.state = scorer.empty(inputs, self.n_classes, self.n_expected)
            scorer.update(self.state, inputs, codes, keys)
            chosen = self.sample.choose(keys)
            self.sample.add([t[chosen] for t in (*inputs, codes)], keys[chosen])
            self.n_rows += len(codes)

    def add_scores(self, scores, training):
        """Note the scores of rows, where scorers learn nothing; more than one for maps."""
        if not training.n_samples:
            return
        self.admit(training.classes)
        keys = self._keys(scores, training)
        chosen = self.sample.choose(keys)
        self.sample.add([scores[chosen]], keys[chosen])
        self.n_rows += training.n_samples

    def _keys(self, values, training):
        """Draw keys for as many rows."""
        if self._generator is None:
            self._generator = np.random.default_rng([self._seed, training.hash_of_first()])
        return torch.from_numpy(self._generator.random(len(values))).to(values.device)

    def merge(self, other):
        """Take in what was learned from other rows, which stays as it is."""
        if other.n_rows == 0:
            return
        if self.n_rows == 0:
            own = {name: vars(self)[name] for name in ("_generator", "n_expected")}
            vars(self).update(vars(copy.deepcopy(other)), **own)
            return
        codes = self.admit(other.classes)
        if other.state is not None:
            self.state.merge(other.state.recoded(codes, self.n_classes))
        self.sample.merge(other.sample.recoded(codes, self.n_classes))
        self.n_rows += other.n_rows

    def to(self, device):
        """Move to a device."""
        self.sample.to(device)
        if self.state is not None:
            self.state.to(device)


def _pack(value):
    """Return a tensor as numpy where that has its dtype."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return value if value.dtype == torch.bfloat16 else value.numpy()


def _unpack(value):
    """Return what `_pack` made of a tensor, to be written to."""
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(value if value.flags.writeable else value.copy())
