"""Residual: equal to a plain reference, with rows left out by folds, and without a residual."""

import numpy as np
import pytest
import torch
from sklearn.kernel_approximation import RBFSampler
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from torch import nn

from skood import ResidualDetector, ViMDetector
from tests import references as ref
from tests.detectors import Method
from tests.networks import SmallCNN, seeded

METHOD = Method(
    settings={
        "default": ResidualDetector(),
        "features": ResidualDetector(n_components=0.9, normalize=False, batch_size=7),
    },
    in_networks={
        "default": ResidualDetector(center="origin"),
        "conv1": ResidualDetector(layer="conv1"),
    },
)

TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
EACH = pytest.mark.parametrize(
    "params",
    [
        {},
        {"n_components": 3, "normalize": False},
        {"n_components": 0.7},
        {"center": "origin"},
        {"center": "origin", "n_components": 5},
    ],
    ids=lambda params: "-".join(map(str, params.values())) or "default",
)


def reference(H, X, W, b, folds, n_components=None, center="mean", normalize=None):
    """Return scores of new rows, and of training rows by the subspace of the other folds."""
    H, X, W, b = map(ref.as_array, (H, X, W, b))
    if center == "mean" and normalize is not False:
        H, X = ref.normalised(H), ref.normalised(X)
    point = -np.linalg.pinv(W) @ b if center == "origin" else None
    space = ref.subspace(H, point, n_components)
    left_out = []
    for i, h in enumerate(H):
        others = ref.subspace(H[folds != folds[i]], point, len(space[1]))
        left_out.append(-ref.residual_norm(h, *others))
    return np.array([-ref.residual_norm(x, *space) for x in X]), np.array(left_out)


@pytest.fixture
def rows(rng):
    """Return training rows that spread over some directions more than others, and new rows."""
    spread = np.diag([3, 2, 1, 1, 0.5, 0.3, 0.2]) @ np.linalg.qr(rng.normal(size=(7, 7)))[0]
    return rng.normal(size=(60, 7)) @ spread + 1, 3 * rng.normal(size=(20, 7))


@pytest.fixture
def head():
    """Return a linear layer of 7 features and 4 classes."""
    return seeded(nn.Linear, in_features=7, out_features=4).double()


@EACH
@DTYPES
def test_parity_and_cross_fit(rows, head, left_out, params, dtype):
    H, X = (part.astype(dtype) for part in rows)
    head = head.to(getattr(torch, dtype))
    detector = ResidualDetector(head, **params)
    held_out = left_out(detector, H)
    expected = reference(H, X, head.weight, head.bias, ref.folds_of(H), **params)
    np.testing.assert_allclose(detector.score_samples(X), expected[0], TOLERANCE[dtype])
    np.testing.assert_allclose(held_out, expected[1], TOLERANCE[dtype])


@DTYPES
def test_layer_of_a_network(rng, dtype):
    H, X = (rng.normal(size=(n, 1, 8, 8)).astype(dtype) for n in (40, 12))
    net = seeded(SmallCNN).to(getattr(torch, dtype))
    detector = ResidualDetector(net, "conv1", n_components=3).fit(H)
    pooled = (ref.features(net, part, "conv1").mean((2, 3)) for part in (H, X))
    expected, _ = reference(*pooled, np.eye(2), np.zeros(2), ref.folds_of(H), n_components=3)
    np.testing.assert_allclose(detector.score_samples(X), expected, TOLERANCE[dtype])


def test_neither_head_nor_labels_are_needed_around_the_mean(rows):
    H, X = rows
    expected, _ = reference(H, X, np.eye(7), np.zeros(7), ref.folds_of(H))
    np.testing.assert_allclose(ResidualDetector().fit(H).score_samples(X), expected, 1e-9)


def test_is_what_vim_takes_from_the_energy(rows, head):
    H, X = rows
    plain, weighted = (ViMDetector(head, alpha=a).fit(H).score_samples(X) for a in (0.0, 1.0))
    detector = ResidualDetector(head, center="origin").fit(H)
    np.testing.assert_allclose(detector.score_samples(X), weighted - plain, 1e-9)


def test_corp(rows):
    """Kernel PCA with random features of a Gaussian kernel on directions."""
    H, X = rows
    steps = Normalizer(), RBFSampler(n_components=12, random_state=0)
    found = make_pipeline(*steps, ResidualDetector(normalize=False)).fit(H).score_samples(X)
    features = make_pipeline(*steps).fit(H)
    Z, Z_new = features.transform(H), features.transform(X)
    mean = Z.mean(0)
    P = np.linalg.svd(Z - mean)[2][:6]
    z = Z_new - mean
    np.testing.assert_allclose(found, -np.linalg.norm(z - z @ P.T @ P, axis=1), 1e-9)


def test_pieces_and_merged_parts_are_a_fit(rows, rng):
    H, X = rows
    whole, order = ResidualDetector().fit(H), rng.permutation(60)
    a, b = (ResidualDetector().partial_fit(H[some]) for some in np.split(order, 2))
    np.testing.assert_allclose(a.merge(b).score_samples(X), whole.score_samples(X), 1e-9)
    np.testing.assert_allclose(a.offset_, whole.offset_, 1e-9)
    assert a.n_components_ == whole.n_components_ == 3


def test_far_features_keep_their_digits(rng):
    """The difference of two squared norms would lose what is small beside the mean."""
    H = rng.normal(size=(200, 7)) * [100, 100, 100, 100, 1, 1, 1]
    near, far = (
        ResidualDetector(normalize=False, n_components=4).fit(part).score_samples(part)
        for part in (H, H + 2**20)
    )
    np.testing.assert_allclose(far, near, atol=1e-7)


def test_rows_without_a_residual(rng):
    """Rows outside of the subspace stand out even where training rows all lie within."""
    H = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 7))
    detector = ResidualDetector(normalize=False, n_components=3)
    with pytest.warns(UserWarning, match="in n_components=3 directions(.|\n)*Give a smaller"):
        detector.fit(H)
    assert (detector.predict(H + np.eye(7)[0]) == -1).all()
    assert np.abs(detector.score_samples(H)).max() < 1e-12


@pytest.mark.parametrize("center", ["mean", "origin"])
def test_equal_and_zero_rows(head, center):
    for value in (0.0, 0.1):
        H = np.full((40, 7), value)
        with pytest.warns(UserWarning, match="is rounding"):
            detector = ResidualDetector(head, center=center).fit(H)
        assert (detector.predict(H) == 1).all()
        assert np.isfinite(detector.score_samples(np.r_[H * 1e30, H * 0])).all()


def test_bad_input(rows, head):
    H, _ = rows
    with pytest.raises(ValueError, match=r"normalize=True\.\nGive center=\"mean\""):
        ResidualDetector(head, center="origin", normalize=True).fit(H)
    with pytest.raises(ValueError, match="n_components=7 must be less than n_features=7"):
        ResidualDetector(n_components=7).fit(H)
    with pytest.raises(ValueError, match="Give center='mean' with a layer"):
        net = seeded(SmallCNN).double()
        ResidualDetector(net, "conv1", center="origin").fit(np.ones((9, 1, 8, 8)))
    with pytest.raises(ValueError, match="overflow"):
        ResidualDetector(normalize=False).fit(H * 1e160)
    assert np.isfinite(ResidualDetector().fit(H * 1e160).offset_)
