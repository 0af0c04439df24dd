"""Any array library and device, as torch batches and back."""

from collections.abc import Iterator, Mapping, Sequence

import joblib
import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import assert_all_finite, check_array
from sklearn.utils.validation import validate_data

from skood._compat import array_api_dispatch, get_namespace_and_device, move_to, move_to_numpy
from skood.functional import all_finite

# A GPU waits for Python between batches: in a CPU's, energies took four times their own time.
FEATURE_BATCH_BYTES, GPU_FEATURE_BATCH_BYTES = 32 * 2**20, 256 * 2**20
# Temporaries of this size stay in cache. Those of a batch of 32 MiB are mapped anew each time: half
# of the time of ASH and GradNorm on features.
CHUNK_BYTES = 4 * 2**20
NETWORK_BATCH_ROWS = 128


def namespace_of(X):
    """Return the name of X's array library and its device, as strings."""
    if isinstance(X, (list, tuple)) or not array_api_dispatch():
        return "numpy", "cpu"
    xp, _, device = get_namespace_and_device(X)
    if "numpy" in xp.__name__ or device is None:
        return "numpy", "cpu"
    return xp.__name__, str(device)


def check_kind(X):
    """Raise if X is of a kind that holds no rows of numbers; no row is printed."""
    first = X[0] if isinstance(X, Sequence) and len(X) else None
    if isinstance(X, Iterator):
        raise TypeError(
            f"X is a {type(X).__name__}, which can be read once. Pass an array, or the Dataset or "
            "DataLoader itself;\npartial_fit learns from one batch after the other."
        )
    if type(X).__name__ == "LazyFrame":
        raise TypeError("X is a LazyFrame, which holds no rows yet. Pass X.collect().")
    if isinstance(first, str):
        raise TypeError(
            "X holds texts. Expected an array of numbers, (n_samples, n_features), or what the "
            "network takes.\nTokenize them, tokenizer(texts, padding=True, return_tensors='pt'), "
            "or embed them."
        )
    if isinstance(first, Mapping):
        raise TypeError(
            f"X is a list of {len(X)} dicts. Expected an array, or one dict of arrays whose rows "
            "belong together.\nMake it of the rows: torch.utils.data.default_collate(X)."
        )
    if any(type(part).__module__.split(".")[0] == "PIL" for part in (X, first)):
        raise TypeError(
            "X holds PIL images. Expected an array of shape (n_samples, C, H, W), scaled as in "
            "training.\nMake it by the network's transform: torch.stack([transform(image) for "
            "image in images])."
        )
    if isinstance(X, tuple) and len(X) and all(getattr(part, "ndim", 0) > 1 for part in X):
        raise TypeError(
            f"X is a tuple of {len(X)} arrays. Several inputs of a network go into a dict, under "
            "the names\nof its forward's arguments: {'input_ids': ..., 'attention_mask': ...}.\n"
            "Rows go into a list or an array."
        )
    if isinstance(X, Mapping) and hasattr(type(X), "column_names"):
        raise TypeError(
            f"X is a {type(X).__name__} of the splits {', '.join(map(str, X))}. Pass one of them: "
            f"X[{next(iter(X), None)!r}]."
        )


def check_tensor(X, name="X"):
    """Raise if a tensor is of a layout or dtype that cannot be read row by row."""
    if X.is_nested:
        kind, remedy = "a nested tensor", "Pad its rows to one size."
    elif X.layout is not torch.strided:
        kind, remedy = f"a sparse tensor, {X.layout}", f"Pass {name}.to_dense()."
    elif X.is_quantized:
        kind, remedy = f"quantised, {X.dtype}", f"Pass {name}.dequantize()."
    elif X.is_meta:
        kind, remedy = "on the meta device, which holds no numbers", "Load its data first."
    elif X.is_floating_point() and X.dtype.itemsize == 1:
        kind, remedy = f"of {X.dtype}, in which torch computes little", f"Pass {name}.float()."
    else:
        return
    raise TypeError(f"{name} is {kind}. Expected a dense tensor of numbers.\n{remedy}")


def check_row_shape(X, estimator):
    """Raise if rows of X, such as images, have not the shape of those of ``fit``."""
    shape, expected = getattr(X, "shape", None), getattr(estimator, "_row_shape", None)
    if shape is None or not expected or isinstance(expected[0], str):
        return
    shape = tuple(shape)
    if shape[1:] == expected or max(len(shape) - 1, len(expected)) < 2:
        # scikit-learn tells of numbers of features.
        return
    remedy = ""
    if shape == expected:
        remedy = "\nA single row is X[None]."
    elif (shape[-1], *shape[1:-1]) == expected:
        remedy = f"\n{describe_channels_first(X)}"
    raise ValueError(
        f"X has rows of shape {shape[1:]}, but {type(estimator).__name__} is expecting "
        f"{expected}, as in fit.{remedy}"
    )


def describe_channels_first(X):
    """Return in words how to move the channels of X in front of height and width."""
    how = "permute" if isinstance(X, torch.Tensor) else "transpose"
    axes = ", ".join(map(str, (0, X.ndim - 1, *range(1, X.ndim - 1))))
    return f"Its channels are last, and belong behind the rows: X.{how}({axes})."


def columns_without_numbers(X):
    """Return the names of a frame's columns that hold text, dates or the like."""
    names = []
    for name in X.columns if hasattr(X, "columns") and hasattr(X, "dtypes") else ():
        values = np.asarray(X[name])
        try:
            is_numeric = values.dtype.kind not in "mM" and values.astype(float) is not None
        except (TypeError, ValueError):
            is_numeric = False
        if not is_numeric:
            names.append(name)
    return names


def explain(error, X):
    """Return an error of scikit-learn's validation without rows, naming what is at fault."""
    names = columns_without_numbers(X)
    if names and any(map(np.ndim, np.asarray(X[names[0]])[:1])):
        return ValueError(
            f"X has a column of arrays, {names[0]}.\nPass them as one array, "
            f"np.stack(X[{names[0]!r}]), if they are of one shape."
        )
    if names:
        return ValueError(
            f"X has columns without numbers: {', '.join(map(str, names[:10]))}.\nEncode them, for "
            "example by sklearn.preprocessing.OneHotEncoder, or leave them out."
        )
    if str(error).startswith("setting an array element with a sequence"):
        return ValueError(
            f"X is a {type(X).__name__} whose rows are arrays, or lists of several lengths.\nPass "
            "one array, np.stack(list(X)), if they are of one shape."
        )
    lines = str(error).split("\n")
    if "array=" in str(error) or lines[0].startswith("Complex data"):
        lines = [lines[0], *(line for line in lines if line.startswith("Reshape your data"))]
        if isinstance(X, (list, tuple)) and len(X):
            lines.insert(1, f"X is a {type(X).__name__} of {type(X[0]).__name__}.")
        elif not hasattr(X, "ndim"):
            lines.insert(1, f"X is a {type(X).__name__}.")
        return ValueError("\n".join(lines))
    return error


def is_named(X):
    """Tell a dict of arrays from an array; scipy's dok_array is a dict too."""
    return isinstance(X, Mapping) and not issparse(X)


def as_in_fit(X, estimator):
    """Return one input under a name or without one, as ``fit`` was given it."""
    expected = getattr(estimator, "_row_shape", None) or (None,)
    by_name = isinstance(expected[0], str)
    if len(expected) == 1 and by_name and not is_named(X):
        return {expected[0]: X}
    if is_named(X) and len(X) == 1 and not by_name and expected[0] is not None:
        return next(iter(X.values()))
    return X


def as_array(values, name):
    """Return one entry of a dict as a tensor or an ndarray of numbers."""
    if isinstance(values, torch.Tensor):
        check_tensor(values, name)
        return values.detach()
    try:
        return check_array(
            values, dtype="numeric", allow_nd=True, ensure_2d=False, ensure_all_finite=False
        )
    except (ValueError, TypeError) as error:
        raise TypeError(
            f"{name} holds no numbers, or rows of several shapes: {str(error)[:80]}.\nTokenize "
            "texts, pad rows to one shape, and leave out what the network does not take."
        ) from None


def check_named(columns, estimator, reset, min_samples):
    """Check that the entries of a dict have rows that go together; return their number."""
    name = type(estimator).__name__
    lengths = {key: len(column.data) for key, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"X is a dict whose entries have different numbers of rows: {lengths}.")
    n_samples = next(iter(lengths.values()))
    if n_samples < min_samples:
        raise ValueError(
            f"Found array with {n_samples} sample(s) in X while a minimum of {min_samples} is "
            f"required by {name}."
        )
    if reset:
        vars(estimator).pop("feature_names_in_", None)
        estimator.n_features_in_ = len(columns)
    return n_samples


class _Column:
    """An array that is read in blocks of rows, as tensors of finite numbers.

    Parameters
    ----------
    data : ndarray or Tensor
        With rows along the first axis; not written to.
    owner : str
        Whose input it is, for messages.
    name : str, default="X"
        What to call it in messages.
    """

    def __init__(self, data, owner, name="X"):
        self.data, self.owner, self.name = data, owner, name
        self.is_tensor = isinstance(data, torch.Tensor)
        self.device = data.device if self.is_tensor else torch.device("cpu")
        kind = data.dtype if self.is_tensor else data.dtype.newbyteorder("=")
        self.is_float32 = kind in (torch.float32, np.float32)

    def __getitem__(self, index):
        """Return rows, chosen by a slice or by an array of integers."""
        if self.is_tensor:
            # from_numpy stays on the CPU, whatever torch.set_default_device says.
            block = self.data[index if isinstance(index, slice) else torch.from_numpy(index)]
        else:
            block = self.data[index]
            if block.dtype.kind == "u" and block.dtype.itemsize > 1:
                # torch knows few operations on these; token ids stay integers.
                block = block.astype(np.int64)
            if block.dtype.itemsize > 8:
                block = block.astype(np.float64)
            # torch takes neither foreign byte order nor negative strides, and warns of read-only.
            if not (block.flags.writeable and block.dtype.isnative and min(block.strides) >= 0):
                block = np.array(block, dtype=block.dtype.newbyteorder("="), order="C")
            block = torch.from_numpy(block)
        if block.is_floating_point() and not all_finite(block):
            assert_all_finite(
                block.double().cpu().numpy(), estimator_name=self.owner, input_name=self.name
            )
        return block


def move(batch, device, dtype, copy=False):
    """Return a batch on a device and in a dtype; integers of a dict stay what they are."""
    if isinstance(batch, dict):
        return {
            name: move(part, device, dtype if part.is_floating_point() else part.dtype, copy)
            for name, part in batch.items()
        }
    to_gpu = torch.device(device).type == "cuda" and batch.device.type == "cpu"
    if to_gpu:
        # A copy from pinned memory does not wait for the GPU to finish the batch before.
        batch = batch.pin_memory()
    moved = batch.to(device, dtype, copy=copy, non_blocking=to_gpu)
    narrower = batch.is_floating_point() and moved.dtype.itemsize < batch.dtype.itemsize
    if narrower and not torch.compiler.is_exporting() and not all_finite(moved):
        raise ValueError(
            f"X holds numbers beyond {moved.dtype}, in which the network computes, though not "
            f"beyond its own {batch.dtype}. Scale it."
        )
    return moved


class Rows:
    """The rows of X: validated, never written to, read batch by batch.

    Parameters
    ----------
    estimator : BaseEstimator
        Whose ``n_features_in_`` is set or compared.
    X : array-like of shape (n_samples, n_features, ...), or dict of such
        Any array library, dtype and device. The rows of a dict belong together.
    reset : bool
        True in ``fit``.
    min_samples : int, default=1
        Fewer rows are an error.
    """

    def __init__(self, estimator, X, *, reset, min_samples=1):
        owner = type(estimator).__name__
        check_kind(X)
        X = X if reset else as_in_fit(X, estimator)
        self.is_named = is_named(X)
        if self.is_named:
            self.namespace, self.native_device, self._native = "numpy", "cpu", None
            self._columns = {
                name: _Column(as_array(values, f"X[{name!r}]"), owner, f"X[{name!r}]")
                for name, values in X.items()
            }
            self.n_samples = check_named(self._columns, estimator, reset, min_samples)
            # Texts of one batch are padded to its longest: their width is no property of X.
            self.row_shape = tuple(sorted(self._columns))
        else:
            self.namespace, self.native_device = namespace_of(X)
            self._native = X if self.namespace != "numpy" else None
            data = self._validate(estimator, X, reset, min_samples)
            self._columns = {None: _Column(data, owner)}
            self.n_samples = len(data)
            self.row_shape = tuple(data.shape[1:])
        self.device = next(iter(self._columns.values())).device
        is_float32 = all(column.is_float32 for column in self._columns.values())
        self.dtype = torch.float32 if is_float32 else torch.float64

    def _validate(self, estimator, X, reset, min_samples):
        """Return X as an ndarray or a tensor, checked but for NaN."""
        checks = {
            "reset": reset,
            "dtype": "numeric",
            "ensure_all_finite": False,
            "allow_nd": True,
            "ensure_min_samples": min_samples,
        }
        if isinstance(X, torch.Tensor):
            check_tensor(X)
        if not reset:
            check_row_shape(X, estimator)
        if isinstance(X, torch.Tensor):
            dtype = np.dtype(complex if X.is_complex() else float)
            # scikit-learn checks the shape on a stand-in of no memory: numpy knows neither the
            # GPU nor bfloat16.
            self._validate_array(estimator, np.broadcast_to(np.zeros((), dtype), X.shape), checks)
            return X.detach()
        X = X if self._native is None else move_to_numpy(X)
        return self._validate_array(estimator, X, checks)

    @staticmethod
    def _validate_array(estimator, X, checks):
        """Let scikit-learn validate X, and tell what is wrong without printing rows."""
        try:
            data = validate_data(estimator, X, **checks)
            if data.dtype.kind not in "biuf":
                raise TypeError(f"X holds {data.dtype}, not numbers.")
        except (ValueError, TypeError) as error:
            explained = explain(error, X)
            if explained is error:
                raise
            raise explained from None
        return data

    def __len__(self):
        return self.n_samples

    def _block(self, index):
        if self.is_named:
            return {name: column[index] for name, column in self._columns.items()}
        return self._columns[None][index]

    def take(self, rows):
        """Return these rows as a CPU tensor of X's own dtype, or a dict of such."""
        block = self._block(rows)
        return {n: part.cpu() for n, part in block.items()} if self.is_named else block.cpu()

    def hash(self):
        """Return a key of the content."""
        keys = []
        for name, column in self._columns.items():
            size = feature_batch_rows(column.data[:1].nbytes)
            blocks = (column[start : start + size] for start in range(0, self.n_samples, size))
            keys.append((name, [joblib.hash(move_to_numpy(block)) for block in blocks]))
        return joblib.hash(keys)

    def n_batches(self, batch_size):
        """Return the number of batches."""
        return -(-self.n_samples // batch_size)

    def batches(self, batch_size, *, device, dtype, rows=None, own=False):
        """Yield ``(positions, batch)``; with `own` no batch shares memory with X."""
        n_rows = self.n_samples if rows is None else len(rows)
        all_rows = n_rows == self.n_samples
        for start in range(0, n_rows, batch_size):
            positions = slice(start, min(start + batch_size, n_rows))
            block = self._block(positions if all_rows else rows[positions])
            # Rows that were picked are a copy already.
            yield positions, move(block, device, dtype, copy=own and all_rows)

    def like(self, values):
        """Return a tensor of results in X's array library and on its device."""
        if isinstance(self._native, torch.Tensor):
            return values.to(self._native.device)
        values = values.cpu().numpy()
        if self._native is not None:
            xp, _, device = get_namespace_and_device(self._native)
            values = move_to(values, xp=xp, device=device)
        return values


def feature_batch_rows(row_bytes, n_bytes=FEATURE_BATCH_BYTES):
    """Return how many rows of this size fill 32 MiB, or another number of bytes."""
    return max(1, n_bytes // max(1, row_bytes))
