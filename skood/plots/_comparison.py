"""Metrics of several detectors side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from skood._typing import Labels, RandomState, Scores
from skood.metrics.inference import confidence_interval, metric_values
from skood.metrics.scorers import SCORERS
from skood.plots._common import (
    MARKERS,
    SHADE,
    import_matplotlib,
    labelled,
    legend_above,
    new_axes,
    ood_color,
    split_scores,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class DetectorComparisonDisplay:
    """Detectors in the order of a metric, with a confidence interval for each OOD set.

    Use `from_frame` or `from_predictions`.

    Parameters
    ----------
    detectors : list of str
        Names.
    ood : list of str
        Names of the OOD sets.
    values : ndarray of shape (n_detectors, n_ood, 3)
        The metric and both ends of its interval; NaN where there is none.
    metric : str, default="auroc"
        Its name, as `skood.metrics.get_scorer_names` has it.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.
    bars_ : dict of str to matplotlib.container.ErrorbarContainer
        Points and intervals of each OOD set, the best detector first.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from skood.plots import DetectorComparisonDisplay
    >>> frame = {
    ...     "detector": ["GMMDetector", "ASHDetector"],
    ...     "ood": ["near", "near"],
    ...     "auroc": [0.91, 0.95],
    ...     "auroc_low": [0.88, 0.93],
    ...     "auroc_high": [0.93, 0.97],
    ... }
    >>> display = DetectorComparisonDisplay.from_frame(frame, ax=Figure().subplots())
    >>> [text.get_text() for text in display.ax_.get_yticklabels()]
    ['ASHDetector', 'GMMDetector']
    """

    _LABELS = {
        "auroc": "AUROC",
        "aupr_in": "AUPR-in",
        "aupr_out": "AUPR-out",
        "fpr95": "FPR95",
        "detection_error": "detection error",
    }

    def __init__(
        self, *, detectors: list[str], ood: list[str], values: np.ndarray, metric: str = "auroc"
    ) -> None:
        self.detectors = detectors
        self.ood = ood
        self.values = values
        self.metric = metric

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw one row a detector, the best on top by the mean over OOD sets.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : DetectorComparisonDisplay
            Itself.
        """
        sign = SCORERS[self.metric][1] if self.metric in SCORERS else 1
        n_rows, n_ood = len(self.detectors), len(self.ood)
        ax, self.figure_ = new_axes(ax, (6.4, 1.4 + n_rows * (0.25 + 0.15 * n_ood)))
        self.ax_ = ax
        order = np.argsort(-sign * np.nanmean(self.values[..., 0], axis=1), kind="stable")
        self.bars_ = {}
        for number, set_name in enumerate(self.ood):
            value, low, high = self.values[order, number].T
            self.bars_[set_name] = ax.errorbar(
                value,
                # The sets of a detector share the middle 60 % of its row.
                np.arange(n_rows) + 0.6 * ((number + 0.5) / n_ood - 0.5),
                xerr=np.abs([value - low, high - value]),
                fmt=MARKERS[number % len(MARKERS)],
                color=ood_color(number),
                markersize=5,
                capsize=2,
                label=set_name,
            )
        for border in np.arange(1, n_rows) - 0.5:
            ax.axhline(border, color=SHADE, linewidth=1, zorder=0)
        ax.set_yticks(range(n_rows), [self.detectors[row] for row in order])
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(n_rows - 0.5, -0.5)
        better = "higher" if sign > 0 else "lower"
        ax.set_xlabel(f"{self._LABELS.get(self.metric, self.metric)} ({better} is better)")
        legend_above(ax, n_ood)
        return self

    @classmethod
    def from_frame(cls, frame: Any, *, metric: str = "auroc", ax: Axes | None = None) -> Self:
        """Draw a table of results.

        Parameters
        ----------
        frame : DataFrame or dict
            One row for each detector and OOD set, with columns "detector", "ood", and for a metric
            m its value, m, and both ends of its interval, m + "_low" and m + "_high".
        metric : str, default="auroc"
            Which one.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : DetectorComparisonDisplay
            The display, drawn.
        """
        rows = {name: i for i, name in enumerate(dict.fromkeys(frame["detector"]))}
        columns = {name: i for i, name in enumerate(dict.fromkeys(frame["ood"]))}
        pairs = [rows[name] for name in frame["detector"]], [columns[name] for name in frame["ood"]]
        if len(set(zip(*pairs, strict=True))) < len(pairs[0]):
            raise ValueError("The frame has more than one row for a detector and an OOD set.")
        values = np.full((len(rows), len(columns), 3), np.nan)
        values[pairs] = np.transpose([frame[f"{metric}{end}"] for end in ("", "_low", "_high")])
        display = cls(detectors=list(rows), ood=list(columns), values=values, metric=metric)
        return display.plot(ax)

    @classmethod
    def from_predictions(
        cls,
        y_true: Labels,
        y_scores: Mapping[str, Scores],
        *,
        metric: str = "auroc",
        ood_labels: Mapping[Any, str] | None = None,
        confidence_level: float = 0.95,
        n_resamples: int = 500,
        random_state: RandomState = None,
        ax: Axes | None = None,
    ) -> Self:
        """Draw given scores of several detectors, with confidence intervals.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            Labels; negative numbers mean OOD.
        y_scores : dict of str to array-like of shape (n_samples,)
            The scores of each detector, higher means more in-distribution.
        metric : str, default="auroc"
            One that `skood.metrics.confidence_interval` knows and that needs no classes.
        ood_labels : dict of label to str, default=None
            Names of OOD sets, such as ``{-1: "textures", -2: "noise"}``. Other OOD rows are "OOD".
        confidence_level : float, default=0.95
            Of the intervals, as are the next two.
        n_resamples : int, default=500
            See `skood.metrics.confidence_interval`.
        random_state : int, RandomState instance or None, default=None
            Draws the resamples.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : DetectorComparisonDisplay
            The display, drawn.
        """
        import_matplotlib("figure")
        values = []
        for scores in y_scores.values():
            inside, outside = split_scores(y_true, scores, ood_labels)
            for ood in outside.values():
                y, both = labelled(inside, ood)
                interval = confidence_interval(
                    metric,
                    y,
                    both,
                    confidence_level=confidence_level,
                    n_resamples=n_resamples,
                    random_state=random_state,
                )
                values.append([*metric_values([metric], y, None, both), *interval])
        values = np.reshape(values, (len(y_scores), len(outside), 3))
        display = cls(detectors=list(y_scores), ood=list(outside), values=values, metric=metric)
        return display.plot(ax)
