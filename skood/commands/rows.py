"""Files of rows and folders of images, opened by what they are."""

import contextlib

import numpy as np

from skood.commands.arrays import ArrayRows
from skood.commands.images import IMAGE_OPTIONS, ImageRows, are_images
from skood.commands.tables import SUFFIXES, TableRows
from skood.data.labels import is_missing

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
    is_table, holds_images = path.lower().endswith(SUFFIXES), are_images(path)
    kinds = {
        ("label_column", "ignore"): (is_table, "tables, .csv or .parquet"),
        IMAGE_OPTIONS: (holds_images, "folders and lists of images"),
    }
    for names, (applies, kind) in kinds.items():
        for name in names:
            if not applies and getattr(options, name, None) is not None:
                option = name.replace("_", "-")
                raise ValueError(f"argument --{option}: only for {kind}, and not for {path!r}")
    if holds_images:
        if options.network is None:
            raise ValueError(f"{path!r} holds images, which need a network: --network FILE.pt2")
        return ImageRows(path, options)
    if is_table:
        return TableRows(path, options)
    return ArrayRows(path)


@contextlib.contextmanager
def telling(rows, start, X, y=None):
    """Say which rows of a file an error is about."""
    try:
        yield
    except (ValueError, TypeError) as error:
        text, where = str(error), f"rows {start} to {start + len(X) - 1}"
        if "Input y" in text:
            wrong = [is_missing(label) or label in (np.inf, -np.inf) for label in y]
            where = f"row {start + int(np.argmax(wrong))}"
            text = "its label is blank or no number. Label every row, OOD rows with -1"
        elif "NaN" in text or "infinity" in text:
            wrong = ~np.isfinite(np.asarray(X, float).reshape(len(X), -1)).all(axis=1)
            where = f"row {start + int(np.argmax(wrong))}"
            text = "it holds NaN or infinity. Leave such rows out, or fill them in"
        if "columns without numbers" in text:
            text += " In fit, --label-column NAME takes one as labels, and --ignore leaves it out."
        if isinstance(rows, ImageRows) and "of shape" in text:
            text += " Are --size, --mean and --std those of fit?"
        raise ValueError(f"{rows.path}, {where}: {text}") from error
