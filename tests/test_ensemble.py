"""Several detectors as one."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import combine_pvalues
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
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
from skood.decisions.combination import COMBINATIONS
from skood.decisions.p_values import conformal_p_values
from skood.detectors.head.nnguide import NNGuideScorer
from skood.ensemble import EnsembleDetector
from skood.learning.thresholds import lower_quantile
from skood.metrics import auroc_score
from skood.metrics.scorers import score_rows
from tests.networks import SmallCNN, sample_inputs, seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:k=", "ignore:There are .* calibration rows"
)

METHODS = sorted(COMBINATIONS)
EACH = pytest.mark.parametrize("method", METHODS)
GAUSSIANS = [("full", GMMDetector()), ("diag", GMMDetector(covariance_type="diag"))]


def ensemble(method="min", model=None, **parameters):
    """Return an ensemble of fast detectors."""
    return EnsembleDetector(
        [*GAUSSIANS, ("near", NNGuideDetector(k=3, random_state=0))],
        model,
        method=method,
        **parameters,
    )


@parametrize_with_checks(
    [
        EnsembleDetector(GAUSSIANS),
        EnsembleDetector(
            [
                ("forest", IsolationForest(n_estimators=3, random_state=0)),
                ("neighbours", LocalOutlierFactor(n_neighbors=3, novelty=True)),
                ("pipeline", make_pipeline(StandardScaler(), GMMDetector())),
            ],
            method="stouffer",
            random_state=0,
        ),
    ]
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# The formulas


def left_out(detector, X, y):
    """Return a fitted detector and the scores of its training rows."""
    detector = clone(detector)
    return detector, np.asarray(detector._fit(X, y))


@EACH
def test_equals_a_plain_reference(method, iris):
    X, y = iris
    X_new = X[::3] + 0.2
    model = ensemble(method).fit(X, y)
    p_own, p_new = [], []
    for _, detector in model.detectors:
        fitted, scores = left_out(detector, X, y)
        p_own.append([np.sum(scores <= s) / 150 for s in scores])
        p_new.append(
            conformal_p_values([np.sort(scores)], [fitted.score_samples(X_new)], tail="exponential")
        )
    # Half a step below 1, whose normal quantile is infinite.
    p_own, p_new = (np.minimum(p, 1 - 0.5 / 151).T for p in (p_own, p_new))

    combine = {
        "min": lambda p: np.log(combine_pvalues(p, "tippett").statistic),
        "fisher": lambda p: -combine_pvalues(p, "fisher").statistic / 2,
        "stouffer": lambda p: -combine_pvalues(p, "stouffer").statistic,
        "mean_rank": lambda p: np.log(p.mean()),
    }[method]

    scores = np.array([combine(p) for p in p_new])
    np.testing.assert_allclose(model.score_samples(X_new), scores, rtol=1e-6)
    own = lower_quantile(np.array([combine(p) for p in p_own]), 0.05)
    assert model.offset_ == pytest.approx(own, rel=1e-7)
    np.testing.assert_array_equal(model.predict(X_new), np.where(scores >= own, 1, -1))
    np.testing.assert_array_equal(
        model.decision_function(X_new), model.score_samples(X_new) - model.offset_
    )


@EACH
def test_far_rows_are_ranked(method, iris):
    X, y = iris
    model = EnsembleDetector(GAUSSIANS, method=method).fit(X, y)
    scores = model.score_samples(X[:1] + np.geomspace(1, 1e12, 40)[:, None])
    assert (np.diff(scores) < 0).all()
    everywhere = ensemble(method).fit(X, y).score_samples(X[:1] * np.array([[1e30], [-1e30]]))
    assert np.isfinite(everywhere).all() and everywhere.dtype == np.float64


LOG_P = arrays(np.float64, (3, 4), elements=st.floats(-1e300, -1e-6))


@given(log_p=LOG_P, raised=LOG_P)
def test_raising_scores_never_lowers_the_combination(log_p, raised):
    raised = np.maximum(log_p, raised)
    for combine in COMBINATIONS.values():
        low, high = combine(log_p), combine(raised)
        assert np.isfinite(low).all() and (high >= low - 1e-12 * np.abs(low)).all()


@EACH
def test_raising_scores_of_detectors_never_lowers_the_combination(method, iris, monkeypatch, rng):
    X, y = iris
    model = ensemble(method).fit(X, y)
    before = model.score_samples(X)

    def higher(detector, rows):
        scores = score_rows(detector, rows)
        return scores + rng.exponential(scores.std(), len(scores))

    monkeypatch.setattr("skood.decisions.ensemble.score_rows", higher)
    assert (model.score_samples(X) >= before - 1e-12).all()


def test_false_alarms_are_as_many_as_said(rng):
    """5.2 % over 100 repetitions; the standard error of 20 is 0.35 %."""
    means = 3 * rng.normal(size=(3, 8))
    share = {method: [] for method in METHODS}
    for _ in range(20):
        y, y_new = rng.integers(3, size=300), rng.integers(3, size=1000)
        X, X_new = (means[k] + rng.normal(size=(len(k), 8)) for k in (y, y_new))
        for method in METHODS:
            detectors = [*GAUSSIANS, ("tied", GMMDetector(covariance_type="tied"))]
            model = EnsembleDetector(detectors, method=method).fit(X, y)
            share[method].append((model.predict(X_new) < 0).mean())
    for shares in share.values():
        assert 0.04 < np.mean(shares) < 0.062


def test_other_detectors_are_calibrated_on_rows_they_have_not_seen(rng):
    """By in-sample scores this Gaussian raises 15 % false alarms."""
    means = 3 * rng.normal(size=(3, 8))
    detectors = [("pipeline", make_pipeline(StandardScaler(), GMMDetector()))]
    shares = []
    for seed in range(10):
        y, y_new = rng.integers(3, size=200), rng.integers(3, size=1000)
        X, X_new = (means[k] + rng.normal(size=(len(k), 8)) for k in (y, y_new))
        model = EnsembleDetector(detectors, random_state=seed).fit(X, y)
        shares.append((model.predict(X_new) < 0).mean())
    assert 0.03 < np.mean(shares) < 0.07


@pytest.mark.parametrize("class_conditional", [False, True])
def test_scores_of_a_sample_of_rows_go_with_those_of_all(class_conditional, iris, monkeypatch):
    X, y = iris
    monkeypatch.setattr(NNGuideScorer, "n_threshold_rows", 60)
    # A head that is fitted would be cross-fitted, on other rows where there are more.
    head = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X, y))
    near = NNGuideDetector(head, k=3)
    scores = left_out(near, X, y)[1]
    assert len(scores) == 60
    model = EnsembleDetector([("near", near), ("full", GMMDetector())], method="fisher").fit(X, y)
    monkeypatch.setattr(NNGuideScorer, "n_threshold_rows", 150)
    every = left_out(near, X, y)[1]
    rows = np.array([np.flatnonzero(np.isclose(every, s))[0] for s in scores])
    assert len(set(rows)) == 60
    gauss = left_out(GMMDetector(), X, y)[1]
    log_p = [
        np.log([np.sum(s <= t) / len(s) for t in s])[at]
        for s, at in ((scores, slice(None)), (gauss, rows))
    ]
    assert model.offset_ == pytest.approx(lower_quantile(sum(log_p), 0.05), rel=1e-2)
    monkeypatch.setattr(NNGuideScorer, "n_threshold_rows", 60)
    conformal = ConformalDetector(near, "loo", class_conditional=class_conditional).fit(X, y)
    assert conformal.n_calibration_ == 60
    if class_conditional:
        counts = {name: len(s) for name, (s,) in conformal._calibration}
        assert counts == {k: np.sum(y[rows] == k) for k in range(3)}


# Networks


@pytest.fixture
def shared():
    """Return a network, rows of the 4 classes that it tells apart, and their labels."""
    net = seeded(SmallCNN)
    X = sample_inputs(net, 120, seed=3)
    with torch.no_grad():
        return net, X, net(torch.from_numpy(X)).argmax(1).numpy()


ON_FEATURES = [
    ("ash", ASHDetector()),
    ("gauss", GMMDetector(reg_covar=0.1)),
    ("grad", GradNormDetector()),
    ("nac", NACDetector()),
    ("near", NNGuideDetector(k=3, random_state=0)),
    ("forest", IsolationForest(n_estimators=5, random_state=0)),
]
INSIDE = [("conv", ASHDetector(layer="conv1")), ("all", GradNormDetector(params="all"))]


@pytest.mark.parametrize("inside", [0, 1, 2])
def test_one_pass_serves_all(inside, shared, monkeypatch):
    net, X, y = shared
    model = EnsembleDetector([*ON_FEATURES, *INSIDE[:inside]], net, random_state=0)
    monkeypatch.setattr("skood.decisions.ensemble_rows.FEATURE_BATCH_BYTES", 100 * 4 * 16)
    model.fit(X, y)
    rows = []
    monkeypatch.setattr(
        SmallCNN,
        "forward",
        lambda self, x, forward=SmallCNN.forward: (rows.append(len(x)), forward(self, x))[1],
    )
    model.predict(np.vstack([X, X, X]))
    assert sum(rows) == 360 * (1 + inside)
    rows.clear()
    clone(model).fit(X, y)
    # Two rows more for each look at how the network ends, one at the size of the features, and 16
    # twice to see what rounding does to the scores of a detector inside of the network.
    assert sum(rows) <= (120 + 5) * (1 + inside) + 32 * inside


def test_detectors_score_as_on_their_own(shared):
    net, X, y = shared
    own = ("own", NNGuideDetector(net, k=2))
    model = EnsembleDetector([*ON_FEATURES, *INSIDE, own], net, random_state=0).fit(X, y)
    assert model.named_detectors_["near"] is model.detectors_[4]
    features = FeatureExtractor(net).fit_transform(X)
    log_p = []
    for name, detector in model.detectors:
        if name == "forest":
            alone, scores = clone(detector).fit(features), None
            scores = model.named_detectors_[name].score_samples(features)
            np.testing.assert_allclose(scores, alone.score_samples(features))
            continue
        alone = clone(detector).set_params(model=net)
        rows = features if name in dict(ON_FEATURES) else X
        fitted, calibration = left_out(alone, X, y)
        np.testing.assert_allclose(
            model.named_detectors_[name].score_samples(rows), fitted.score_samples(X), rtol=1e-4
        )
        log_p.append(
            conformal_p_values([np.sort(calibration)], [fitted.score_samples(X)], log=True)
        )
    # The forest may only lower the minimum.
    assert (model.score_samples(X) <= np.min(log_p, axis=0) + 0.05).all()


def test_the_network_is_shared_by_clones_and_never_touched(shared):
    net, X, y = shared
    net.train()
    before = pickle.dumps(net.state_dict())
    model = clone(EnsembleDetector([*ON_FEATURES, *INSIDE], net, random_state=0))
    assert model.model is net
    model.set_params(n_jobs=2).fit(X, y)
    scores = model.score_samples(X)
    assert pickle.dumps(net.state_dict()) == before and net.training
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).score_samples(X), scores)
    np.testing.assert_array_equal(clone(model).fit(X, y).score_samples(X), scores)
    assert clone(model).set_params(n_jobs=None).fit(X, y).offset_ == model.offset_


@pytest.mark.parametrize("inside", [0, 2])
@pytest.mark.parametrize("kind", ["dict", "Dataset", "DataLoader", "tensor"])
def test_other_kinds_of_rows(kind, inside, shared):
    net, X, y = shared
    y = np.where(np.arange(120) % 10, y, -1)
    model = EnsembleDetector([*ON_FEATURES, *INSIDE[:inside]], net, random_state=0).fit(X, y)
    expected = model.score_samples(X)
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    rows, labels = {
        "dict": ({"x": X}, y),
        "Dataset": (data, None),
        "DataLoader": (DataLoader(data, batch_size=50), None),
        "tensor": (torch.from_numpy(X), torch.from_numpy(y)),
    }[kind]
    again = clone(model).fit(rows, labels)
    np.testing.assert_allclose(again.score_samples(rows), expected, rtol=1e-3)
    assert again.offset_ == pytest.approx(model.offset_, rel=1e-3)
    assert again.known_classes_.tolist() == [0, 1, 2, 3]
    assert again.score(rows, y) == pytest.approx(model.score(X, y), rel=1e-3)


def test_a_loader_that_shuffles_serves_detectors_on_shared_features_only(shared):
    net, X, y = shared
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    loader = DataLoader(data, batch_size=50, shuffle=True)
    gaussians = [(n, clone(d).set_params(reg_covar=0.1)) for n, d in GAUSSIANS]
    model = EnsembleDetector(gaussians, net)
    assert model.fit(loader).offset_ == pytest.approx(model.fit(X, y).offset_)
    with pytest.raises(ValueError, match="The DataLoader shuffles"):
        EnsembleDetector([*gaussians, *INSIDE], net).fit(loader)


def test_detectors_may_all_have_networks_of_their_own(shared):
    net, X, y = shared
    detectors = [(n, clone(d).set_params(model=net)) for n, d in INSIDE]
    model = EnsembleDetector(detectors).fit(X, y)
    same = EnsembleDetector(INSIDE, net).fit(X, y)
    np.testing.assert_array_equal(model.score_samples(X), same.score_samples(X))
    assert model.known_classes_.tolist() == [0, 1, 2, 3]


def test_one_head_for_all(iris):
    X, y = iris
    model = ensemble(model=LogisticRegression(max_iter=1000)).fit(X, y)
    head = model.extractor_.model_
    frozen = ensemble(model=FrozenEstimator(head)).fit(X, y)
    np.testing.assert_array_equal(model.score_samples(X), frozen.score_samples(X))
    own = ("near", NNGuideDetector(FrozenEstimator(head), k=3, random_state=0))
    own_head = EnsembleDetector([*GAUSSIANS, own]).fit(X, y)
    np.testing.assert_allclose(model.score_samples(X), own_head.score_samples(X), rtol=1e-6)
    # The frozen head knows class 2.
    assert ensemble(model=FrozenEstimator(head)).fit(X[:100], y[:100])._known_labels()[-1] == 2


# scikit-learn


def test_searches_tune_parts_and_method(iris):
    X, y = iris
    X, y = np.vstack([X, X[::5] + 0.7]), np.r_[y, -np.ones(30, dtype=int)]
    grid = [{"near__k": [1, 5]}, {"method": METHODS}, {"diag": ["drop"], "full": [ASHDetector()]}]
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(ensemble(), grid, cv=cv).fit(X, y)
    assert search.best_score_ > 0.9
    assert len(set(search.cv_results_["mean_test_score"])) > 3
    pipeline = make_pipeline(FeatureExtractor(), ensemble("fisher")).fit(X, y)
    assert pipeline.score(X, y) > 0.9


def test_rows_of_no_class_are_left_out_and_labels_may_be_words(iris):
    X, y = iris
    words = np.array(["a", "b", "c"])[y].astype(object)
    words[y == 2] = -1
    detectors = [*GAUSSIANS, ("forest", IsolationForest(random_state=0, n_estimators=10))]
    model = EnsembleDetector(detectors, random_state=0).fit(X, words)
    assert model.known_classes_.tolist() == ["a", "b"]
    only = clone(model).fit(X[:100], y[:100])
    np.testing.assert_array_equal(model.score_samples(X), only.score_samples(X))
    scores = model.score_samples(X)
    assert model.score(X, words) == auroc_score(np.where(y < 2, 0, -1), scores)
    assert only.score(X, y) == model.score(X, words)
    assert not hasattr(model.fit(X), "known_classes_")


def test_bad_detectors(iris):
    X, y = iris
    for detectors, error, message in (
        ([], ValueError, "holds no detector"),
        ([("a", "drop")], ValueError, "holds no detector"),
        ([GMMDetector()], ValueError, r"a list of \(name, detector\)"),
        ([("a", GMMDetector()), ("a", GMMDetector())], ValueError, "not unique"),
        ([("model", GMMDetector())], ValueError, "conflict"),
        ([("a", GMMDetector)], TypeError, "estimator class"),
        ([("a", LogisticRegression(max_iter=1000))], ValueError, r"scores of shape \(30, 3\)"),
        ({"a": GMMDetector()}, ValueError, "'detectors' parameter"),
    ):
        with pytest.raises(error, match=message):
            EnsembleDetector(detectors).fit(X, y)
