"""Every detector on one benchmark, as a table and a picture; ``python -m skood`` runs it."""

from __future__ import annotations

import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.utils.data import Dataset, Subset

from skood._compat import move_to_numpy
from skood._labels import as_labels, is_ood
from skood._typing import Device, Inputs, Labels, Model, RandomState
from skood.calibration import n_rows as count_rows
from skood.calibration import take
from skood.detectors import (
    ASHDetector,
    GMMDetector,
    GradNormDetector,
    NACDetector,
    NNGuideDetector,
)
from skood.features import FeatureExtractor
from skood.metrics import (
    _score_rows,
    _values,
    aupr_out_score,
    auroc_score,
    confidence_interval,
    fpr_at_tpr_score,
)
from skood.plots import OODRocCurveDisplay, ScoreHistogramDisplay
from skood.plots._common import REJECTED, import_matplotlib, labelled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from sklearn.utils import Bunch

__all__ = [
    "DigitsNetwork",
    "RandomAffine",
    "Result",
    "default_baselines",
    "default_detectors",
    "evaluate",
    "format_advice",
    "format_table",
    "plot",
    "run",
    "train_digits_network",
]

N_EPOCHS = 80
_METRICS = {"AUROC": auroc_score, "AUPR-out": aupr_out_score, "FPR95": fpr_at_tpr_score}
_TABLE_WIDTH = 100
_KIND_WIDTH = sum(map(len, _METRICS)) + 2 * (len(_METRICS) - 1)


class RandomAffine(nn.Module):
    """Turn, scale, shear and shift images at random, in training mode only.

    Parameters
    ----------
    linear : float, default=0.15
        Standard deviation of what is added to each entry of the 2x2 identity: 0.15 turns by
        about 6 degrees and scales by about 15 %.
    shift : float, default=0.2
        Standard deviation of the shift, in halves of the image: 0.2 is 0.8 of 8 pixels.
    """

    def __init__(self, linear: float = 0.15, shift: float = 0.2) -> None:
        super().__init__()
        self.linear, self.shift = linear, shift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images of shape (n_samples, C, H, W) to the same shape; outside is 0."""
        if not self.training:
            return images
        # Drawn on the CPU: a seed then gives the same images on every device.
        noise = torch.randn(len(images), 2, 3)
        maps = torch.eye(2, 3) + noise * torch.tensor([self.linear, self.linear, self.shift])
        grid = nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
        return nn.functional.grid_sample(images, grid.to(images), align_corners=False)


def _convolution(n_in, n_out):
    """Return the modules of a 3x3 convolution with batch normalisation and ReLU."""
    return (
        nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )


class DigitsNetwork(nn.Module):
    """A small CNN for images of 8x8 pixels, with 64 features in front of its last layer ``fc``.

    Parameters
    ----------
    n_classes : int, default=6
        The number of logits.

    Examples
    --------
    >>> import torch
    >>> from skood.benchmark import DigitsNetwork
    >>> DigitsNetwork()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 6])
    """

    def __init__(self, n_classes: int = 6) -> None:
        super().__init__()
        self.augment = RandomAffine()
        self.body = nn.Sequential(
            *_convolution(1, 32),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 64),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images of shape (n_samples, 1, 8, 8) to logits of shape (n_samples, n_classes)."""
        return self.fc(self.pool(self.body(self.augment(images))).flatten(1))


def _call_each_epoch(function):
    """Return a skorch callback that calls a function after each epoch."""
    from skorch.callbacks import Callback

    class EachEpoch(Callback):
        def on_epoch_end(self, net, **kwargs):
            function()

    return EachEpoch()


def train_digits_network(
    X: np.ndarray,
    y: np.ndarray,
    *,
    seed: int = 0,
    device: Device = "cpu",
    max_epochs: int = N_EPOCHS,
    on_epoch: Callable[[], Any] | None = None,
) -> Any:
    """Train a `DigitsNetwork` through skorch.

    Parameters
    ----------
    X : ndarray of shape (n_samples, 1, 8, 8), dtype float32
        Images; the training part alone, so that test rows stay fresh.
    y : ndarray of shape (n_samples,), dtype int64
        Classes, from 0 on.
    seed : int, default=0
        Decides the first weights, the order of the rows and how images are turned. The global
        random state is neither used nor changed.
    device : str or torch.device, default="cpu"
        Where to train.
    max_epochs : int, default=80
        Passes over the rows; about 0.1 s each on one CPU core for 649 rows.
    on_epoch : callable, default=None
        Called without arguments after each epoch, for a progress bar.

    Returns
    -------
    net : skorch.NeuralNetClassifier
        Fitted; `net.module_` is the trained network in torch.

    Notes
    -----
    The weight decay of 0.5 is large. It is what keeps the norm of the features of unknown images
    small: with 0.0001 the AUROC of logit-based detectors on textures fell from 0.99 to 0.75 - 0.95.
    It and the augmentation were chosen by the AUROCs on `load_digits_ood`, near and far, so these
    are what a network made for the purpose reaches.
    """
    from skorch import NeuralNetClassifier
    from skorch.callbacks import LRScheduler

    schedule = LRScheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max_epochs)
    net = NeuralNetClassifier(
        DigitsNetwork,
        module__n_classes=len(np.unique(y)),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=0.5,
        lr=0.01,
        batch_size=64,
        max_epochs=max_epochs,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[schedule] if on_epoch is None else [schedule, _call_each_epoch(on_epoch)],
        device=device,
        verbose=0,
    )
    # Everything is drawn on the CPU, so no other generator needs to be set aside.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return net.fit(X, y)


def default_detectors(model: Model, *, random_state: RandomState = None) -> dict[str, Any]:
    """Make one detector of each method for a trained network with narrow features.

    Parameters
    ----------
    model : nn.Module or FrozenEstimator
        A trained classifier that returns logits. (A bare skorch net would be trained again by
        each detector: pass its `module_`.)
    random_state : int, RandomState instance or None, default=None
        For the methods that draw.

    Returns
    -------
    detectors : dict of str to detector
        Not fitted, under the names of their classes. All parameters are the defaults but ASH's
        percentile, which is 0.3: that many of 64 features can be spared, not the 65 % or more
        that suit wide networks.
    """
    return {
        "ASHDetector": ASHDetector(model, percentile=0.3, random_state=random_state),
        "NNGuideDetector": NNGuideDetector(model, random_state=random_state),
        "NACDetector": NACDetector(model, random_state=random_state),
        "GradNormDetector": GradNormDetector(model, random_state=random_state),
        "GMMDetector": GMMDetector(model),
    }


def default_baselines(model: Model, *, random_state: RandomState = None) -> dict[str, Any]:
    """Make the plain scores that any detector should be compared to.

    Parameters
    ----------
    model : nn.Module or FrozenEstimator
        A trained classifier that returns logits.
    random_state : int, RandomState instance or None, default=None
        For the forest.

    Returns
    -------
    baselines : dict of str to detector
        "energy", the logarithm of the sum of the exponentials of the logits; "max softmax", the
        probability of the most likely class; and scikit-learn's "IsolationForest" on the network's
        features, with a contamination of 0.05. Not fitted.
    """
    # ASH that removes nothing leaves the logits as they are.
    return {
        "energy": ASHDetector(model, variant="p", percentile=0),
        "max softmax": ASHDetector(model, variant="p", percentile=0, logit_score="msp"),
        "IsolationForest": make_pipeline(
            FeatureExtractor(model),
            IsolationForest(contamination=0.05, random_state=random_state),
        ),
    }


@dataclass(eq=False)
class Result:
    """What one detector did on the benchmark.

    Parameters
    ----------
    name : str
        What to call the detector.
    baseline : bool
        Whether it is there for comparison only.
    fit_seconds, score_seconds : float
        The time of `fit` on the training rows and of `score_samples` on all others.
    false_alarms : float
        The share of fresh in-distribution rows, between 0 and 1, that `predict` calls -1; nan
        without `predict`.
    nominal : float or None
        The share that the detector was asked for, its `false_alarm_rate`.
    scores : ndarray of shape (n_test,)
        Scores of the fresh in-distribution rows.
    ood_scores : dict of str to ndarray of shape (n_ood,)
        Scores of each OOD set.
    threshold : float, default=nan
        The score below which `predict` says -1.

    Attributes
    ----------
    metrics : dict of str to dict of str to float
        For each OOD set "AUROC", "AUPR-out" (OOD rows being the positive class) and "FPR95" (the
        share of OOD rows accepted where 95 % of the in-distribution rows are), between 0 and 1.
    """

    name: str
    baseline: bool
    fit_seconds: float
    score_seconds: float
    false_alarms: float
    nominal: float | None
    scores: np.ndarray = field(repr=False)
    ood_scores: dict = field(repr=False)
    threshold: float = float("nan")

    @cached_property
    def metrics(self) -> dict[str, dict[str, float]]:
        """For each OOD set, the metrics."""
        return {
            kind: {name: metric(*self.labelled(kind)) for name, metric in _METRICS.items()}
            for kind in self.ood_scores
        }

    def labelled(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return 1 or -1 for each in-distribution row and each of an OOD set, and their scores."""
        return labelled(self.scores, self.ood_scores[kind])

    @property
    def mean_auroc(self) -> float:
        """The mean of the AUROCs over the OOD sets."""
        return float(np.mean([values["AUROC"] for values in self.metrics.values()]))

    @property
    def label(self) -> str:
        """The name, with a remark for baselines."""
        return f"{self.name} (baseline)" if self.baseline else self.name


def _warm_up(detector, X, y):
    """Use a clone on a few rows: first calls load code and make kernels, GradNorm's for 4 s.

    The rows are a loader's own affair, and what fails here is told by what is measured.
    """
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        n_rows = len(X) if isinstance(X, Dataset) else count_rows(X)
        few = np.unique(np.linspace(0, n_rows - 1, 256).astype(int))
        X = Subset(X, few) if isinstance(X, Dataset) else take(X, few)
        _score_rows(clone(detector).fit(X, None if y is None else take(y, few)), X)


def _measure(name, detector, X_train, y_train, X_id, ood_sets, baseline=False):
    """Fit a detector and score the fresh in-distribution rows and each OOD set."""
    start = time.perf_counter()
    detector.fit(X_train, y_train)
    fitted = time.perf_counter()
    scores = move_to_numpy(_score_rows(detector, X_id))
    ood_scores = {kind: move_to_numpy(_score_rows(detector, X)) for kind, X in ood_sets.items()}
    scored = time.perf_counter()
    false_alarms = float("nan")
    if hasattr(detector, "predict"):
        false_alarms = float(np.mean(move_to_numpy(detector.predict(X_id)) == -1))
    return Result(
        name=name,
        baseline=baseline,
        fit_seconds=fitted - start,
        score_seconds=scored - fitted,
        false_alarms=false_alarms,
        nominal=getattr(detector, "false_alarm_rate", None),
        scores=scores,
        ood_scores=ood_scores,
    )


def run(
    detectors: Mapping[str, Any],
    data: Bunch,
    *,
    baselines: Mapping[str, Any] | None = None,
    on_result: Callable[[Any], Any] | None = None,
) -> list[Result]:
    """Fit each detector on the training rows and measure how it tells the OOD sets apart.

    Parameters
    ----------
    detectors : dict of str to estimator
        Anything with `fit`, `score_samples`, `decision_function` and `predict`, scikit-learn's
        outlier detectors and pipelines included. They are fitted in place.
    data : Bunch
        Rows as :func:`skood.datasets.load_digits_ood` returns them: `X_train`, `y_train`,
        `X_test` and `ood`, a dict of str to ndarray.
    baselines : dict of str to estimator, default=None
        More of these, marked as baselines in the results.
    on_result : callable, default=None
        Called with each `Result`, for a progress bar.

    Returns
    -------
    results : list of Result
        One for each detector, then one for each baseline.

    Examples
    --------
    >>> from skood import GMMDetector
    >>> from skood.benchmark import run
    >>> from skood.datasets import load_digits_ood
    >>> results = run({"GMMDetector": GMMDetector()}, load_digits_ood(as_images=False))
    >>> round(results[0].metrics["near"]["AUROC"], 1)
    1.0
    """
    todo = [(*pair, False) for pair in detectors.items()]
    todo += [(*pair, True) for pair in (baselines or {}).items()]
    results = []
    for name, detector, baseline in todo:
        rows = data.X_train, data.y_train, data.X_test, data.ood
        _warm_up(detector, data.X_train, data.y_train)
        result = _measure(name, detector, *rows, baseline=baseline)
        # The difference is the threshold for any outlier detector, a Pipeline too.
        decision = detector.decision_function(data.X_test[:1])
        result.threshold = float(result.scores[0]) - float(decision[0])
        results.append(result)
        if on_result is not None:
            on_result(results[-1])
    return results


def import_for_evaluate():
    """Return pandas and psutil, which are optional."""
    try:
        import pandas
        import psutil
    except ImportError as error:
        raise ImportError(f'evaluate needs {error.name}: pip install "skood[evaluate]"') from error
    return pandas, psutil


@contextmanager
def _memory(psutil):
    """Yield a function that returns by how many MiB the process has grown at most since."""
    process, stop = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch():
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: (max(peak, process.memory_info().rss) - before) / 2**20
    finally:
        stop.set()
        watcher.join()


def _named(detectors):
    """Return a dict of detectors; those without a name are called after their class."""
    if isinstance(detectors, dict):
        return detectors
    if not isinstance(detectors, (list, tuple)):
        detectors = [detectors]
    named = {}
    for detector in detectors:
        name = type(detector).__name__
        if name in named:
            raise ValueError(
                f"There are several detectors of class {name}: give a dict that names them."
            )
        named[name] = detector
    return named


def _check_inside(y_train, y_id):
    """Raise if labels say that rows which should be in-distribution are not."""
    known = None
    if y_train is not None:
        known = np.unique(as_labels(y_train)[~is_ood(y_train)])
    ood = is_ood(y_id, known)
    if ood.any():
        labels = list(dict.fromkeys(as_labels(y_id)[ood].tolist()))
        raise ValueError(
            f"y_id labels {np.count_nonzero(ood)} of {len(ood)} rows as out-of-distribution: "
            f"{', '.join(map(repr, labels[:5]))} are negative or no class of y_train. Put these "
            "rows into ood_sets."
        )


def evaluate(
    detectors: Any,
    X_train: Inputs,
    y_train: Labels | None,
    X_id: Inputs,
    y_id: Labels | None,
    ood_sets: Mapping[str, Inputs],
    *,
    metrics: Sequence[str] = ("auroc", "aupr_in", "aupr_out", "fpr95"),
    confidence_level: float = 0.95,
    n_resamples: int = 500,
    random_state: RandomState = None,
    on_result: Callable[[Any], Any] | None = None,
) -> pd.DataFrame:
    """Compare detectors on one's own data, with confidence intervals, times and memory.

    Parameters
    ----------
    detectors : estimator, list of estimator or dict of str to estimator
        Anything with `fit` and `score_samples` or `decision_function`, scikit-learn's outlier
        detectors and Pipelines included. They are cloned; a
        :class:`~sklearn.frozen.FrozenEstimator` is used as it was fitted.
    X_train : array-like of shape (n_train, ...)
        What the detectors are fitted on, of any kind that they take.
    y_train : array-like of shape (n_train,) or None
        Its class labels; rows whose label is a negative number are out-of-distribution.
    X_id : array-like of shape (n_id, ...)
        Fresh in-distribution rows, that neither the detectors nor their network have seen.
    y_id : array-like of shape (n_id,) or None
        Their class labels, to check that they are in-distribution.
    ood_sets : dict of str to array-like of shape (n_ood, ...)
        Out-of-distribution rows, by name.
    metrics : sequence of str, default=("auroc", "aupr_in", "aupr_out", "fpr95")
        Or "detection_error" and "autc", as :func:`skood.metrics.confidence_interval` knows them.
    confidence_level : float, default=0.95
        Of the intervals. They answer how far another draw of test rows of the same size would
        move the figure; not another training, and not other kinds of OOD rows.
    n_resamples : int, default=500
        See :func:`skood.metrics.confidence_interval`.
    random_state : int, RandomState or None, default=None
        Draws the resamples. Detectors have their own.
    on_result : callable, default=None
        Called with the name of each detector that is done, for a progress bar.

    Returns
    -------
    table : pandas.DataFrame
        A row for each detector and OOD set, with the columns "detector", "ood", "n_id", "n_ood";
        for each metric its value, and with "_low" and "_high" behind its name the ends of the
        interval; "false_alarms", the share of `X_id` that `predict` calls -1; "fit_seconds";
        "score_seconds", of `X_id` and all OOD sets together; "memory_mib", by how many MiB the
        process grew at most, which leaves out the memory of a GPU. The last four belong to the
        detector and are the same for all OOD sets. Before they are measured a clone is fitted on
        256 of the rows, so that no detector pays for being the first; rows of a DataLoader are not.

    Raises
    ------
    ImportError
        If pandas or psutil is not installed.
    ValueError
        If there is no OOD set, or `y_id` says that rows are out-of-distribution.

    Examples
    --------
    >>> from sklearn.ensemble import IsolationForest
    >>> from skood import GMMDetector
    >>> from skood.benchmark import evaluate
    >>> from skood.datasets import load_digits_ood
    >>> data = load_digits_ood(as_images=False)
    >>> table = evaluate(
    ...     [GMMDetector(), IsolationForest(random_state=0)],
    ...     data.X_train, data.y_train, data.X_test, data.y_test, data.ood, random_state=0,
    ... )
    >>> list(table.columns[:7])
    ['detector', 'ood', 'n_id', 'n_ood', 'auroc', 'auroc_low', 'auroc_high']
    >>> best = table.sort_values("auroc").groupby("ood").last()
    >>> best.loc["near", "detector"]
    'GMMDetector'
    """
    pandas, psutil = import_for_evaluate()
    if not ood_sets:
        raise ValueError("ood_sets is empty: give at least one set of OOD rows, by name.")
    if y_id is not None:
        _check_inside(y_train, y_id)
    table = []
    for name, detector in _named(detectors).items():
        _warm_up(detector, X_train, y_train)
        with _memory(psutil) as grown:
            result = _measure(name, clone(detector), X_train, y_train, X_id, ood_sets)
            memory_mib = grown()
        for kind, ood in result.ood_scores.items():
            y, scores = result.labelled(kind)
            row = {"detector": name, "ood": kind, "n_id": len(result.scores), "n_ood": len(ood)}
            intervals: Any = confidence_interval(
                list(metrics),
                y,
                scores,
                confidence_level=confidence_level,
                n_resamples=n_resamples,
                random_state=random_state,
            )
            values = _values(intervals, y, None, scores)
            for (metric, bounds), value in zip(intervals.items(), values, strict=True):
                row |= {metric: value, f"{metric}_low": bounds.low, f"{metric}_high": bounds.high}
            row |= {
                "false_alarms": result.false_alarms,
                "fit_seconds": result.fit_seconds,
                "score_seconds": result.score_seconds,
                "memory_mib": memory_mib,
            }
            table.append(row)
        if on_result is not None:
            on_result(name)
    return pandas.DataFrame(table)


def _align(rows):
    """Align rows of str: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return lines


def _metrics_block(results, kinds):
    """Return the lines of a block with the metrics of some OOD sets side by side."""
    rows = [["detector", *list(_METRICS) * len(kinds)]]
    for result in results:
        values = [result.metrics[kind][name] for kind in kinds for name in _METRICS]
        rows.append([result.label, *(f"{value:.3f}" for value in values)])
    titles = [f" {kind} ".center(_KIND_WIDTH, "-") for kind in kinds]
    return ["  ".join([" " * _label_width(results), *titles]), *_align(rows)]


def _costs_block(results):
    """Return the lines of the block with times and false alarms."""
    rows = [["detector", "mean AUROC", "fit ms", "score ms", "false alarms", "nominal"]]
    for result in results:
        nominal = "-" if result.nominal is None else f"{result.nominal:.1%}"
        rows.append(
            [
                result.label,
                f"{result.mean_auroc:.3f}",
                f"{1000 * result.fit_seconds:.0f}",
                f"{1000 * result.score_seconds:.0f}",
                f"{result.false_alarms:.1%}",
                nominal,
            ]
        )
    return _align(rows)


def _label_width(results):
    return max(len("detector"), *(len(result.label) for result in results))


def format_table(results: list[Result]) -> str:
    """Format results as plain text.

    Parameters
    ----------
    results : list of Result
        At least one, all of the same OOD sets.

    Returns
    -------
    table : str
        Blocks with one line a detector: first the metrics, with as many OOD sets side by side as
        100 characters hold, then times in milliseconds and false alarms beside their nominal
        share. Columns are separated by two blanks or more.
    """
    kinds = list(results[0].metrics)
    side_by_side = max(1, (_TABLE_WIDTH - _label_width(results)) // (_KIND_WIDTH + 2))
    blocks = [
        _metrics_block(results, kinds[start : start + side_by_side])
        for start in range(0, len(kinds), side_by_side)
    ]
    blocks.append(_costs_block(results))
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def format_advice(results: list[Result]) -> str:
    """Say which detector to try first, and why other data may give another answer.

    Parameters
    ----------
    results : list of Result
        At least one that is not a baseline.

    Returns
    -------
    advice : str
        Lines of at most 100 characters.
    """
    best = max((r for r in results if not r.baseline), key=lambda result: result.mean_auroc)
    plain = ", ".join(f"{r.name} {r.mean_auroc:.3f}" for r in results if r.baseline)
    return textwrap.fill(
        f"Try {best.name} first: its mean AUROC was the best in this run, {best.mean_auroc:.3f}"
        + (f" (plain baselines: {plain}). " if plain else ". ")
        + "Your numbers may differ, and so may the order: it depends on the network (its width, "
        "how long and how it was trained) and on how far the OOD rows are from yours. Small "
        f"differences are chance where there are {len(best.scores)} test rows.",
        _TABLE_WIDTH,
    )


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
