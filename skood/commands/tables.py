"""Rows in CSV and parquet files, read in chunks."""

import contextlib
import shlex

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
        A CSV file whose first line is all numbers has no names, unless these count the columns.
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
                # Without an index, which is no column of a DataFrame.
                names = self._file.schema_arrow.empty_table().to_pandas().columns
            else:
                self._file, self.n_rows = None, None
                names = self._read_first_lines()
        self.columns = list(map(str, names))
        self._check_columns(learns=hasattr(options, "ignore"))

    def _read_first_lines(self):
        """Find out how a CSV file is written, and return the names of its columns."""
        self._written = {"sep": ","}
        first = self._csv(header=None, nrows=1, dtype=str)
        if first.shape[1] == 1:
            # Where numbers have decimal commas, programs separate columns by semicolons.
            line = str(first.iat[0, 0])
            self._written["sep"] = next((mark for mark in ";\t" if mark in line), ",")
        # pandas would make an index of what the second line has more than the first.
        lines = self._csv(header=None, nrows=2, dtype=str)
        first, second = lines.iloc[0], lines.iloc[-1]
        if self._written["sep"] == ";" and "," in "".join(map(str, second)):
            self._written["decimal"] = ","
        kinds = self._csv(header=None, nrows=1).dtypes
        is_data = all(kind.kind in "iuf" for kind in kinds)
        # As pandas writes columns without names, and its index before them.
        cells = first[first.notna() | (first.index > 0)].tolist()
        is_count = len(cells) > 1 and cells == list(map(str, range(len(cells))))
        if is_count and second.str.fullmatch("-?[0-9]+").all():
            warn(
                f"The first line of {self.path!r}, {', '.join(cells)[:40]}, counts the columns: "
                "it is taken for their names, and not for a row."
            )
        self._header = None if is_data and not is_count else 0
        return range(len(first)) if self._header is None else self._csv(nrows=0).columns

    def _check_columns(self, learns):
        """Raise unless columns that options name are there; warn of an index that is learned."""
        for name in [*([] if self.label is None else [self.label]), *self.ignored]:
            if name not in self.columns:
                raise ValueError(
                    f"{self.path!r} has no column {name!r}; it has {', '.join(self.columns)[:200]}"
                )
        if self.label in self.ignored:
            raise ValueError(f"{self.label!r} is named by both --label-column and --ignore")
        features = [name for name in self.columns if name not in (self.label, *self.ignored)]
        if not features:
            raise ValueError(f"no column of {self.path!r} is left to learn from")
        # So pandas calls a first column without a name.
        unnamed = [name for name in features if name.startswith("Unnamed: 0")]
        if learns and unnamed:
            warn(
                f"The first column of {self.path!r} has no name and counts as a feature. If it "
                f"holds row numbers, leave it out: --ignore {shlex.join(unnamed)}"
            )

    @contextlib.contextmanager
    def _reading(self):
        """Say which file cannot be read."""
        try:
            yield
        except ImportError:
            raise
        except Exception as error:
            # pandas, pyarrow, gzip and zlib each have errors of their own for damaged content.
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot read {self.path!r}: {reason}") from error

    def _csv(self, **how):
        """Read a CSV file."""
        return self.pandas.read_csv(self.path, **self._written, **how)

    def _frames(self, n_rows):
        """Yield DataFrames."""
        if self._file is not None:
            for batch in self._file.iter_batches(batch_size=n_rows):
                yield batch.to_pandas().rename(columns=str)
            return
        with self._csv(header=self._header, chunksize=n_rows) as frames:
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
