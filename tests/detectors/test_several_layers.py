"""LayersDetector: sums over layers, p-values, closed forms per layer, and no layer named."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import (
    CosineDetector,
    EnergyDetector,
    FeatureExtractor,
    FeatureNormDetector,
    GMMDetector,
    KNNDetector,
    LayersDetector,
    MahalanobisDetector,
)
from skood.decisions.p_values import conformal_p_values
from skood.detectors.layers.several import log_p_values
from tests.detectors import Method
from tests.networks import MLP, ResNet, SmallCNN, seeded

TIED = MahalanobisDetector(normalize=False, reg_covar=0.1)

METHOD = Method(
    settings={
        "default": LayersDetector(),
        "std": LayersDetector(detector=TIED, combine="std", batch_size=7),
    },
    in_networks={
        "named": LayersDetector(layers=["conv1", "conv2"], detector=KNNDetector(k=3)),
        "layers": LayersDetector(layers=["conv1", None], detector=TIED, combine="fisher"),
    },
    # It reads the stages, and scores images, not pixels.
    refuses={"segmenter": None},
)
LAYERS = ["conv1", "conv2", None]
# Each closed form is exact with a number for the ridge.
INNER = {
    "knn": KNNDetector(k=3),
    "gmm": GMMDetector(covariance_type="tied", reg_covar=0.1),
    "mahalanobis": TIED,
    "cosine": CosineDetector(),
    "norm": FeatureNormDetector(),
}
EACH = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
DTYPES = pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-8), ("float32", 1e-4)])


@pytest.fixture
def images(images):
    """Return images in float64, and labels."""
    X, y = images
    return X.astype(np.float64), y


@pytest.fixture
def net():
    """Return a small network with float64 weights."""
    return seeded(SmallCNN).double()


def log_p_values_by_numpy(calibration, scores):
    """Return those of `skood.calibration`."""
    return conformal_p_values([np.sort(calibration)], [scores], tail="exponential", log=True)


def unit_rows(net, X, layers=LAYERS, normalize=True):
    """Return the rows of each layer, one pass a layer, of length 1 by a loop."""
    found = []
    for layer in layers:
        rows = FeatureExtractor(net, layer).fit(X).transform(X)
        lengths = [np.linalg.norm(row) if normalize and row.any() else 1.0 for row in rows]
        found.append(rows / np.array(lengths)[:, None])
    return found


@EACH
@DTYPES
def test_sum_of_the_layers_scores(net, images, inner, dtype, rtol):
    X, y = images
    X, net = X.astype(dtype), net.to(getattr(torch, dtype))
    weights = [1.0, 2.0, 0.5]
    detector = LayersDetector(net, LAYERS, detector=inner, weights=weights).fit(X[:20], y[:20])
    rows = unit_rows(net, X)
    expected = sum(
        w * inner.fit(h[:20], y[:20]).score_samples(h) for w, h in zip(weights, rows, strict=True)
    )
    np.testing.assert_allclose(detector.score_samples(X), expected, rtol, rtol)
    assert detector.layers_ == LAYERS


@EACH
def test_rows_side_by_side(net, images, inner):
    X, y = images
    detector = LayersDetector(net, LAYERS, detector=inner, combine="concat").fit(X, y)
    rows = np.concatenate(unit_rows(net, X), axis=1)
    alone = inner.fit(rows, y)
    np.testing.assert_allclose(detector.score_samples(X), alone.score_samples(rows), 1e-8)
    assert detector.offset_ == pytest.approx(alone.offset_, rel=1e-6)


@pytest.mark.parametrize("combine", ["std", "fisher", "min"])
def test_calibrated_by_rows_left_out(net, images, combine, left_out):
    """Means, deviations and ranks are those of scores of training rows without themselves."""
    X, y = images
    detector = LayersDetector(net, LAYERS, detector=TIED, combine=combine, normalize=False)
    detector.fit(X, y)
    rows = unit_rows(net, X, normalize=False)
    own = np.stack([left_out(TIED, h, y) for h in rows], 1)
    fresh = np.random.default_rng(1).normal(size=(9, 1, 8, 8))
    plain = [
        TIED.fit(h, y).score_samples(f)
        for h, f in zip(rows, unit_rows(net, fresh, normalize=False), strict=True)
    ]
    if combine == "std":
        expected = sum((s - o.mean()) / o.std() for s, o in zip(plain, own.T, strict=True))
    else:
        log_p = [log_p_values_by_numpy(o, s) for s, o in zip(plain, own.T, strict=True)]
        expected = np.sum(log_p, 0) if combine == "fisher" else np.min(log_p, 0)
    np.testing.assert_allclose(detector.score_samples(fresh), expected, 1e-5, 1e-6)


@EACH
@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_rows_left_out(net, images, inner, combine, left_out):
    X, y = images
    X, y = X[:12], np.arange(12) % 2
    detector = LayersDetector(net, LAYERS, detector=inner, combine=combine)
    expected = [
        detector.fit(np.delete(X, i, 0), np.delete(y, i)).score_samples(X[i : i + 1])[0]
        for i in range(len(X))
    ]
    np.testing.assert_allclose(left_out(detector, X, y), expected, 1e-6, 1e-8)


def test_p_values_are_conformal(rng):
    calibration, scores = np.sort(rng.normal(size=(3, 40))), 3 * rng.normal(size=(50, 3))
    found = log_p_values(torch.from_numpy(scores), torch.from_numpy(calibration))
    for layer in range(3):
        expected = log_p_values_by_numpy(calibration[layer], scores[:, layer])
        np.testing.assert_allclose(found[:, layer], expected, 1e-10, 1e-12)


@pytest.mark.parametrize(
    ("net", "shape", "expected"),
    [
        (SmallCNN, (1, 8, 8), ["relu:0", "relu:1"]),
        (ResNet, (3, 16, 16), ["layer1", "layer2", "layer3", "layer4"]),
        (MLP, (8,), [None]),
    ],
)
def test_layers_of_networks(rng, net, shape, expected):
    X, y = rng.normal(size=(30, *shape)).astype(np.float32), np.arange(30) % 3
    detector = LayersDetector(seeded(net)).fit(X, y)
    assert detector.layers_ == expected
    assert np.isfinite(detector.score_samples(X)).all()


def test_one_layer_is_the_detector_itself(iris):
    X, y = iris
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    one = LayersDetector(detector=GMMDetector()).fit(X, y)
    alone = GMMDetector().fit(X, y)
    np.testing.assert_allclose(one.score_samples(X), alone.score_samples(X), 1e-9)
    assert one.offset_ == pytest.approx(alone.offset_)


def test_deviations_over_positions(net, images):
    X, y = images
    detector = LayersDetector(
        net, ["conv1"], detector=KNNDetector(k=1), pool="avg_std", normalize=False
    ).fit(X, y)
    with torch.no_grad():
        maps = net.conv1(torch.from_numpy(X).double()).flatten(2).numpy()
    rows = np.concatenate([maps.mean(2), maps.std(2)], 1)
    expected = KNNDetector(k=1).fit(rows, y).score_samples(rows[::-1])
    np.testing.assert_allclose(detector.score_samples(X[::-1]), expected, 1e-6, 1e-8)


def test_constant_layer_is_left_out(net, images):
    X, y = images
    net.bn.register_forward_hook(lambda _, args, output: torch.ones_like(output))
    layers, inner = ["conv1", "bn"], FeatureNormDetector()
    detector = LayersDetector(net, layers, detector=inner, combine="std", normalize=False)
    with pytest.warns(UserWarning, match=r"score the same at \['bn'\]"):
        detector.fit(X, y)
    alone = LayersDetector(net, layers[:1], detector=inner, combine="std", normalize=False)
    expected = alone.fit(X, y).score_samples(X)
    np.testing.assert_allclose(detector.score_samples(X), expected, 1e-10)


@pytest.mark.parametrize(
    ("params", "error", "match"),
    [
        ({"layers": []}, ValueError, "at least one layer"),
        ({"layers": ["conv1", "conv1"]}, ValueError, "each once"),
        ({"layers": ["conv9"]}, ValueError, "has no layer 'conv9'"),
        ({"weights": [1.0, 2.0, 3.0]}, ValueError, "weights has 3 entries for 2 layers"),
        ({"weights": [1.0, -1.0]}, ValueError, "must be positive numbers"),
        ({"weights": [1.0, 1.0], "combine": "min"}, ValueError, "has no weights"),
        ({"detector": EnergyDetector()}, TypeError, "must be one on features"),
        ({"detector": KNNDetector}, TypeError, "must be one on features"),
        ({"detector": KNNDetector(nn.Identity())}, ValueError, "model or layer of its own"),
        ({"detector": KNNDetector(layer="conv1")}, ValueError, "model or layer of its own"),
        ({"detector": CosineDetector(to="weights")}, ValueError, "weights of the head"),
        ({"detector": KNNDetector(k=0)}, ValueError, "'k' parameter"),
        ({"channel_axis": [1]}, ValueError, "channel_axis has 1 entries for 2 layers"),
    ],
    ids=str,
)
def test_bad_parameters(net, images, params, error, match):
    with pytest.raises(error, match=match):
        LayersDetector(net, **params).fit(*images)
