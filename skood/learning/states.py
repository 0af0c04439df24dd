"""What learning adds to: sums over rows and random samples of rows, in pieces that merge."""

import copy
import math
import weakref
from collections.abc import Callable
from numbers import Integral

import numpy as np
import torch

from skood.data.labels import is_numeric
from skood.learning.agreement import Agreement

# Of rows that come in pieces this many set the threshold: the share of false alarms of a 5 %
# threshold has a standard error of 0.15 %.
N_THRESHOLD_ROWS = 20_000
# Columns of a sample that are put in order at a time: a second copy of the sample is not needed.
SORTED_COLUMNS = 64
# Of a share of the rows as many of the smallest keys are kept, however many copies there are.
LEAST_KEYS = 100


class State:
    """What is accumulated over rows; that of disjoint rows merges.

    Tensors are sums over rows, and add up. States inside of a state are merged, recoded, moved and
    pickled with it, as are those of a `StateList`.

    Parameters
    ----------
    per_class : sequence of str, default=()
        Names of the tensors that have an entry for each class along the first axis.
    **parts : Tensor or State
        By name; they become attributes.
    """

    # How the tensors of two states are combined, and what a class without rows has.
    combine: Callable[..., torch.Tensor] = staticmethod(torch.add)
    neutral = 0.0

    def __init__(self, per_class=(), **parts):
        self.per_class = per_class
        vars(self).update(parts)

    @property
    def is_complete(self):
        """Whether nothing is missing; see `Reservoir`."""
        return all(part.is_complete for _, part in self._parts(State))

    def merge(self, other):
        """Take in what was accumulated over other rows, whose classes have the same indices."""
        for name, value in self._parts(torch.Tensor):
            value.copy_(self.combine(value, getattr(other, name).to(value.device)))
        for name, part in self._parts(State):
            part.merge(getattr(other, name))

    def recoded(self, class_indices, n_classes):
        """Return a state in which class k has become `class_indices[k]` of `n_classes`."""
        recoded = object.__new__(type(self))
        vars(recoded).update(vars(self))
        for name in self.per_class:
            value = getattr(self, name)
            grown = value.new_full((n_classes, *value.shape[1:]), self.neutral)
            grown[class_indices.to(value.device)] = value
            setattr(recoded, name, grown)
        for name, part in self._parts(State):
            setattr(recoded, name, part.recoded(class_indices, n_classes))
        return recoded

    def to(self, device):
        """Move to a device."""
        for name, value in self._parts(torch.Tensor):
            setattr(self, name, value.to(device))
        for _, part in self._parts(State):
            part.to(device)

    def _parts(self, kind):
        return [(name, part) for name, part in vars(self).items() if isinstance(part, kind)]

    def __getstate__(self):
        # As numpy: between processes its memory is not copied, and it is the CPU's.
        return {name: _pack(value) for name, value in vars(self).items()}

    def __setstate__(self, state):
        vars(self).update({name: _unpack(value) for name, value in state.items()})


class StateList(State):
    """States in an order, such as one for each layer.

    Parameters
    ----------
    states : iterable of State
        One or more.
    """

    def __init__(self, states):
        super().__init__(**{str(i): state for i, state in enumerate(states)})

    def __iter__(self):
        return (part for _, part in self._parts(State))


class Extremes(State):
    """The smallest and largest value of each column, for each of some groups of rows.

    Parameters
    ----------
    n_groups, n_columns : int
        The shape of the attributes `low` and `high`: ∞ and -∞ where there are no rows.
    dtype, device : torch.dtype, torch.device
        Of the columns.
    per_class : bool, default=False
        Whether the groups are the classes of y.
    """

    def __init__(self, n_groups, n_columns, dtype, device, per_class=False):
        # As the largest of -x the smallest is combined as the largest is.
        names = ("high", "negative_low")
        values = torch.full((2, n_groups, n_columns), -torch.inf, dtype=dtype, device=device)
        super().__init__(names if per_class else (), **dict(zip(names, values, strict=True)))

    combine, neutral = staticmethod(torch.maximum), -torch.inf

    @property
    def low(self):
        """The smallest values."""
        return -self.negative_low

    def update(self, values, groups):
        """Add rows (n_samples, n_columns), each to its group (n_samples,)."""
        index = groups[:, None].expand_as(values)
        self.high.scatter_reduce_(0, index, values, "amax")
        self.negative_low.scatter_reduce_(0, index, -values, "amax")


class LogSums(State):
    """Logarithms of sums of numbers given by their logarithms, for each of some groups of rows.

    A plain sum underflows: the probabilities of confident networks are e⁻¹⁰⁰⁰.

    Parameters
    ----------
    n_groups, n_columns : int
        The shape of the attribute `values`, float64: -∞ where there are no rows.
    device : torch.device
        Where they are kept.
    per_class : bool, default=False
        Whether the groups are the classes of y.
    """

    combine, neutral = staticmethod(torch.logaddexp), -torch.inf

    def __init__(self, n_groups, n_columns, device, per_class=False):
        values = torch.full((n_groups, n_columns), -torch.inf, dtype=torch.float64, device=device)
        super().__init__(("values",) if per_class else (), values=values)

    def update(self, logs, groups):
        """Add rows (n_samples, n_columns), each to its group (n_samples,)."""
        logs = logs.double()
        index = groups[:, None].expand_as(logs)
        largest = self.values.scatter_reduce(0, index, logs, "amax")
        # Where all are -∞.
        largest = torch.where(largest.isinf(), 0.0, largest)
        sums = (self.values - largest).exp_()
        sums.index_add_(0, groups, (logs - largest[groups]).exp_())
        self.values = sums.log_().add_(largest)


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
        return {**vars(self), "_buffers": list(map(_pack, kept)), "_given": []}

    def __setstate__(self, state):
        # Pickles of earlier versions have no such entry.
        state = {"_given": [], **state, "_buffers": list(map(_unpack, state["_buffers"]))}
        if "_reach" not in state:
            # Nor did they count copies.
            state["_reach"] = 0.0
            counts = [torch.ones_like(b, dtype=torch.int64) for b in state["_buffers"][:1]]
            state["_buffers"][1:1] = counts
        vars(self).update(state)


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
        return AccumulatedState(self._seed, self._learns, n_expected)

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
        training.check(scorer)
        index_of = self.admit(training.classes)
        for inputs, class_indices, keys in training.batches("learn"):
            class_indices = index_of.to(class_indices.device)[class_indices]
            if self.state is None:
                self.state = scorer.init_state(inputs, self.n_classes, self.n_expected)
            scorer.update(self.state, inputs, class_indices, keys)
            chosen = self.sample.choose(keys)
            self.sample.add([t[chosen] for t in (*inputs, class_indices)], keys[chosen])
            self.n_rows += len(class_indices)

    def add_scores(self, scores, keys, training):
        """Note the scores of rows, where scorers learn nothing; more than one for maps."""
        if not training.n_samples:
            return
        self.admit(training.classes)
        chosen = self.sample.choose(keys)
        self.sample.add([scores[chosen]], keys[chosen])
        self.n_rows += training.n_samples

    def merge(self, other):
        """Take in what was learned from other rows, which stays as it is."""
        if other.n_rows == 0:
            return
        if self.n_rows == 0:
            vars(self).update(vars(copy.deepcopy(other)), n_expected=self.n_expected)
            return
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
