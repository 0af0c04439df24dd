"""Data that comes in batches, a torch Dataset or DataLoader, as rows of X and labels."""

import inspect
from collections.abc import Mapping
from functools import cached_property
from inspect import Parameter

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from skood._compat import move_to_numpy
from skood._warnings import warn
from skood.data.arrays import NETWORK_BATCH_ROWS, Rows, is_named
from skood.data.labelled_rows import LabelledRows
from skood.data.labels import as_labels, encode_labels, is_label_map, is_ood
from skood.data.store import TensorStore

LABEL_NAMES = ("labels", "label")


def is_stream(X):
    """Tell data that comes in batches from arrays."""
    return isinstance(X, (Dataset, DataLoader)) or is_hugging_face(X)


def is_hugging_face(X):
    """Tell a Dataset of Hugging Face's package, without importing it, from a dict of them."""
    # Of the class: a dask Delayed has any attribute.
    names = ("column_names", "features", "with_format")
    return all(hasattr(type(X), name) for name in names) and not isinstance(X, Mapping)


def as_loader(X, batch_size):
    """Return a DataLoader as it is, or one that reads a Dataset in its order."""
    if isinstance(X, DataLoader):
        return X
    if is_hugging_face(X) and (getattr(X, "format", None) or {}).get("type") is None:
        # Its rows are lists and PIL images, unless a format or a transform was chosen.
        X = X.with_format("torch")
    # A generator of its own: to iterate must not draw from torch's global one.
    return DataLoader(X, batch_size or NETWORK_BATCH_ROWS, generator=torch.Generator())


def is_shuffled(X):
    """Tell a DataLoader whose rows come in a random order."""
    sampler = getattr(X, "batch_sampler", None)
    sampler = getattr(X, "sampler", None) if sampler is None else sampler
    while hasattr(sampler, "sampler"):
        sampler = sampler.sampler
    random = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
    # DistributedSampler says so itself.
    return isinstance(sampler, random) or bool(getattr(sampler, "shuffle", False))


def n_dropped(loader):
    """Return how many rows a DataLoader with ``drop_last`` leaves out, 0 if it cannot be told."""
    batches = loader.batch_sampler
    try:
        return len(batches.sampler) % batches.batch_size if batches.drop_last else 0
    except (AttributeError, TypeError, NotImplementedError):
        return 0


def takes_by_name(model, name):
    """Tell whether the forward of a network has an argument of this name."""
    model = model.estimator if isinstance(model, FrozenEstimator) else model
    for wrapper in ("module", "_orig_mod"):
        model = getattr(model, wrapper, model)
    forward = getattr(model, "forward", None)
    parameters = {} if forward is None else inspect.signature(forward).parameters
    # Networks of Hugging Face swallow any other name as one of **kwargs.
    return name in parameters or {p.kind for p in parameters.values()} == {Parameter.VAR_KEYWORD}


def split_batch(batch):
    """Return X and y of a batch: a pair, a dict with an entry of labels, or X alone."""
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        for name, values in inputs.items():
            if isinstance(values, (list, tuple)) and isinstance(values[0], torch.Tensor):
                raise TypeError(
                    f"The batches' entry {name!r} is a list of {len(values)} tensors, since the "
                    "rows of the Dataset are lists.\nLet it give tensors: "
                    "dataset.with_format('torch')."
                )
        name = next((name for name in LABEL_NAMES if name in inputs), None)
        return inputs, inputs.pop(name, None)
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) > 2:
        raise TypeError(
            f"The batches of X have {len(batch)} entries; they must be (X, y), X alone, or a dict "
            "whose entry 'labels' holds y.\nOf (X, y, metadata) take the first two: "
            "DataLoader(..., collate_fn=lambda rows: default_collate([row[:2] for row in rows])).\n"
            "Several inputs go into a dict, by name."
        )
    return batch if len(batch) == 2 else (batch[0], None)


def read_batches(loader):
    """Yield the batches of a DataLoader; say what to do where its rows make none."""
    name = type(loader.dataset).__name__
    try:
        yield from loader
    except TypeError as error:
        if "default_collate:" not in str(error):
            raise
        raise TypeError(
            f"The items of {name} make no batch: {str(error).rstrip().rpartition('; ')[2]}."
            "\nThey must be tensors or arrays of one shape, with numbers or words as labels.\n"
            "For PIL images give it transform=torchvision.transforms.ToTensor()."
        ) from None
    except RuntimeError as error:
        if "stack expects each tensor to be equal size" not in str(error):
            raise
        raise ValueError(
            f"The items of {name} make no batch: {str(error).split('but ')[-1]}.\nResize images. "
            "Pad texts, DataLoader(..., collate_fn=DataCollatorWithPadding(tokenizer)) of "
            "transformers."
        ) from None


class Stream:
    """The rows of a Dataset or DataLoader, read once and in its order.

    Parameters
    ----------
    estimator : BaseEstimator
        Whose ``n_features_in_`` is set or compared.
    data : Dataset or DataLoader
        Gives batches of X, of (X, y), or dicts.
    y : array-like of shape (n_samples,) or None
        Labels to use in place of the batches'.
    batch_size : int or None
        Rows a batch of a Dataset.
    reset : bool
        True in ``fit``.
    least : int, default=None
        To learn from: rows that are out-of-distribution are left out, fewer rows are an error.
    ordered : bool, default=False
        Warn if the order is random.
    """

    # Results are numpy arrays, whatever the batches are.
    namespace = native_device = None
    # Nor is their number known before they are read.
    n_samples = None

    def __init__(self, estimator, data, y=None, *, batch_size, reset, least=None, ordered=False):
        self._estimator, self._least = estimator, least
        self._given = y if y is None or is_label_map(y) else as_labels(y)
        data = as_loader(data, batch_size)
        if is_shuffled(data):
            self._check_shuffled(ordered)
        if dropped := n_dropped(data):
            warn(
                f"drop_last=True: {dropped} rows of X, which do not fill a batch, are not read. "
                "Use a loader with drop_last=False."
            )
        self._loader, self._labels, self._last = data, [], None
        self._n_read = self._n_kept = self._n_labelled = 0
        # Whether label maps are handed on with their batch alone; all of them take more than X.
        self.forgets_maps = False
        self._pairs = map(self._split, read_batches(data))
        self._first = next(self._pairs, None)
        if self._first is None:
            raise ValueError(f"X is a {type(data.dataset).__name__} without a single batch.")
        rows = Rows(estimator, self._first[0], reset=reset)
        self._head, self.row_shape = rows, rows.row_shape
        self.dtype, self.device, self.is_named = rows.dtype, rows.device, rows.is_named

    def _check_shuffled(self, ordered):
        """Raise if labels of another order are given; warn if the order of results matters."""
        if self._given is not None:
            raise ValueError(
                "The DataLoader shuffles, so that y cannot be in the order of its rows.\nLet its "
                "batches hold the labels, or pass the Dataset, or a loader with shuffle=False."
            )
        if ordered:
            warn(
                "The DataLoader shuffles: results come in the order of its batches, which is not "
                "that of the Dataset. Pass the Dataset, or a loader with shuffle=False."
            )

    def _split(self, batch):
        """Return X and y of a batch; one input that the network does not name is an array."""
        X, y = split_batch(batch)
        if is_named(X) and len(X) == 1:
            name = next(iter(X))
            X = X if takes_by_name(self._estimator._given_model, name) else X[name]
        return X, y

    def head(self, n_rows):
        """Return the first rows as a CPU tensor of X's own dtype, or a dict of such."""
        return self._head.take(np.arange(min(n_rows, len(self._head))))

    def n_batches(self, batch_size):
        """Return the number of batches; None if it is not known."""
        try:
            return len(self._loader)
        except TypeError:
            return None

    def _rows(self):
        """Yield the checked rows of each batch and which of them to take, None for all."""
        pair = self._first
        while pair is not None:
            X, y = pair
            rows = Rows(self._estimator, X, reset=False) if self._n_read else self._head
            if rows.row_shape != self.row_shape:
                raise ValueError(
                    f"The batches of X have rows of shape {self.row_shape} and {rows.row_shape}."
                )
            start, self._n_read = self._n_read, self._n_read + len(rows)
            y = y if self._given is None else self._given[start : self._n_read]
            yield rows, self._keep(y, len(rows))
            pair = next(self._pairs, None)
        self._first = None
        if self._given is not None and len(self._given) != self._n_read:
            raise ValueError(f"y has {len(self._given)} labels, but X gives {self._n_read} rows.")
        if self._least is not None:
            self._check_enough()

    def _check_enough(self):
        """Raise unless there are rows enough to fit."""
        if self._n_read < self._least:
            raise ValueError(
                f"Found {self._n_read} sample(s) in X while a minimum of {self._least} is "
                f"required by {type(self._estimator).__name__}."
            )
        _ = self._encoded

    def _keep(self, y, n_rows):
        """Note the labels of a batch; return the rows to take, None for all."""
        self._last = y
        if y is None:
            return None
        self._last = y = move_to_numpy(y) if is_label_map(y) else as_labels(y)
        if len(y) != n_rows:
            raise ValueError(f"A batch of X has {n_rows} rows and {len(y)} labels.")
        self._n_labelled += n_rows
        self._labels.append(y[:0] if self.forgets_maps and is_label_map(y) else y)
        return np.flatnonzero(~is_ood(y)) if self._least is not None and y.ndim == 1 else None

    def batches(self, batch_size, *, device, dtype, own=False):
        """Yield ``(positions, batch)``, in batches of the loader's size."""
        for rows, kept in self._rows():
            if kept is not None and len(kept) == 0:
                continue
            for _, batch in rows.batches(len(rows), device=device, dtype=dtype, rows=kept, own=own):
                start, n_rows = self._n_kept, len(rows) if kept is None else len(kept)
                self._n_kept += n_rows
                yield slice(start, self._n_kept), batch

    def gather(self):
        """Return all rows as `LabelledRows`, for a model that is fitted to them."""
        store = TensorStore()
        for rows, _ in self._rows():
            columns = rows.take(np.arange(len(rows)))
            names = sorted(columns) if self.is_named else None
            store.append([columns[n] for n in names] if self.is_named else [columns])
        arrays = [move_to_numpy(tensor) for tensor in store.tensors]
        X = dict(zip(names, arrays, strict=True)) if self.is_named else arrays[0]
        return LabelledRows(Rows(self._estimator, X, reset=False), self.labels)

    def labels_of(self, positions):
        """Return the labels of the last batch, as `LabelledRows` does."""
        maps = self._last if is_label_map(self._last) else None
        y = None if maps is not None else self._last
        n_rows = positions.stop - positions.start if y is None else len(y)
        return maps, *encode_labels(y, n_rows, 0)[1:]

    @property
    def labels(self):
        """The labels of all rows, in order, once they have been read; None without."""
        if not self._labels:
            return None
        if self._n_labelled != self._n_read:
            raise ValueError("Some batches of X come with labels and some without.")
        return np.concatenate(self._labels)

    @property
    def maps(self):
        """The labels of pixels; None where labels are those of rows."""
        return self.labels if is_label_map(self.labels) else None

    @cached_property
    def _encoded(self):
        labels = None if self.maps is not None else self.labels
        return encode_labels(labels, self._n_read, 2 if self._least else 0)

    @property
    def classes(self):
        """The in-distribution labels, sorted, or None, as in `LabelledRows`."""
        return self._encoded[1]

    @property
    def class_indices(self):
        """The class of each in-distribution row, as in `LabelledRows`."""
        return self._encoded[2]

    def __len__(self):
        return self._n_kept

    def like(self, values):
        """Return a tensor of results as numpy."""
        return values.cpu().numpy()
