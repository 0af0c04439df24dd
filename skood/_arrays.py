"""Any array library and device, as torch batches and back."""

import tempfile

import numpy as np
import torch
from sklearn import get_config
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import validate_data

from skood._compat import array_api_dispatch, get_namespace_and_device, move_to, move_to_numpy

FEATURE_BATCH_BYTES = 32 * 2**20
NETWORK_BATCH_ROWS = 128


def namespace_of(X):
    """Return the name of X's array library and its device, as strings."""
    if isinstance(X, (list, tuple)) or not array_api_dispatch():
        return "numpy", "cpu"
    xp, _, device = get_namespace_and_device(X)
    if "numpy" in xp.__name__ or device is None:
        return "numpy", "cpu"
    return xp.__name__, str(device)


class Rows:
    """The rows of X: validated, never written to, read batch by batch.

    Parameters
    ----------
    estimator : BaseEstimator
        Whose ``n_features_in_`` is set or compared.
    X : array-like of shape (n_samples, n_features, ...)
        Any array library, dtype and device.
    reset : bool
        True in ``fit``.
    min_samples : int, default=1
        Fewer rows are an error.
    """

    def __init__(self, estimator, X, *, reset, min_samples=1):
        self.namespace, self.native_device = namespace_of(X)
        self._native = X if self.namespace != "numpy" else None
        checks = {
            "reset": reset,
            "dtype": "numeric",
            "ensure_all_finite": False,
            "allow_nd": True,
            "ensure_min_samples": min_samples,
        }
        if isinstance(X, torch.Tensor):
            self._data = X.detach()
            dtype = np.dtype(complex if X.is_complex() else float)
            # scikit-learn checks the shape on a stand-in of no memory: numpy knows neither the
            # GPU nor bfloat16.
            validate_data(estimator, np.broadcast_to(np.zeros((), dtype), X.shape), **checks)
        else:
            if self._native is not None:
                X = move_to_numpy(X)
            self._data = validate_data(estimator, X, **checks)
        self._name = type(estimator).__name__
        self.shape = tuple(self._data.shape)
        self.n_samples = self.shape[0]
        if self._is_tensor:
            is_float32 = self._data.dtype == torch.float32
        else:
            is_float32 = self._data.dtype.newbyteorder("=") == np.float32
        self.dtype = torch.float32 if is_float32 else torch.float64

    def __len__(self):
        return self.n_samples

    @property
    def device(self):
        """The device of a tensor; the CPU for everything else."""
        return self._data.device if self._is_tensor else torch.device("cpu")

    @property
    def _is_tensor(self):
        return isinstance(self._data, torch.Tensor)

    def take(self, rows):
        """Return these rows as a CPU tensor of X's own dtype."""
        block = self._data[torch.as_tensor(rows)] if self._is_tensor else self._data[rows]
        return self._as_tensor(block).cpu()

    def batches(self, batch_size, *, device, dtype, rows=None, own=False):
        """Yield ``(start, batch)``; with `own` no batch shares memory with X."""
        n_rows = self.n_samples if rows is None or len(rows) == self.n_samples else len(rows)
        for start in range(0, n_rows, batch_size):
            stop = min(start + batch_size, n_rows)
            if n_rows == self.n_samples:
                block, copy = self._data[start:stop], own
            else:
                index = rows[start:stop]
                block = self._data[torch.as_tensor(index) if self._is_tensor else index]
                copy = False
            yield start, self._as_tensor(block).to(device, dtype, copy=copy)

    def _as_tensor(self, block):
        """Return a block of rows as a tensor of finite numbers."""
        if not self._is_tensor:
            if block.dtype.kind == "u" and block.dtype.itemsize > 1 or block.dtype.itemsize > 8:
                block = block.astype(np.float64)
            # torch takes neither foreign byte order nor negative strides, and warns of read-only.
            if not (block.flags.writeable and block.dtype.isnative and min(block.strides) >= 0):
                block = np.array(block, dtype=block.dtype.newbyteorder("="), order="C")
            block = torch.from_numpy(block)
        if block.is_floating_point() and not bool(torch.isfinite(block).all()):
            assert_all_finite(
                block.double().cpu().numpy(), estimator_name=self._name, input_name="X"
            )
        return block

    def like(self, values):
        """Return a tensor of results in X's array library and on its device."""
        if isinstance(self._native, torch.Tensor):
            return values.to(self._native.device)
        values = values.cpu().numpy()
        if self._native is not None:
            xp, _, device = get_namespace_and_device(self._native)
            values = move_to(values, xp=xp, device=device)
        return values


class TensorStore:
    """Rows of tensors: in memory up to ``working_memory``, beyond that in a temporary file.

    The file has no name and is gone with the store, also when the process is killed.

    Parameters
    ----------
    n_rows : int
        How many rows will be appended.
    """

    def __init__(self, n_rows):
        self._n_rows = n_rows
        self._filled = 0
        self._tensors = None

    def append(self, tensors):
        """Add a batch: a tuple of tensors with equal numbers of rows."""
        if self._tensors is None:
            row_bytes = sum(t[0].numel() * t.element_size() for t in tensors)
            in_memory = row_bytes * self._n_rows <= get_config()["working_memory"] * 2**20
            self._tensors = [self._allocate(tensor, in_memory) for tensor in tensors]
        stop = self._filled + len(tensors[0])
        for kept, tensor in zip(self._tensors, tensors, strict=True):
            kept[self._filled : stop] = tensor.cpu()
        self._filled = stop

    def _allocate(self, tensor, in_memory):
        shape = (self._n_rows, *tensor.shape[1:])
        if in_memory:
            return torch.empty(shape, dtype=tensor.dtype)
        dtype = np.float64 if tensor.dtype == torch.float64 else np.float32
        return torch.from_numpy(np.memmap(tempfile.TemporaryFile(), dtype, "w+", shape=shape))

    def batches(self, batch_size, device):
        """Yield ``(start, tensors)``."""
        for start in range(0, self._n_rows, batch_size):
            yield start, tuple(t[start : start + batch_size].to(device) for t in self._tensors)

    def take(self, rows, device):
        """Return these rows of each tensor."""
        return tuple(tensor[torch.as_tensor(rows)].to(device) for tensor in self._tensors)

    @property
    def row_bytes(self):
        """How many bytes a row takes."""
        return sum(t[0].numel() * t.element_size() for t in self._tensors)


def feature_batch_rows(row_bytes):
    """Return how many rows of this size fill 32 MiB: in cache no longer, but far from memory."""
    return max(1, FEATURE_BATCH_BYTES // max(1, row_bytes))
