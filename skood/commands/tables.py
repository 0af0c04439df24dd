"""Rows in CSV and parquet files, read in chunks."""

import contextlib
import zlib

from skood._warnings import warn
from skood.commands.arrays import RowsOfFile
from skood.data.arrays import feature_batch_rows

SUFFIXES = (".csv", ".csv.gz", ".parquet")


def import_optional(name, what):
    """Return a package that files of one kind need."""
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"{what} need {package}: pip install {package}") from error


class TableRows(RowsOfFile):
    """The rows of a CSV or parquet file, as DataFrames with the names of its columns.

    Parameters
    ----------
    path : str
        A CSV file whose first line is all numbers has no names.
    options : Namespace
        ``label_column``, one that holds labels; ``ignore``, names of others to leave out.
    """

    def __init__(self, path, options):
        self.path, self.label = path, getattr(options, "label_column", None)
        self.ignored = getattr(options, "ignore", None) or []
        self.pandas = import_optional("pandas", "CSV and parquet files")
        with self._reading():
            if path.lower().endswith(".parquet"):
                parquet = import_optional("pyarrow.parquet", "parquet files")
                self._file, self._header = parquet.ParquetFile(path), 0
                self.n_rows = self._file.metadata.num_rows
                self.columns = self._file.schema_arrow.names
            else:
                self._file, self.n_rows = None, None
                first = self.pandas.read_csv(path, header=None, nrows=1, dtype=str)
                cells = first.iloc[0].dropna()
                # As pandas writes columns without names.
                counted = len(cells) > 1 and cells.tolist() == list(map(str, range(len(cells))))
                is_data = self.pandas.to_numeric(cells, errors="coerce").notna().all()
                self._header = None if is_data and not counted else 0
                names = self.pandas.read_csv(path, nrows=0).columns
                self.columns = list(map(str, range(len(names)) if self._header is None else names))
        if self.label is not None and self.label in self.ignored:
            raise ValueError(f"{self.label!r} is named by both --label-column and --ignore")
        index = "Unnamed: 0"
        if hasattr(options, "ignore") and index in self.columns and index not in self.ignored:
            warn(
                f"The first column of {path!r} has no name and counts as a feature. If it holds "
                f"row numbers, as pandas writes them, leave it out: --ignore {index!r}."
            )
        for name in [*([] if self.label is None else [self.label]), *self.ignored]:
            if name not in self.columns:
                raise ValueError(
                    f"{path!r} has no column {name!r}; it has {', '.join(self.columns)[:200]}"
                )

    @contextlib.contextmanager
    def _reading(self):
        """Say which file cannot be read."""
        try:
            yield
        except (ValueError, OSError, EOFError, zlib.error) as error:
            # Those of pandas and pyarrow are ValueErrors.
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot read {self.path!r}: {reason}") from error

    def _frames(self, n_rows):
        """Yield DataFrames."""
        if self._file is not None:
            for batch in self._file.iter_batches(batch_size=n_rows):
                yield batch.to_pandas()
            return
        with self.pandas.read_csv(self.path, header=self._header, chunksize=n_rows) as frames:
            for frame in frames:
                yield frame.rename(columns=str)

    def chunks(self, n_bytes):
        """Yield rows and their labels, None without."""
        n_at_once = feature_batch_rows(8 * len(self.columns), n_bytes)
        frames, is_empty = self._frames(n_at_once), True
        while True:
            with self._reading():
                frame = next(frames, None)
            if frame is None:
                break
            if not len(frame):
                continue
            is_empty = False
            y = None if self.label is None else frame.pop(self.label).to_numpy()
            frame = frame.drop(columns=self.ignored)
            # Without names it is an array.
            yield frame.to_numpy() if self._header is None else frame, y
        if is_empty:
            raise ValueError(f"{self.path!r} holds no rows")
