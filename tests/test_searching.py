"""Parameters that are kept in a search unless others are better."""

import pickle
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, PredefinedSplit, RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from skood import ASHDetector, FeatureExtractor, GMMDetector, KNNDetector
from skood.benchmark import train_digits_network
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score
from skood.model_selection import KeepUnlessBetter, LeaveClassesOut
from tests.networks import MLP, seeded

KEEP = KeepUnlessBetter(KNNDetector())


def results(scores, values):
    """Return what a search gives of the scores of splits, (n_splits, n_candidates)."""
    found = {f"split{i}_test_score": np.array(row) for i, row in enumerate(scores)}
    return found | {"params": [{"k": value} for value in values]}


def test_what_is_better_by_the_corrected_t_test(rng):
    taken = []
    for gain in np.linspace(0, 0.1, 40):
        scores = rng.uniform(0.7, 0.9, (8, 1)) + rng.normal(0, 0.02, (8, 4))
        scores[:, 3] += gain
        best = scores.mean(0).argmax()
        # With splits that share no rows the variance would be n/(n - 1) + 1 times less.
        t = stats.ttest_rel(scores[:, best], scores[:, 1]).statistic / (1 + 8 / 7) ** 0.5
        expected = best if best != 1 and stats.t.sf(t, 7) < 0.05 / 3 else 1
        taken.append(KEEP(results(scores, [1, 10, 20, 50])))
        assert taken[-1] == expected
    assert {1, 3} <= set(taken)


def test_chance_is_rarely_taken_for_a_gain(rng):
    scores = rng.normal(0, 1, (1000, 6, 10))
    taken = [KEEP(results(one, [10, *range(20, 29)])) for one in scores]
    assert np.mean(np.array(taken) != 0) < 0.05
    bolder = KeepUnlessBetter(KNNDetector(), confidence=0.5)
    assert np.mean([bolder(results(one, [10, *range(20, 29)])) != 0 for one in scores[:200]]) > 0.05


def test_candidates_that_cannot_be_compared():
    values = [10, 20, 30]
    assert KEEP(results([[0.5, 0.9, np.nan]] * 5, values)) == 1
    assert KEEP(results([[0.5, np.nan, np.nan]] * 5, values)) == 0
    assert KEEP(results([[np.nan, 0.9, 0.9]] * 5, values)) == 0
    assert KEEP(results([[0.5, 0.9, 0.9]], values)) == 0
    assert KEEP(results([[0.5, 0.5, 0.5]] * 5, np.array(values))) == 0
    assert KEEP(results([[0.5]] * 5, [10])) == 0
    with pytest.raises(ValueError, match="own parameters, k=10:\nthere is nothing"):
        KEEP(results([[0.5, 0.6]] * 5, [1, 5]))
    with pytest.raises(ValueError, match="'confidence' parameter"):
        KeepUnlessBetter(KNNDetector(), confidence=1)(results([[0.5, 0.6]] * 5, [1, 10]))


def test_in_searches(iris):
    X, y = iris
    net = seeded(MLP, in_features=4).double()
    pipeline = make_pipeline(FeatureExtractor(net), PCA(2), KNNDetector(nn.Identity()))
    grid = [{"knndetector__k": [1, 10]}, {"pca": [PCA(2), PCA(3)]}]
    cv = LeaveClassesOut(3, random_state=0)
    search = GridSearchCV(pipeline, grid, cv=cv, refit=KeepUnlessBetter(pipeline))
    search = pickle.loads(pickle.dumps(clone(search)))
    assert clone(search).refit.estimator[0].model is search.refit.estimator[0].model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(X, y)
    assert search.best_index_ in range(4)
    detector = KNNDetector()
    given = {"cv": PredefinedSplit(y), "refit": KeepUnlessBetter(detector), "random_state": 0}
    several = {"one": "accuracy", "two": "accuracy"}
    with pytest.raises(ValueError, match="one score, and the search has several"):
        RandomizedSearchCV(detector, {"k": [10]}, n_iter=1, scoring=several, **given).fit(X, y)


def test_a_gain_that_is_there_is_taken():
    X, y = load_digits(return_X_y=True)
    # With so large a ridge all classes look the same.
    detector = GMMDetector(reg_covar=1e4)
    search = GridSearchCV(
        detector,
        {"reg_covar": [1e4, 1.0]},
        cv=LeaveClassesOut(10, random_state=0),
        refit=KeepUnlessBetter(detector),
    ).fit(X[:600], y[:600])
    assert search.best_params_ == {"reg_covar": 1.0}


@pytest.mark.nightly
def test_a_network_that_knows_the_classes_does_no_harm():
    data, losses = load_digits_ood(random_state=0), []
    net = train_digits_network(data.X_train, data.y_train, seed=0).module_
    extractor = FeatureExtractor(net)
    X, inside, ood = map(extractor.fit_transform, (data.X_train, data.X_test, data.ood["near"]))
    truth = np.repeat([1, -1], [len(inside), len(ood)])

    def true_score(percentile):
        ash = ASHDetector(net.fc, percentile=percentile, random_state=0).fit(X, data.y_train)
        return auroc_score(truth, ash.score_samples(np.concatenate([inside, ood])))

    for seed in range(3):
        own = ASHDetector(net.fc, random_state=0)
        cv = LeaveClassesOut(6, random_state=seed)
        search = GridSearchCV(
            own, {"percentile": [0.2, 0.65, 0.9]}, cv=cv, refit=KeepUnlessBetter(own)
        )
        search.fit(X, data.y_train)
        losses.append(true_score(0.65) - true_score(search.best_params_["percentile"]))
    assert max(losses) < 0.01


def test_a_larger_test_set_asks_for_a_larger_gain():
    """Error of the mean gain: its deviation times the root of 1/n and the ratio."""
    gains = np.array([1.0, 2.0, 3.0, 2.0, 2.5])
    results = {"params": [{"k": 10}, {"k": 5}]}
    results |= {f"split{i}_test_score": np.array([0.0, gain]) for i, gain in enumerate(gains)}
    t = gains.mean() / gains.std(ddof=1)
    for level in (0.8, 0.95):
        # The ratio at which the gain is just significant.
        largest = (t / stats.t.isf(1 - level, 4)) ** 2 - 1 / 5
        for share, expected in ((0.99, 1), (1.01, 0)):
            keep = KeepUnlessBetter(KNNDetector(), confidence=level, test_ratio=share * largest)
            assert keep(results) == expected


def test_own_parameters_are_found_by_what_they_are():
    first, second = seeded(MLP), seeded(MLP, seed=1)
    grid = [{"model": first}, {"model": second}]
    assert KeepUnlessBetter(KNNDetector(second))._own(grid) == 1
    long = np.zeros(5000)
    other = long.copy()
    other[2500] = 1
    keep = KeepUnlessBetter(ASHDetector(percentile=90))
    assert keep._own([{"percentile": value} for value in np.linspace(80, 100, 3)]) == 1
    keep.estimator.percentile = other
    assert keep._own([{"percentile": long}, {"percentile": other.copy()}]) == 1
    with pytest.raises(ValueError, match="No candidate"):
        KeepUnlessBetter(ASHDetector(percentile=90))._own([{"percentile": "90"}])
