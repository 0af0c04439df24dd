"""OOD rows that no label tells, left out of fit."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skood import GMMDetector, KNNDetector
from skood.datasets import load_digits_ood
from skood.learning.learning import threshold_rows
from skood.model_selection import FitOnInliers
from tests.test_model_selection import Distance


@pytest.fixture
def mixed(iris, rng):
    """Return iris with 10 rows labelled OOD, 10 that are OOD without, and where these are."""
    X, y = iris
    X = np.vstack([X, X[:10] + 9, rng.uniform(-5, 15, (10, 4))])
    y = np.r_[y, np.repeat(-1, 10), np.arange(10) % 3]
    order = rng.permutation(170)
    return X[order], y[order], order >= 160


@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, list])
def test_a_second_fit_without_the_lowest_left_out_scores(kind, mixed):
    X, y, bad = mixed
    robust = FitOnInliers(GMMDetector(), trim=0.1).fit(kind(X), y)
    scores = np.asarray(GMMDetector()._fit(X, y))
    inside = np.flatnonzero(y >= 0)
    kept = np.sort(inside[np.argsort(scores)[16:]])
    np.testing.assert_array_equal(np.flatnonzero(robust.support_), kept)
    plain = GMMDetector().fit(X[kept], y[kept])
    np.testing.assert_array_equal(robust.score_samples(kind(X)), plain.score_samples(X))
    assert robust.offset_ == plain.offset_
    assert robust.support_[bad].sum() <= 1


def test_other_detectors_are_scored_by_folds(mixed):
    X, y, bad = mixed
    inside = y >= 0
    forest = IsolationForest(n_estimators=20, random_state=0)
    scores = np.empty(160)
    for rest, held in KFold(5, shuffle=True, random_state=0).split(scores):
        scores[held] = clone(forest).fit(X[inside][rest]).score_samples(X[inside][held])
    robust = FitOnInliers(forest, trim=0.1).fit(X, y)
    np.testing.assert_array_equal(robust.support_[inside], scores > np.sort(scores)[15])
    for estimator, sign in ((make_pipeline(StandardScaler(), KNNDetector()), 1), (Distance(), -1)):
        robust = FitOnInliers(estimator, higher_is_outlier=sign < 0, trim=0.1)
        assert robust.fit(X[inside], y[inside]).support_[bad[inside]].sum() <= 3
        assert robust.support_.sum() == 144


def test_without_labels_and_of_a_sample_of_rows(mixed, monkeypatch):
    X, _, bad = mixed
    detector = KNNDetector(k=3).fit(X)
    left_out = np.asarray(clone(detector)._fit(X, None))
    monkeypatch.setattr(type(detector.scorer_), "n_threshold_rows", 60)
    robust = FitOnInliers(KNNDetector(k=3), trim=0.1).fit(X)
    scores = detector.score_samples(X)
    scores[threshold_rows(170, 60)] = left_out[threshold_rows(170, 60)]
    np.testing.assert_array_equal(robust.support_, scores > np.sort(scores)[16])
    assert not hasattr(robust, "known_classes_")
    # As it is without.
    assert not hasattr(clone(robust).set_params(trim=None).fit(X), "support_")


def test_what_cannot_be_left_out(mixed):
    X, y, _ = mixed
    for share in (0, 0.5, -0.1, "auto"):
        with pytest.raises(ValueError, match="'trim' parameter"):
            FitOnInliers(GMMDetector(), trim=share).fit(X, y)
    with pytest.raises(TypeError, match="StandardScaler has neither score_samples"):
        FitOnInliers(StandardScaler(), trim=0.1).fit(X, y)


def test_unseen_digits_among_the_rows_of_fit():
    data = load_digits_ood(as_images=False)
    rng = np.random.default_rng(0)
    near = rng.permutation(data.ood["near"])
    X = np.concatenate([data.X_train, near[:34]])
    y = np.concatenate([data.y_train, rng.choice(6, 34)])
    plain, robust = (
        (one.fit(X, y).predict(near[34:]) == -1).mean()
        for one in (KNNDetector(), FitOnInliers(KNNDetector(), trim=0.05))
    )
    clean = (KNNDetector().fit(data.X_train).predict(near[34:]) == -1).mean()
    assert plain + 0.2 < robust, (plain, robust, clean)
