"""Moving the threshold of a fitted detector."""

import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from torch.utils.data import DataLoader, TensorDataset

import skood
from skood import EnergyDetector, GMMDetector, KNNDetector
from skood.calibration import ConformalDetector
from skood.ensemble import EnsembleDetector
from skood.learning import thresholds
from skood.learning.thresholds import keep_scores, lower_quantile
from tests.networks import Segmenter, seeded
from tests.registry import DEFAULTS, KINDS, each

pytestmark = pytest.mark.filterwarnings("ignore:The features are signed", "ignore:.*is singular")


@each(DEFAULTS, often=KINDS)
@pytest.mark.filterwarnings("ignore")
def test_the_same_as_fitting_with_the_rate(detector, iris):
    X, y = iris
    fitted = clone(detector).set_params(false_alarm_rate=0.05).fit(X, y)
    scores, expected = fitted.score_samples(X), {}
    for rate in (0.3, 0.02, 0.05):
        expected[rate] = clone(detector).set_params(false_alarm_rate=rate).fit(X, y).offset_
        assert fitted.set_threshold(false_alarm_rate=rate) is fitted
        assert fitted.offset_ == expected[rate] and fitted.false_alarm_rate == rate
    np.testing.assert_array_equal(fitted.score_samples(X), scores)
    assert expected[0.02] <= expected[0.05] <= expected[0.3]


def test_the_share_of_rows_set_aside(rng):
    detector = GMMDetector().fit(rng.normal(size=(100, 3)))
    X = 1.5 * rng.normal(size=(999, 3))
    assert (detector.predict(X) == -1).mean() > 0.2
    detector.set_threshold(X, false_alarm_rate=0.1)
    assert (detector.predict(X) == -1).sum() in (99, 100)
    expected = lower_quantile(detector.score_samples(X), 0.02)
    # The rate moves among the scores of the same rows.
    assert detector.set_threshold(false_alarm_rate=0.02).offset_ == pytest.approx(expected)
    assert detector.fit(X).offset_ == clone(detector).fit(X).offset_


def test_rows_that_are_out_of_distribution_are_left_out(iris):
    X, y = iris
    detector = GMMDetector(false_alarm_rate=0.1).fit(X[y < 2], y[y < 2])
    labels = np.where(np.arange(150) % 10, y, -1)
    inside = (labels >= 0) & (labels < 2)
    expected = clone(detector).fit(X[y < 2], y[y < 2]).set_threshold(X[inside]).offset_
    assert detector.set_threshold(X, labels).offset_ == expected
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(labels)), 32)
    assert detector.set_threshold(loader).offset_ == pytest.approx(expected)
    with pytest.raises(ValueError, match="no in-distribution row"):
        detector.set_threshold(X, np.full(150, -1))
    with pytest.raises(ValueError, match="X has 150 rows and y 3 labels"):
        detector.set_threshold(X, [0, 0, 1])
    assert detector.offset_ == pytest.approx(expected)


def test_pixels(rng):
    X, y = rng.normal(size=(6, 1, 8, 8)).astype(np.float32), rng.integers(-1, 2, (6, 8, 8))
    detector = skood.EnergyDetector(seeded(Segmenter)).fit(X)
    scores = detector.score_samples(X)
    y = np.resize(y, scores.shape)
    y[0] = 255
    inside = scores[(y >= 0) & (y != 255)]
    offset = detector.set_threshold(X, y, false_alarm_rate=0.2).offset_
    assert offset == pytest.approx(lower_quantile(inside.astype(float), 0.2), rel=1e-4)


def test_parameters_clones_and_files(tmp_path, iris):
    X, y = iris
    for detector in (GMMDetector(), KNNDetector(k=3)):
        detector.fit(X[::2], y[::2]).set_threshold(X[1::2], false_alarm_rate=0.2)
        path = tmp_path / "detector.safetensors"
        skood.save(detector, path)
        for twin in (pickle.loads(pickle.dumps(detector)), skood.load(path)):
            assert twin.offset_ == detector.offset_ and twin.false_alarm_rate == 0.2
            moved = twin.set_threshold(false_alarm_rate=0.05).offset_
            assert (
                moved
                == clone(detector)
                .fit(X[::2], y[::2])
                .set_threshold(X[1::2], false_alarm_rate=0.05)
                .offset_
            )
        again = clone(detector)
        assert again.false_alarm_rate == 0.2 and not hasattr(again, "offset_")


def test_learning_on_goes_back_to_the_training_rows(iris):
    X, y = iris
    whole = GMMDetector(false_alarm_rate=0.2).partial_fit(X, y)
    detector = GMMDetector().partial_fit(X[::2], y[::2])
    detector.set_threshold(false_alarm_rate=0.2).partial_fit(X[1::2], y[1::2])
    assert detector.offset_ == pytest.approx(whole.offset_)
    detector = GMMDetector().partial_fit(X[::2], y[::2])
    detector.set_threshold(X[1::2], false_alarm_rate=0.2)
    with pytest.warns(UserWarning, match="rows set aside"):
        detector.partial_fit(X[1::2], y[1::2])
    assert detector.offset_ == pytest.approx(whole.offset_)
    other = GMMDetector().partial_fit(X[::2], y[::2])
    with pytest.warns(UserWarning, match="rows set aside"):
        other.set_threshold(X[1::2]).merge(GMMDetector().partial_fit(X[1::2], y[1::2]))
    assert other.offset_ == pytest.approx(GMMDetector().fit(X, y).offset_)


@pytest.mark.parametrize("rate", [0, 0.6, "a", True])
def test_bad_rates(rate, iris):
    detector = GMMDetector().fit(*iris)
    before = detector.offset_
    with pytest.raises(ValueError, match="false_alarm_rate"):
        detector.set_threshold(false_alarm_rate=rate)
    assert detector.offset_ == before and detector.false_alarm_rate == 0.05


def test_what_earlier_versions_saved(iris):
    detector = GMMDetector().fit(*iris)
    del detector._kept_scores
    with pytest.raises(ValueError, match="kept no scores"):
        detector.set_threshold(false_alarm_rate=0.1)
    assert detector.set_threshold(iris[0]).set_threshold(false_alarm_rate=0.1).offset_ < 0


def test_few_of_many_scores_are_kept(monkeypatch, rng):
    scores = rng.normal(size=20_000)
    assert len(keep_scores(scores, 0)["scores"]) == thresholds.KEPT_SCORES
    monkeypatch.setattr(thresholds, "KEPT_SCORES", 2000)
    kept = keep_scores(scores, 0)
    assert len(kept["scores"]) == 2000 and kept["ranks"][-1] == 19_999
    for rate in (0.001, 0.04):
        found = lower_quantile(kept["scores"], rate, kept["ranks"])
        assert found == lower_quantile(scores, rate)
    for rate in (0.1, 0.5):
        found = lower_quantile(kept["scores"], rate, kept["ranks"])
        # A tenth of a standard error of the share.
        assert abs((scores < found).mean() - rate) < 0.1 * (rate * (1 - rate) / 20_000) ** 0.5


def test_offset_and_rate_change_at_once(iris):
    X, y = iris
    detector = GMMDetector().fit(X, y)
    rates = (0.02, 0.3)
    offsets = {clone(detector).set_params(false_alarm_rate=r).fit(X, y).offset_ for r in rates}
    detector.set_threshold(false_alarm_rate=0.3)
    seen, done = set(), threading.Event()

    def move():
        for i in range(200):
            detector.set_threshold(false_alarm_rate=rates[i % 2])
        done.set()

    thread = threading.Thread(target=move)
    thread.start()
    while not done.is_set():
        one = detector._snapshot()
        seen.add(one.offset_)
        assert (one.decision_function(X[:1]) == one.score_samples(X[:1]) - one.offset_).all()
    thread.join()
    assert seen <= offsets


# Rows held out, to see whether the threshold keeps its promise


def told(fit):
    """Return what is said of X_val while something is fitted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    return [str(w.message) for w in caught if "X_val" in str(w.message)]


def test_a_network_that_has_seen_the_rows_is_told_with_the_figure_and_the_cures(rng):
    # Training has drawn the rows of fit to their mean.
    X, X_val, fresh = 0.8 * rng.normal(size=(400, 4)), *rng.normal(size=(2, 1000, 4))
    detector = GMMDetector()
    with pytest.warns(UserWarning) as caught:
        detector.fit(X, X_val=X_val)
    (message,) = (str(w.message) for w in caught if "X_val" in str(w.message))
    assert caught[0].filename == __file__
    assert detector.offset_ == GMMDetector().fit(X).offset_
    n_called = (detector.predict(X_val) == -1).sum()
    low, high = binomtest(n_called, 1000).proportion_ci()
    assert n_called > 60
    assert f"1000 rows of X_val {n_called / 1000:.1%} are called" in message
    assert f"interval {low:.1%} to {high:.1%}), at false_alarm_rate=0.05." in message
    # The cures, as they stand there.
    conformal = ConformalDetector(FrozenEstimator(detector)).fit(X_val)
    for cured in (conformal, detector.set_threshold(X_val)):
        assert 0.03 < (cured.predict(fresh) == -1).mean() < 0.07


def test_rows_like_those_of_fit_are_seldom_told(rng):
    n_told = 0
    for X in rng.normal(size=(100, 200, 3)):
        detector = GMMDetector()
        n_told += len(told(lambda detector=detector, X=X: detector.fit(X[:50], X_val=X[50:])))
    # 2.5 % by the test.
    assert n_told <= 7


def test_kinds_of_rows_held_out(iris):
    X, y = iris
    far = X + 5
    kinds = [
        far,
        far.tolist(),
        torch.as_tensor(far),
        DataLoader(TensorDataset(torch.as_tensor(far))),
    ]
    for X_val in kinds:
        assert len(told(lambda X_val=X_val: GMMDetector().fit(X, y, X_val=X_val))) == 1
    pipeline = make_pipeline(GMMDetector())
    assert len(told(lambda: pipeline.fit(X, y, gmmdetector__X_val=far))) == 1
    assert not told(lambda: GMMDetector().fit(X, y, X_val=X))
    with pytest.raises(ValueError, match="3 features"):
        GMMDetector().fit(X, y, X_val=X[:, :3])


def an_ensemble(**params):
    return EnsembleDetector([("gmm", GMMDetector()), ("knn", KNNDetector(k=3))], **params)


def test_ensembles(iris):
    X, y = iris
    ensemble = an_ensemble().fit(X, y)
    scores = ensemble.score_samples(X)
    for rate in (0.3, 0.02, 0.05):
        assert ensemble.set_threshold(false_alarm_rate=rate) is ensemble
        assert ensemble.offset_ == an_ensemble(false_alarm_rate=rate).fit(X, y).offset_
        assert ensemble.false_alarm_rate == rate
    np.testing.assert_array_equal(ensemble.score_samples(X), scores)
    ensemble.set_threshold(X, np.where(np.arange(150) < 100, y, -1), false_alarm_rate=0.2)
    assert ensemble.offset_ == pytest.approx(lower_quantile(scores[:100], 0.2))
    with pytest.raises(ValueError, match="in the range"):
        ensemble.set_threshold(false_alarm_rate=0.7)
    with pytest.raises(ValueError, match="X has 150 rows and y 2 labels"):
        ensemble.set_threshold(X, [0, 1])
    with pytest.raises(ValueError, match="no in-distribution row"):
        ensemble.set_threshold(X, np.full(150, -1))
    del ensemble._kept_scores
    with pytest.raises(ValueError, match="kept no scores"):
        ensemble.set_threshold(false_alarm_rate=0.1)
    assert ensemble.false_alarm_rate == 0.2


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.filterwarnings("ignore:There are")
def test_conformal_detectors(by_class, iris):
    X, y = iris
    how = {"class_conditional": by_class, "random_state": 0, "calibration_size": 0.5}
    detector = ConformalDetector(GMMDetector(), **how).fit(X[::2], y[::2])
    other = ConformalDetector(GMMDetector(), alpha=0.2, **how).fit(X[::2], y[::2])
    p_values = detector.p_values(X)
    assert detector.set_threshold(false_alarm_rate=0.2).alpha == 0.2
    np.testing.assert_array_equal(detector.decision_function(X), other.decision_function(X))
    np.testing.assert_array_equal(detector.p_values(X), p_values)
    labels = np.where(np.arange(75) < 60, y[1::2], -1)
    scores = detector.detectors_[0].score_samples(X)
    calibration = scores[1::2][:60]
    detector.set_threshold(X[1::2], labels)
    largest = np.zeros(150)
    for label in (0, 1, 2) if by_class else (None,):
        of_class = calibration if label is None else calibration[labels[:60] == label]
        below = (of_class <= scores[:, None]).sum(1)
        largest = np.maximum(largest, (1 + below) / (1 + len(of_class)))
    np.testing.assert_allclose(detector.p_values(X), largest)
    assert detector.n_calibration_ == 60
    with pytest.raises(ValueError, match="alpha"):
        detector.set_threshold(false_alarm_rate=1.0)
    with pytest.warns(UserWarning, match="too few for alpha=0.001"):
        detector.set_threshold(false_alarm_rate=0.001)


def test_conformal_detectors_of_folds(iris):
    detector = ConformalDetector(GMMDetector(), "cross").fit(*iris)
    with pytest.raises(ValueError, match="several folds"):
        detector.set_threshold(*iris, false_alarm_rate=0.1)
    assert detector.alpha == 0.05
    assert detector.set_threshold(false_alarm_rate=0.1).offset_ == pytest.approx(0.1)


def test_pixels_are_no_rows_held_out(rng):
    X = rng.normal(size=(12, 1, 8, 8)).astype(np.float32)
    with pytest.raises(ValueError, match="scores of rows, and these are maps"):
        EnergyDetector(seeded(Segmenter)).fit(X, X_val=X)
