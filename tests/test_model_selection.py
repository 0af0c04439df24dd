"""Splitters that hold out classes, folds of y with negatives, and any estimator as a detector."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from skood import FeatureExtractor, GMMDetector, KNNDetector, NNGuideDetector
from skood.metrics import auroc_score, get_scorer
from skood.metrics.scorers import known_labels
from skood.model_selection import FitOnInliers, LeaveClassesOut, OODStratifiedKFold
from tests.networks import MLP, seeded

DETECTORS = [
    IsolationForest(n_estimators=20, random_state=0),
    LocalOutlierFactor(novelty=True),
    OneClassSVM(),
]


def named(codes):
    """Return labels as strings beside the negative numbers, in a list."""
    return ["abcdefgh"[code] if code >= 0 else int(code) for code in codes]


@pytest.fixture
def mixed(iris):
    """Return iris with 30 OOD rows, of two kinds, somewhere among its rows."""
    X, y = iris
    X, y = np.vstack([X, X[:30] * 2 + 3]), np.r_[y, np.repeat([-1, -2], 15)]
    order = np.random.default_rng(0).permutation(len(y))
    return X[order], y[order]


# LeaveClassesOut


@st.composite
def problems(draw):
    """Draw labels, with or without negatives, and a splitter that suits them."""
    n_known = draw(st.integers(3, 7))
    n_splits = draw(st.integers(2, 6))
    codes = np.repeat(np.arange(n_known), draw(st.integers(n_splits, 9)))
    codes = np.r_[codes, draw(st.lists(st.integers(-3, n_known - 1), max_size=12))].astype(int)
    codes = np.array(draw(st.permutations(codes.tolist())))
    n_classes = draw(st.integers(1, n_known - 2))
    seed = draw(st.integers(0, 2**32 - 1))
    return codes, LeaveClassesOut(n_splits, n_classes=n_classes, random_state=seed)


@settings(max_examples=200, deadline=None)
@given(problems(), st.sampled_from([np.array, named]))
def test_leave_classes_out(problem, kind):
    codes, cv = problem
    y, n_known = kind(codes), codes.max() + 1
    splits = list(cv.split(codes, y))
    assert len(splits) == cv.get_n_splits(codes, y)
    held_out = []
    for train, test in splits:
        np.testing.assert_array_equal(np.sort(np.r_[train, test]), np.arange(len(codes)))
        learned = np.unique(codes[train])
        # No OOD row is learned from, and no row of a held-out class.
        assert learned[0] >= 0 and len(learned) == n_known - cv.n_classes
        held_out.append(np.setdiff1d(np.arange(n_known), learned))
        # Every class that is learned is tested as well.
        np.testing.assert_array_equal(np.unique(codes[test][codes[test] >= 0]), np.arange(n_known))
    assert set(np.concatenate([test for _, test in splits])) == set(range(len(codes)))
    counts = np.bincount(np.concatenate(held_out), minlength=n_known)
    assert np.ptp(counts) <= 1
    for (train, test), (train_again, test_again) in zip(splits, cv.split(codes, y), strict=True):
        np.testing.assert_array_equal(train, train_again)
        np.testing.assert_array_equal(test, test_again)
    # A row of the rest is tested once.
    kept = sum(np.isin(np.arange(len(codes)), test) for _, test in splits)
    out = sum(np.isin(codes, classes) for classes in held_out)
    assert (kept[codes >= 0] <= 1 + out[codes >= 0]).all()


def test_ood_rows_do_not_change_the_split(iris):
    X, y = iris
    cv = LeaveClassesOut(3, random_state=1)
    more = np.r_[y, -1]
    for (train, test), (train_more, test_more) in zip(
        cv.split(X, y), cv.split(more, more), strict=True
    ):
        np.testing.assert_array_equal(train, train_more)
        np.testing.assert_array_equal(np.r_[test, 150], test_more)


def test_random_states_differ(iris):
    X, y = iris
    tests = {
        tuple(test)
        for seed in range(5)
        for _, test in LeaveClassesOut(2, random_state=seed).split(X, y)
    }
    assert len(tests) == 10
    unseeded = LeaveClassesOut(2)
    assert [*map(list, next(unseeded.split(X, y)))] != [*map(list, next(unseeded.split(X, y)))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeaveClassesOut(1), "n_splits=2 or more"),
        (lambda: LeaveClassesOut(n_classes=0), "n_classes must be a positive integer, got 0"),
        (lambda: LeaveClassesOut(n_classes=0.5), "n_classes must be a positive integer, got 0.5"),
    ],
)
def test_bad_splitters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("y", "n_classes", "message"),
    [
        ([0, 1, 2] * 5, 2, "3 classes: to hold out n_classes=2 of them would leave 1, and"),
        ([0, 1] * 5 + [-1] * 5, 1, "2 classes: to hold out n_classes=1 of them would leave 1"),
        ([0, 1, 2] * 5, 9, "would leave 0"),
        ([-1] * 15, 1, "minimum of 2"),
        ([0.5, 0.1, 0.7] * 5, 1, "Unknown label type"),
        ([0, 1, 2, 3], 1, "inconsistent numbers of samples"),
        ([0, 1, 2] * 4 + [3, None, 3], 1, "NaN or None"),
        (list(range(15)), 1, "n_splits=5 cannot be greater"),
        (None, 1, "y should be a 1d array"),
    ],
)
def test_labels_that_cannot_be_split(y, n_classes, message):
    with pytest.raises(ValueError, match=message):
        next(LeaveClassesOut(n_classes=n_classes).split(np.zeros(15), y))


def test_reprs():
    text = "LeaveClassesOut(n_classes=2, n_splits=4, random_state=0)"
    assert repr(LeaveClassesOut(4, n_classes=2, random_state=0)) == text
    text = "OODStratifiedKFold(n_splits=3, random_state=None, shuffle=False)"
    assert repr(OODStratifiedKFold(3)) == text


@pytest.mark.parametrize("kind", [np.array, named, torch.as_tensor, pd.Series])
def test_a_search_without_ood_rows(kind, iris):
    X, y = iris
    cv = LeaveClassesOut(3, random_state=0)
    search = GridSearchCV(NNGuideDetector(), {"k": [1, 5]}, cv=cv).fit(X, kind(y))
    for i, (train, test) in enumerate(cv.split(X, y)):
        detector = NNGuideDetector(k=5).fit(X[train], y[train])
        counted = np.where(np.isin(y[test], y[train]), 1, -1)
        expected = auroc_score(counted, detector.score_samples(X[test]))
        assert search.cv_results_[f"split{i}_test_score"][1] == expected


# OODStratifiedKFold


@settings(max_examples=100, deadline=None)
@given(problems(), st.booleans())
def test_folds_are_those_of_scikit_learn(problem, shuffle):
    codes, other = problem
    settings = {"shuffle": shuffle, "random_state": other.random_state if shuffle else None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        expected = list(StratifiedKFold(2, **settings).split(codes, codes))
        for y in (codes, named(codes), np.array(named(codes), dtype=object)):
            found = list(OODStratifiedKFold(2, **settings).split(codes, y))
            for one, two in zip(found, expected, strict=True):
                np.testing.assert_array_equal(np.concatenate(one), np.concatenate(two))


def test_scikit_learns_own_splitter_fails_on_strings_beside_negatives(mixed):
    X, codes = mixed
    y = np.array(named(codes), dtype=object)
    with pytest.raises((TypeError, ValueError)):
        next(StratifiedKFold().split(X, y))
    scores = [
        cross_val_score(GMMDetector(), X, labels, cv=OODStratifiedKFold(3)) for labels in (y, codes)
    ]
    np.testing.assert_array_equal(*scores)


# FitOnInliers


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [FitOnInliers(e) for e in (StandardScaler(), FeatureExtractor(), GMMDetector(), *DETECTORS)]
    + [FitOnInliers(KNNDetector(k=1), trim=0.1)]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


CONVERTED = {
    "numpy": (np.asarray, np.asarray),
    "list": (lambda X: X.tolist(), named),
    "pandas": (pd.DataFrame, pd.Series),
    "torch": (torch.as_tensor, torch.as_tensor),
}


@pytest.mark.parametrize("kind", CONVERTED)
@pytest.mark.parametrize("estimator", [StandardScaler(), *DETECTORS], ids=str)
@pytest.mark.filterwarnings("ignore:X (does not have|has) .*feature names")
def test_ood_rows_are_not_learned(estimator, kind, mixed):
    X, y = mixed
    convert_X, convert_y = CONVERTED[kind]
    wrapped = FitOnInliers(estimator).fit(convert_X(X), convert_y(y))
    direct = clone(estimator).fit(X[y >= 0])
    method = "transform" if isinstance(estimator, StandardScaler) else "score_samples"
    found, expected = (getattr(each, method)(X) for each in (wrapped, direct))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert wrapped.known_classes_.tolist() == (list("abc") if kind == "list" else [0, 1, 2])
    assert wrapped.n_features_in_ == 4
    assert hasattr(wrapped, "feature_names_in_") == hasattr(wrapped.estimator_, "feature_names_in_")


def test_sparse_rows(mixed):
    from scipy.sparse import csr_array

    X, y = mixed
    wrapped = FitOnInliers(IsolationForest(random_state=0))
    found = clone(wrapped).fit(csr_array(X), y).score_samples(X)
    np.testing.assert_allclose(found, clone(wrapped).fit(X, y).score_samples(X))


def test_under_array_api_dispatch(mixed):
    X, y = (torch.as_tensor(a) for a in mixed)
    with config_context(array_api_dispatch=True):
        wrapped = FitOnInliers(GMMDetector()).fit(X, y)
        scores = wrapped.score_samples(X)
        assert wrapped.score(X, y) > 0.9
    assert isinstance(scores, torch.Tensor)
    np.testing.assert_allclose(scores, GMMDetector().fit(X, y).score_samples(X), rtol=1e-10)


@pytest.mark.parametrize("detector", DETECTORS, ids=str)
def test_score_is_that_of_our_detectors(detector, mixed):
    X, y = mixed
    known = y < 2
    wrapped = FitOnInliers(detector).fit(X[known], y[known])
    scores = wrapped.score_samples(X)
    assert wrapped.score(X, y) == auroc_score(np.where((y < 0) | (y == 2), -1, 1), scores)
    # Without labels in fit, only negatives are OOD.
    wrapped.fit(X[y >= 0])
    assert not hasattr(wrapped, "known_classes_")
    assert wrapped.score(X, y) == auroc_score(y, wrapped.score_samples(X))


@pytest.mark.parametrize("detector", DETECTORS, ids=str)
def test_signs_and_the_threshold(detector, mixed):
    X, y = mixed
    wrapped = FitOnInliers(detector).fit(X, y)
    decision = wrapped.decision_function(X)
    np.testing.assert_allclose(decision, wrapped.score_samples(X) - wrapped.offset_, atol=1e-12)
    np.testing.assert_array_equal(wrapped.predict(X), np.where(decision >= 0, 1, -1))
    np.testing.assert_array_equal(clone(wrapped).fit_predict(X, y), wrapped.predict(X))
    assert wrapped.score(X, y) > 0.9


def test_the_threshold_follows_the_detector_inside(mixed):
    X, y = mixed
    wrapped = FitOnInliers(GMMDetector()).fit(X, y)
    assert not hasattr(FitOnInliers(GMMDetector()), "offset_")
    wrapped.estimator_.set_threshold(false_alarm_rate=0.3)
    assert wrapped.offset_ == wrapped.estimator_.offset_
    decision = wrapped.decision_function(X)
    np.testing.assert_allclose(decision, wrapped.score_samples(X) - wrapped.offset_, atol=1e-12)


def test_transformers(mixed):
    X, y = mixed
    wrapped = FitOnInliers(PCA(2)).fit(X, y)
    np.testing.assert_array_equal(clone(wrapped).fit_transform(X, y), wrapped.transform(X))
    assert wrapped.get_feature_names_out().tolist() == ["pca0", "pca1"]
    assert not hasattr(wrapped, "predict") and not hasattr(wrapped, "fit_predict")
    assert not hasattr(FitOnInliers(StandardScaler()), "score")
    assert not hasattr(FitOnInliers(OneClassSVM()), "transform")
    framed = clone(wrapped).set_output(transform="pandas").fit_transform(X, y)
    assert list(framed.columns) == ["pca0", "pca1"]
    assert isinstance(wrapped.set_output(transform="pandas").transform(X), pd.DataFrame)


def test_in_pipelines(mixed):
    X, y = mixed
    outer = make_pipeline(FitOnInliers(StandardScaler()), GMMDetector()).fit(X, y)
    scaled = StandardScaler().fit(X[y >= 0]).transform(X)
    np.testing.assert_allclose(
        outer.score_samples(X), GMMDetector().fit(scaled, y).score_samples(scaled)
    )
    inner = FitOnInliers(make_pipeline(StandardScaler(), IsolationForest(random_state=0)))
    direct = IsolationForest(random_state=0).fit(scaled[y >= 0])
    np.testing.assert_array_equal(inner.fit(X, y).predict(X), direct.predict(scaled))


def test_what_is_not_fitted_or_no_estimator(mixed):
    X, y = mixed
    for method in ("predict", "score_samples", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(FitOnInliers(OneClassSVM()), method)(X)
    with pytest.raises(ValueError, match="'estimator' parameter"):
        FitOnInliers(3).fit(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FitOnInliers(OneClassSVM()).fit(X, y[:-1])


class Distance(BaseEstimator):
    """A detector in PyOD's convention: distances to the mean, predict gives 0 and 1."""

    def __init__(self, power=1.0):
        self.power = power

    def fit(self, X, y=None):
        assert y is None
        self.mean_ = X.mean(0)
        self.decision_scores_ = self.decision_function(X)
        self.threshold_ = np.quantile(self.decision_scores_, 0.9)
        return self

    def decision_function(self, X):
        return np.linalg.norm(X - self.mean_, axis=1) ** self.power

    def predict(self, X):
        return (self.decision_function(X) > self.threshold_).astype(int)


class Untagged:
    """The same without scikit-learn's base class, as PyOD's own."""

    __init__ = Distance.__init__
    fit = Distance.fit
    decision_function = Distance.decision_function
    predict = Distance.predict

    def get_params(self, deep=True):
        return {"power": self.power}

    def set_params(self, power):
        self.power = power
        return self


def test_detectors_whose_scores_are_higher_for_outliers(mixed):
    X, y = mixed
    for detector in (Untagged(), make_pipeline(StandardScaler(), Distance())):
        with pytest.raises(ValueError, match="has `decision_scores_`.*higher_is_outlier=True"):
            FitOnInliers(detector).fit(X[y >= 0])
        direct = clone(detector).fit(X[y >= 0])
        wrapped = FitOnInliers(detector, higher_is_outlier=True).fit(X, y)
        assert wrapped.score(X, y) == auroc_score(y, -direct.decision_function(X))
        assert wrapped.score(X, y) > 0.9
        np.testing.assert_array_equal(wrapped.predict(X), 1 - 2 * direct.predict(X))
        np.testing.assert_array_equal(wrapped.decision_function(X) >= 0, wrapped.predict(X) == 1)
    wrapped = FitOnInliers(Untagged(), higher_is_outlier=True)
    cv = LeaveClassesOut(3, random_state=0)
    search = GridSearchCV(wrapped, {"estimator__power": [1.0, 2.0]}, cv=cv).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] == pytest.approx(scores[1]) and scores[0] > 0.5


@pytest.mark.parametrize("scoring", [None, get_scorer("fpr95")], ids=["score", "fpr95"])
def test_any_outlier_detector_can_be_searched(scoring, iris):
    X, y = iris
    cv = LeaveClassesOut(3, random_state=0)
    detector = FitOnInliers(IsolationForest(n_estimators=20, random_state=0))
    grid = {"estimator__max_features": [1, 4]}
    search = GridSearchCV(detector, grid, scoring=scoring, cv=cv).fit(X, y)
    expected = []
    for train, test in cv.split(X, y):
        forest = IsolationForest(n_estimators=20, random_state=0, max_features=4).fit(X[train])
        labels = np.where(np.isin(y[test], y[train]), 1, -1)
        scores = forest.score_samples(X[test])
        metric = get_scorer("fpr95") if scoring else get_scorer("auroc")
        expected.append(metric(forest, X[test], labels))
        assert scoring or expected[-1] == auroc_score(labels, scores)
    assert search.cv_results_["mean_test_score"][1] == np.mean(expected)


# Known classes, and networks that know more


def test_known_classes_are_found_through_what_is_around_them(mixed):
    X, y = mixed
    forest = IsolationForest(n_estimators=5, random_state=0)
    search = GridSearchCV(FitOnInliers(forest), {"estimator__max_features": [4]}, cv=2)
    frozen = FrozenEstimator(GMMDetector().fit(X, y))
    head = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X[y >= 0], y[y >= 0]))
    seen = (y < 2) & (y != -2)
    for estimator in (
        FitOnInliers(forest),
        make_pipeline(StandardScaler(), FitOnInliers(forest)),
        make_pipeline(FitOnInliers(StandardScaler()), forest),
        FitOnInliers(make_pipeline(StandardScaler(), forest)),
        GridSearchCV(make_pipeline(FitOnInliers(StandardScaler()), GMMDetector()), {}, cv=2),
        FitOnInliers(search),
        make_pipeline("passthrough", search),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = clone(estimator).fit(X[seen], y[seen])
        assert list(known_labels(fitted)) == [0, 1]
        expected = auroc_score(np.where((y < 0) | (y == 2), -1, 1), fitted.score_samples(X))
        assert get_scorer("auroc")(fitted, X, y) == expected
    assert list(known_labels(FitOnInliers(frozen).fit(X[seen], y[seen]))) == [0, 1, 2]
    known = known_labels(FitOnInliers(NNGuideDetector(head)).fit(X[seen], y[seen]))
    assert list(known) == [0, 1, 2]
    assert known_labels(make_pipeline(StandardScaler(), forest).fit(X)) is None


def test_a_fixed_network_that_may_know_the_held_out_classes_is_told(iris):
    X, y = iris
    net = seeded(MLP, in_features=4).double()
    cv = LeaveClassesOut(3, random_state=0)
    message = "rows of the classes 2, which fit did not see.*(skorch net)"
    train, test = y < 2, slice(None)
    warned = [
        (NNGuideDetector(net), None),
        (NNGuideDetector(net), get_scorer("auroc")),
        (make_pipeline(FeatureExtractor(net), GMMDetector(reg_covar=0.1)), get_scorer("auroc")),
        (FitOnInliers(make_pipeline(FeatureExtractor(net), KernelDensity())), None),
    ]
    for estimator, scoring in warned:
        fitted = clone(estimator).fit(X[train], y[train])
        with pytest.warns(UserWarning, match=message) as caught:
            (scoring or type(fitted).score)(fitted, X[test], y[test])
        assert caught[0].filename == __file__
        with pytest.warns(UserWarning, match="which fit did not see"):
            cross_val_score(estimator, X, y, cv=cv, scoring=scoring)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for estimator in (NNGuideDetector(), NNGuideDetector(LogisticRegression(max_iter=1000))):
            cross_val_score(estimator, X, y, cv=cv, scoring=get_scorer("auroc"))
    for estimator, scoring in [*warned, (warned[2][0], None)]:
        for n_jobs in (None, 2):
            # With threads, as processes do not share what is shown.
            with parallel_config("threading"), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                GridSearchCV(estimator, [{}, {}], cv=cv, scoring=scoring, n_jobs=n_jobs).fit(X, y)
            told = [str(w.message) for w in caught if "which fit did not see" in str(w.message)]
            assert len(told) == 1 and "refit=KeepUnlessBetter(detector)" in told[0]
