"""Metrics of maps of scores, as in segmentation."""

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning

from skood._compat import move_to_numpy
from skood._typing import Labels, Scores
from skood.data.labels import map_kinds
from skood.metrics.scorers import SCORERS, check_name


def segmentation_score(
    metric: str | Callable[..., float], y_true: Labels, y_score: Scores, *, average: str = "pixels"
) -> float:
    """Compute a metric of OOD detection on the pixels of label maps.

    Parameters
    ----------
    metric : str or callable
        A name in `get_scorer_names`, which stands for the function and is not negated, or a
        callable ``metric(y_true, y_score)`` such as `auroc_score`.
    y_true : array of shape (n_samples, H, W)
        Labels of pixels; negative numbers mean OOD, 255 is ignored.
    y_score : array of shape (n_samples, H, W)
        Scores, higher means more in-distribution.
    average : {"pixels", "images"}, default="pixels"
        "pixels" pools the pixels of all images. "images" is the mean over the images that hold
        both in-distribution and OOD pixels, which leaves out differences between images.

    Returns
    -------
    score : float
        What `metric` returns; nan, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, where no pixels of both kinds are
        there to compare.

    Raises
    ------
    ValueError
        If the shapes differ or are no maps, or there is no such metric or average.

    Notes
    -----
    `confidence_interval` and `paired_test` take such maps too.

    Examples
    --------
    >>> import numpy as np
    >>> from skood.metrics import segmentation_score
    >>> y_true = np.array([[[0, 1, -1, 255]], [[3, 2, 1, -1]]])
    >>> y_score = np.array([[[0.9, 0.5, 0.1, 0.0]], [[0.6, 0.3, 0.1, 0.2]]])
    >>> segmentation_score("auroc", y_true, y_score)
    0.85
    >>> segmentation_score("auroc", y_true, y_score, average="images")
    0.8333333333333333
    """
    if not callable(metric):
        metric, _ = SCORERS[check_name(metric, SCORERS, "scorer")]
    kinds, scores = check_maps(y_true, y_score, average)
    if average == "pixels":
        return metric(kinds[kinds != 0], scores[kinds != 0])
    return float(np.mean(image_values(metric, kinds, scores)))


def check_maps(y_true, y_score, average):
    """Return maps of 1, -1 and 0 for in-distribution, OOD and ignored pixels, and the scores."""
    if average not in ("pixels", "images"):
        raise ValueError(f'average must be "pixels" or "images", got {average!r}.')
    kinds, scores = map_kinds(y_true), move_to_numpy(y_score)
    if kinds.ndim != 3 or kinds.shape != scores.shape:
        raise ValueError(
            "y_true and y_score must be maps of one shape (n_samples, H, W), got "
            f"{kinds.shape} and {scores.shape}."
        )
    return kinds, scores


def image_values(metric, kinds, scores):
    """Return a metric of each image that holds both kinds of pixel; nan if there is none."""
    both = [(image == 1).any() and (image == -1).any() for image in kinds]
    if not any(both):
        warnings.warn(
            "No image holds both in-distribution and OOD pixels. The result is set to nan.",
            UndefinedMetricWarning,
            stacklevel=4,
        )
        return np.array([np.nan])
    return np.array(
        [
            metric(image[image != 0], image_scores[image != 0])
            for image, image_scores in zip(kinds[both], scores[both], strict=True)
        ]
    )
