"""OpenMax: equal to a plain reference, with rows left out."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import weibull_min
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch import nn

from skood import OpenMaxDetector
from skood.detectors.logits import open_max
from skood.learning.weibull import fit_weibull, weibull_cdf
from tests.detectors import Method

EUCLIDEAN = {"tail": 5, "alpha": 2, "distance": (1, 0), "log": False}
METHOD = Method(
    settings={
        "default": OpenMaxDetector(),
        "Euclidean": OpenMaxDetector(**EUCLIDEAN, batch_size=7),
    },
    in_networks={"default": OpenMaxDetector()},
)
EACH = pytest.mark.parametrize("params", [{}, {"tail": 4}, EUCLIDEAN], ids=str)


def distance(row, mean, params):
    """Return the distance of a row of logits to a mean."""
    cosine = row @ mean / np.linalg.norm(row) / np.linalg.norm(mean)
    euclidean = np.linalg.norm(row - mean)
    weights = params.get("distance", (1 / 200, 1))
    return weights[0] * euclidean + weights[1] * (1 - cosine)


def weibull_at(d, tail):
    """Return the distribution function at d of what libMR fits to a tail."""
    if len(tail) < 2:
        return 1.0
    x = np.log1p((np.array(tail) - min(tail)) / 10_000)

    def slope(shape):
        terms = np.exp(shape * (x - x.max()))
        return (x * terms).sum() / terms.sum() - 1 / shape - x.mean()

    shape = brentq(slope, 1e-3 / x.max(), 1e5 / x.max(), xtol=1e-12, rtol=1e-15)
    scale = x.max() + np.log(np.exp(shape * (x - x.max())).mean()) / shape
    exponent = shape * (np.log1p((d - min(tail)) / 10_000) - scale)
    return -np.expm1(-np.exp(min(exponent, 700)))


def learn(logits, columns, params):
    """Return the mean and the distances of each class, descending."""
    learned = {}
    for k in range(logits.shape[1]):
        rows = logits[(columns == k) & (logits.argmax(1) == k)]
        mean = rows.mean(0) if len(rows) else np.full(logits.shape[1], np.nan)
        learned[k] = mean, sorted((distance(row, mean, params) for row in rows), reverse=True)
    return learned


def score(row, learned, params):
    """Score one row."""
    alpha = min(params.get("alpha", 10), len(row))
    revised, unknown = row.copy(), 0.0
    for r, k in enumerate(np.argsort(-row)[:alpha], start=1):
        mean, distances = learned[k]
        w = weibull_at(distance(row, mean, params), distances[: params.get("tail", 10)])
        part = row[k] * w * (alpha + 1 - r) / alpha
        revised[k] -= part
        unknown += part
    odds = logsumexp(revised) - unknown
    return odds if params.get("log", True) else -1 / (1 + np.exp(odds))


@pytest.fixture
def rows(rng):
    """Return logits of four classes, one of one row and one of none, labels, and new logits."""
    y = np.repeat([0, 1, 2], [30, 20, 15])
    logits = 2 * rng.normal(size=(65, 4)) + 4 * np.eye(4)[y] + 1
    logits[40:, 3] -= 30
    wrong = (y == 2) & (logits.argmax(1) == 2)
    y[np.flatnonzero(wrong)[1:]] = 1
    assert {0, 1} < set(logits.argmax(1)) and (y == logits.argmax(1)).sum() > 30
    return logits, y, 4 * rng.normal(size=(40, 4))


def identity(dtype=torch.float64, n_classes=4):
    """Return a head whose logits are its features."""
    head = nn.Linear(n_classes, n_classes).to(dtype).requires_grad_(False)
    nn.init.eye_(head.weight), nn.init.zeros_(head.bias)
    return head


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, params, dtype, tolerance):
    logits, y, new = (part.astype(dtype) if part.dtype.kind == "f" else part for part in rows)
    detector = OpenMaxDetector(identity(getattr(torch, dtype)), **params).fit(logits, y)
    learned = learn(logits.astype(float), y, params)
    expected = [score(row, learned, params) for row in new.astype(float)]
    assert_allclose(detector.score_samples(new), expected, tolerance, tolerance)


@EACH
def test_rows_left_out(rows, params, left_out):
    """By the plain form of what is computed; refitted whole the scores are nearly the same."""
    logits, y, _ = rows
    found, expected, refitted = left_out(OpenMaxDetector(identity(), **params), logits, y), [], []
    learned = learn(logits, y, params)
    for i, (row, k) in enumerate(zip(logits, y, strict=True)):
        others = learned
        if row.argmax() == k:
            rest = (y == k) & (logits.argmax(1) == k) & (np.arange(65) != i)
            distances = [distance(other, learned[k][0], params) for other in logits[rest]]
            mean = logits[rest].mean(0) if rest.any() else learned[k][0]
            others = {**learned, k: (mean, sorted(distances, reverse=True))}
        expected.append(score(row, others, params))
        keep = np.arange(65) != i
        refitted.append(score(row, learn(logits[keep], y[keep], params), params))
    assert_allclose(found, expected, 1e-8)
    assert np.median(np.abs(found - refitted)) < 0.01 * np.std(refitted)


def test_predictions_stand_in_for_labels(rows, left_out):
    logits, _, new = rows
    given = OpenMaxDetector(identity()).fit(logits, logits.argmax(1))
    detector = OpenMaxDetector(identity()).fit(logits)
    np.testing.assert_array_equal(detector.score_samples(new), given.score_samples(new))
    assert detector.offset_ == given.offset_


def test_labels_and_logits(rng, iris):
    """A held-out class moves no labels, and names are found by the classifier."""
    X, y = iris
    model = LogisticRegression(max_iter=1000).fit(X, np.array(["c", "a", "b"])[y])
    names = np.array(["c", "a", "b"])[y]
    keep = names != "a"
    detector = OpenMaxDetector(FrozenEstimator(model)).fit(X[keep], names[keep])
    logits = model.decision_function(X)
    learned = learn(logits[keep], np.searchsorted(["a", "b", "c"], names[keep]), {})
    expected = [score(row, learned, {}) for row in logits]
    assert_allclose(detector.score_samples(X), expected, 1e-8)


def test_pieces_of_more_rows_than_are_kept(monkeypatch, rng):
    """A random sample, which any pieces have in common."""
    monkeypatch.setattr(open_max, "N_VALUES", 4 * 100)
    y = np.arange(400) % 4
    X = rng.normal(size=(400, 4)) + 4 * np.eye(4)[y]
    detector = OpenMaxDetector(identity(), batch_size=50)
    whole = clone(detector).fit(X, y)
    parts = [clone(detector).partial_fit(X[i::3], y[i::3]) for i in range(3)]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert_allclose(merged.score_samples(X), whole.score_samples(X), 1e-10)
    every = clone(detector).set_params(tail=3).fit(X, y)
    assert not np.allclose(every.score_samples(X), whole.score_samples(X))


@pytest.mark.filterwarnings("ignore:false_alarm_rate=")
def test_confident_networks_and_equal_rows():
    """Logits of 1e30 overflow nothing; a class whose rows are equal is a step."""
    X = np.array([[1000.0, 0, 0, 0]] * 5 + [[0.0, 900, 0, 0], [0, 1000, 0, 0], [0, 950, 9, 0]])
    detector = OpenMaxDetector(identity(), distance=(1, 1), alpha=1).fit(X)
    new = np.r_[X, [[999.0, 0, 0, 0], [0, 0, 50, 0], [1e30, 0, 0, 0], [0, -1e30, 0, 0]]]
    scores = detector.score_samples(new)
    # At the mean nothing is unknown; beside it, or in a class without rows, everything.
    assert_allclose(scores[[0, 8, 9, 10]], [1000, np.log(4) - 999, np.log(4) - 50, -1e30])
    assert np.isfinite(scores).all() and (detector.predict(X[:5]) == 1).all()
    assert len(set(scores[5:9])) == 4


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(np.random.default_rng(0).normal(size=20), id="normal"),
        pytest.param(np.random.default_rng(0).pareto(0.3, 20), id="heavy tail"),
        pytest.param([0.0] * 19 + [1.0], id="one larger"),
        pytest.param([0.0] + [1.0] * 199, id="one smaller"),
        pytest.param([0.0, 1e-9], id="two"),
        pytest.param(1e30 * np.random.default_rng(0).random(20), id="large"),
    ],
)
def test_weibull(numbers):
    """Groups of fewer numbers beside it change nothing."""
    numbers = np.asarray(numbers)
    tails = torch.full((2, len(numbers) + 3), -torch.inf, dtype=torch.float64)
    tails[0, : len(numbers)] = torch.from_numpy(numbers)
    tails[1, 0] = 5.0
    fitted = fit_weibull(tails, torch.zeros(2, dtype=torch.float64))
    for d in np.quantile(numbers, [0, 0.3, 0.9, 1]):
        found = weibull_cdf(torch.tensor(d, dtype=torch.float64), *fitted)
        assert_allclose(found.numpy(), [weibull_at(d, numbers), 1], 1e-7, 1e-12)


def test_scipy_fits_the_same(rng):
    numbers = rng.exponential(size=20)
    shape, _, scale = weibull_min.fit(numbers - numbers.min() + 10_000, floc=0)
    _, found, log_scale = fit_weibull(torch.from_numpy(numbers)[None], torch.zeros(1))
    assert_allclose(float(found), shape, 1e-5)
    assert_allclose(10_000 * np.exp(float(log_scale)), scale, 1e-9)


def test_bad_input(rows):
    logits, y, _ = rows
    with pytest.raises(ValueError, match="overflow"):
        OpenMaxDetector(identity()).partial_fit(logits * 1e200, y)
    for name, value in (("tail", 2), ("alpha", 0), ("distance", 1.0)):
        with pytest.raises(ValueError, match=f"'{name}' parameter"):
            OpenMaxDetector(identity(), **{name: value}).fit(logits, y)
    for value in ((1.0,), (1.0, -1.0), (0, 0), (1.0, "cosine"), (1.0, np.inf)):
        with pytest.raises(ValueError, match="distance must be two numbers"):
            OpenMaxDetector(identity(), distance=value).fit(logits, y)
