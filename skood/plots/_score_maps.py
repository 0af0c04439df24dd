"""Maps of scores over images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skood._compat import move_to_numpy
from skood._typing import Scores
from skood.plots._common import (
    COLORS,
    LEGEND_HEIGHT,
    REJECTED,
    import_matplotlib,
    legend_above,
    new_axes,
    responses,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        ax, self.figure_ = new_axes(ax)
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
            legend_above(ax)
        ax.set(xticks=[], yticks=[])
        set_title(ax, self.name, LEGEND_HEIGHT)
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
        scores, threshold, score_name = responses(estimator, image[None])
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
