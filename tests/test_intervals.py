"""Confidence intervals and paired tests: against plain references, and over repetitions."""

import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, kstest, norm
from sklearn.exceptions import UndefinedMetricWarning

from skood.metrics import (
    aupr_in_score,
    aupr_out_score,
    aurc_score,
    auroc_score,
    aurra_score,
    autc_score,
    ccr_at_fpr_score,
    confidence_interval,
    detection_error_score,
    fpr_at_tpr_score,
    oscr_score,
    paired_test,
    segmentation_score,
)
from skood.metrics import resampling as _intervals

OF_SCORES = {
    "aupr_in": aupr_in_score,
    "aupr_out": aupr_out_score,
    "auroc": auroc_score,
    "autc": autc_score,
    "detection_error": detection_error_score,
    "fpr95": fpr_at_tpr_score,
}
OF_CLASSES = {
    "aurc": aurc_score,
    "aurra": aurra_score,
    "ccr_at_fpr": ccr_at_fpr_score,
    "oscr": oscr_score,
}
NAMES = sorted([*OF_SCORES, *OF_CLASSES])
each_name = pytest.mark.parametrize("name", NAMES)
# Few distinct scores make ties within and between the kinds.
rows = st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 1), st.integers(0, 4)), min_size=2)


def evaluate(name, y_true, y_pred, y_score):
    """Return the metric of this name."""
    if name in OF_SCORES:
        return OF_SCORES[name](y_true, y_score)
    return OF_CLASSES[name](y_true, y_pred, y_score)


def normal_rows(rng, n_inside, n_outside, shift, *noises):
    """Return labels, predictions of an accuracy of 0.85, and scores of equally good detectors.

    Each detector adds noise of its own to what all see, without a change of the variance.
    """
    y_true = np.repeat([0, -1], [n_inside, n_outside])
    y_pred = np.where(rng.random(len(y_true)) < 0.85, 0, 1)
    shared = rng.normal(size=len(y_true))
    scores = [
        shift * (y_true == 0)
        + np.sqrt(1 - noise**2) * shared
        + noise * rng.normal(size=len(y_true))
        for noise in noises
    ]
    return y_true, y_pred, *scores


def plain_bootstrap(metric, y_true, y_score, n_resamples, rng):
    """Evaluate a metric on rows that are drawn one replicate after the other."""
    kinds = [np.flatnonzero(y_true == label) for label in (0, -1)]
    drawn = [
        np.concatenate([rng.choice(kind, len(kind)) for kind in kinds]) for _ in range(n_resamples)
    ]
    return np.array([metric(y_true[index], y_score[index]) for index in drawn])


def plain_delong(inside, outside):
    """Return DeLong's covariance of the AUROCs of detectors, by all pairs of rows."""
    wins = np.array(
        [
            [[(a > b) + 0.5 * (a == b) for b in y] for a in x]
            for x, y in zip(inside, outside, strict=True)
        ]
    )
    n_inside, n_outside = wins.shape[1:]
    return (
        np.atleast_2d(np.cov(wins.mean(axis=2))) / n_inside
        + np.atleast_2d(np.cov(wins.mean(axis=1))) / n_outside
    )


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=20),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=20),
)
def test_delong_equals_all_pairs(inside, outside):
    """One AUROC and the difference of two, ties included."""
    scores = np.array([*inside, *outside], dtype=float).T
    mask = np.arange(scores.shape[1]) < len(inside)
    covariance = plain_delong(scores[:, mask], scores[:, ~mask])
    counts = [_intervals.placements(mask, score) for score in scores]
    for i in range(2):
        assert _intervals.delong_error(counts[i]) ** 2 == pytest.approx(covariance[i, i], abs=1e-12)
    difference = list(map(np.subtract, *counts))
    expected = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert _intervals.delong_error(difference) ** 2 == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(rows=rows, seed=st.integers(0, 2**31))
def test_resampled_metrics_are_those_of_repeated_rows(rows, seed):
    """In any order of the rows, ties and rows that are not drawn included."""
    y_true, y_pred, y_score = np.array(rows).T
    inside = y_true >= 0
    if inside.all() or not inside.any():
        return
    correct = (y_true == y_pred) & inside
    rng = np.random.default_rng(seed)
    counts = [_intervals.draw(rng, size, 2) for size in (inside.sum(), (~inside).sum())]
    curve = _intervals.Ranking(inside, correct, y_score).curve(counts)
    repeats = np.empty((2, len(inside)), dtype=int)
    repeats[:, inside], repeats[:, ~inside] = counts
    for name, metric in _intervals.CURVE_METRICS.items():
        for value, times in zip(metric(curve), repeats, strict=True):
            repeated = [np.repeat(array, times) for array in (y_true, y_pred, y_score)]
            assert value == pytest.approx(evaluate(name, *repeated), abs=1e-12)


def test_rows_are_drawn_within_their_kind():
    rng = np.random.default_rng(0)
    counts = _intervals.draw(rng, 5, 20_000)
    assert (counts.sum(axis=1) == 5).all()
    # Each count is binomial.
    observed = np.bincount(counts.ravel(), minlength=6) / counts.size
    assert observed == pytest.approx(binom.pmf(np.arange(6), 5, 1 / 5), abs=0.01)


def test_blocks_do_not_matter(monkeypatch):
    """Of any size they hold as many replicates as asked for; the rows of each are the same."""
    y_true, y_pred, *scores = normal_rows(np.random.default_rng(0), 7, 5, 1, 0.6, 0.6)
    inside, correct = y_true == 0, (y_true == y_pred)
    results = []
    for block in (1, 40, 2**18):
        monkeypatch.setattr(_intervals, "BLOCK", block)
        rng = np.random.default_rng(1)
        results.append(
            _intervals.resample(["aupr_in", "oscr"], inside, [correct] * 2, scores, 4000, rng)
        )
        assert results[-1].shape == (2, 2, 4000)
    # Blocks draw in another order.
    for result in results[1:]:
        assert result.mean(axis=2) == pytest.approx(results[0].mean(axis=2), abs=0.01)
        assert result.std(axis=2) == pytest.approx(results[0].std(axis=2), abs=0.01)


@pytest.mark.parametrize("decimals", [0, 9])
@pytest.mark.parametrize(("n_inside", "n_outside"), [(60, 40), (7, 30), (20, 20)])
def test_fpr95_is_drawn_like_the_plain_bootstrap(n_inside, n_outside, decimals):
    """Quantiles agree, where a share of 0.95 is and is not a number of rows, ties included."""
    rng = np.random.default_rng(0)
    y_true, _, y_score = normal_rows(rng, n_inside, n_outside, 2, 0)
    y_score = y_score.round(decimals)
    fast = _intervals.resample_fpr95(y_true == 0, y_score, 200_000, rng)
    slow = plain_bootstrap(fpr_at_tpr_score, y_true, y_score, 1500, rng)
    shared = _intervals.resample(["fpr95"], y_true == 0, [None], [y_score], 4000, rng)[0, 0]
    grid = np.unique(slow)
    expected = (fast[:, np.newaxis] <= grid).mean(axis=0)
    for drawn in (slow, shared):
        observed = (drawn[:, np.newaxis] <= grid).mean(axis=0)
        # Kolmogorov's bound at 1 in 1000.
        assert np.abs(observed - expected).max() < 1.95 / np.sqrt(len(drawn))


@pytest.mark.parametrize("name", sorted(OF_SCORES))
def test_errors_are_those_of_the_plain_bootstrap(name):
    rng = np.random.default_rng(3)
    y_true, _, y_score = normal_rows(rng, 40, 60, 1.5, 0)
    slow = plain_bootstrap(OF_SCORES[name], y_true, y_score, 400, rng)
    value = OF_SCORES[name](y_true, y_score)
    low, high = confidence_interval(name, y_true, y_score, n_resamples=4000, random_state=0)
    highest = 0.5 if name == "detection_error" else 1
    share = value / highest
    slope = highest * share * (1 - share)
    logits = np.log(np.array([low, high]) / (highest - np.array([low, high])))
    error = np.diff(logits)[0] / 2 / norm.ppf(0.975) * slope
    # The plain error of 400 replicates varies by 3.5 %; DeLong's is unbiased: 1 % more.
    assert error == pytest.approx(np.sqrt(np.mean((slow - value) ** 2)), rel=0.13)


@settings(deadline=None, max_examples=50)
@given(rows=rows, level=st.floats(0.5, 0.999))
def test_intervals_hold_the_metric(rows, level):
    """Always finite and in range, with one row of a kind and equal scores too."""
    y_true, y_pred, y_score = np.array(rows).T
    if (y_true < 0).all() or (y_true >= 0).all():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intervals = confidence_interval(
            NAMES,
            y_true,
            y_score,
            y_pred=y_pred,
            confidence_level=level,
            n_resamples=20,
            random_state=0,
        )
        tests = paired_test(
            NAMES,
            y_true,
            y_score,
            -y_score,
            y_pred=y_pred,
            confidence_level=level,
            n_resamples=20,
            random_state=0,
        )
    for name in NAMES:
        value = evaluate(name, y_true, y_pred, y_score)
        low, high = intervals[name]
        assert 0 <= low <= value <= high <= (0.5 if name == "detection_error" else 1)
        test = tests[name]
        assert test.difference == value - evaluate(name, y_true, y_pred, -y_score)
        assert -1 <= test.low <= test.difference <= test.high <= 1
        assert 0 <= test.pvalue <= 1
        if abs(test.pvalue - (1 - level)) > 1e-9:
            assert (test.pvalue < 1 - level) == (not test.low <= 0 <= test.high)


@each_name
def test_higher_levels_are_wider(name):
    y_true, y_pred, first, second = normal_rows(np.random.default_rng(0), 40, 30, 1.5, 0.5, 0.5)
    arguments = {"y_pred": y_pred, "random_state": 0}
    ends = []
    for level in (0.5, 0.9, 0.99):
        low, high = confidence_interval(name, y_true, first, confidence_level=level, **arguments)
        test = paired_test(name, y_true, first, second, confidence_level=level, **arguments)
        ends.append([-low, high, -test.low, test.high])
    assert (np.diff(ends, axis=0) > 0).all()


@each_name
def test_a_list_gives_a_dict(name):
    """With the same result where nothing is drawn, and with seeds and generators."""
    y_true, y_pred, first, second = normal_rows(np.random.default_rng(0), 40, 30, 1.5, 0.5, 0.5)
    for function, scores in ((confidence_interval, [first]), (paired_test, [first, second])):
        alone = function(name, y_true, *scores, y_pred=y_pred, random_state=0)
        listed = function([name], y_true, *scores, y_pred=y_pred, random_state=0)
        seeded = np.random.RandomState(0)
        assert listed == {name: alone}
        assert function(name, y_true, *scores, y_pred=y_pred, random_state=seeded) == alone
        assert type(alone).__name__ in ("ConfidenceInterval", "PairedTest")
        assert all(type(value) is float for value in alone)
        again = function(name, y_true, *scores, y_pred=y_pred, random_state=seeded)
        assert (again == alone) == (name == "auroc")


def test_same_detector_and_swapped_detectors():
    y_true, y_pred, first, second = normal_rows(np.random.default_rng(0), 40, 30, 1.5, 0.5, 0.5)
    arguments = {"y_pred": y_pred, "random_state": 0}
    same = paired_test(NAMES, y_true, first, 3 * first + 1, **arguments)
    one = paired_test(NAMES, y_true, first, second, **arguments)
    other = paired_test(NAMES, y_true, second, first, n_resamples=4000, **arguments)
    for name in NAMES:
        if name != "autc":
            assert same[name].difference == 0 and same[name].pvalue == 1
            assert same[name].low == -same[name].high < 0
        assert one[name].difference == -other[name].difference
        # The errors of 500 replicates vary by 3 %.
        assert one[name].low == pytest.approx(-other[name].high, abs=0.02)


def test_classifiers_of_their_own():
    y_true, y_pred, y_score = normal_rows(np.random.default_rng(0), 200, 100, 1.5, 0)
    worse = np.where(np.arange(300) % 3, y_pred, 1)
    test = paired_test("oscr", y_true, y_score, y_score, y_pred=(y_pred, worse), random_state=0)
    expected = oscr_score(y_true, y_pred, y_score) - oscr_score(y_true, worse, y_score)
    assert test.difference == expected > 0.1
    assert test.pvalue < 1e-6


@pytest.mark.parametrize("kind", [list, np.float32, lambda s: torch.tensor(s, requires_grad=True)])
def test_kinds_of_input(kind):
    y_true, y_pred, y_score = normal_rows(np.random.default_rng(0), 20, 30, 1.5, 0)
    y_score = y_score.astype(np.float32).astype(float)
    expected = confidence_interval(NAMES, y_true, y_score, y_pred=y_pred, random_state=0)
    labels = [-1 if label < 0 else "cat" for label in y_true]
    classes = np.where(y_pred == 0, "cat", "dog")
    result = confidence_interval(NAMES, labels, kind(y_score), y_pred=classes, random_state=0)
    for name in NAMES:
        assert result[name] == pytest.approx(expected[name], rel=1e-6)


def test_exact_bounds_without_spread():
    y_true = np.repeat([0, -1], [30, 20])
    perfect = np.repeat([1.0, 0.0], [30, 20])
    share = 0.025 ** (1 / 20)
    assert confidence_interval("auroc", y_true, perfect) == pytest.approx((share, 1))
    assert confidence_interval("auroc", y_true, -perfect) == pytest.approx((0, 1 - share))
    # The bound of Clopper and Pearson for 20 of 20.
    exact = binomtest(20, 20).proportion_ci(0.95, "exact")
    assert share == pytest.approx(exact.low)
    tied = confidence_interval("auroc", y_true, np.zeros(50))
    assert tied == pytest.approx((share / 2, 1 - share / 2))
    assert confidence_interval("fpr95", y_true, perfect) == pytest.approx((0, 1 - share))
    assert confidence_interval("auroc", [0, 1, -1], [1, 3, 2]) == pytest.approx((0.0125, 0.9875))
    test = paired_test("auroc", y_true, perfect, np.zeros(50))
    expected = (0.5, share / 2 - (1 - share), share / 2 + (1 - share), 2 * 1.5**-20)
    assert test == pytest.approx(expected)
    assert paired_test("auroc", [0, -1], [1, 0], [0, 1]) == pytest.approx((1, -0.95, 1, 1))
    # A single OOD row says nothing of others, but is one of many that may be classified wrongly.
    one = np.repeat([0, -1], [99, 1]), np.arange(100)[::-1]
    assert confidence_interval("oscr", *one, y_pred=np.zeros(100)).low < 0.03
    low, high = confidence_interval("aurc", *one, y_pred=np.zeros(100))
    assert low < 1e-4 < high < 0.05


@pytest.mark.parametrize("y_true", [[0, 1, 2], [-1, -1, -2]], ids=["only_in", "only_out"])
def test_one_kind_of_row(y_true):
    scores, y_pred = [0.1, 0.2, 0.3], [0, 0, 0]
    with pytest.warns(UndefinedMetricWarning, match="set to nan"):
        intervals = confidence_interval(NAMES, y_true, scores, y_pred=y_pred)
        tests = paired_test(NAMES, y_true, scores, scores[::-1], y_pred=y_pred)
    for name in NAMES:
        defined = name in ("aurc", "aurra")
        assert np.isfinite(intervals[name]).all() == np.isfinite(tests[name]).all() == defined
        assert np.isnan(intervals[name]).all() == np.isnan(tests[name]).all() == (not defined)


def test_bad_input():
    rows = [0, 0, -1], [0.3, 0.2, 0.1]
    with pytest.raises(ValueError, match="no metric 'roc'. Did you mean 'auroc'"):
        confidence_interval("roc", *rows)
    with pytest.raises(ValueError, match="'oscr' needs y_pred"):
        confidence_interval(["auroc", "oscr"], *rows)
    with pytest.raises(ValueError, match="confidence_level=95 must"):
        confidence_interval("auroc", *rows, confidence_level=95)
    with pytest.raises(ValueError, match="n_resamples=1 must"):
        paired_test("fpr95", *rows, rows[1], n_resamples=1)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        paired_test("auroc", *rows, [0.1, 0.2])
    with pytest.raises(ValueError, match="NaN"):
        confidence_interval("auroc", rows[0], [0.1, 0.2, np.nan])


def test_memory_is_bounded():
    """Replicates are drawn by blocks: 100 at once would take 445 MB."""
    rng = np.random.default_rng(0)
    y_true, _, y_score = normal_rows(rng, 50_000, 50_000, 2, 0)
    tracemalloc.start()
    confidence_interval(["aupr_in", "aupr_out"], y_true, y_score, n_resamples=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def test_coverage():
    """The 95 % intervals of small samples hold the values of 10⁶ rows; 93 % are within bounds."""
    rng = np.random.default_rng(0)
    names = [name for name in NAMES if name != "autc"]
    many = normal_rows(rng, 500_000, 500_000, 2, 0)
    truth = {name: evaluate(name, *many) for name in names}
    held = dict.fromkeys(names, 0)
    for _ in range(250):
        y_true, y_pred, y_score = normal_rows(rng, 60, 60, 2, 0)
        intervals = confidence_interval(
            names, y_true, y_score, y_pred=y_pred, n_resamples=200, random_state=0
        )
        for name, (low, high) in intervals.items():
            held[name] += low <= truth[name] <= high
    for name in names:
        # The smallest error over the thresholds is too low in samples of 60.
        share = 0.88 if name == "detection_error" else 0.93
        assert binom.ppf(0.001, 250, share) <= held[name] <= binom.ppf(0.999, 250, 0.97), name


@pytest.mark.parametrize("metric", ["auroc", "fpr95"])
@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 2.5])
def test_coverage_of_normal_distributions(metric, shift):
    """True values are known; between the bounds of 93 and 97 % in 300 repetitions."""
    rng = np.random.default_rng(1)
    truth = {"auroc": norm.cdf(shift / np.sqrt(2)), "fpr95": norm.cdf(norm.ppf(0.95) - shift)}
    held = 0
    for _ in range(300):
        y_true, _, y_score = normal_rows(rng, 60, 80, shift, 0)
        low, high = confidence_interval(metric, y_true, y_score, random_state=0)
        held += low <= truth[metric] <= high
    assert binom.ppf(0.001, 300, 0.93) <= held <= binom.ppf(0.999, 300, 0.97)


@pytest.mark.parametrize("shift", [3.0, 4.0, 5.0])
def test_coverage_of_auroc_near_one(shift):
    """Of 20 + 20 rows, in up to nine of ten samples AUROC is 1 and the bound is exact."""
    rng = np.random.default_rng(0)
    truth, held, n_perfect = norm.cdf(shift / np.sqrt(2)), 0, 0
    for _ in range(400):
        y_true, _, y_score = normal_rows(rng, 20, 20, shift, 0)
        low, high = confidence_interval("auroc", y_true, y_score)
        held += low <= truth <= high
        n_perfect += high == 1
    assert held >= binom.ppf(0.001, 400, 0.95)
    assert n_perfect > 20


@pytest.fixture(scope="module")
def pvalues():
    """Return p-values of 250 pairs of equally good detectors, and of 30 where one is worse."""
    rng = np.random.default_rng(0)
    results = {"equal": [], "worse": []}
    for _ in range(250):
        y_true, y_pred, first, second = normal_rows(rng, 100, 100, 1.5, 0.6, 0.6)
        detectors = {"equal": second}
        if len(results["worse"]) < 30:
            detectors["worse"] = second - 0.7 * (y_true == 0)
        for kind, scores in detectors.items():
            tests = paired_test(
                NAMES, y_true, first, scores, y_pred=y_pred, n_resamples=100, random_state=0
            )
            results[kind].append({name: test.pvalue for name, test in tests.items()})
    return results


@each_name
def test_no_difference_is_rarely_rejected(name, pvalues):
    rejected = sum(values[name] < 0.05 for values in pvalues["equal"])
    # Extreme scores, which resampling shows in part only, let AUTC reject twice as often.
    assert rejected <= binom.ppf(0.999, 250, 0.1 if name == "autc" else 0.05)
    # Jumps of the metrics widen the errors of ccr_at_fpr and fpr95.
    if name in ("auroc", "aupr_in", "aupr_out", "oscr", "aurc"):
        assert kstest([values[name] for values in pvalues["equal"]], "uniform").pvalue > 0.001


@each_name
def test_a_difference_is_found(name, pvalues):
    found = np.mean([values[name] < 0.05 for values in pvalues["worse"]])
    # The three that depend on few rows find less.
    assert found > (0.3 if name in ("autc", "ccr_at_fpr", "fpr95") else 0.9)


# Label maps

MAP_METRICS = list(OF_SCORES)


def correlated_maps(n_images, seed, shift=1.5, quality=0.5):
    """Return label maps and scores whose level differs from image to image."""
    rng = np.random.default_rng(seed)
    y = rng.choice([0, 1, -1, 255], p=[0.4, 0.3, 0.2, 0.1], size=(n_images, 8, 9))
    levels = rng.normal(size=(n_images, 1, 1))
    scores = shift * (y >= 0) + levels + quality * rng.normal(size=y.shape)
    return y, scores


@pytest.mark.parametrize("name", MAP_METRICS)
def test_errors_of_pooled_pixels_are_those_of_drawn_images(name):
    y, scores = correlated_maps(20, 0)
    others = scores + np.random.default_rng(1).normal(size=scores.shape)
    rng = np.random.default_rng(2)
    plain = []
    for _ in range(400):
        drawn = rng.integers(20, size=20)
        plain.append([segmentation_score(name, y[drawn], s[drawn]) for s in (scores, others)])
    plain = np.array(plain)
    values = [segmentation_score(name, y, s) for s in (scores, others)]
    errors = np.sqrt(np.mean((plain - values) ** 2, axis=0))
    paired = np.sqrt(np.mean((np.diff(plain) + values[0] - values[1]) ** 2))
    kinds = np.where(y == 255, 0, np.where(y < 0, -1, 1))
    draws = np.random.default_rng(3)
    found = [_intervals.image_errors([name], kinds, [s], 400, draws)[0] for s in (scores, others)]
    both = _intervals.image_errors([name], kinds, [scores, others], 400, draws)[0]
    # The error of a standard error of 400 replicates is 3.5 %.
    np.testing.assert_allclose([*found, both], [*errors, paired], rtol=0.2)


@pytest.mark.parametrize("average", ["pixels", "images"])
def test_intervals_of_maps(average):
    y, scores = correlated_maps(12, 0)
    intervals = confidence_interval(MAP_METRICS, y, scores, average=average, random_state=0)
    for name, (low, high) in intervals.items():
        assert 0 <= low < segmentation_score(name, y, scores, average=average) < high <= 1
    again = confidence_interval("autc", y, scores, average=average, random_state=0)
    if average == "images":
        assert again == intervals["autc"]
    worse = scores + np.random.default_rng(1).normal(size=scores.shape)
    test = paired_test("auroc", y, scores, worse, average=average, random_state=0)
    assert test.low < test.difference < test.high and test.pvalue < 0.01
    same = paired_test("auroc", y, scores, scores, average=average, random_state=0)
    assert same.difference == 0 and same.pvalue == 1


def test_coverage_of_maps():
    """Pixels counted as rows would give intervals many times too narrow."""
    truth = segmentation_score("auroc", *correlated_maps(4000, 99))
    inside = narrow = 0
    for seed in range(200):
        y, scores = correlated_maps(30, seed)
        low, high = confidence_interval("auroc", y, scores, n_resamples=200, random_state=seed)
        inside += low <= truth <= high
        low, high = confidence_interval("auroc", y[y != 255], scores[y != 255])
        narrow += low <= truth <= high
    assert 0.88 <= inside / 200 <= 0.99
    assert narrow / 200 < 0.6


def test_maps_of_little_information():
    y, scores = correlated_maps(1, 0)
    low, high = confidence_interval("auroc", y, scores)
    assert 0 <= low <= segmentation_score("auroc", y, scores) <= high <= 1
    with pytest.warns(UndefinedMetricWarning):
        low, high = confidence_interval("auroc", abs(y), scores)
    assert np.isnan([low, high]).all()
    with pytest.raises(ValueError, match="'oscr' is for rows"):
        confidence_interval("oscr", y, scores, y_pred=y)
    with pytest.raises(ValueError, match="average must be"):
        confidence_interval("auroc", y, scores, average="rows")


@pytest.mark.parametrize(("n_inside", "least"), [(5, 0.95), (10, 0.9), (15, 0.8)])
@pytest.mark.parametrize("shift", [1, 2])
def test_fpr95_of_few_rows(n_inside, least, shift):
    """The lowest of fewer than 20 rows lies above the threshold of 95 % more often than not."""
    rng, true = np.random.default_rng(0), norm.sf(norm.ppf(0.05, shift))
    held = []
    for _ in range(200):
        y_true, _, scores = normal_rows(rng, n_inside, 200, shift, 0)
        low, high = confidence_interval("fpr95", y_true, scores, n_resamples=100, random_state=0)
        held.append(low <= true <= high)
    assert np.mean(held) >= least
