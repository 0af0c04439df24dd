"""A call works on one fitted state, whatever other threads fit meanwhile."""

import threading

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch.utils.data import Dataset

from skood import GMMDetector, NNGuideDetector
from skood.calibration import ConformalDetector
from skood.ensemble import EnsembleDetector
from skood.open_set import OpenSetClassifier
from tests.registry import DEFAULTS, each, name_of, with_fixed
from tests.threads import data, detectors, hammer, results, serve


@pytest.mark.parametrize("detector", detectors(), ids=name_of)
def test_scores_beside_refits_and_pieces(detector):
    """Each result is that of a state in which the detector was."""
    wrong, errors, _, _ = hammer(detector, 60)
    assert wrong == 0 and not errors


def test_single_rows_beside_refits():
    wrong, seconds, n_refits, _ = serve(GMMDetector(NET), 400)
    assert wrong == 0 and n_refits > 0 and np.isfinite(seconds).all()


@pytest.mark.parametrize("detector", detectors(), ids=name_of)
def test_pieces_beside_scores(detector):
    """What is learned is what pieces teach that nobody scores beside."""
    wrong, errors, found, n_pieces = hammer(detector, 60, refits=False)
    assert wrong == 0 and not errors
    _, piece, new = data()
    expected = clone(detector)
    for _ in range(n_pieces):
        expected.partial_fit(*piece)
    assert found.n_samples_seen_ == expected.n_samples_seen_
    for one, two in zip(results(found, *new), results(expected, *new), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9)


class Refits(Dataset):
    """Rows, of which one fits an estimator to other data when it is read."""

    def __init__(self, X, refit):
        self.X, self.refit = X, refit

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        if i == len(self.X) // 2:
            self.refit()
        return self.X[i]


NET = detectors()[0].model


@pytest.mark.parametrize(
    "estimator, method",
    [
        *((detector, "decision_function") for detector in detectors()),
        (ConformalDetector(GMMDetector(NET), method="loo"), "decision_function"),
        (EnsembleDetector([("a", GMMDetector()), ("b", NNGuideDetector())], NET), "predict"),
        (OpenSetClassifier(NET, GMMDetector()), "predict"),
    ],
    ids=name_of,
)
def test_a_call_works_on_what_is_fitted_at_its_start(estimator, method):
    """Also where the last of several batches comes after a refit."""
    (X, y), (X_other, y_other), (X_new, _) = data()
    estimator = clone(estimator).set_params(
        **{name: 10 for name in estimator.get_params() if name.split("__")[-1] == "batch_size"}
    )
    stream = Refits(X_new, lambda: estimator.fit(X_other * 2, y_other))
    expected = getattr(clone(estimator).fit(X, y), method)(X_new)
    np.testing.assert_allclose(getattr(estimator.fit(X, y), method)(stream), expected, rtol=1e-9)
    refitted = getattr(clone(estimator).fit(X_other * 2, y_other), method)(X_new)
    np.testing.assert_allclose(getattr(estimator, method)(X_new), refitted, rtol=1e-9)


@each(DEFAULTS)
def test_an_older_scorer_stays_what_it_is(detector):
    """More pieces write to no tensor that a call which is under way scores with."""
    (X, y), piece, _ = data()
    detector = with_fixed(detector)
    scorer = detector.partial_fit(X, y).scorer_
    before = {name: tensor.clone() for name, tensor in scorer.named_buffers()}
    for _ in range(3):
        _ = detector.partial_fit(*piece).offset_
    for name, tensor in scorer.named_buffers():
        assert torch.equal(tensor, before[name])


def test_pieces_from_several_threads_all_count():
    detector, (X, y) = GMMDetector(), data()[0]
    threads = [
        threading.Thread(target=detector.partial_fit, args=(X[i::6], y[i::6])) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert detector.n_samples_seen_ == len(X)
    expected = GMMDetector().fit(X, y)
    np.testing.assert_allclose(detector.scorer_.means, expected.scorer_.means, rtol=1e-9)


def test_parameters_that_are_set_while_fitting_stay_set():
    (X, y), _, _ = data()
    detector = GMMDetector()
    rows = Refits(X, lambda: detector.set_params(false_alarm_rate=0.2))
    assert detector.fit(rows, y).false_alarm_rate == 0.2
