"""Conformal p-values: the guarantee, over repetitions, and the estimator."""

import numpy as np
import pytest
from detectors import DETECTORS, name_of
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skood import GMMDetector, NNGuideDetector
from skood.calibration import ConformalDetector

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:k=", "ignore:There are .* calibration rows"
)
N_REPETITIONS = 200


@parametrize_with_checks(
    [
        ConformalDetector(GMMDetector()),
        ConformalDetector(IsolationForest(n_estimators=5, random_state=0), method="cross"),
        ConformalDetector(NNGuideDetector(k=3, random_state=0), method="loo", tail="exponential"),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def repeat(detector, alpha, n=60, n_test=40):
    """Return p-values of fresh rows and the share of false alarms, for each repetition."""
    p_values, shares = [], []
    for seed in range(N_REPETITIONS):
        rng = np.random.default_rng(seed)
        X, fresh = rng.normal(size=(n, 3)), rng.normal(size=(n_test, 3))
        model = clone(detector).set_params(alpha=alpha).fit(X)
        p_values.append(model.p_values(fresh))
        shares.append((model.predict(fresh) == -1).mean())
    return np.array(p_values), np.array(shares)


def test_split_false_alarms_are_exact_and_p_values_super_uniform():
    """Over 200 fits, within 3 standard errors of their means."""
    alpha, n_cal = 0.1, 30
    detector = ConformalDetector(
        GMMDetector(covariance_type="diag"), calibration_size=n_cal, random_state=0
    )
    p_values, shares = repeat(detector, alpha)
    exact = np.floor((n_cal + 1) * alpha) / (n_cal + 1)
    error = shares.std() / np.sqrt(N_REPETITIONS)
    assert abs(shares.mean() - exact) < 3 * error
    for level in (0.05, 0.2, 0.5, 0.8):
        below = (p_values <= level).mean(1)
        assert below.mean() < level + 3 * below.std() / np.sqrt(N_REPETITIONS)


@pytest.mark.parametrize("method", ["cross", "loo"])
def test_other_methods_keep_the_level(method):
    alpha = 0.1
    detector = ConformalDetector(GMMDetector(covariance_type="diag"), method=method, random_state=0)
    _, shares = repeat(detector, alpha)
    error = shares.std() / np.sqrt(N_REPETITIONS)
    assert shares.mean() < alpha + 3 * error
    assert shares.mean() > alpha / 2


def test_false_discoveries_stay_below_the_level(rng):
    """Of rows called out-of-distribution among 50 in-distribution and 50 far ones."""
    proportions = []
    for seed in range(N_REPETITIONS):
        rng = np.random.default_rng(seed)
        X, fresh = rng.normal(size=(300, 2)), rng.normal(size=(50, 2))
        model = ConformalDetector(
            GMMDetector(covariance_type="diag"), calibration_size=200, alpha=0.2, fdr="bh",
            random_state=0,
        ).fit(X)  # fmt: skip
        called = model.predict(np.vstack([fresh, rng.normal(size=(50, 2)) + 4])) == -1
        proportions.append(called[:50].sum() / max(1, called.sum()))
    error = np.std(proportions) / np.sqrt(N_REPETITIONS)
    assert np.mean(proportions) < 0.2 + 3 * error
    assert called[50:].mean() > 0.5


@pytest.mark.parametrize("detector", [cls() for cls in DETECTORS], ids=name_of)
@pytest.mark.parametrize("method", ["split", "cross", "loo"])
def test_every_detector(detector, method, iris):
    X, y = iris
    model = ConformalDetector(detector, method=method, random_state=0)
    before = detector.get_params()
    model.fit(X, np.where(y == 2, -1, y))
    assert detector.get_params() == before
    p_values = model.p_values(X)
    assert ((p_values > 0) & (p_values <= 1)).all()
    np.testing.assert_array_equal(model.predict(X) == -1, p_values <= model.alpha)
    np.testing.assert_array_equal(model.predict(X) == -1, model.decision_function(X) < 0)
    assert 0 <= model.score(X, np.where(y == 2, -1, y)) <= 1


def test_fitted_detectors_and_pipelines_are_calibrated_on_all_rows(iris):
    X, _ = iris
    fitted = make_pipeline(StandardScaler(), GMMDetector()).fit(X[::2])
    model = ConformalDetector(FrozenEstimator(fitted)).fit(X[1::2])
    scores, new = fitted.score_samples(X[1::2]), X[:5] + 0.3
    expected = [(1 + (scores <= s).sum()) / 76 for s in fitted.score_samples(new)]
    np.testing.assert_allclose(model.p_values(new), expected)
    aside = ConformalDetector(make_pipeline(StandardScaler(), GMMDetector()))
    aside.fit(X[::2], X_cal=X[1::2])
    np.testing.assert_allclose(aside.p_values(new), expected)


def test_an_exponential_tail_ranks_far_rows(iris):
    X, _ = iris
    far = X[:1] + np.array([[20.0], [40.0], [80.0]])
    flat = ConformalDetector(GMMDetector(), random_state=0).fit(X)
    tail = clone(flat).set_params(tail="exponential").fit(X)
    assert len(set(flat.p_values(far))) == 1
    scores = tail.score_samples(far)
    assert scores[0] > scores[1] > scores[2]
    np.testing.assert_array_equal(tail.predict(far), flat.predict(far))


def test_bad_input(iris):
    X, y = iris
    with pytest.raises(TypeError, match="method='loo' takes leave-one-out scores"):
        ConformalDetector(IsolationForest(), method="loo").fit(X)
    with pytest.raises(ValueError, match="in-distribution"):
        ConformalDetector(GMMDetector()).fit(X, np.full(150, -1))
