"""What `offset_` promises: leave-one-out scores, and the share of false alarms."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from skood import ASHDetector, GMMDetector, NNGuideDetector
from skood.detectors.head.nnguide import NNGuideScorer
from skood.learning.thresholds import lower_quantile
from tests.networks import MLP, Segmenter, SmallCNN, sample_inputs, seeded
from tests.registry import DEFAULTS, IN_NETWORKS, KINDS, each, needs_logits

pytestmark = pytest.mark.filterwarnings("ignore:The features are signed", "ignore:.*is singular")


@each(DEFAULTS)
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3, 0.5])
def test_the_share_of_left_out_scores_below_the_threshold(detector, rate, left_out, iris):
    X, y = iris
    detector = clone(detector).set_params(false_alarm_rate=rate)
    scores = left_out(detector, X, y)
    below = (scores < detector.offset_).sum()
    at_most = (scores <= detector.offset_ + 1e-6 * np.abs(scores).max()).sum()
    assert below <= rate * 150 + 1 <= at_most + 2


@pytest.mark.parametrize(("n_rows", "rate"), [(100, 0.01), (50, 0.05), (30, 0.05), (150, 0.3)])
def test_the_expected_share_of_fresh_scores(n_rows, rate):
    """Numbers with tails of several weights; numpy's default gives 1.96 % for 1 %."""
    rng = np.random.default_rng(0)
    for draw, share in ((rng.normal, norm.cdf), (rng.exponential, lambda q: np.exp(q))):
        scores = draw(size=(10_000, n_rows)) * (1 if share is norm.cdf else -1)
        below = [share(lower_quantile(some, rate)) for some in scores]
        assert np.mean(below) == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize(("n_rows", "rate"), [(100, 0.01), (50, 0.05)])
def test_few_rows_keep_the_rate(n_rows, rate):
    """Within three standard errors of what 1 000 draws give; it was .019 and .059."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(150):
        X = rng.normal(size=(n_rows, 2))
        detector = GMMDetector(false_alarm_rate=rate).fit(X)
        shares.append((detector.predict(rng.normal(size=(1000, 2))) == -1).mean())
    assert 0.6 * rate < np.mean(shares) < 1.3 * rate


def test_a_rate_that_takes_more_rows(rng):
    X = rng.normal(size=(98, 2))
    with pytest.warns(UserWarning, match="takes 99 in-distribution rows at least, got 98"):
        detector = GMMDetector(false_alarm_rate=0.01).fit(X)
    assert detector.predict(X).min() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GMMDetector(false_alarm_rate=0.01).fit(rng.normal(size=(99, 2)))


@pytest.mark.parametrize("reg_covar", [0.1, 1.0])
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_equal_rows_at_no_distance_fall_together(reg_covar, covariance_type, in_pieces, images):
    """The threshold is 0 but for rounding, of which scores of 0 do not tell."""
    X = np.repeat(images[0][:1], 40, axis=0)
    detector = GMMDetector(
        seeded(SmallCNN),
        criterion="mahalanobis",
        reg_covar=reg_covar,
        covariance_type=covariance_type,
    )
    (detector.partial_fit if in_pieces else detector.fit)(X)
    for batch_size in (1, 3, 40):
        assert (detector.set_params(batch_size=batch_size).predict(X) == 1).all()
    assert abs(detector.offset_) < 1e-6
    assert (detector.predict(X + 0.1) == -1).all()


@pytest.mark.parametrize("in_pieces", [False, True])
def test_equal_rows_whose_terms_cancel_fall_together(in_pieces, rng):
    """An energy of 0 of logits of size 100."""
    X = np.repeat(rng.normal(size=(1, 64)).astype(np.float32), 40, axis=0)
    net = seeded(MLP, in_features=64)
    with torch.no_grad():
        energy = torch.logsumexp(net(torch.from_numpy(X[:1])), 1)
        last = [part for part in net.modules() if isinstance(part, torch.nn.Linear)][-1]
        last.bias -= energy
    detector = ASHDetector(net, variant="p", percentile=0)
    (detector.partial_fit if in_pieces else detector.fit)(X)
    for batch_size in (1, 3, 40):
        assert (detector.set_params(batch_size=batch_size).predict(X) == 1).all()
    assert abs(detector.offset_) < 1e-3


@pytest.mark.parametrize("huge", [1e16, 1e30])
@pytest.mark.parametrize("entries", [1, 4])
@pytest.mark.parametrize("reg_covar", [0, 1e-3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_huge_row_of_one_class_leaves_the_others(huge, entries, reg_covar, dtype, rng):
    X, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    X[0, :entries] = huge * rng.normal(size=entries)
    X, new = X.astype(dtype), rng.normal(size=(100, 4)).astype(dtype)
    detector = GMMDetector(reg_covar=reg_covar).fit(X, y)
    # What the class of the huge row adds is far below what can be told.
    parts = []
    for k in (1, 2):
        rows = X[y == k].astype(float)
        covariance = np.cov(rows.T, bias=True) + reg_covar * np.eye(4)
        parts.append(multivariate_normal(rows.mean(0), covariance).logpdf(new) - np.log(3))
    expected = logsumexp(parts, axis=0)
    for batch_size in (1, 7, 100):
        scores = detector.set_params(batch_size=batch_size).score_samples(new)
        np.testing.assert_allclose(scores, expected, atol=1e-11 if dtype is np.float64 else 1e-5)
    assert (detector.predict(X[1:]) == 1).mean() > 0.9


@pytest.mark.parametrize("huge", [1e6, 1e8, 1e10])
@pytest.mark.parametrize("covariance_type", ["full", "tied"])
@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
@pytest.mark.parametrize("reg_covar", [0, 1e-3])
@pytest.mark.filterwarnings("ignore:.*is singular")
def test_a_huge_row_scores_rows_the_same_whatever_the_batches(
    huge, covariance_type, criterion, reg_covar, rng
):
    """A variance of 1 is within some eps of one of 1e16: up to 40 % of it was noise."""
    X, new = rng.normal(size=(60, 4)), rng.normal(size=(100, 4))
    X[7] = huge
    detector = GMMDetector(
        covariance_type=covariance_type, criterion=criterion, reg_covar=reg_covar
    )
    expected = detector.fit(X).score_samples(new)
    for batch_size in (1, 7):
        scores = detector.set_params(batch_size=batch_size).fit(X).score_samples(new)
        np.testing.assert_allclose(scores, expected, atol=1e-4 * np.abs(expected).max())


@each(IN_NETWORKS)
def test_equal_rows_fall_together(detector, images):
    """A row on the threshold must not flip between batch sizes."""
    X = np.repeat(images[0][:1], 40, axis=0)
    net = seeded(SmallCNN)
    with np.errstate(all="ignore"):
        detector = clone(detector).set_params(model=net).fit(X)
    for batch_size in (1, 3, 40):
        assert (detector.set_params(batch_size=batch_size).predict(X) == 1).all()


@each(DEFAULTS)
def test_false_alarms_on_fresh_rows(detector):
    """Digits 0 to 5, PCA features that no network learned from these rows, nominal 5 %."""
    X, y = load_digits(return_X_y=True)
    X, y = X[y < 6], y[y < 6]
    shares = []
    for seed in range(10):
        fit, fresh, y_fit, _ = train_test_split(X, y, test_size=0.4, stratify=y, random_state=seed)
        pca = PCA(32, random_state=0).fit(fit)
        detector = clone(detector).fit(pca.transform(fit), y_fit)
        shares.append((detector.predict(pca.transform(fresh)) == -1).mean())
    assert 0.03 <= np.mean(shares) <= 0.08


@pytest.mark.parametrize("labels", [True, False])
@each([detector for detector in DEFAULTS if needs_logits(detector)], often=KINDS)
def test_the_head_has_not_seen_the_rows_of_the_threshold(detector, labels):
    """Nominal 5 %; scores under the head that `fit` made of all rows gave GradNorm 7.6 and 9.0."""
    X, y = load_digits(return_X_y=True)
    X = PCA(32, random_state=0).fit_transform(X)
    shares = []
    for seed in range(3):
        fit, fresh, y_fit, _ = train_test_split(X, y, test_size=0.5, random_state=seed)
        detector = clone(detector).set_params(random_state=0)
        detector.fit(fit, y_fit if labels else None)
        shares.append((detector.predict(fresh) == -1).mean())
    assert 0.035 <= np.mean(shares) <= 0.068


@pytest.mark.parametrize("y", [[0, 1], [0, 0, 1], [0, 1, 2, 3], None], ids=str)
def test_the_head_of_classes_of_one_row(y, rng):
    """A class, or all but one, may be missing where its row is held out."""
    X = rng.normal(size=(6 if y is None else len(y), 3))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "false_alarm_rate=")
        warnings.filterwarnings("ignore", "k=")
        for detector in filter(needs_logits, DEFAULTS):
            assert np.isfinite(clone(detector).fit(X, y).offset_)


@pytest.mark.parametrize("in_network", [False, True])
def test_a_large_bank_sets_its_threshold_by_a_sample(in_network, monkeypatch, rng):
    """Of rows that are the same in every detector, left out one at a time as ever."""
    X, y = rng.normal(size=(300, 6)), np.arange(300) % 3
    net = seeded(MLP, in_features=6).double()
    if not in_network:
        net = FrozenEstimator(LogisticRegression().fit(X, y))
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


def test_minus_zero_is_the_class_zero(rng):
    y = -np.repeat([0.0, 0.0, 3.0], 20)
    with pytest.warns(UserWarning, match="y holds -0.0, which is the class 0"):
        detector = GMMDetector().fit(rng.normal(size=(60, 2)), y)
    assert str(detector.known_classes_) == "[0.]"


@pytest.mark.filterwarnings("ignore:false_alarm_rate=")
def test_one_pixel():
    """Of all of an image one is in-distribution."""
    net, y = seeded(Segmenter), np.full((4, 8, 8), -1)
    y[2, 3, 3] = 1
    X = sample_inputs(net, 4)
    detector = ASHDetector(net).fit(X, y)
    assert detector.offset_ == pytest.approx(detector.score_samples(X)[2, 3, 3], rel=1e-4)
