"""Why rows score as they do, in one form for all detectors."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from skood.estimators.explanation_page import page


@dataclass(eq=False, repr=False)
class Explanation:
    """Why rows score as they do: what ``explain`` of a detector returns.

    Of what a method cannot say the attribute is None.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        As of ``score_samples``.
    offset : float
        The threshold: rows that score less are called out-of-distribution.
    contributions : ndarray of shape (n_samples, n_parts), default=None
        What each feature, or layer, adds to the score: ``base + contributions.sum(axis=1)`` is the
        score. Low ones are what makes a row look out-of-distribution.
    base : ndarray of shape (n_samples,), default=None
        What no part adds.
    names : list, default=None
        Of the parts: column names, numbers of features, or layers.
    nearest_class : ndarray of shape (n_samples,), default=None
        The label of the class that the score comes from.
    distances : ndarray of shape (n_samples, k), default=None
        To the training rows that the score comes from, ascending.
    neighbors : ndarray of shape (n_samples, k), default=None
        Which rows of `X_train` these are, -1 where none is.
    gradient : ndarray of the shape of X, default=None
        The derivative of the score by each entry of X, as the network takes it; 0 where there is
        none, as of the length of a row of zeros.
    rows : ndarray, default=None
        X, for the display.
    neighbor_rows : ndarray of shape (n_samples, k, ...), default=None
        The neighbours, for the display.
    columns : list, default=None
        Names of the columns of a gradient of shape (n_samples, n_features).
    """

    scores: np.ndarray
    offset: float
    contributions: np.ndarray | None = None
    base: np.ndarray | None = None
    names: list[Any] | None = None
    nearest_class: np.ndarray | None = None
    distances: np.ndarray | None = None
    neighbors: np.ndarray | None = None
    gradient: np.ndarray | None = None
    rows: np.ndarray | None = None
    neighbor_rows: np.ndarray | None = None
    columns: list[Any] | None = None

    def __len__(self):
        return len(self.scores)

    def __getitem__(self, rows: Any) -> Self:
        """Return the explanation of some rows, by a slice, a mask or indices."""
        if isinstance(rows, (int, np.integer)):
            rows = [rows]
        chosen = {
            name: value[rows] if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }
        return type(self)(**chosen)

    def __repr__(self):
        known = [
            name
            for name in ("contributions", "nearest_class", "distances", "neighbors", "gradient")
            if getattr(self, name) is not None
        ]
        return f"<Explanation of {len(self)} rows: {', '.join(known)}>"

    def top(self, row: int, n: int = 10) -> list[tuple[Any, float]]:
        """Return the parts of a row that matter most, lowest contribution first.

        Parameters
        ----------
        row : int
            Which.
        n : int, default=10
            How many parts.

        Returns
        -------
        parts : list of (name, contribution)
            Those of the largest absolute values.
        """
        if self.contributions is None or self.names is None:
            raise ValueError("There are no contributions to this score.")
        values = self.contributions[row]
        largest = np.argsort(-np.abs(values), kind="stable")[:n]
        ordered = largest[np.argsort(values[largest], kind="stable")]
        return [(self.names[i], float(values[i])) for i in ordered]

    def to_frame(self) -> Any:
        """Return the contributions as a table.

        Returns
        -------
        table : pandas.DataFrame
            A line a row of X: "score", "offset", "nearest_class" where it is known, "base", and a
            column for each part.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Explanation.to_frame needs pandas: pip install pandas") from error
        columns: dict[Any, Any] = {"score": self.scores, "offset": self.offset}
        if self.nearest_class is not None:
            columns["nearest_class"] = self.nearest_class
        table = pandas.DataFrame(columns)
        if self.contributions is not None:
            table["base"] = self.base
            parts = pandas.DataFrame(self.contributions, columns=self.names)
            table = pandas.concat([table, parts], axis=1)
        return table

    def _repr_html_(self):
        return page(self)
