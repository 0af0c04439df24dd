"""Displays in scikit-learn's form: scores and thresholds, curves, comparisons, p-values, maps."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import betabinom, binom, gaussian_kde
from sklearn.base import is_classifier
from sklearn.metrics import precision_recall_curve, roc_curve
from sklearn.utils import check_consistent_length

from skood._compat import move_to_numpy
from skood._labels import IGNORED, as_labels, is_label_map, is_ood
from skood._model import warn_of_unseen
from skood._typing import Inputs, Labels, RandomState, Scores
from skood.calibration import ROUNDING
from skood.metrics import (
    _SCORERS,
    _check_scores,
    _known_labels,
    _score_rows,
    _threshold_at_tpr,
    _values,
    auroc_score,
    confidence_interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "DetectorComparisonDisplay",
    "OODPrecisionRecallDisplay",
    "OODRocCurveDisplay",
    "PValueDisplay",
    "ScoreHistogramDisplay",
    "ScoreMapDisplay",
]

# Okabe and Ito's colours: told apart with any colour vision, and in gray by their order.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^v"
SHADE, GRAY = "0.92", "0.6"
MINUS = "\N{MINUS SIGN}"
REJECTED = f"predict says {MINUS}1"
# In points: the title goes above a legend.
LEGEND_HEIGHT = 24


def import_matplotlib(module: str) -> Any:
    """Import a module of matplotlib, or say how to install it."""
    try:
        return import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise ImportError('The picture needs matplotlib: pip install "skood[plot]"') from error


def _new_axes(ax, figsize=None):
    """Return the axes to draw on and their figure; only new ones take pyplot."""
    if ax is None:
        pyplot = import_matplotlib("pyplot")
        _, ax = pyplot.subplots(figsize=figsize, layout="compressed")
    return ax, ax.figure


def _ood_color(number):
    return COLORS[1 + number % (len(COLORS) - 1)]


def _legend_above(ax, n_columns=1):
    """Explain what is drawn, each label once, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    # Where a second detector is drawn, what it repeats stays last.
    entries = dict(zip(labels[::-1], handles[::-1], strict=True))
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
    ax.legend([*entries.values()][::-1], [*entries][::-1], ncols=n_columns, **place)


def _title(ax, name, pad=None):
    if name is not None:
        ax.set_title(name, fontsize=11, fontweight="bold", pad=pad)


def _percent(axis):
    axis.set_major_formatter(import_matplotlib("ticker").PercentFormatter(1, symbol=" %"))


def _truncate(value):
    """Cut a number to its first significant digit."""
    if value == 0:
        return 0.0
    unit = 10.0 ** np.floor(np.log10(abs(value)))
    return float(np.trunc(value / unit) * unit)


def _respond(estimator, X):
    """Return scores, their threshold, None where it is not known, and the method's name."""
    if hasattr(estimator, "decision_function") and not is_classifier(estimator):
        return move_to_numpy(estimator.decision_function(X)), 0.0, "decision_function"
    # The decisions of an OpenSetClassifier are about its classes.
    threshold = getattr(getattr(estimator, "detector_", None), "offset_", None)
    return move_to_numpy(_score_rows(estimator, X)), threshold, "score_samples"


def _split(y, scores, ood_labels, known=None):
    """Return the scores of the in-distribution rows, and a dict of those of each OOD set."""
    scores = move_to_numpy(scores)
    if is_label_map(y):
        y = move_to_numpy(y)
        scores, y = scores[y != IGNORED], y[y != IGNORED]
    scores, labels, ood = _check_scores(scores), as_labels(y), is_ood(y, known)
    check_consistent_length(labels, scores)
    if ood.all() or not ood.any():
        raise ValueError(
            "The picture compares in-distribution with OOD rows, but y holds "
            f"{np.count_nonzero(~ood)} of the former and {np.count_nonzero(ood)} of the latter."
        )
    sets, rest = {}, ood.copy()
    for label, name in (ood_labels or {}).items():
        rows = ood & (labels == label)
        if not rows.any():
            raise ValueError(f"ood_labels names the label {label!r}, which no OOD row has.")
        sets[name] = sets.get(name, False) | rows
        rest &= ~rows
    if rest.any():
        sets["OOD"] = sets.get("OOD", False) | rest
    return scores[~ood], {name: scores[rows] for name, rows in sets.items()}


def _labelled(scores, ood):
    """Return labels and scores of both kinds of row, as metrics take them."""
    return np.repeat([1, -1], [len(scores), len(ood)]), np.concatenate([scores, ood])


class _ScoresDisplay:
    """What the displays of in-distribution and OOD scores share."""

    def __init__(
        self,
        *,
        scores: np.ndarray,
        ood_scores: Mapping[str, np.ndarray],
        threshold: float | None = None,
        name: str | None = None,
        score_name: str = "score",
    ) -> None:
        self.scores = scores
        self.ood_scores = ood_scores
        self.threshold = threshold
        self.name = name
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Inputs,
        y: Labels,
        *,
        ood_labels: Mapping[Any, str] | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **options: Any,
    ) -> Self:
        """Draw the scores that a fitted detector gives to rows.

        Parameters
        ----------
        estimator : estimator
            A fitted outlier detector, Pipeline, search or `OpenSetClassifier`. Scores are its
            ``decision_function``, those of the last its ``score_samples``.
        X : array-like of shape (n_samples, ...)
            What it takes.
        y : array-like of shape (n_samples,) or (n_samples, H, W)
            Labels. OOD are the rows whose label is negative or a class that the detector has not
            seen; in label maps negative ones alone, and 255 is ignored.
        ood_labels : dict of label to str, default=None
            Names of OOD sets, such as ``{-1: "textures", -2: "noise"}``. Other OOD rows are "OOD".
        name : str, default=None
            Of the detector. None: its class.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        **options
            For ``plot``.

        Returns
        -------
        display : object
            The display, drawn.
        """
        import_matplotlib("figure")
        scores, threshold, score_name = _respond(estimator, X)
        known = None
        if not is_label_map(y):
            known = _known_labels(estimator)
            warn_of_unseen(estimator, y, is_ood(y, known))
        inside, outside = _split(y, scores, ood_labels, known)
        display = cls(
            scores=inside,
            ood_scores=outside,
            threshold=threshold,
            name=type(estimator).__name__ if name is None else name,
            score_name=score_name,
        )
        return display.plot(ax, **options)

    @classmethod
    def from_predictions(
        cls,
        y_true: Labels,
        y_score: Scores,
        *,
        threshold: float | None = None,
        ood_labels: Mapping[Any, str] | None = None,
        name: str | None = None,
        score_name: str = "score",
        ax: Axes | None = None,
        **options: Any,
    ) -> Self:
        """Draw given scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,) or (n_samples, H, W)
            Labels; negative numbers mean OOD. In label maps 255 is ignored.
        y_score : array-like of shape (n_samples,) or (n_samples, H, W)
            Scores, higher means more in-distribution.
        threshold : float, default=None
            The score below which a row is called OOD.
        ood_labels : dict of label to str, default=None
            Names of OOD sets, such as ``{-1: "textures", -2: "noise"}``. Other OOD rows are "OOD".
        name : str, default=None
            Of the detector.
        score_name : str, default="score"
            Of the scores.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        **options
            For ``plot``.

        Returns
        -------
        display : object
            The display, drawn.
        """
        inside, outside = _split(y_true, y_score, ood_labels)
        display = cls(
            scores=inside,
            ood_scores=outside,
            threshold=threshold,
            name=name,
            score_name=score_name,
        )
        return display.plot(ax, **options)


class ScoreHistogramDisplay(_ScoresDisplay):
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
        ax, self.figure_ = _new_axes(ax)
        self.ax_ = ax
        sets = {"in-distribution": self.scores, **self.ood_scores}
        edges = self._edges(ax, np.concatenate(list(sets.values())), bins, xscale)
        colors = [COLORS[0], *map(_ood_color, range(len(self.ood_scores)))]
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
            _legend_above(ax, 2)
        ax.set(xlim=(edges[0], edges[-1]), ylim=(0, len(sets)), xlabel=self.score_name)
        ax.set_yticks(np.arange(len(sets)) + 0.4, list(sets)[::-1])
        _title(ax, self.name, LEGEND_HEIGHT)
        beside = {"transform": ax.get_yaxis_transform(), "va": "center"}
        ax.text(1.03, len(sets) - 0.6, "AUROC", **beside)
        for row, ood in enumerate(self.ood_scores.values()):
            auroc = auroc_score(*_labelled(self.scores, ood))
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
        ticks = {0.0, *map(_truncate, ticks)}
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


class _CurveDisplay(_ScoresDisplay):
    """What the displays of curves over all thresholds share."""

    def _draw_curves(self, ax, tpr, options, trace):
        """Draw ``trace(ood, threshold)``: x, y, a point of the curve and what to call it."""
        if tpr is None and self.threshold is None:
            raise ValueError("There is no threshold to mark: give the share tpr, such as 0.95.")
        threshold = self.threshold if tpr is None else _threshold_at_tpr(self.scores, tpr)
        ax, self.figure_ = _new_axes(ax, (6, 5.6))
        self.ax_ = ax
        self.line_, self.point_ = [], []
        # After the curves of other detectors.
        n_before = sum(line.get_drawstyle() == "steps-post" for line in ax.lines)
        for number, (set_name, ood) in enumerate(self.ood_scores.items(), n_before):
            x, y, point, label = trace(ood, threshold)
            name = " on ".join(filter(None, [self.name, set_name]))
            style = {"color": _ood_color(number), "linewidth": 1.8, **(options or {})}
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
            y, both = _labelled(self.scores, ood)
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
        _percent(ax.xaxis)
        _percent(ax.yaxis)
        if lowest:
            ticks = 10.0 ** np.arange(-n_decades, 1)
            texts = [f"{100 * tick:g} %" for tick in ticks]
            ax.set_xticks(ticks, [f"≤{texts[0]}", *texts[1:]])
            ax.tick_params(axis="x", which="minor", bottom=False)
        ax.set(xlabel="OOD rows accepted (FPR)", ylabel="in-distribution rows accepted (TPR)")
        _legend_above(ax)
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
            y, both = _labelled(self.scores, ood)
            precision, recall, _ = precision_recall_curve(y < 0, -both)
            found, falsely = np.sum(ood < threshold), np.sum(self.scores < threshold)
            # As scikit-learn has it, the curve ends in a precision of 1 where nothing is called.
            precise = found / (found + falsely) if found + falsely else 1.0
            area = _SCORERS["aupr_out"][0](y, both)
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
        _percent(ax.xaxis)
        _percent(ax.yaxis)
        _legend_above(ax)
        return self


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
        sign = _SCORERS[self.metric][1] if self.metric in _SCORERS else 1
        n_rows, n_ood = len(self.detectors), len(self.ood)
        ax, self.figure_ = _new_axes(ax, (6.4, 1.4 + n_rows * (0.25 + 0.15 * n_ood)))
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
                color=_ood_color(number),
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
        _legend_above(ax, n_ood)
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
            inside, outside = _split(y_true, scores, ood_labels)
            for ood in outside.values():
                y, both = _labelled(inside, ood)
                interval = confidence_interval(
                    metric,
                    y,
                    both,
                    confidence_level=confidence_level,
                    n_resamples=n_resamples,
                    random_state=random_state,
                )
                values.append([*_values([metric], y, None, both), *interval])
        values = np.reshape(values, (len(y_scores), len(outside), 3))
        display = cls(detectors=list(y_scores), ood=list(outside), values=values, metric=metric)
        return display.plot(ax)


class PValueDisplay:
    r"""The share of fresh in-distribution rows with a p-value of at most t, against t.

    Valid p-values lie on the diagonal or below it: a curve above the band means more false alarms
    than `alpha`, one below it fewer. Use `from_estimator` or `from_predictions`.

    Parameters
    ----------
    p_values : ndarray of shape (n_samples,)
        Of in-distribution rows that took no part in fitting or calibration.
    n_calibration : int, default=None
        The number of calibration rows. None: p-values without an error of calibration.
    alpha : float, default=None
        The level at which rows are called OOD.
    name : str, default=None
        Of the detector: the title.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.
    line_ : matplotlib.lines.Line2D
        The shares.
    diagonal_ : matplotlib.lines.Line2D
        The shares of uniform p-values.
    band_ : artist
        Where the shares of valid p-values lie.
    point_ : matplotlib.lines.Line2D or None
        The share at `alpha`.

    See Also
    --------
    skood.calibration.ConformalDetector : Makes such p-values.

    Notes
    -----
    With n calibration rows, the number of m fresh rows with :math:`p \le k / (n + 1)` has the
    beta-binomial distribution of m, k and n + 1 - k, if no scores are equal and the rows are
    exchangeable (Bates et al., 2023). The band holds the middle of it, at each t by itself: a curve
    may leave it somewhere by chance. It is exact for ``method="split"`` without classes.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from skood.plots import PValueDisplay
    >>> p_values = np.random.default_rng(0).integers(1, 101, size=500) / 101
    >>> display = PValueDisplay.from_predictions(
    ...     p_values, n_calibration=100, ax=Figure().subplots()
    ... )
    >>> display.ax_.get_xlabel()
    'p-value t'
    """

    def __init__(
        self,
        *,
        p_values: np.ndarray,
        n_calibration: int | None = None,
        alpha: float | None = None,
        name: str | None = None,
    ) -> None:
        self.p_values = p_values
        self.n_calibration = n_calibration
        self.alpha = alpha
        self.name = name

    def plot(self, ax: Axes | None = None, *, confidence_level: float = 0.95) -> Self:
        """Draw the shares and the band.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        confidence_level : float, default=0.95
            Of the band, at each t by itself.

        Returns
        -------
        display : PValueDisplay
            Itself.
        """
        ax, self.figure_ = _new_axes(ax, (5.2, 5))
        self.ax_ = ax
        levels, low, high = self._band(confidence_level)
        self.band_ = ax.fill_between(
            levels,
            low,
            high,
            color="0.85",
            linewidth=0,
            label=f"{100 * confidence_level:g} % of calibrated p-values",
        )
        (self.diagonal_,) = ax.plot(
            [0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="expected"
        )
        self.line_ = ax.ecdf(self.p_values, color=COLORS[0], linewidth=1.8, label="fresh rows")
        self.point_ = None
        if self.alpha is not None:
            share = np.mean(self.p_values <= self.alpha * (1 + ROUNDING))
            (self.point_,) = ax.plot(
                [self.alpha],
                [share],
                "o",
                color=COLORS[1],
                mec="black",
                label=f"at alpha = {100 * self.alpha:g} %: {100 * share:.1f} % called OOD",
            )
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="p-value t")
        ax.set_ylabel("in-distribution rows with p ≤ t")
        _percent(ax.yaxis)
        _title(ax, self.name)
        ax.legend(loc="upper left")
        return self

    def _band(self, confidence_level):
        """Return levels t and both ends of the shares at each of them."""
        n_fresh, n = len(self.p_values), self.n_calibration
        if n is None:
            levels = np.linspace(0, 1, 201)[1:-1]
            counts = binom(n_fresh, levels)
        else:
            # More than a picture can show take time: 200 levels .1 s.
            below = np.unique(np.linspace(1, n, min(n, 200)).astype(int))
            levels = below / (n + 1)
            counts = betabinom(n_fresh, below, n + 1 - below)
        low, high = counts.interval(confidence_level)
        return np.r_[0, levels, 1], np.r_[0, low / n_fresh, 1], np.r_[0, high / n_fresh, 1]

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Inputs,
        y: Labels | None = None,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **options: Any,
    ) -> Self:
        """Draw the p-values that a fitted detector gives to fresh in-distribution rows.

        Parameters
        ----------
        estimator : ConformalDetector
            Fitted.
        X : array-like of shape (n_samples, ...)
            Rows that took no part in fitting or calibration.
        y : array-like of shape (n_samples,), default=None
            Labels; OOD rows, those with a negative label or one that the detector has not seen, are
            left out. None: all rows are in-distribution.
        name : str, default=None
            The title.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        **options
            For ``plot``.

        Returns
        -------
        display : PValueDisplay
            The display, drawn.
        """
        import_matplotlib("figure")
        p_values = estimator.p_values(X)
        if y is not None:
            p_values = p_values[~is_ood(y, _known_labels(estimator))]
        return cls.from_predictions(
            p_values,
            n_calibration=estimator.n_calibration_,
            alpha=estimator.alpha,
            name=name,
            ax=ax,
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        p_values: ArrayLike,
        *,
        n_calibration: int | None = None,
        alpha: float | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **options: Any,
    ) -> Self:
        """Draw given p-values of fresh in-distribution rows.

        Parameters
        ----------
        p_values : array-like of shape (n_samples,)
            Between 0 and 1.
        n_calibration : int, default=None
            The number of calibration rows. None: p-values without an error of calibration.
        alpha : float, default=None
            The level at which rows are called OOD.
        name : str, default=None
            The title.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        **options
            For ``plot``.

        Returns
        -------
        display : PValueDisplay
            The display, drawn.
        """
        p_values = _check_scores(p_values, "p_values")
        if p_values.min() < 0 or p_values.max() > 1:
            raise ValueError("p_values must lie in [0, 1].")
        display = cls(p_values=p_values, n_calibration=n_calibration, alpha=alpha, name=name)
        return display.plot(ax, **options)


class ScoreMapDisplay:
    """The score of each pixel over an image, with the region that is called OOD outlined.

    Use `from_estimator` or `from_predictions`.

    Parameters
    ----------
    image : ndarray of shape (H, W), (H, W, 3) or (C, H, W)
        Shown in gray.
    scores : ndarray of shape (h, w)
        Scores, higher means more in-distribution; stretched over the image.
    threshold : float, default=None
        The score below which a pixel is called OOD.
    name : str, default=None
        Of the detector: the title.
    score_name : str, default="score"
        Of the scores: the label of the colour bar.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.
    image_ : matplotlib.image.AxesImage
        The image.
    map_ : matplotlib.image.AxesImage
        The scores.
    colorbar_ : matplotlib.colorbar.Colorbar
        The scale of the scores.
    contour_ : matplotlib.contour.QuadContourSet or None
        The outline; None where no score or every score is below the threshold.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from sklearn.datasets import load_digits
    >>> from skood.plots import ScoreMapDisplay
    >>> image = load_digits().images[0]
    >>> display = ScoreMapDisplay.from_predictions(
    ...     image, -image, threshold=-8, ax=Figure().subplots()
    ... )
    >>> display.colorbar_.ax.get_ylabel()
    'score (low: out-of-distribution)'
    """

    def __init__(
        self,
        *,
        image: np.ndarray,
        scores: np.ndarray,
        threshold: float | None = None,
        name: str | None = None,
        score_name: str = "score",
    ) -> None:
        self.image = image
        self.scores = scores
        self.threshold = threshold
        self.name = name
        self.score_name = score_name

    def plot(self, ax: Axes | None = None, *, cmap: str = "viridis", alpha: float = 0.65) -> Self:
        """Draw the image, the scores over it and the outline.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        cmap : str or matplotlib.colors.Colormap, default="viridis"
            Colours from low to high. The lowest and the highest 1 % of the pixels take the ends.
        alpha : float, default=0.65
            How much the scores cover the image, from 0 to 1.

        Returns
        -------
        display : ScoreMapDisplay
            Itself.
        """
        ax, self.figure_ = _new_axes(ax)
        self.ax_ = ax
        gray = self.image
        if gray.ndim == 3:
            gray = gray.mean(axis=-1 if gray.shape[-1] in (3, 4) else 0)
        height, width = gray.shape
        place = {"extent": (0, width, height, 0)}
        self.image_ = ax.imshow(gray, cmap="gray", **place)
        low, high = np.quantile(self.scores, [0.01, 0.99])
        self.map_ = ax.imshow(
            self.scores, cmap=cmap, alpha=alpha, vmin=low, vmax=high, interpolation="none", **place
        )
        self.colorbar_ = self.figure_.colorbar(
            self.map_, ax=ax, extend="both", label=f"{self.score_name} (low: out-of-distribution)"
        )
        self.contour_ = None
        if self.threshold is not None and 0 < np.mean(self.scores < self.threshold) < 1:
            rows, columns = self.scores.shape
            self.contour_ = ax.contour(
                (np.arange(columns) + 0.5) * width / columns,
                (np.arange(rows) + 0.5) * height / rows,
                self.scores,
                levels=[self.threshold],
                colors=[COLORS[1]],
                linewidths=2,
            )
            ax.plot([], [], color=COLORS[1], linewidth=2, label=f"{REJECTED} inside")
            _legend_above(ax)
        ax.set(xticks=[], yticks=[])
        _title(ax, self.name, LEGEND_HEIGHT)
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        image: ArrayLike,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **options: Any,
    ) -> Self:
        """Draw the scores that a fitted detector gives to the pixels of an image.

        Parameters
        ----------
        estimator : estimator
            A fitted detector of a network whose logits are maps.
        image : array-like of shape (C, H, W)
            One image, as the network takes it.
        name : str, default=None
            Of the detector. None: its class.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        **options
            For ``plot``.

        Returns
        -------
        display : ScoreMapDisplay
            The display, drawn.
        """
        import_matplotlib("figure")
        scores, threshold, score_name = _respond(estimator, image[None])
        return cls.from_predictions(
            image,
            scores[0],
            threshold=threshold,
            name=type(estimator).__name__ if name is None else name,
            score_name=score_name,
            ax=ax,
            **options,
        )

    @classmethod
    def from_predictions(
        cls,
        image: ArrayLike,
        scores: Scores,
        *,
        threshold: float | None = None,
        name: str | None = None,
        score_name: str = "score",
        ax: Axes | None = None,
        **options: Any,
    ) -> Self:
        """Draw given scores.

        Parameters
        ----------
        image : array-like of shape (H, W), (H, W, 3) or (C, H, W)
            Shown in gray.
        scores : array-like of shape (h, w)
            Scores, higher means more in-distribution; stretched over the image.
        threshold : float, default=None
            The score below which a pixel is called OOD.
        name : str, default=None
            Of the detector: the title.
        score_name : str, default="score"
            Of the scores.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None: a new figure.
        **options
            For ``plot``.

        Returns
        -------
        display : ScoreMapDisplay
            The display, drawn.
        """
        image, scores = move_to_numpy(image), move_to_numpy(scores)
        if image.ndim not in (2, 3) or scores.ndim != 2:
            raise ValueError(
                "A score map takes an image of two or three axes and scores of two, got shapes "
                f"{image.shape} and {scores.shape}."
            )
        display = cls(
            image=image, scores=scores, threshold=threshold, name=name, score_name=score_name
        )
        return display.plot(ax, **options)
