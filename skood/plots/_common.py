"""What the displays share: colours, axes, scores of estimators, and rows of both kinds."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import is_classifier
from sklearn.utils import check_consistent_length

from skood._compat import move_to_numpy
from skood._typing import Inputs, Labels, Scores
from skood.data.labels import IGNORED, as_labels, is_label_map, is_ood
from skood.metrics.rows import check_scores
from skood.metrics.scorers import known_labels, score_rows, warn_of_unseen

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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


def new_axes(ax, figsize=None):
    """Return the axes to draw on and their figure; only new ones take pyplot."""
    if ax is None:
        pyplot = import_matplotlib("pyplot")
        _, ax = pyplot.subplots(figsize=figsize, layout="compressed")
    return ax, ax.figure


def ood_color(number):
    return COLORS[1 + number % (len(COLORS) - 1)]


def legend_above(ax, n_columns=1):
    """Explain what is drawn, each label once, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    # Where a second detector is drawn, what it repeats stays last.
    entries = dict(zip(labels[::-1], handles[::-1], strict=True))
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
    ax.legend([*entries.values()][::-1], [*entries][::-1], ncols=n_columns, **place)


def set_title(ax, name, pad=None):
    if name is not None:
        ax.set_title(name, fontsize=11, fontweight="bold", pad=pad)


def as_percent(axis):
    axis.set_major_formatter(import_matplotlib("ticker").PercentFormatter(1, symbol=" %"))


def truncate(value):
    """Cut a number to its first significant digit."""
    if value == 0:
        return 0.0
    unit = 10.0 ** np.floor(np.log10(abs(value)))
    return float(np.trunc(value / unit) * unit)


def responses(estimator, X):
    """Return scores, their threshold, None where it is not known, and the method's name."""
    if hasattr(estimator, "decision_function") and not is_classifier(estimator):
        return move_to_numpy(estimator.decision_function(X)), 0.0, "decision_function"
    # The decisions of an OpenSetClassifier are about its classes.
    threshold = getattr(getattr(estimator, "detector_", None), "offset_", None)
    return move_to_numpy(score_rows(estimator, X)), threshold, "score_samples"


def split_scores(y, scores, ood_labels, known=None):
    """Return the scores of the in-distribution rows, and a dict of those of each OOD set."""
    scores = move_to_numpy(scores)
    if is_label_map(y):
        y = move_to_numpy(y)
        scores, y = scores[y != IGNORED], y[y != IGNORED]
    scores, labels, ood = check_scores(scores), as_labels(y), is_ood(y, known)
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


def labelled(scores, ood):
    """Return labels and scores of both kinds of row, as metrics take them."""
    return np.repeat([1, -1], [len(scores), len(ood)]), np.concatenate([scores, ood])


class ScoresDisplay:
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
        scores, threshold, score_name = responses(estimator, X)
        known = None
        if not is_label_map(y):
            known = known_labels(estimator)
            warn_of_unseen(estimator, y, is_ood(y, known))
        inside, outside = split_scores(y, scores, ood_labels, known)
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
        inside, outside = split_scores(y_true, y_score, ood_labels)
        display = cls(
            scores=inside,
            ood_scores=outside,
            threshold=threshold,
            name=name,
            score_name=score_name,
        )
        return display.plot(ax, **options)
