"""Histograms of scores and the threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.stats import gaussian_kde

from skood.metrics.ranking import auroc_score
from skood.plots._common import (
    COLORS,
    GRAY,
    LEGEND_HEIGHT,
    MINUS,
    REJECTED,
    SHADE,
    ScoresDisplay,
    labelled,
    legend_above,
    new_axes,
    ood_color,
    set_title,
    truncate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ScoreHistogramDisplay(ScoresDisplay):
    """Histograms of the scores, in-distribution and of each OOD set, around the threshold.

    One above the other, with the AUROC of each OOD set beside it. What ``predict`` calls OOD is
    shaded. Use `from_estimator` or `from_predictions`.

    Parameters
    ----------
    scores : ndarray of shape (n_in_distribution,)
        Scores of in-distribution rows.
    ood_scores : dict of str to ndarray of shape (n_ood,)
        Scores of each OOD set.
    threshold : float, default=None
        The score below which a row is called OOD.
    name : str, default=None
        Of the detector: the title.
    score_name : str, default="score"
        Of the scores: the label of the axis.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.
    bars_ : dict of str to artist
        What is drawn of each set, from the bottom up: "in-distribution" last.
    line_ : matplotlib.lines.Line2D or None
        The threshold.
    shade_ : matplotlib.patches.Rectangle or None
        What ``predict`` calls OOD.

    See Also
    --------
    OODRocCurveDisplay : All thresholds at once.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from sklearn.datasets import load_iris
    >>> from skood import GMMDetector
    >>> from skood.plots import ScoreHistogramDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = GMMDetector().fit(X[y < 2], y[y < 2])
    >>> display = ScoreHistogramDisplay.from_estimator(detector, X, y, ax=Figure().subplots())
    >>> list(display.bars_)
    ['OOD', 'in-distribution']
    """

    def plot(
        self,
        ax: Axes | None = None,
        *,
        kind: str = "hist",
        bins: int = 60,
        xscale: str | None = None,
    ) -> Self:
        """Draw the scores.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        kind : {"hist", "kde"}, default="hist"
            Histograms, or Gaussian kernel density estimates. The highest point of each has the
            same height.
        bins : int, default=60
            The number of bars, equally wide on the axis.
        xscale : {"linear", "asinh"}, default=None
            "asinh" is linear near 0 and logarithmic far from it, for scores less their threshold.
            None: "asinh" where the threshold is 0.

        Returns
        -------
        display : ScoreHistogramDisplay
            Itself.
        """
        if kind not in ("hist", "kde"):
            raise ValueError(f'kind must be "hist" or "kde", got {kind!r}.')
        if xscale is None:
            xscale = "asinh" if self.threshold == 0 else "linear"
        if xscale not in ("linear", "asinh"):
            raise ValueError(f'xscale must be "linear" or "asinh", got {xscale!r}.')
        ax, self.figure_ = new_axes(ax)
        self.ax_ = ax
        sets = {"in-distribution": self.scores, **self.ood_scores}
        edges = self._edges(ax, np.concatenate(list(sets.values())), bins, xscale)
        colors = [COLORS[0], *map(ood_color, range(len(self.ood_scores)))]
        self.bars_ = {}
        for level, (set_name, color) in enumerate(zip([*sets][::-1], colors[::-1], strict=True)):
            self.bars_[set_name] = self._draw_row(sets[set_name], edges, level, color, kind)
            ax.axhline(level, color=GRAY, linewidth=0.6)
        self.line_ = self.shade_ = None
        if self.threshold is not None:
            self.shade_ = ax.axvspan(
                edges[0], self.threshold, color=SHADE, zorder=0, label=REJECTED
            )
            self.line_ = ax.axvline(
                self.threshold, color="black", linestyle="--", linewidth=1, label="threshold"
            )
            legend_above(ax, 2)
        ax.set(xlim=(edges[0], edges[-1]), ylim=(0, len(sets)), xlabel=self.score_name)
        ax.set_yticks(np.arange(len(sets)) + 0.4, list(sets)[::-1])
        set_title(ax, self.name, LEGEND_HEIGHT)
        beside = {"transform": ax.get_yaxis_transform(), "va": "center"}
        ax.text(1.03, len(sets) - 0.6, "AUROC", **beside)
        for row, ood in enumerate(self.ood_scores.values()):
            auroc = auroc_score(*labelled(self.scores, ood))
            ax.text(1.03, len(sets) - 1.6 - row, f"{auroc:.3f}", **beside)
        return self

    def _edges(self, ax, together, bins, xscale):
        """Return the edges of the bars, and scale the axis."""
        low, high = together.min(), together.max()
        if self.threshold is not None:
            low, high = min(low, self.threshold), max(high, self.threshold)
        if xscale == "linear":
            margin = 0.02 * (high - low) or 0.5
            return np.linspace(low - margin, high + margin, bins + 1, dtype=np.float64)
        # A log-likelihood falls without bound and a softmax stops at 1, so a linear axis would show
        # one kind of row or the other: it is linear as far as the median row, then logarithmic.
        width = abs(np.median(self.scores)) or np.ptp(together) or 1.0
        ends = np.arcsinh([min(low, -width) / width, max(high, width) / width])
        edges = width * np.sinh(np.linspace(*ends, bins + 1))
        ax.set_xscale("asinh", linear_width=width)
        # The scale's own ticks run into each other: one an inch.
        inches = ax.bbox.width / ax.figure.dpi
        ticks = width * np.sinh(np.linspace(*ends, max(2, round(inches))))
        ticks = {0.0, *map(truncate, ticks)}
        room = 0.15 * np.ptp(ends)
        ticks = [tick for tick in ticks if tick == 0 or abs(np.arcsinh(tick / width)) > room]
        ax.set_xticks(ticks, [f"{tick:g}".replace("-", MINUS) for tick in ticks])
        ax.tick_params(axis="x", which="minor", bottom=False)
        return edges

    def _draw_row(self, values, edges, level, color, kind):
        """Draw one set, at most 0.85 high."""
        if kind == "kde" and np.ptp(values):
            # Estimated along the axis, where bars are equally wide.
            scale = self.ax_.xaxis.get_transform()
            grid = np.linspace(*scale.transform(edges[[0, -1]]), 400)
            heights = gaussian_kde(scale.transform(values.astype(np.float64)))(grid)
            heights = level + 0.85 * heights / heights.max()
            grid = scale.inverted().transform(grid)
            return self.ax_.fill_between(grid, level, heights, color=color, linewidth=0)
        counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        heights = 0.85 * counts / counts.max()
        return self.ax_.stairs(level + heights, edges, baseline=level, fill=True, color=color)
