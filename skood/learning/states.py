"""What learning adds to: sums over rows, extremes and log-sums, in chunks that merge."""

import copy
from collections.abc import Callable

import numpy as np
import torch


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
        return {name: to_numpy_where_possible(value) for name, value in vars(self).items()}

    def __setstate__(self, state):
        vars(self).update({name: from_numpy(value) for name, value in state.items()})

    def __deepcopy__(self, memo):
        # Where it is, not by __getstate__ on the CPU.
        twin = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


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
    """The two smallest and two largest values of each column, for each of some groups of rows.

    Parameters
    ----------
    n_groups, n_columns : int
        The attributes `low` and `high` are (n_groups, 2, n_columns): the smallest first, and the
        largest first; ∞ and -∞ where there are fewer rows.
    dtype, device : torch.dtype, torch.device
        Of the columns.
    per_class : bool, default=False
        Whether the groups are the classes of y.
    """

    def __init__(self, n_groups, n_columns, dtype, device, per_class=False):
        # As the largest of -x the smallest are combined as the largest are.
        names = ("high", "negative_low")
        values = torch.full((2, n_groups, 2, n_columns), -torch.inf, dtype=dtype, device=device)
        super().__init__(names if per_class else (), **dict(zip(names, values, strict=True)))

    @staticmethod
    def combine(one, other):
        """Return the two largest of four, each two in descending order."""
        (first, second), (third, fourth) = one.unbind(-2), other.unbind(-2)
        rest = torch.maximum(torch.minimum(first, third), torch.maximum(second, fourth))
        return torch.stack([torch.maximum(first, third), rest], -2)

    neutral = -torch.inf

    @property
    def low(self):
        """The smallest values."""
        return -self.negative_low

    def update(self, values, groups):
        """Add rows (n_samples, n_columns), each to its group (n_samples,)."""
        # A batch holds few of many groups.
        present, groups = groups.unique(return_inverse=True)
        for kept, signed in ((self.high, values), (self.negative_low, -values)):
            kept[present] = self.combine(kept[present], two_largest(signed, groups, len(present)))


def two_largest(values, groups, n_groups):
    """Return the two largest values of each column in each group, (n_groups, 2, n_columns)."""
    n_rows, n_columns = values.shape
    index = groups[:, None].expand_as(values)
    none = values.new_full((n_groups, n_columns), -torch.inf)
    first = none.scatter_reduce(0, index, values, "amax")
    # One row that holds it; another may too.
    rows = torch.arange(n_rows, device=values.device)[:, None].expand_as(values)
    holds = torch.where(values == first[groups], rows, -1)
    holder = holds.new_full((n_groups, n_columns), -1).scatter_reduce(0, index, holds, "amax")
    rest = values.masked_fill(holder[groups] == rows, -torch.inf)
    return torch.stack([first, none.scatter_reduce(0, index, rest, "amax")], 1)


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


def to_numpy_where_possible(value):
    """Return a tensor as numpy where that has its dtype."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return value if value.dtype == torch.bfloat16 else value.numpy()


def from_numpy(value):
    """Return what `to_numpy_where_possible` made of a tensor, to be written to."""
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(value if value.flags.writeable else value.copy())
