"""What `offset_` promises: leave-one-out scores, and the share of false alarms."""

import numpy as np
import pytest
import references as ref
from detectors import IN_NETWORKS, SETTINGS, name_of
from networks import MLP, SmallCNN, seeded
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from skood import ASHDetector, GMMDetector, GradNormDetector, NACDetector, NNGuideDetector
from skood.base import BaseDetector
from skood.detectors._nnguide import NNGuideScorer

pytestmark = pytest.mark.filterwarnings("ignore:The features are signed", "ignore:.*is singular")


@pytest.fixture
def left_out(monkeypatch):
    """Return a function that fits a detector and gives its leave-one-out scores."""
    found = []
    threshold = BaseDetector._threshold

    def spy(self, scores, dtype):
        found.append(scores.numpy().copy())
        return threshold(self, scores, dtype)

    monkeypatch.setattr(BaseDetector, "_threshold", spy)

    def get(detector, X, y=None):
        detector.fit(X, y)
        return found[-1]

    return get


@pytest.fixture
def data(rng):
    """Return features and labels of classes of 1, 2, 9 and 20 rows."""
    y = np.repeat([3, 1, 0, 2], [1, 2, 9, 20])
    return rng.normal(size=(32, 4)) + 2 * rng.normal(size=(4, 4))[y], y


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
@pytest.mark.parametrize("reg_covar", ["auto", 0.05, 1.0])
@pytest.mark.parametrize("labels", [True, False])
def test_gmm_leaves_one_out(left_out, data, covariance_type, criterion, reg_covar, labels):
    """Exactly, with the ridge of "auto" kept from all rows."""
    Z, y = data
    y = y if labels else None
    settings = {
        "covariance_type": covariance_type,
        "criterion": criterion,
        "reg_covar": reg_covar,
    }
    found = left_out(GMMDetector(**settings), Z, y)
    np.testing.assert_allclose(found, ref.gmm_leave_one_out(Z, y, **settings), rtol=1e-8)


def test_gmm_leaves_one_out_without_a_ridge(left_out, rng):
    Z, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    found = left_out(GMMDetector(reg_covar=0), Z, y)
    np.testing.assert_allclose(found, ref.gmm_leave_one_out(Z, y, reg_covar=0), rtol=1e-8)


@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
@pytest.mark.parametrize("separation", [0, 3])
def test_gmm_leaves_one_out_of_many_dimensions(left_out, rng, criterion, separation):
    """Where far classes are left out too, but never for the sake of the row's own class."""
    y = np.arange(60) % 6
    Z = rng.normal(size=(60, 100)) + separation * rng.normal(size=(6, 100))[y]
    settings = {"reg_covar": 0.5, "criterion": criterion}
    found = left_out(GMMDetector(**settings), Z, y)
    np.testing.assert_allclose(found, ref.gmm_leave_one_out(Z, y, **settings), rtol=1e-8)


def test_gmm_automatic_ridge_is_close_to_refitting_it_too(left_out, rng):
    """Within 2 % of the spread of the scores; the ridge itself changes by about 1 / n."""
    Z, y = rng.normal(size=(60, 5)), np.arange(60) % 2
    found = left_out(GMMDetector(), Z, y)
    refitted = []
    for i in range(60):
        rest = np.arange(60) != i
        refitted.append(GMMDetector().fit(Z[rest], y[rest]).score_samples(Z[[i]])[0])
    assert np.abs(found - refitted).mean() < 0.02 * np.std(refitted)


@pytest.mark.parametrize("k", [1, 5, 31, 32])
@pytest.mark.parametrize("energy_weighted", [True, False])
@pytest.mark.parametrize("bias", [0.0, -50.0])
@pytest.mark.filterwarnings("ignore:k=")
def test_nnguide_leaves_one_out(left_out, data, k, energy_weighted, bias):
    """Also with negative energies, where a row is not its own nearest neighbour."""
    Z, y = data
    classifier = LogisticRegression(max_iter=1000).fit(Z, y)
    classifier.intercept_ = classifier.intercept_ + bias
    energies = ref.energy(Z @ classifier.coef_.T + classifier.intercept_)
    from sklearn.frozen import FrozenEstimator

    detector = NNGuideDetector(FrozenEstimator(classifier), k=k, energy_weighted=energy_weighted)
    found = left_out(detector, Z, y)
    expected = ref.nnguide_leave_one_out(Z, energies, min(k, 31), energy_weighted)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("k", [3, 10, 30])
@pytest.mark.parametrize("batch_size", [None, 1, 7])
@pytest.mark.filterwarnings("ignore:k=")
def test_nnguide_with_a_subset_leaves_rows_out_of_the_bank(left_out, data, k, batch_size):
    """A row of the bank is compared to the rest of the bank, any other row to all of it."""
    Z, y = data
    detector = NNGuideDetector(k=k, bank_size=10, random_state=0, batch_size=batch_size)
    found = left_out(detector, Z, y)
    classifier = LogisticRegression(max_iter=1000).fit(Z, y)
    energies = ref.energy(Z @ classifier.coef_.T + classifier.intercept_)
    weighted = Z / np.linalg.norm(Z, axis=1, keepdims=True) * energies[:, None]
    bank = detector.scorer_.bank.numpy()
    in_bank = np.array([np.isclose(bank, row).all(1).any() for row in weighted])
    assert in_bank.sum() == 10
    for i in range(len(Z)):
        rest = in_bank & (np.arange(len(Z)) != i)
        expected = ref.nnguide(Z[rest], energies[rest], Z[[i]], energies[[i]], min(k, rest.sum()))
        np.testing.assert_allclose(found[i], expected[0], rtol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alpha": 2.0, "o_star": 3},
        {"alpha": 2.0, "o_star": 30, "bins": "geometric", "n_bins": 9},
    ],
)
def test_nac_leaves_one_out(left_out, data, settings):
    Z, y = data
    classifier = LogisticRegression(max_iter=1000).fit(Z, y)
    products = [ref.nac_products_features(Z, classifier.coef_, classifier.intercept_)]
    found = left_out(NACDetector(**settings), Z, y)
    np.testing.assert_allclose(found, ref.nac_leave_one_out(products, **settings), rtol=1e-12)
    assert len(np.unique(found)) > 3


def test_nac_over_layers_leaves_one_out(left_out, images):
    net = seeded(SmallCNN).double()
    X = images[0].astype(np.float64)
    settings = {"alpha": [1.0, 3.0], "o_star": [4, 9]}
    found = left_out(NACDetector(net, ["conv1", None], **settings), X)
    products = ref.nac_products(net, X, ["conv1", None])
    np.testing.assert_allclose(found, ref.nac_leave_one_out(products, **settings), rtol=1e-12)


@pytest.mark.parametrize("detector", SETTINGS, ids=name_of)
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3, 0.5])
def test_the_share_of_left_out_scores_below_the_threshold(detector, rate, left_out, iris):
    X, y = iris
    detector = clone(detector).set_params(false_alarm_rate=rate)
    scores = left_out(detector, X, y)
    below = (scores < detector.offset_).sum()
    at_most = (scores <= detector.offset_ + 1e-6 * np.abs(scores).max()).sum()
    assert below <= rate * 150 + 1 <= at_most + 2


@pytest.mark.parametrize("detector", IN_NETWORKS, ids=name_of)
def test_equal_rows_fall_together(detector, images):
    """A row on the threshold must not flip between batch sizes."""
    X = np.repeat(images[0][:1], 40, axis=0)
    net = seeded(SmallCNN)
    with np.errstate(all="ignore"):
        detector = clone(detector).set_params(model=net).fit(X)
    for batch_size in (1, 3, 40):
        assert (detector.set_params(batch_size=batch_size).predict(X) == 1).all()


@pytest.mark.parametrize(
    "cls", [ASHDetector, GMMDetector, GradNormDetector, NACDetector, NNGuideDetector]
)
def test_false_alarms_on_fresh_rows(cls):
    """Digits 0 to 5, PCA features that no network learned from these rows, nominal 5 %."""
    X, y = load_digits(return_X_y=True)
    X, y = X[y < 6], y[y < 6]
    shares = []
    for seed in range(20):
        fit, fresh, y_fit, _ = train_test_split(X, y, test_size=0.4, stratify=y, random_state=seed)
        pca = PCA(32, random_state=0).fit(fit)
        detector = cls().fit(pca.transform(fit), y_fit)
        shares.append((detector.predict(pca.transform(fresh)) == -1).mean())
    assert 0.03 <= np.mean(shares) <= 0.08


@pytest.mark.parametrize("in_network", [False, True])
def test_a_large_bank_sets_its_threshold_by_a_sample(in_network, monkeypatch, rng):
    """Of rows that are the same in every detector, left out one at a time as ever."""
    X, y = rng.normal(size=(300, 6)), np.arange(300) % 3
    net = seeded(MLP, in_features=6).double() if in_network else None
    detector = NNGuideDetector(net, k=3, batch_size=50, random_state=0)
    every = clone(detector).fit(X, y)
    monkeypatch.setattr(NNGuideScorer, "n_threshold_rows", 299)
    almost = clone(detector).fit(X, y)
    monkeypatch.setattr(NNGuideScorer, "n_threshold_rows", 120)
    some, again = (clone(detector).fit(X, y) for _ in range(2))
    np.testing.assert_array_equal(some.score_samples(X), every.score_samples(X))
    assert some.offset_ == again.offset_ != every.offset_
    spread = every.score_samples(X).std()
    assert abs(almost.offset_ - every.offset_) < 0.1 * spread
    assert abs(some.offset_ - every.offset_) < spread
