"""Rows in `.npy` and `.npz` files."""

import contextlib
import itertools
import math
import textwrap
import zipfile

import numpy as np

from skood.data.arrays import feature_batch_rows


def read_rows(path):
    """Read a file of rows; raise a ValueError that says what is wrong with it.

    Returns
    -------
    X : ndarray of shape (n_samples, n_features)
        The array "X", or the only one.
    y : ndarray of shape (n_samples,) or None
        The array "y".
    """
    with reading(path):
        # Never pickles: a file from elsewhere could run code.
        loaded = np.load(path, allow_pickle=False)
        arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"X": loaded}
    y = arrays.pop("y", None)
    X = arrays[name_of_rows(arrays, path)]
    check_rows(X.shape, X.dtype, y, path)
    return X, y


class CutOff(ValueError):
    """A file ends before its rows do."""


@contextlib.contextmanager
def reading(path):
    """Say which file cannot be read."""
    try:
        yield
    except CutOff:
        raise
    except OSError as error:
        reason = error.strerror or "it is neither .npz nor .npy"
        raise ValueError(f"cannot read {path!r}: {reason}") from error
    except MemoryError as error:
        raise ValueError(f"cannot read {path!r}: that takes more memory than there is") from error
    except Exception as error:
        # numpy, zipfile, zlib and ast each have errors of their own for damaged content.
        raise ValueError(
            f"cannot read {path!r}: it must be an .npz or .npy file of numbers, written by "
            "numpy.savez(file, X=..., y=...) or numpy.save (no pickled objects)"
        ) from error


def name_of_rows(names, path):
    """Return the name of the array of rows: X, or the only one beside y."""
    names = [name for name in names if name != "y"]
    if "X" not in names and len(names) != 1:
        found = textwrap.shorten(", ".join(names) or "nothing", 100, placeholder=" ...")
        raise ValueError(f"{path!r} holds {found}: one array must be called X")
    return "X" if "X" in names else names[0]


def check_rows(shape, dtype, y, path):
    """Raise unless an array of this shape and dtype can be X, and y its labels."""
    if len(shape) < 2 or dtype.kind not in "biuf" or shape[0] == 0:
        raise ValueError(
            f"X in {path!r} must hold numbers in rows, (n_samples, n_features); it has shape "
            f"{shape} and dtype {dtype}"
        )
    if y is not None and y.shape != shape[:1]:
        raise ValueError(
            f"y in {path!r} has shape {y.shape}; X has {shape[0]} rows, each needs one label"
        )


def read_labels(path):
    """Return an array of labels, the array "y" or the only one of a file."""
    with reading(path):
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(loaded, np.lib.npyio.NpzFile):
            loaded = loaded[
                "y" if "y" in loaded.files or len(loaded.files) != 1 else loaded.files[0]
            ]
    if loaded.ndim != 1:
        raise ValueError(f"{path!r} must hold a label for each row; it has shape {loaded.shape}")
    return loaded


class RowsOfFile:
    """Rows that all have the name of one file."""

    path: str

    def names(self, start, stop):
        """Return what each of some rows is called."""
        return itertools.repeat(self.path, stop - start)


class ArrayRows(RowsOfFile):
    """The rows of an `.npy` or `.npz` file, in chunks.

    They are read, and not mapped into memory: pages that are mapped count as memory of the
    process as long as nothing else needs that.

    Attributes
    ----------
    n_rows : int
        How many there are.
    """

    def __init__(self, path):
        self.path, self.y, self._member, names = path, None, None, []
        with reading(path):
            if zipfile.is_zipfile(path):
                with np.load(path, allow_pickle=False) as archive:
                    names = archive.files
                    self.y = archive["y"] if "y" in names else None
        if names:
            self._member = name_of_rows(names, path)
        with self._opened() as (_, shape, self._by_columns, dtype):
            self.shape, self.dtype = shape, dtype
        check_rows(self.shape, self.dtype, self.y, path)
        self.n_rows = shape[0]

    @contextlib.contextmanager
    def _opened(self):
        """Yield the file behind the header of the array, its shape, order and dtype."""
        with reading(self.path), contextlib.ExitStack() as stack:
            file = stack.enter_context(open(self.path, "rb"))
            if self._member is not None:
                archive = stack.enter_context(np.load(file, allow_pickle=False))
                file = stack.enter_context(archive.zip.open(f"{self._member}.npy"))
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            yield file, *read_header(file)

    def chunks(self, n_bytes):
        """Yield rows and their labels, None without."""
        if self._by_columns:
            # A row lies all over the file.
            X, _ = read_rows(self.path)
            yield X, self.y
            return
        n_at_once = feature_batch_rows(self.dtype.itemsize * math.prod(self.shape[1:]), n_bytes)
        with self._opened() as (file, *_):
            for start in range(0, self.n_rows, n_at_once):
                stop = min(start + n_at_once, self.n_rows)
                X = np.empty((stop - start, *self.shape[1:]), self.dtype)
                if file.readinto(memoryview(X).cast("B")) != X.nbytes:
                    raise CutOff(f"{self.path!r} is cut off: it has fewer than {stop} rows")
                yield X, None if self.y is None else self.y[start:stop]
