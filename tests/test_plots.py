"""Displays: what is drawn, and where."""

import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import betabinom
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skood import ASHDetector, GMMDetector
from skood.calibration import ConformalDetector
from skood.metrics import aupr_out_score, auroc_score, fpr_at_tpr_score
from skood.open_set import OpenSetClassifier
from skood.plots import (
    DetectorComparisonDisplay,
    OODPrecisionRecallDisplay,
    OODRocCurveDisplay,
    PValueDisplay,
    ScoreHistogramDisplay,
    ScoreMapDisplay,
)
from skood.plots._common import COLORS

SCORES = [ScoreHistogramDisplay, OODRocCurveDisplay, OODPrecisionRecallDisplay]
OOD_LABELS = {-2: "far", -1: "near"}


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def predictions(rng):
    """Return labels and scores of 200 in-distribution, 100 near and 50 far rows."""
    scores = np.concatenate([rng.normal(size=200), rng.normal(-2, 1, 100), rng.normal(-4, 1, 50)])
    return np.repeat([0, 1, -1, -2], [100, 100, 100, 50]), scores.round(1)


def legend(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def tick_labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


# What all displays of scores share


@pytest.mark.parametrize("Display", SCORES)
def test_estimator_and_its_predictions_draw_the_same(Display, iris, ax):
    X, y = iris
    detector = make_pipeline(StandardScaler(), GMMDetector()).fit(X[y < 2], y[y < 2])
    y = np.where(np.arange(150) % 5 == 0, -1, y)
    # Class 2 was not seen; of the three OOD labels one has a name.
    display = Display.from_estimator(detector, X, y, ood_labels={-1: "marked"}, ax=ax)
    decision = detector.decision_function(X)
    np.testing.assert_array_equal(display.scores, decision[(y == 0) | (y == 1)])
    assert list(display.ood_scores) == ["marked", "OOD"]
    np.testing.assert_array_equal(display.ood_scores["marked"], decision[y == -1])
    np.testing.assert_array_equal(display.ood_scores["OOD"], decision[y == 2])
    assert display.ax_ is ax and display.figure_ is ax.figure
    assert (display.name, display.threshold) == ("Pipeline", 0)
    y_true = np.where(y == 2, -2, y)
    same = Display.from_predictions(y_true, decision, ood_labels={-1: "marked"}, ax=ax)
    np.testing.assert_array_equal(same.ood_scores["OOD"], display.ood_scores["OOD"])


@pytest.mark.parametrize("Display", SCORES)
@pytest.mark.parametrize(("labels", "counts"), [([0, 1, 2], "3 .* 0 "), ([-1] * 3, "0 .* 3 ")])
def test_one_kind_of_row_is_an_error(Display, labels, counts):
    with pytest.raises(ValueError, match=f"y holds {counts}"):
        Display.from_predictions(labels, [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("labels", "scores", "options", "message"),
    [
        ([0, -1], [0.1], {}, "inconsistent numbers of samples"),
        ([0, -1], [0.1, np.nan], {}, "NaN"),
        ([0, -1], [[0.1], [0.2]], {}, r"must have shape \(n_samples,\)"),
        ([0, -1], [0.1, 0.2], {"ood_labels": {-3: "none"}}, "label -3, which no OOD row has"),
        ([0, -1], [0.1, 0.2], {"ood_labels": {0: "none"}}, "label 0, which no OOD row has"),
        ([0, -1], [0.1, 0.2], {"tpr": 0}, "tpr must be greater than 0"),
        ([0, -1], [0.1, 0.2], {"tpr": None}, "no threshold to mark"),
    ],
)
def test_bad_predictions(labels, scores, options, message, ax):
    with pytest.raises(ValueError, match=message):
        OODRocCurveDisplay.from_predictions(labels, scores, ax=ax, **options)


def test_labels_of_one_set_may_be_several_and_strings(ax):
    y = ["cat", -1, -2, -3, "dog"]
    display = OODRocCurveDisplay.from_predictions(
        y, [5.0, 1.0, 2.0, 3.0, 4.0], ood_labels={-1: "a", -3: "a", -2: "b"}, ax=ax
    )
    np.testing.assert_array_equal(display.scores, [5, 4])
    np.testing.assert_array_equal(display.ood_scores["a"], [1, 3])
    np.testing.assert_array_equal(display.ood_scores["b"], [2])


def test_scores_of_estimators_without_a_decision(iris, ax):
    X, y = iris
    labels = np.where(y == 2, -1, y)
    density = KernelDensity().fit(X[y < 2])
    display = ScoreHistogramDisplay.from_estimator(density, X, labels, ax=ax)
    assert display.threshold is None and display.line_ is None and display.shade_ is None
    assert display.score_name == ax.get_xlabel() == "score_samples"
    classifier = OpenSetClassifier(LogisticRegression(max_iter=1000), GMMDetector()).fit(X, labels)
    display = ScoreHistogramDisplay.from_estimator(classifier, X, labels, ax=ax)
    assert display.threshold == classifier.detector_.offset_
    unknown = classifier.predict(X[y < 2]) == -1
    np.testing.assert_array_equal(display.scores < display.threshold, unknown)


def test_an_unseen_class_that_a_network_may_know_is_warned_of(iris, ax):
    X, y = iris
    detector = ASHDetector(nn.Linear(4, 3)).fit(X[y < 2].astype(np.float32), y[y < 2])
    with pytest.warns(UserWarning, match="may know these classes"):
        OODRocCurveDisplay.from_estimator(detector, X.astype(np.float32), y, ax=ax)


def test_tensors_and_label_maps(rng, ax):
    scores = torch.from_numpy(rng.normal(size=(2, 5, 6))).requires_grad_()
    y = rng.choice([0, 3, -1, 255], size=(2, 5, 6))
    display = OODRocCurveDisplay.from_predictions(y, scores, ax=ax)
    values = scores.detach().numpy()
    np.testing.assert_array_equal(display.scores, values[(y >= 0) & (y < 255)])
    np.testing.assert_array_equal(display.ood_scores["OOD"], values[y < 0])


# Histograms


@pytest.mark.parametrize("kind", ["hist", "kde"])
@pytest.mark.parametrize("threshold", [-1.5, 0.0, None])
def test_histograms(kind, threshold, predictions, ax):
    y, scores = predictions
    display = ScoreHistogramDisplay.from_predictions(
        y, scores, threshold=threshold, ood_labels=OOD_LABELS, name="Some", kind=kind, ax=ax
    )
    assert list(display.bars_) == tick_labels(ax.yaxis) == ["near", "far", "in-distribution"]
    assert ax.get_xlabel() == "score" and ax.get_title() == "Some"
    assert ax.get_xscale() == ("asinh" if threshold == 0 else "linear")
    texts = [text.get_text() for text in ax.texts]
    aurocs = [auroc_score(y[rows], scores[rows]) for rows in (y != -1, y != -2)]
    assert texts == ["AUROC", *(f"{auroc:.3f}" for auroc in aurocs)]
    low, high = ax.get_xlim()
    assert low <= scores.min() and scores.max() <= high
    for level, (name, color) in enumerate(zip(display.bars_, [2, 1, 0], strict=True)):
        bars = display.bars_[name]
        if kind == "hist":
            heights, edges, baseline = bars.get_data()
            assert len(heights) == 60 and baseline == level
            # The counts are those of the rows in each bar.
            values = {"near": scores[y == -1], "far": scores[y == -2]}.get(name, scores[y >= 0])
            counts = (heights - level) * np.histogram(values, edges)[0].max() / 0.85
            np.testing.assert_allclose(counts, np.histogram(values, edges)[0], atol=1e-9)
        outline = bars.get_path() if kind == "hist" else bars.get_paths()[0]
        assert level <= outline.vertices[:, 1].min()
        assert outline.vertices[:, 1].max() == pytest.approx(level + 0.85)
        drawn = bars.get_facecolor() if kind == "hist" else bars.get_facecolor()[0]
        assert np.allclose(drawn[:3], [int(COLORS[color][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    if threshold is None:
        assert ax.get_legend() is None
    else:
        assert list(display.line_.get_xdata()) == [threshold] * 2
        assert display.shade_.get_x() == low
        assert low + display.shade_.get_width() == pytest.approx(threshold)
        assert legend(display) == ["predict says \N{MINUS SIGN}1", "threshold"]


@pytest.mark.parametrize("kind", ["hist", "kde"])
@pytest.mark.parametrize("threshold", [0.0, None])
def test_histograms_of_extreme_scores(kind, threshold, ax):
    for scores in (np.ones(20), np.linspace(-1e30, 1e30, 20), np.zeros(20, dtype=np.float32)):
        y = np.repeat([0, -1], 10)
        display = ScoreHistogramDisplay.from_predictions(
            y, scores, threshold=threshold, kind=kind, ax=ax
        )
        display.figure_.draw_without_rendering()
        low, high = ax.get_xlim()
        assert np.isfinite([low, high]).all() and low <= scores.min() and scores.max() <= high
        ax.clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bars"}, 'kind must be "hist" or "kde"'),
        ({"xscale": "log"}, 'xscale must be "linear" or "asinh"'),
    ],
)
def test_bad_options_of_histograms(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreHistogramDisplay.from_predictions([0, -1], [0.1, 0.2], **options)


@pytest.mark.parametrize("xscale", ["linear", "asinh"])
@pytest.mark.parametrize("threshold", [-50.0, 50.0])
def test_a_threshold_beyond_all_scores_is_in_the_picture(xscale, threshold, predictions, ax):
    ScoreHistogramDisplay.from_predictions(*predictions, threshold=threshold, xscale=xscale, ax=ax)
    low, high = ax.get_xlim()
    # Rounding apart: the axis may end in the threshold.
    assert low - 1e-9 <= threshold <= high + 1e-9


def test_more_sets_than_colours(rng, ax):
    y = np.repeat([0, *-np.arange(1, 9)], 10)
    names = {-n: f"set {n}" for n in range(1, 9)}
    display = ScoreHistogramDisplay.from_predictions(
        y, rng.normal(size=90), ood_labels=names, ax=ax
    )
    assert len(display.bars_) == 9


# Curves


@pytest.mark.parametrize("xscale", ["linear", "log"])
@pytest.mark.parametrize("tpr", [0.95, 0.5, 1])
def test_roc_marks_the_fpr(xscale, tpr, predictions, ax):
    y, scores = predictions
    display = OODRocCurveDisplay.from_predictions(
        y, scores, ood_labels=OOD_LABELS, tpr=tpr, xscale=xscale, ax=ax
    )
    assert len(display.line_) == len(display.point_) == 2
    lowest = 0.01 if xscale == "log" else 0
    entries = []
    for name, label, line, point in zip(
        ["far", "near"], [-2, -1], display.line_, display.point_, strict=True
    ):
        rows = (y >= 0) | (y == label)
        fpr = fpr_at_tpr_score(y[rows], scores[rows], tpr=tpr)
        (x,), (reached,) = point.get_data()
        assert x == max(fpr, lowest) and reached >= tpr
        curve = np.transpose(line.get_data())
        assert (curve == [x, reached]).all(axis=1).any()
        assert line.get_color() == point.get_color()
        auroc = auroc_score(y[rows], scores[rows])
        entries.append(f"{name}: AUROC {auroc:.3f}, FPR{100 * tpr:g} {100 * fpr:.1f} %")
    assert legend(display) == [*entries, f"at {100 * tpr:g} % TPR", "guessing"]
    assert ax.get_xlabel() == "OOD rows accepted (FPR)" and ax.get_xscale() == xscale
    assert ax.get_ylabel() == "in-distribution rows accepted (TPR)"
    assert ax.get_xlim() == (lowest, 1)
    if xscale == "log":
        assert tick_labels(ax.xaxis) == ["≤1 %", "10 %", "100 %"]


@pytest.mark.parametrize("Display", SCORES[1:])
def test_the_threshold_is_marked_where_predict_decides(Display, iris, ax):
    X, y = iris
    forest = IsolationForest(random_state=0, contamination=0.1).fit(X[y == 0])
    labels = np.where(y == 0, 0, -1)
    display = Display.from_estimator(forest, X, labels, tpr=None, ax=ax)
    (x,), (height,) = display.point_[0].get_data()
    called = forest.predict(X) == -1
    if Display is OODRocCurveDisplay:
        assert (x, height) == ((~called)[y > 0].mean(), (~called)[y == 0].mean())
    else:
        assert (x, height) == (called[y > 0].mean(), (y > 0)[called].mean())
    assert legend(display)[1] == "at the threshold"
    assert legend(display)[0].startswith("IsolationForest on OOD: ")


def test_precision_recall(predictions, ax):
    y, scores = predictions
    display = OODPrecisionRecallDisplay.from_predictions(y, scores, ood_labels=OOD_LABELS, ax=ax)
    for label, line, point, chance in zip(
        [-2, -1], display.line_, display.point_, display.chance_level_, strict=True
    ):
        rows = (y >= 0) | (y == label)
        (found,), (precision,) = point.get_data()
        assert found == 1 - fpr_at_tpr_score(y[rows], scores[rows])
        assert (np.transpose(line.get_data()) == [found, precision]).all(axis=1).any()
        share = np.mean(y[rows] < 0)
        assert list(chance.get_ydata()) == [share] * 2
        assert line.get_ydata()[0] == share and line.get_xdata()[0] == 1
        area = aupr_out_score(y[rows], scores[rows])
        assert line.get_label().endswith(f": AUPR-out {area:.3f}")
        # The average precision is the area under the steps that are drawn.
        x, height = line.get_data()
        assert -np.diff(x) @ height[:-1] == pytest.approx(area)
    assert legend(display)[2:] == ["at 95 % TPR", "guessing"]


def test_precision_where_nothing_is_called(ax):
    display = OODPrecisionRecallDisplay.from_predictions(
        [0, 0, -1], [1.0, 2.0, 3.0], threshold=0.5, tpr=None, ax=ax
    )
    assert display.point_[0].get_data() == ([0], [1])


def test_two_detectors_in_one_picture(predictions, ax):
    y, scores = predictions
    for name in ("A", "B"):
        display = OODRocCurveDisplay.from_predictions(
            y, scores, ood_labels=OOD_LABELS, name=name, ax=ax, curve_kwargs={"linewidth": 3}
        )
    assert [text.partition(":")[0] for text in legend(display)] == [
        "A on far", "A on near", "B on far", "B on near", "at 95 % TPR", "guessing",
    ]  # fmt: skip
    assert [line.get_color() for line in display.line_] == list(COLORS[3:5])
    assert all(line.get_linewidth() == 3 for line in display.line_)


# Comparison


def table():
    """Return results of three detectors on two OOD sets, one of them missing."""
    rows = [
        ("poor", "near", 0.6, 0.5, 0.65),
        ("poor", "far", 0.7, 0.6, 0.75),
        ("good", "far", 0.99, 0.98, 1.0),
        ("good", "near", 0.9, 0.88, 0.92),
        ("middle", "near", 0.8, 0.7, 0.9),
    ]
    names = ["detector", "ood"]
    for metric in ("auroc", "fpr95"):
        columns = [*names, metric, f"{metric}_low", f"{metric}_high"]
        yield metric, pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize(("metric", "frame"), list(table()))
@pytest.mark.parametrize("as_dict", [False, True])
def test_comparison(metric, frame, as_dict, ax):
    frame = {name: list(frame[name]) for name in frame} if as_dict else frame
    display = DetectorComparisonDisplay.from_frame(frame, metric=metric, ax=ax)
    better, order = ("higher", -1) if metric == "auroc" else ("lower", 1)
    assert tick_labels(ax.yaxis) == ["poor", "middle", "good"][::order]
    assert re.fullmatch(rf"(AUROC|FPR95) \({better} is better\)", ax.get_xlabel())
    assert ax.yaxis_inverted() and legend(display) == list(display.bars_) == ["near", "far"]
    points, caps, (intervals,) = display.bars_["near"]
    np.testing.assert_array_equal(points.get_xdata(), [0.6, 0.8, 0.9][::order])
    ends = [segment[:, 0] for segment in intervals.get_segments()]
    np.testing.assert_allclose(ends, [[0.5, 0.65], [0.7, 0.9], [0.88, 0.92]][::order])
    # Every row keeps to itself, and the sets are told apart by colour and mark.
    heights = [bars[0].get_ydata() for bars in display.bars_.values()]
    assert np.all(np.abs(heights - np.arange(3)) < 0.4)
    assert len({bars[0].get_marker() for bars in display.bars_.values()}) == 2


def test_comparison_of_a_detector_named_twice():
    frame = pd.concat([next(table())[1]] * 2)
    with pytest.raises(ValueError, match="more than one row"):
        DetectorComparisonDisplay.from_frame(frame)


def test_comparison_by_an_unknown_metric():
    with pytest.raises(ValueError, match="Did you mean 'auroc'"):
        DetectorComparisonDisplay.from_predictions([0, -1], {"a": [0.1, 0.2]}, metric="AUROC")


def test_comparison_of_predictions(predictions, rng, ax):
    y, scores = predictions
    display = DetectorComparisonDisplay.from_predictions(
        y,
        {"noise": rng.normal(size=len(y)), "scores": scores},
        ood_labels=OOD_LABELS,
        n_resamples=100,
        random_state=0,
        ax=ax,
    )
    assert tick_labels(ax.yaxis) == ["scores", "noise"] and display.ood == ["far", "near"]
    value, low, high = np.moveaxis(display.values, -1, 0)
    assert np.all((low < value) & (value < high))
    assert value[1, 1] == auroc_score(y[y != -2], scores[y != -2])
    # Hanley and McNeil's standard error of an AUROC of .5 is .035 for 200 and 100 rows.
    assert (high - low)[0, 1] == pytest.approx(2 * 1.96 * 0.035, rel=0.3)


# P-values


def test_p_values(iris, rng, ax):
    X = rng.normal(size=(700, 4))
    conformal = ConformalDetector(FrozenEstimator(GMMDetector().fit(X[:300])), alpha=0.1)
    conformal.fit(X[300:500])
    fresh, y = X[500:], np.repeat([0, -1], [150, 50])
    display = PValueDisplay.from_estimator(conformal, fresh, y, name="Some", ax=ax)
    p_values = conformal.p_values(fresh[:150])
    np.testing.assert_array_equal(display.p_values, p_values)
    x, shares = display.line_.get_data()
    np.testing.assert_array_equal(x[1:], np.sort(p_values))
    np.testing.assert_allclose(shares[1:], np.arange(1, 151) / 150)
    called = np.mean(conformal.predict(fresh[:150]) == -1)
    assert display.point_.get_data() == ([0.1], [called])
    assert legend(display) == [
        "95 % of calibrated p-values",
        "expected",
        "fresh rows",
        f"at alpha = 10 %: {100 * called:.1f} % called OOD",
    ]
    assert ax.get_title() == "Some" and ax.get_xlabel() == "p-value t"
    # The band at p = k / 201, for one k.
    band = display.band_.get_paths()[0].vertices
    ends = band[np.isclose(band[:, 0], 20 / 201), 1]
    np.testing.assert_allclose(sorted(ends), np.divide(betabinom(150, 20, 181).interval(0.95), 150))


def test_p_values_are_covered_by_their_band(rng):
    """Over draws, the share at a level lies in the band about as often as it says."""
    levels, low, high = PValueDisplay(p_values=np.empty(200), n_calibration=99)._band(0.9)
    at = [5, 50]
    np.testing.assert_allclose(levels[at], [0.05, 0.5])
    inside = []
    for _ in range(400):
        calibration, fresh = rng.normal(size=99), rng.normal(size=200)
        n_below = (calibration[:, None] <= fresh).sum(0)
        shares = np.mean(1 + n_below[:, None] <= at, axis=0)
        inside.append((low[at] <= shares) & (shares <= high[at]))
    # Discrete intervals hold a little more; the standard error of 400 draws is .015.
    assert np.all((np.mean(inside, axis=0) > 0.86) & (np.mean(inside, axis=0) < 0.97))


@pytest.mark.parametrize("n_calibration", [None, 1, 5000])
def test_p_values_of_any_calibration(n_calibration, rng, ax):
    display = PValueDisplay.from_predictions(
        rng.uniform(size=100), n_calibration=n_calibration, ax=ax
    )
    assert display.point_ is None and len(ax.lines) == 2
    band = display.band_.get_paths()[0].vertices
    assert len(band) < 500 and band.min() == 0 and band.max() == 1


@pytest.mark.parametrize("p_values", [[0.1, 1.1], [-0.1, 0.5]])
def test_p_values_out_of_range(p_values):
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\]"):
        PValueDisplay.from_predictions(p_values)


# Score maps


@pytest.mark.parametrize("shape", [(8, 12), (8, 12, 3), (3, 8, 12), (1, 8, 12)])
def test_score_map(shape, rng, ax):
    image, scores = rng.uniform(size=shape), np.ones((4, 6))
    scores[1:3, 1:3] = -1
    display = ScoreMapDisplay.from_predictions(image, scores, threshold=0, name="Some", ax=ax)
    assert display.image_.get_array().shape == (8, 12)
    np.testing.assert_array_equal(display.map_.get_array(), scores)
    assert display.image_.get_extent() == display.map_.get_extent() == [0, 12, 8, 0]
    # Scores are 2 x 2 pixels each, and the outline is half way between their centres.
    outline = np.concatenate([path.vertices for path in display.contour_.get_paths()])
    assert [*outline.min(0), *outline.max(0)] == [2, 2, 6, 6]
    assert legend(display) == ["predict says \N{MINUS SIGN}1 inside"]
    assert display.colorbar_.ax.get_ylabel() == "score (low: out-of-distribution)"
    assert ax.get_title() == "Some"


@pytest.mark.parametrize("threshold", [None, -9.0, 9.0])
def test_score_map_without_an_outline(threshold, ax):
    display = ScoreMapDisplay.from_predictions(np.eye(4), np.eye(4), threshold=threshold, ax=ax)
    assert display.contour_ is None and ax.get_legend() is None


def test_score_map_of_a_network(rng, ax):
    X = torch.from_numpy(rng.normal(size=(6, 3, 5, 7)).astype(np.float32))
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    detector = ASHDetector(net).fit(X)
    display = ScoreMapDisplay.from_estimator(detector, X[0], ax=ax)
    np.testing.assert_array_equal(display.scores, detector.decision_function(X[:1])[0])
    assert (display.threshold, display.name) == (0, "ASHDetector")
    assert display.colorbar_.ax.get_ylabel() == "decision_function (low: out-of-distribution)"


def test_score_map_of_wrong_shapes():
    with pytest.raises(ValueError, match=r"got shapes \(4, 4\) and \(16,\)"):
        ScoreMapDisplay.from_predictions(np.eye(4), np.zeros(16))


# matplotlib

DRAW = {
    ScoreHistogramDisplay: lambda Display: Display.from_predictions([0, -1], [2.0, 1.0]),
    OODRocCurveDisplay: lambda Display: Display.from_predictions([0, -1], [2.0, 1.0]),
    OODPrecisionRecallDisplay: lambda Display: Display.from_predictions([0, -1], [2.0, 1.0]),
    DetectorComparisonDisplay: lambda Display: Display.from_frame(next(table())[1]),
    PValueDisplay: lambda Display: Display.from_predictions([0.1, 0.5]),
    ScoreMapDisplay: lambda Display: Display.from_predictions(np.eye(4), np.eye(4)),
}


@pytest.mark.parametrize("Display", DRAW)
def test_without_axes_there_is_a_new_figure(Display):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    display = DRAW[Display](Display)
    assert display.figure_ is pyplot.gcf() and display.ax_ in display.figure_.axes
    # No text runs out of the figure once it is laid out.
    display.figure_.draw_without_rendering()
    box = display.figure_.get_tightbbox().padded(-0.02)
    width, height = display.figure_.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    pyplot.close(display.figure_)


@pytest.mark.parametrize("Display", DRAW)
def test_without_matplotlib_there_is_a_hint(Display, monkeypatch):
    for name in ("matplotlib", *filter(re.compile(r"matplotlib\.").match, sys.modules)):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "skood\[plot\]"'):
        DRAW[Display](Display)
