"""The distribution of p-values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import betabinom, binom

from skood._typing import Inputs, Labels
from skood.data.labels import is_ood
from skood.decisions.p_values import ROUNDING
from skood.metrics.rows import check_scores
from skood.metrics.scorers import known_labels
from skood.plots._common import COLORS, as_percent, import_matplotlib, new_axes, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        ax, self.figure_ = new_axes(ax, (5.2, 5))
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
        as_percent(ax.yaxis)
        set_title(ax, self.name)
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
            p_values = p_values[~is_ood(y, known_labels(estimator))]
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
        p_values = check_scores(p_values, "p_values")
        if p_values.min() < 0 or p_values.max() > 1:
            raise ValueError("p_values must lie in [0, 1].")
        display = cls(p_values=p_values, n_calibration=n_calibration, alpha=alpha, name=name)
        return display.plot(ax, **options)
