"""ROC and precision-recall curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from skood.metrics.ranking import auroc_score
from skood.metrics.rows import threshold_at_tpr
from skood.metrics.scorers import SCORERS
from skood.plots._common import (
    GRAY,
    ScoresDisplay,
    as_percent,
    labelled,
    legend_above,
    new_axes,
    ood_color,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _CurveDisplay(ScoresDisplay):
    """What the displays of curves over all thresholds share."""

    def _draw_curves(self, ax, tpr, options, trace):
        """Draw ``trace(ood, threshold)``: x, y, a point of the curve and what to call it."""
        if tpr is None and self.threshold is None:
            raise ValueError("There is no threshold to mark: give the share tpr, such as 0.95.")
        threshold = self.threshold if tpr is None else threshold_at_tpr(self.scores, tpr)
        ax, self.figure_ = new_axes(ax, (6, 5.6))
        self.ax_ = ax
        self.line_, self.point_ = [], []
        # After the curves of other detectors.
        n_before = sum(line.get_drawstyle() == "steps-post" for line in ax.lines)
        for number, (set_name, ood) in enumerate(self.ood_scores.items(), n_before):
            x, y, point, label = trace(ood, threshold)
            name = " on ".join(filter(None, [self.name, set_name]))
            style = {"color": ood_color(number), "linewidth": 1.8, **(options or {})}
            self.line_ += ax.step(x, y, where="post", label=f"{name}: {label}", **style)
            color = self.line_[-1].get_color()
            self.point_ += ax.plot(*point, "o", color=color, mec="black", clip_on=False, zorder=3)
        at = "the threshold" if tpr is None else f"{100 * tpr:g} % TPR"
        (self.key_,) = ax.plot([], [], "o", color=GRAY, mec="black", ls="", label=f"at {at}")


class OODRocCurveDisplay(_CurveDisplay):
    """ROC curve of each OOD set, with the FPR at 95 % TPR marked.

    In-distribution rows are the positive class: the share of them that a threshold accepts, against
    the share of OOD rows. Use `from_estimator` or `from_predictions`; several detectors go into
    one picture by `ax`.

    Parameters
    ----------
    scores : ndarray of shape (n_in_distribution,)
        Scores of in-distribution rows.
    ood_scores : dict of str to ndarray of shape (n_ood,)
        Scores of each OOD set.
    threshold : float, default=None
        The score below which a row is called OOD.
    name : str, default=None
        Of the detector.
    score_name : str, default="score"
        Of the scores; not drawn.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.
    line_ : list of matplotlib.lines.Line2D
        The curve of each OOD set.
    point_ : list of matplotlib.lines.Line2D
        The marked point of each.
    key_ : matplotlib.lines.Line2D
        The mark in the legend.
    chance_level_ : matplotlib.lines.Line2D
        Guessing.

    See Also
    --------
    skood.metrics.fpr_at_tpr_score : What is marked.
    OODPrecisionRecallDisplay : Where OOD rows are rare.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from skood.plots import OODRocCurveDisplay
    >>> y_true, y_score = [0, 0, 1, 1, -1, -1], [0.9, 0.8, 0.7, 0.2, 0.3, 0.1]
    >>> display = OODRocCurveDisplay.from_predictions(y_true, y_score, ax=Figure().subplots())
    >>> display.line_[0].get_label()
    'OOD: AUROC 0.875, FPR95 50.0 %'
    """

    def plot(
        self,
        ax: Axes | None = None,
        *,
        tpr: float | None = 0.95,
        xscale: str | None = "linear",
        curve_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        tpr : float, default=0.95
            The share of in-distribution rows accepted at the marked point. None: the point of the
            detector's threshold.
        xscale : {"linear", "log"}, default="linear"
            "log" shows small rates, down to one OOD row of the largest set.
        curve_kwargs : dict, default=None
            For ``Axes.step``.

        Returns
        -------
        display : OODRocCurveDisplay
            Itself.
        """
        n_ood = max(map(len, self.ood_scores.values()))
        n_decades = max(1, int(np.ceil(np.log10(n_ood))))
        lowest = 10.0**-n_decades if xscale == "log" else 0.0

        def trace(ood, threshold):
            y, both = labelled(self.scores, ood)
            fpr, accepted, _ = roc_curve(y, both, drop_intermediate=False)
            wrongly = np.mean(ood >= threshold)
            level = "" if tpr is None else f"{100 * tpr:g}"
            label = f"AUROC {auroc_score(y, both):.3f}, FPR{level} {100 * wrongly:.1f} %"
            point = [max(wrongly, lowest)], [np.mean(self.scores >= threshold)]
            return fpr.clip(lowest), accepted, point, label

        self._draw_curves(ax, tpr, curve_kwargs, trace)
        ax = self.ax_
        guess = np.geomspace(lowest, 1) if lowest else np.array([0, 1])
        (self.chance_level_,) = ax.plot(
            guess, guess, color=GRAY, linestyle=":", linewidth=1, label="guessing"
        )
        ax.set(xscale=xscale, xlim=(lowest, 1), ylim=(0, 1.02))
        as_percent(ax.xaxis)
        as_percent(ax.yaxis)
        if lowest:
            ticks = 10.0 ** np.arange(-n_decades, 1)
            texts = [f"{100 * tick:g} %" for tick in ticks]
            ax.set_xticks(ticks, [f"≤{texts[0]}", *texts[1:]])
            ax.tick_params(axis="x", which="minor", bottom=False)
        ax.set(xlabel="OOD rows accepted (FPR)", ylabel="in-distribution rows accepted (TPR)")
        legend_above(ax)
        return self


class OODPrecisionRecallDisplay(_CurveDisplay):
    """Precision-recall curve of each OOD set, with the point of 95 % TPR marked.

    OOD rows are the positive class: of the rows called OOD the share that is OOD, against the share
    of the OOD rows that is found. Marked is the threshold that accepts 95 % of the in-distribution
    rows, where FPR95 is measured. Use `from_estimator` or `from_predictions`.

    Parameters
    ----------
    scores : ndarray of shape (n_in_distribution,)
        Scores of in-distribution rows.
    ood_scores : dict of str to ndarray of shape (n_ood,)
        Scores of each OOD set.
    threshold : float, default=None
        The score below which a row is called OOD.
    name : str, default=None
        Of the detector.
    score_name : str, default="score"
        Of the scores; not drawn.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.
    line_ : list of matplotlib.lines.Line2D
        The curve of each OOD set.
    point_ : list of matplotlib.lines.Line2D
        The marked point of each.
    key_ : matplotlib.lines.Line2D
        The mark in the legend.
    chance_level_ : list of matplotlib.lines.Line2D
        Guessing: the share of OOD rows, for each OOD set.

    See Also
    --------
    skood.metrics.aupr_out_score : The area.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from skood.plots import OODPrecisionRecallDisplay
    >>> y_true, y_score = [0, 0, 1, 1, -1, -1], [0.9, 0.8, 0.7, 0.2, 0.3, 0.1]
    >>> display = OODPrecisionRecallDisplay.from_predictions(
    ...     y_true, y_score, ax=Figure().subplots()
    ... )
    >>> display.line_[0].get_label()
    'OOD: AUPR-out 0.833'
    """

    def plot(
        self,
        ax: Axes | None = None,
        *,
        tpr: float | None = 0.95,
        curve_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        tpr : float, default=0.95
            The share of in-distribution rows accepted at the marked point. None: the point of the
            detector's threshold.
        curve_kwargs : dict, default=None
            For ``Axes.step``.

        Returns
        -------
        display : OODPrecisionRecallDisplay
            Itself.
        """

        def trace(ood, threshold):
            y, both = labelled(self.scores, ood)
            precision, recall, _ = precision_recall_curve(y < 0, -both)
            found, falsely = np.sum(ood < threshold), np.sum(self.scores < threshold)
            # As scikit-learn has it, the curve ends in a precision of 1 where nothing is called.
            precise = found / (found + falsely) if found + falsely else 1.0
            area = SCORERS["aupr_out"][0](y, both)
            return recall, precision, ([found / len(ood)], [precise]), f"AUPR-out {area:.3f}"

        self._draw_curves(ax, tpr, curve_kwargs, trace)
        ax, n_inside = self.ax_, len(self.scores)
        self.chance_level_ = [
            ax.axhline(len(ood) / (n_inside + len(ood)), color=line.get_color(), ls=":", lw=1)
            for ood, line in zip(self.ood_scores.values(), self.line_, strict=True)
        ]
        ax.plot([], [], color=GRAY, ls=":", lw=1, label="guessing")
        ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="OOD rows found (recall)")
        ax.set_ylabel("OOD among the rows called OOD (precision)")
        as_percent(ax.xaxis)
        as_percent(ax.yaxis)
        legend_above(ax)
        return self
