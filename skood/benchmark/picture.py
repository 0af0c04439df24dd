"""Results as a picture."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from skood.benchmark.results import Result
from skood.plots import OODRocCurveDisplay, ScoreHistogramDisplay
from skood.plots._common import REJECTED, import_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(results: list[Result], path: str | PathLike[str] | None = None) -> Figure:
    """Draw the histograms of the scores and the ROC curves of each detector.

    Parameters
    ----------
    results : list of Result
        At least one, of at most five OOD sets.
    path : str or path-like, default=None
        Where to save the picture; the suffix decides the format. None: it is not saved.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Its axes are, for each result, the histograms and the ROC curves below them, and last the
        legend.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    OSError
        If `path` cannot be written.

    Notes
    -----
    Scores are shown less their threshold, on an axis that is linear near it and logarithmic far
    from it. The highest bar of each histogram has the same height.
    """
    # Without pyplot: no window, no backend, nothing to close.
    Figure = import_matplotlib("figure").Figure
    names = ["in-distribution", *results[0].ood_scores]
    n_columns = min(5, len(results) + 1)
    n_bands = -(-(len(results) + 1) // n_columns)
    figure = Figure(figsize=(2.7 * n_columns, 4.2 * n_bands), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)
    grid = figure.add_gridspec(2 * n_bands, n_columns)
    for number, result in enumerate(results):
        band, column = divmod(number, n_columns)
        top, bottom = (figure.add_subplot(grid[2 * band + half, column]) for half in (0, 1))
        decisions: dict[str, Any] = {
            "scores": result.scores - result.threshold,
            "ood_scores": {k: v - result.threshold for k, v in result.ood_scores.items()},
            "threshold": 0.0,
        }
        histogram = ScoreHistogramDisplay(**decisions, score_name="decision_function").plot(top)
        roc = OODRocCurveDisplay(**decisions).plot(bottom, tpr=None, xscale="log")
        for ax in (top, bottom):
            ax.get_legend().remove()
        for line, name in zip(roc.line_, result.ood_scores, strict=True):
            line.set_label(name)
        top.set_title(result.label, fontsize=11, fontweight="bold")
        bottom.set(xlabel="OOD rows accepted", ylabel="")
        bottom.set_yticks([0, 0.5, 1])
        if column == 0:
            bottom.set_ylabel("in-distribution\nrows accepted")
        else:
            top.set_yticks([])
            bottom.set_yticklabels([])
    band, column = divmod(len(results), n_columns)
    cell = figure.add_subplot(grid[2 * band : 2 * band + 2, column])
    cell.axis("off")
    bars = [histogram.bars_[name] for name in names]
    cell.legend(
        [*bars, histogram.line_, histogram.shade_, roc.key_, roc.chance_level_],
        [*names, "threshold", REJECTED, "ROC at threshold", "guessing"],
        loc="center",
        frameon=False,
        fontsize=11,
        labelspacing=0.8,
    )
    if path is not None:
        figure.savefig(path, dpi=140)
    return figure
