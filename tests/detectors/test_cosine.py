"""Cosine: equal to a plain reference, with rows left out as if refitted, at any scale."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import CosineDetector
from tests.detectors import Method
from tests.networks import SmallCNN, seeded

METHOD = Method(
    settings={
        "default": CosineDetector(),
        "small batches": CosineDetector(norm_weight=0.01, batch_size=7),
        "weights": CosineDetector(to="weights"),
    },
    in_networks={
        "default": CosineDetector(),
        "conv1": CosineDetector(layer="conv1", norm_weight=0.1),
        "weights": CosineDetector(to="weights", norm_weight=0.1),
    },
)


def reference(directions, X, norm_weight=0.0):
    """Score rows one by one."""

    def unit(v):
        return v / np.linalg.norm(v) if v.any() else v

    X = np.asarray(X, dtype=np.float64)
    return np.array(
        [max(unit(x) @ unit(d) for d in directions) + norm_weight * np.linalg.norm(x) for x in X]
    )


def means_of(H, y):
    """Return the means of the classes."""
    H = np.asarray(H, dtype=np.float64)
    return [H[y == c].mean(0) for c in np.unique(y)]


@pytest.fixture
def rows(rng):
    """Return training rows, one of them zero and one alone in its class, and rows to score."""
    y = np.arange(40) % 3
    H = rng.normal(size=(40, 5)) + 2 * rng.normal(size=(3, 5))[y]
    H[4], y[7] = 0, 9
    X = 3 * rng.normal(size=(30, 5))
    X[3] = 0
    return H, y, X


@pytest.mark.parametrize("norm_weight", [0.0, 0.5, -2])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, norm_weight, dtype, tolerance):
    H, y, X = rows
    H, X = H.astype(dtype), X.astype(dtype)
    found = CosineDetector(norm_weight=norm_weight).fit(H, y).score_samples(X)
    np.testing.assert_allclose(
        found, reference(means_of(H, y), X, norm_weight), tolerance, tolerance
    )
    one = CosineDetector(norm_weight=norm_weight).fit(H).score_samples(X)
    np.testing.assert_allclose(one, reference([H.mean(0)], X, norm_weight), tolerance, tolerance)


@pytest.mark.parametrize("norm_weight", [0.0, 0.5])
def test_rows_left_out(rows, norm_weight, left_out):
    H, y, _ = rows
    expected = []
    for i in range(len(H)):
        rest = np.arange(len(H)) != i
        means = means_of(H[rest], y[rest])
        expected.append(reference(means, H[[i]], norm_weight)[0])
    # A class that is left without rows is at no similarity.
    expected[7] = max(expected[7], norm_weight * np.linalg.norm(H[7]))
    found = left_out(CosineDetector(norm_weight=norm_weight), H, y)
    np.testing.assert_allclose(found, expected, 1e-8, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_weights(rows, dtype, tolerance):
    """Nothing is learned, and biases do not count."""
    H, _, X = rows
    head = seeded(nn.Linear, in_features=5, out_features=4).to(getattr(torch, dtype))
    W = head.weight.detach().double().numpy()
    detector = CosineDetector(head, to="weights", norm_weight=0.3).fit(H.astype(dtype))
    found = detector.score_samples(X.astype(dtype))
    np.testing.assert_allclose(found, reference(W, X, 0.3), tolerance, tolerance)


def test_weights_of_a_network():
    net = seeded(SmallCNN).double()
    X = np.random.default_rng(0).normal(size=(30, 1, 8, 8))
    found = CosineDetector(net, to="weights").fit(X).score_samples(X)
    features = CosineDetector(net.fc, to="weights")
    with torch.no_grad():
        kept = []
        handle = net.fc.register_forward_pre_hook(lambda _, x: kept.append(x[0]))
        net(torch.from_numpy(X))
        handle.remove()
    H = kept[0].numpy()
    np.testing.assert_allclose(found, reference(net.fc.weight.detach().numpy(), H), 1e-8)
    np.testing.assert_allclose(features.fit(H).score_samples(H), found, 1e-8)
    with pytest.raises(ValueError, match="weights are those of the last linear layer, got layer="):
        CosineDetector(net, "conv1", to="weights").fit(X)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_scale(rows, scale, dtype):
    H, y, X = rows
    expected = reference(means_of(H, y), X)
    found = CosineDetector().fit((H * scale).astype(dtype), y)
    found = found.score_samples((X * scale).astype(dtype))
    np.testing.assert_allclose(found, expected, 1e-5, 1e-6)


def test_bad_input(rows):
    H, y, _ = rows
    with pytest.raises(ValueError, match="'to' parameter"):
        CosineDetector(to="heads").fit(H, y)
    with pytest.raises(ValueError, match="'norm_weight' parameter"):
        CosineDetector(norm_weight=np.inf).fit(H, y)
    with pytest.raises(ValueError, match="overflow"):
        CosineDetector().fit(H * 1e307, y)
    with pytest.raises(ValueError, match="overflow"):
        CosineDetector().partial_fit(H * 1e307, y)


def test_threshold_holds_on_fresh_rows():
    rng, alarms = np.random.default_rng(0), []
    for _ in range(10):
        centers, y = 3 * rng.normal(size=(3, 40)), np.arange(210) % 3
        Z, fresh = (centers[y] + rng.normal(size=(210, 40)) for _ in range(2))
        alarms.append((CosineDetector().fit(Z, y).predict(fresh) < 0).mean())
    assert 0.03 < np.mean(alarms) < 0.08
