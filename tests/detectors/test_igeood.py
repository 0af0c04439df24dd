"""IGEOOD: equal to a plain reference, with rows left out as if refitted."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import softmax
from torch import nn

from skood import IGEOODDetector
from skood.detectors.features.igeood import FEW_POINTS, MANY_POINTS, PolynomialBounds
from skood.detectors.logits.softmax_distances import arcs
from tests.detectors import Method

LOGITS = {"on": "logits", "temperature": 1.5}
METHOD = Method(
    settings={
        "default": IGEOODDetector(),
        "logits": IGEOODDetector(**LOGITS, batch_size=7),
    },
    in_networks={
        "default": IGEOODDetector(),
        "conv1": IGEOODDetector(layer="conv1"),
        "logits": IGEOODDetector(on="logits"),
    },
)
EACH = pytest.mark.parametrize("params", [{"reg_covar": 0.1}, {"reg_covar": 0}, LOGITS], ids=str)


def gaussian(x, y, s, t):
    """Return the Fisher-Rao distance of two normal distributions, as a logarithm."""
    a = np.hypot((x - y) / np.sqrt(2), s + t)
    b = np.hypot((x - y) / np.sqrt(2), s - t)
    return np.sqrt(2) * np.log((a + b) / (a - b))


def reference(Z, y, X, params, variances=None):
    """Score rows one by one."""
    Z, X = (np.asarray(part, dtype=np.float64) for part in (Z, X))
    means = [Z[y == k].mean(0) for k in np.unique(y)]
    scores = []
    if params.get("on") == "logits":
        centers = [softmax(mean / params["temperature"]) for mean in means]
        for x in X:
            p = softmax(x / params["temperature"])
            halves = [np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / 2 for q in centers]
            scores.append(np.mean([4 * np.arcsin(half) for half in halves]))
        return np.array(scores)
    within = sum(((Z[y == k] - Z[y == k].mean(0)) ** 2).sum(0) for k in np.unique(y))
    scales = np.sqrt(within / len(Z) + params["reg_covar"])
    for x in X:
        distances = [
            sum(gaussian(a, b, s, s) ** 2 for a, b, s in zip(x, mean, scales, strict=True)) ** 0.5
            for mean in means
        ]
        scores.append(-min(distances))
    return np.array(scores)


def identity(dtype=torch.float64, n_classes=6):
    """Return a head whose logits are its features."""
    head = nn.Linear(n_classes, n_classes).to(dtype).requires_grad_(False)
    nn.init.eye_(head.weight), nn.init.zeros_(head.bias)
    return head


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(data, params, dtype, tolerance):
    Z, y, X = data[0].astype(dtype), data[1], data[2].astype(dtype)
    detector = IGEOODDetector(identity(getattr(torch, dtype)), **params).fit(Z, y)
    assert_allclose(detector.score_samples(X), reference(Z, y, X, params), tolerance)


@EACH
def test_rows_left_out(few_rows, params, left_out):
    """Also where a class has one row."""
    Z, y = few_rows
    rest = [np.arange(len(Z)) != i for i in range(len(Z))]
    expected = [reference(Z[keep], y[keep], Z[[i]], params)[0] for i, keep in enumerate(rest)]
    found = left_out(IGEOODDetector(identity(n_classes=4), **params), Z, y)
    assert_allclose(found, expected, 1e-9)


@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_many_classes(rng, left_out, spread):
    """Bounds drop far classes, none that is closest: also of huge rows, and of classes of a row."""
    y = np.r_[np.arange(60), rng.integers(0, 60, 60)]
    Z = spread * rng.normal(size=(60, 30))[y] + rng.normal(size=(120, 30))
    X = np.r_[3 * rng.normal(size=(20, 30)), [np.full(30, 1e25), np.zeros(30)]]
    params = {"reg_covar": 0.1}
    detector = IGEOODDetector(**params).fit(Z, y)
    plain = detector.scorer_(torch.tensor(X, requires_grad=True)).detach()
    assert_allclose(detector.score_samples(X), plain, 1e-12)
    few = rng.permutation(120)[:12]
    rest = [np.arange(120) != i for i in few]
    expected = [reference(Z[k], y[k], Z[[i]], params)[0] for i, k in zip(few, rest, strict=True)]
    assert_allclose(np.asarray(left_out(IGEOODDetector(**params), Z, y))[few], expected, 1e-9)


@pytest.mark.parametrize("n_points", [FEW_POINTS, MANY_POINTS])
def test_bounds(rng, n_points):
    """From below, and the closer the nearer the means lie to each other."""
    offs = []
    for spread in (1.0, 0.5):
        means, rows = (spread * torch.tensor(rng.normal(size=(50, 20))) for _ in range(2))
        squares = (rows[:, None] - means).asinh().square().sum(2)
        bounds = PolynomialBounds(means, MANY_POINTS)(rows, n_points)
        offs.append(squares - bounds)
        assert offs[-1].min() > 0
    assert offs[1].max() < offs[0].max() / 2 ** (n_points - 1)


def test_predictions_stand_in_for_labels(data, left_out):
    """For logits; without labels there is one mean of features."""
    Z, _, X = data
    for y in (None, np.zeros(len(Z), dtype=int)):
        detector = IGEOODDetector(identity(), **LOGITS).fit(Z, y)
        assert_allclose(detector.score_samples(X), reference(Z, Z.argmax(1), X, LOGITS), 1e-8)
    one, other = (left_out(IGEOODDetector(identity(), **LOGITS), Z, y) for y in (y, Z.argmax(1)))
    assert_allclose(one, other, 1e-12)
    found = IGEOODDetector(reg_covar=1.0).fit(Z).score_samples(X)
    assert_allclose(found, reference(Z, np.zeros(len(Z)), X, {"reg_covar": 1.0}), 1e-8)


def test_small_distances_keep_their_digits(rng):
    """Of the arc cosine of 1 - 1e-18 none is left."""
    assert_allclose(arcs(torch.tensor([1e-30], dtype=torch.float64)), 2e-15, 1e-12)
    Z = 3 + 1e-6 * rng.normal(size=(40, 2))
    scores = IGEOODDetector(reg_covar=1.0).fit(Z).score_samples(Z)
    assert_allclose(-scores, np.linalg.norm(Z - Z.mean(0), axis=1), 1e-6)


def test_bad_input(data):
    Z, y, _ = data
    with pytest.raises(ValueError, match="Leave layer=None, or use on"):
        IGEOODDetector(identity(), on="logits", layer="x").fit(Z, y)
    with pytest.raises(ValueError, match="overflow"):
        IGEOODDetector(identity(), on="logits").partial_fit(Z * 1e200, y)
    with pytest.raises(ValueError, match="'on' parameter"):
        IGEOODDetector(on="weights").fit(Z, y)
