"""Files of rows and folders of images, opened by what they are."""

import contextlib

import numpy as np

from skood.commands.arrays import ArrayRows
from skood.commands.images import ImageRows, are_images
from skood.commands.tables import SUFFIXES, TableRows

# How much is read at once: text of scores, and sums in float64, take some times as much.
CHUNK_BYTES = 4 * 2**20
KINDS = ".npz, .npy, .csv or .parquet, or a folder or .txt list of images"


def open_rows(path, options):
    """Return the rows of a file or folder, to read in chunks.

    Returns
    -------
    rows : ArrayRows, TableRows or ImageRows
        With ``path``; ``n_rows``, None where it is not known before all are read; and
        ``chunks(n_bytes)``, which yields rows and labels, or None for these.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    if are_images(path):
        if options.network is None:
            raise ValueError(f"{path!r} holds images, which need a network: --network FILE.pt2")
        return ImageRows(path, options)
    if path.lower().endswith(SUFFIXES):
        return TableRows(path, options)
    for name in ("label_column", "ignore"):
        if getattr(options, name, None):
            raise ValueError(f"--{name.replace('_', '-')} is for .csv and .parquet, not {path!r}")
    return ArrayRows(path)


@contextlib.contextmanager
def telling(rows, start, X):
    """Say which rows of a file an error is about."""
    try:
        yield
    except (ValueError, TypeError) as error:
        text, where = str(error), f"rows {start} to {start + len(X) - 1}"
        if "NaN" in text or "infinity" in text:
            wrong = ~np.isfinite(np.asarray(X, float).reshape(len(X), -1)).all(axis=1)
            where = f"row {start + int(np.argmax(wrong))}"
            text = "it holds NaN or infinity. Leave such rows out, or fill them in"
        if "columns without numbers" in text:
            text += " In fit, --label-column NAME takes one as labels, and --ignore leaves it out."
        if isinstance(rows, ImageRows) and "of shape" in text:
            text += " Are --size, --mean and --std those of fit?"
        raise ValueError(f"{rows.path}, {where}: {text}") from error
