"""Conformal p-values: what is promised holds over repetitions, for any detector and input."""

import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy.stats import betabinom, expon, false_discovery_control
from sklearn import config_context
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skood import (
    ASHDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    NACDetector,
    NNGuideDetector,
)
from skood.calibration import ConformalDetector
from skood.datasets import load_digits_ood
from skood.decisions.p_values import conformal_p_values
from skood.learning.thresholds import lower_quantile
from skood.metrics import get_scorer
from tests.networks import MLP, Segmenter, SmallCNN, seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed",
    "ignore:lbfgs failed",
    "ignore:.*is singular",
    "ignore:There are .* calibration rows",
)

N_REPETITIONS = 200


class FirstFeature(OutlierMixin, BaseEstimator):
    """Score rows by their first feature, and remember the rows of `fit`."""

    def fit(self, X, y=None):
        self.seen_ = np.array(X)
        return self

    def score_samples(self, X):
        return np.asarray(X, dtype=float)[:, 0]


# scikit-learn


def excuse(estimator):
    """Return the checks that control of the false discovery rate cannot pass, with the reason."""
    if estimator.fdr is None:
        return {}
    few = "60 calibration rows among 300 give no p-value that the procedure rejects"
    return {
        "check_outliers_fit_predict": few,
        "check_outliers_train": few,
        "check_methods_subset_invariance": "what is rejected depends on the whole batch",
    }


CONFORMAL = [
    ConformalDetector(GMMDetector()),
    ConformalDetector(GMMDetector(), "cross"),
    ConformalDetector(GMMDetector(), "loo"),
    ConformalDetector(NNGuideDetector(random_state=0), "loo", tail="exponential"),
    ConformalDetector(GMMDetector(), calibration_size=0.5, tail="exponential"),
    ConformalDetector(GMMDetector(), class_conditional=True),
    ConformalDetector(GMMDetector(), "cross", fdr="bh"),
    ConformalDetector(LocalOutlierFactor(novelty=True), fdr="by", tail="exponential"),
    ConformalDetector(IsolationForest(n_estimators=5, random_state=0)),
    ConformalDetector(LocalOutlierFactor(n_neighbors=3, novelty=True), "cross"),
    ConformalDetector(make_pipeline(StandardScaler(), GMMDetector())),
]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(CONFORMAL, expected_failed_checks=excuse)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# The formula


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize("n_folds", [1, 4])
def test_p_values_count(rng, decimals, n_folds):
    calibration = [np.sort(rng.normal(size=7 + i).round(decimals)) for i in range(n_folds)]
    scores = [rng.normal(size=50).round(decimals) for _ in range(n_folds)]
    n = sum(map(len, calibration))
    expected = []
    for j in range(50):
        count = 0
        for fold, of_fold in zip(calibration, scores, strict=True):
            count += sum(s <= of_fold[j] for s in fold)
        expected.append((1 + count) / (1 + n))
    np.testing.assert_array_equal(conformal_p_values(calibration, scores), expected)
    logs = conformal_p_values(calibration, scores, log=True)
    np.testing.assert_allclose(np.exp(logs), expected)
    assert len(set(expected)) > 5


@pytest.mark.parametrize("alpha", [0.05, 0.07, 0.29, 1 - 0.93, 0.1 + 0.2])
def test_a_p_value_equal_to_alpha_is_called(alpha):
    """Whatever rounding did to alpha: of 99 calibration rows and 99 equal ones, 100 alpha."""
    X = np.arange(99.0)[:, None]
    detector = ConformalDetector(FrozenEstimator(FirstFeature().fit(X)), alpha=alpha).fit(X)
    assert (detector.predict(X) == -1).sum() == round(100 * alpha) - 1
    lowest = np.vstack([X[:1] - 1, X])
    assert (detector.predict(lowest) == -1).sum() == round(100 * alpha)


def test_cross_compares_each_fold_under_its_own_model(iris):
    X, y = iris
    detector = ConformalDetector(GMMDetector(), "cross", random_state=0).fit(X, y)
    assert len(detector.detectors_) == 5 and detector.n_calibration_ == 150
    X_new = X[::7] + 0.3
    folds = np.array_split(np.random.RandomState(0).permutation(150), 5)
    below = 0
    for fold, kept in zip(folds, detector.detectors_, strict=True):
        rest = np.setdiff1d(np.arange(150), fold)
        model = GMMDetector().fit(X[rest], y[rest])
        np.testing.assert_allclose(kept.score_samples(X), model.score_samples(X))
        below += (model.score_samples(X[fold]) <= model.score_samples(X_new)[:, None]).sum(1)
    np.testing.assert_allclose(detector.p_values(X_new), (1 + below) / 151)


@pytest.mark.parametrize("size, n_folds", [(0.2, 5), (0.1, 10), (30, 5), (0.9, 2)])
def test_folds_have_the_calibration_size(iris, size, n_folds):
    detector = ConformalDetector(GMMDetector(), "cross", size).fit(*iris)
    assert len(detector.detectors_) == n_folds


@pytest.mark.parametrize(
    "detector",
    [GMMDetector(), NNGuideDetector(), NACDetector(), ASHDetector(), GradNormDetector()],
    ids=str,
)
def test_loo_takes_the_closed_form(detector, iris):
    """The threshold of the detector at the same level is where the p-value passes it."""
    X, y = iris
    level = 0.1
    plain = clone(detector).set_params(false_alarm_rate=level).fit(X, y)
    conformal = ConformalDetector(detector, "loo", alpha=level).fit(X, y)
    assert conformal.n_calibration_ == 150
    (left_out,) = conformal._calibration[0][1]
    np.testing.assert_allclose(lower_quantile(left_out, level), plain.offset_, rtol=1e-5)
    np.testing.assert_array_equal(conformal.detectors_[0].score_samples(X), plain.score_samples(X))


# The promises, over repetitions


MEANS = 2 * np.random.default_rng(99).normal(size=(3, 8))


def draw(rng, n_samples, spread=(1, 1, 1)):
    """Draw rows of three Gaussian classes."""
    y = rng.integers(0, 3, n_samples)
    noise = rng.normal(size=(n_samples, 8)) * np.asarray(spread)[y, None]
    return MEANS[y] + noise, y


X_HEAD, Y_HEAD = draw(np.random.default_rng(98), 500)
HEAD = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X_HEAD, Y_HEAD))
FOREST = IsolationForest(n_estimators=10, contamination=0.05, random_state=0)


def repeat(detector, n_samples, **settings):
    """Fit on fresh data many times; return the p-values of fresh rows, a row a time."""
    p_values = []
    for seed in range(N_REPETITIONS):
        rng = np.random.default_rng(seed)
        conformal = ConformalDetector(detector, random_state=seed, **settings)
        conformal.fit(*draw(rng, n_samples))
        p_values.append(conformal.p_values(draw(rng, 200)[0]))
    return np.array(p_values), conformal.n_calibration_


def z_scores(p_values, levels, expected):
    """Return how many standard errors of the repetitions the rates lie above what is expected."""
    rates = (p_values[:, :, None] <= np.asarray(levels) * (1 + 1e-9)).mean(1)
    errors = rates.std(0, ddof=1) / np.sqrt(len(rates))
    return (rates.mean(0) - expected) / np.maximum(errors, 1e-9)


@pytest.mark.parametrize(
    "detector, n_samples, settings",
    [
        (GMMDetector(), 240, {"calibration_size": 0.5}),
        pytest.param(NNGuideDetector(), 240, {"calibration_size": 0.5}, marks=pytest.mark.nightly),
        pytest.param(
            ASHDetector(variant="p", percentile=0.3),
            240,
            {"calibration_size": 120},
            marks=pytest.mark.nightly,
        ),
        (GradNormDetector(HEAD), 240, {"calibration_size": 0.5}),
        pytest.param(FOREST, 240, {"calibration_size": 0.5}, marks=pytest.mark.nightly),
        pytest.param(
            make_pipeline(PCA(4), GMMDetector()),
            240,
            {"calibration_size": 0.5},
            marks=pytest.mark.nightly,
        ),
        pytest.param(GMMDetector(), 600, {"method": "cross"}, marks=pytest.mark.nightly),
        (GMMDetector(), 200, {"method": "loo"}),
        (NNGuideDetector(HEAD), 200, {"method": "loo"}),
        (ASHDetector(HEAD, variant="p", percentile=0.3), 200, {"method": "loo"}),
        (GradNormDetector(HEAD), 200, {"method": "loo"}),
    ],
    ids=str,
)
def test_the_share_of_false_alarms_is_exact(detector, n_samples, settings):
    """Within 3 standard errors of ⌊(n + 1) α⌋ / (n + 1), at three levels."""
    p_values, n = repeat(detector, n_samples, **settings)
    levels = np.array([0.05, 0.1, 0.3])
    exact = np.floor((n + 1) * levels + 1e-9) / (n + 1)
    assert np.abs(z_scores(p_values, levels, exact)).max() < 3


@pytest.mark.parametrize(
    "detector, settings",
    [
        (GMMDetector(), {"calibration_size": 0.5}),
        # Coverages of few neurons: many ties.
        (NACDetector(HEAD), {"calibration_size": 0.5}),
        (NACDetector(HEAD), {"method": "loo"}),
        (GMMDetector(), {"method": "cross"}),
        pytest.param(FOREST, {"method": "cross"}, marks=pytest.mark.nightly),
        pytest.param(
            GMMDetector(),
            {"class_conditional": True, "calibration_size": 0.5},
            marks=pytest.mark.nightly,
        ),
    ],
    ids=str,
)
def test_p_values_are_super_uniform(detector, settings):
    """At no level more rows than it allows, but for 3 standard errors.

    Cross+ averages over folds: fewer low p-values than uniform, but more close to a half.
    """
    p_values, _ = repeat(detector, 200, **settings)
    levels = np.linspace(0.02, 0.3 if "cross" in settings.values() else 0.98, 30)
    assert z_scores(p_values, levels, levels).max() < 3


def test_the_plain_threshold_is_not_exact():
    """Beside it: an in-sample threshold at a nominal 5 % calls more, by over 3 standard errors."""
    rates = []
    for seed in range(N_REPETITIONS):
        rng = np.random.default_rng(seed)
        forest = clone(FOREST).fit(draw(rng, 240)[0])
        rates.append((forest.predict(draw(rng, 200)[0]) == -1).mean())
    excess = (np.mean(rates) - 0.05) / (np.std(rates, ddof=1) / np.sqrt(N_REPETITIONS))
    assert excess > 3


@pytest.mark.parametrize(
    ("fdr", "share"),
    [
        ("bh", 0.1),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (("bh", 0.3), ("by", 0.1), ("by", 0.3))
        ),
    ],
)
def test_the_false_discovery_rate_stays_below_its_level(fdr, share):
    """Of those called by level alpha alone, more than alpha are false where OOD rows are few."""
    alpha, n_new = 0.2, 200
    n_ood = round(share * n_new)
    false, found, plain_false = [], [], []
    for seed in range(N_REPETITIONS):
        rng = np.random.default_rng(seed)
        detector = ConformalDetector(
            GMMDetector(), calibration_size=300, alpha=alpha, fdr=fdr, random_state=seed
        ).fit(*draw(rng, 600))
        X = draw(rng, n_new)[0]
        X[:n_ood] += rng.normal(size=8) * 3
        called = detector.predict(X) == -1
        false.append(called[n_ood:].sum() / max(called.sum(), 1))
        found.append(called[:n_ood].mean())
        plain = detector.set_params(fdr=None).predict(X) == -1
        plain_false.append(plain[n_ood:].sum() / max(plain.sum(), 1))
    assert np.mean(false) <= alpha < np.mean(plain_false)
    assert np.mean(found) > (0.5 if fdr == "bh" else 0.2)


def rates_by_class(class_conditional, predicted=False):
    """Return the mean share of false alarms at 10 % in each class, and standard errors."""
    rates = []
    for seed in range(N_REPETITIONS):
        rng = np.random.default_rng(seed)
        detector = ConformalDetector(
            GMMDetector(covariance_type="tied"),
            calibration_size=0.5,
            alpha=0.1,
            class_conditional=class_conditional,
            random_state=seed,
        ).fit(*draw(rng, 400, (0.7, 1, 1.4)))
        X, y = draw(rng, 600, (0.7, 1, 1.4))
        y = HEAD.predict(X) if predicted else y
        called = detector.predict(X) == -1
        rates.append([called[y == k].mean() for k in range(3)])
    return np.mean(rates, 0), np.std(rates, 0, ddof=1) / np.sqrt(N_REPETITIONS)


@pytest.mark.nightly
def test_false_alarms_in_each_class():
    """Classes of unlike spread: together 10 %, but more than 20 % in the widest."""
    means, _ = rates_by_class(False)
    assert means.max() > 0.2
    means, errors = rates_by_class(True)
    assert (means < 0.1 + 3 * errors).all() and means.max() > 0.08
    means, errors = rates_by_class(HEAD, predicted=True)
    assert (means < 0.1 + 3 * errors).all() and means.min() > 0.08


@pytest.mark.parametrize(
    "detector",
    [
        ASHDetector(percentile=0.3),
        GMMDetector(),
        GradNormDetector(),
        NACDetector(),
        NNGuideDetector(),
    ],
    ids=str,
)
def test_false_alarms_on_digits_lie_in_the_band(detector):
    """99 % of the beta-binomial distribution; examples/conformal_threshold.py has the network."""
    data = load_digits_ood(as_images=False)
    pca = PCA(32, random_state=0).fit(data.X_train)
    X_cal, X_fresh = (pca.transform(part) for part in np.array_split(data.X_test, 2))
    conformal = ConformalDetector(detector)
    conformal.fit(pca.transform(data.X_train), data.y_train, X_cal)
    lowest = int(0.05 * (len(X_cal) + 1))
    band = betabinom(len(X_fresh), lowest, len(X_cal) + 1 - lowest).interval(0.99)
    assert band[0] <= (conformal.predict(X_fresh) == -1).sum() <= band[1]


# The tail


def test_an_exponential_tail_ranks_far_rows(iris):
    X, y = iris
    plain = ConformalDetector(GMMDetector(), "loo").fit(X, y)
    tailed = clone(plain).set_params(tail="exponential").fit(X, y)
    far = X[:1] - np.arange(60)[:, None]
    assert (plain.p_values(far[5:]) == 1 / 151).all()
    assert (np.diff(tailed.score_samples(far[5:])) < 0).all()
    assert (np.diff(tailed.score_samples(far[5:] * 1e12)) < 0).all()
    lowest = plain.p_values(X) == 1 / 151
    np.testing.assert_array_equal(tailed.p_values(X)[~lowest], plain.p_values(X)[~lowest])
    for rows in (X, far):
        np.testing.assert_array_equal(tailed.predict(rows), plain.predict(rows))
        np.testing.assert_allclose(np.exp(tailed.score_samples(rows)), tailed.p_values(rows))


def test_the_tail_of_an_exponential_is_found():
    """P(s < x) of rows far below 1 000 calibration scores, the quantiles, within a factor of 2."""
    calibration = [-expon.isf(np.arange(1, 1001) / 1001, scale=3)]
    x = np.array([-30.0, -36.0])
    found = conformal_p_values(calibration, [x], tail="exponential")
    np.testing.assert_allclose(np.log(found), x / 3, atol=np.log(2), rtol=0)


@pytest.mark.parametrize("settings", [{}, {"method": "cross"}])
def test_a_tail_of_equal_scores_is_finite(settings):
    X = np.zeros((40, 1))
    detector = ConformalDetector(FirstFeature(), tail="exponential", **settings).fit(X)
    scores = detector.score_samples([[0.0], [-1e-300], [-1.0], [-1e308], [1.0]])
    assert np.isfinite(scores).all()
    assert scores[0] == scores[4] == 0 and (np.diff(scores[:3]) < 0).all()


def test_the_decision_is_that_of_predict(iris):
    X, y = iris
    rows = np.vstack([X, X - 1, X + 5])
    for tail in ("none", "exponential"):
        for fdr in (None, "bh", "by"):
            detector = ConformalDetector(GMMDetector(), "loo", alpha=0.1, tail=tail, fdr=fdr)
            called = detector.fit(X, y).predict(rows) == -1
            np.testing.assert_array_equal(called, detector.decision_function(rows) < 0)
            p_values = detector.p_values(rows)
            if fdr is not None:
                p_values = false_discovery_control(p_values, method=fdr)
            np.testing.assert_array_equal(called, p_values <= 0.1)
            assert 0 < called.sum() < len(rows)
            assert detector.predict(rows).dtype == np.int64


# What is fitted on what


@pytest.mark.parametrize("method", ["split", "cross"])
def test_no_detector_sees_its_calibration_rows(method):
    X = np.arange(100.0)[:, None]
    detector = ConformalDetector(FirstFeature(), method, random_state=0).fit(X)
    seen = [set(kept.seen_.ravel()) for kept in detector.detectors_]
    held = [set(fold.round()) for fold in detector._calibration[0][1]]
    for inside, outside in zip(seen, held, strict=True):
        assert inside | outside == set(range(100)) and not inside & outside
    assert sum(map(len, held)) == (20 if method == "split" else 100)


@pytest.mark.parametrize("method", ["split", "cross", "loo"])
@pytest.mark.parametrize("detector", [GMMDetector(), FirstFeature()], ids=["GMM", "other"])
def test_ood_rows_are_left_out(method, detector, iris):
    if method == "loo" and isinstance(detector, FirstFeature):
        return
    X, y = iris
    names = np.array(["cat", "dog", "emu"])[y].tolist()
    order = np.random.default_rng(0).permutation(170)
    X_all = np.vstack([X, X[:20] * -9])[order]
    y_all = [(names + [-1] * 20)[i] for i in order]
    inside = [label != -1 for label in y_all]
    found = ConformalDetector(detector, method, random_state=0).fit(X_all, y_all)
    expected = clone(found).fit(X_all[inside], [label for label in y_all if label != -1])
    np.testing.assert_array_equal(found.p_values(X), expected.p_values(X))
    assert found.known_classes_.tolist() == ["cat", "dog", "emu"]
    assert found.n_calibration_ == {"split": 30}.get(method, 150)
    assert found.score(X_all, y_all) == get_scorer("auroc")(found, X_all, y_all) > 0.9


def test_calibration_rows_of_ones_own(iris):
    X, y = iris
    y_cal = np.r_[y[1::2], -1]
    X_cal = np.vstack([X[1::2], X[:1] * 50])
    detector = ConformalDetector(GMMDetector()).fit(X[::2], y[::2], X_cal, y_cal)
    assert detector.n_calibration_ == 75
    scores = GMMDetector().fit(X[::2], y[::2]).score_samples
    below = (scores(X[1::2]) <= scores(X)[:, None]).sum(1)
    np.testing.assert_array_equal(detector.p_values(X), (1 + below) / 76)
    with pytest.raises(ValueError, match="X_cal leaves nothing for method='cross'"):
        ConformalDetector(GMMDetector(), "cross").fit(X, y, X_cal)
    with pytest.raises(ValueError, match="X_cal holds no in-distribution row"):
        ConformalDetector(GMMDetector()).fit(X, y, X_cal, np.full(76, -1))
    with pytest.raises(ValueError, match="needs labels of X and of X_cal"):
        ConformalDetector(GMMDetector(), class_conditional=True).fit(X, y, X_cal)


@pytest.mark.parametrize("method", ["split", "cross", "loo"])
def test_all_rows_calibrate_a_frozen_detector(method, iris):
    X, y = iris
    for fitted in (
        GMMDetector().fit(X, y),
        IsolationForest(random_state=0).fit(X),
        make_pipeline(PCA(2), KernelDensity()).fit(X),
    ):
        scores = fitted.score_samples(X) if hasattr(fitted, "score_samples") else None
        detector = ConformalDetector(FrozenEstimator(fitted), method).fit(X)
        assert detector.n_calibration_ == 150
        scores = fitted.score_samples(X) if scores is not None else fitted.decision_function(X)
        below = (scores <= scores[:, None]).sum(1)
        np.testing.assert_array_equal(detector.p_values(X), (1 + below) / 151)


def test_frozen_detectors_know_their_classes(iris):
    X, y = iris
    detector = ConformalDetector(FrozenEstimator(GMMDetector().fit(X, y)))
    assert detector.fit(X).known_classes_.tolist() == [0, 1, 2]
    assert detector.fit(X[y < 2], y[y < 2]).known_classes_.tolist() == [0, 1, 2]
    detector = ConformalDetector(GMMDetector()).fit(X, y)
    assert not hasattr(detector.fit(X), "known_classes_")


@pytest.mark.parametrize("method", ["split", "cross"])
def test_a_skorch_net_is_trained_without_the_calibration_rows(method, images):
    from skorch import NeuralNetClassifier

    seen = []

    class Watched(NeuralNetClassifier):
        def fit(self, X, y, **fit_params):
            seen.append({row.tobytes() for row in X})
            return super().fit(X, y, **fit_params)

    X, y = images
    net = Watched(
        SmallCNN, criterion=nn.CrossEntropyLoss, max_epochs=1, train_split=None, verbose=0
    )
    detector = ConformalDetector(GMMDetector(net, reg_covar=0.1), method, 0.25).fit(X, y)
    assert [len(rows) for rows in seen] == ([18] if method == "split" else [18] * 4)
    assert len({id(kept.model_.module_) for kept in detector.detectors_}) == len(seen)
    with pytest.warns(UserWarning, match="Watched is trained on the very rows"):
        ConformalDetector(GMMDetector(net, reg_covar=0.1), "loo").fit(X, y)


def test_the_given_detector_is_not_touched(iris):
    X, y = iris
    given = GMMDetector().fit(X[:100], y[:100])
    before = {**vars(given)}
    for method in ("split", "cross", "loo"):
        detector = ConformalDetector(given, method).fit(X, y)
        assert vars(given) == before and detector.detector is given
        assert clone(detector).detector is not given
        twin = pickle.loads(pickle.dumps(detector))
        np.testing.assert_array_equal(twin.p_values(X), detector.p_values(X))
    net = seeded(MLP, in_features=4).double()
    detector = ConformalDetector(NNGuideDetector(net, k=2), "cross").fit(X, y)
    assert all(kept.model is net for kept in detector.detectors_)


# Composition and inputs


def test_pipelines_and_searches(iris):
    X, y = iris
    y = np.where(y == 2, -1, y)
    net = seeded(MLP, in_features=4).double()
    pipeline = make_pipeline(FeatureExtractor(net), ConformalDetector(GMMDetector()))
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    grid = {
        "conformaldetector__detector__covariance_type": ["tied", "diag"],
        "conformaldetector__method": ["split", "cross", "loo"],
    }
    search = GridSearchCV(pipeline, grid, cv=cv, scoring=get_scorer("auroc")).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    detector = ConformalDetector(make_pipeline(FeatureExtractor(net), IsolationForest()))
    assert detector.fit(X, y).known_classes_.tolist() == [0, 1]
    assert detector.n_features_in_ == 4


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        lambda X: X.tolist(),
        lambda X: pd.DataFrame(X, columns=list("abcd")),
        lambda X: pl.DataFrame(X, schema=list("abcd")),
        lambda X: torch.as_tensor(X).requires_grad_(),
    ],
    ids=["numpy", "list", "pandas", "polars", "torch"],
)
@pytest.mark.parametrize("method", ["split", "cross", "loo"])
def test_kinds_of_input(convert, method, iris):
    X, y = iris
    detector = ConformalDetector(GMMDetector(), method, random_state=0)
    expected = detector.fit(X, y).p_values(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = detector.fit(convert(X), y).p_values(convert(X))
    np.testing.assert_allclose(found, expected)
    assert hasattr(detector, "feature_names_in_") == hasattr(convert(X), "columns")


def test_results_are_numpy_under_dispatch(iris):
    X, y = (torch.as_tensor(part) for part in iris)
    with config_context(array_api_dispatch=True):
        for settings in ({}, {"class_conditional": True}, {"method": "loo"}):
            detector = ConformalDetector(GMMDetector(), random_state=0, **settings).fit(X, y)
            assert isinstance(detector.p_values(X), np.ndarray)


def test_rows_by_name_and_images(images):
    X, y = images
    net = seeded(SmallCNN)
    expected = ConformalDetector(NNGuideDetector(net, k=2), random_state=0).fit(X, y).p_values(X)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, pixels):
            return self.net(pixels)

    detector = ConformalDetector(NNGuideDetector(Named(), k=2), random_state=0)
    np.testing.assert_allclose(detector.fit({"pixels": X}, y).p_values({"pixels": X}), expected)


def test_streams(images):
    X, y = images[0].astype(np.float64), images[1]
    data = TensorDataset(torch.as_tensor(X), torch.as_tensor(y))
    loader = DataLoader(data, batch_size=5)
    net = seeded(SmallCNN).double()
    nnguide = NNGuideDetector(net, k=2)
    for method, more in (("split", (X[:9], y[:9])), ("loo", ())):
        expected = ConformalDetector(nnguide, method).fit(X, y, *more)
        found = ConformalDetector(nnguide, method).fit(loader, None, *more)
        np.testing.assert_allclose(found.p_values(loader), expected.p_values(X))
        assert found.known_classes_.tolist() == [0, 1, 2, 3]
    frozen = ConformalDetector(FrozenEstimator(nnguide.fit(X, y)))
    mixed = np.where(y == 3, -1, y)
    np.testing.assert_allclose(
        frozen.fit(data, mixed).p_values(X), frozen.fit(X, mixed).p_values(X)
    )
    assert frozen.n_calibration_ == 18
    with pytest.raises(TypeError, match="X is a DataLoader, which cannot be split"):
        ConformalDetector(nnguide).fit(loader)


def test_equal_rows_have_equal_p_values(images):
    """In batches of any size; half of the rows of calibration are one row."""
    X = np.concatenate([images[0], np.repeat(images[0][:1], 24, axis=0)])
    for detector in (NACDetector(seeded(SmallCNN)), NNGuideDetector(seeded(SmallCNN), k=2)):
        conformal = ConformalDetector(FrozenEstimator(detector.fit(X))).fit(X)
        expected = conformal.p_values(X)[-1]
        for batch_size in (1, 3, 40):
            detector.set_params(batch_size=batch_size)
            assert (conformal.p_values(X)[24:] == expected).all()


# What is refused or warned of


def test_only_closed_forms_leave_one_out(iris):
    with pytest.raises(TypeError, match="IsolationForest has none. Use method='cross'"):
        ConformalDetector(IsolationForest(), "loo").fit(*iris)


def test_scores_that_are_not_one_number_a_row(iris, images):
    class Nan(FirstFeature):
        def score_samples(self, X):
            return np.full(len(X), np.nan)

    with pytest.raises(ValueError, match="30 of them NaN"):
        ConformalDetector(Nan()).fit(*iris)
    with pytest.raises(ValueError, match="one number a row"):
        ConformalDetector(ASHDetector(seeded(Segmenter), "backbone")).fit(images[0])
    with pytest.raises(TypeError, match="neither score_samples nor decision_function"):
        ConformalDetector(LocalOutlierFactor()).fit(*iris)


@pytest.mark.filterwarnings("default:There are")
def test_too_few_calibration_rows_are_warned_of(iris):
    X = np.arange(40.0)[:, None]

    def fit(n_calibration, **settings):
        detector = ConformalDetector(FirstFeature(), calibration_size=n_calibration, **settings)
        return detector.fit(X, np.arange(40) % 2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(19).predict([[-1.0]]) == -1
    with pytest.warns(UserWarning, match="18 calibration rows, too few .* takes 19: .* no row"):
        assert fit(18).predict([[-1.0]]) == 1
    with pytest.warns(UserWarning, match="rests on the exponential tail alone"):
        assert fit(18, tail="exponential").predict([[-1000.0]]) == -1
    with pytest.warns(UserWarning, match="9 calibration rows of class 1"):
        fit(18, class_conditional=True)
    X, y = iris
    classifier = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X, y))
    detector = ConformalDetector(GMMDetector(), "loo", class_conditional=classifier)
    with pytest.warns(UserWarning, match="50 .* of class 0, .*that is predicted to be of it"):
        detector.set_params(alpha=0.01).fit(X[y == 0], y[y == 0])
    assert (detector.p_values(X[y == 2]) == 1).all()
