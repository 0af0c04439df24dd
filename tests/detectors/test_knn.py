"""KNN: equal to a plain reference, with rows left out as if refitted, at any scale."""

import pickle

import numpy as np
import pytest

from skood import KNNDetector
from tests.detectors import Method

METHOD = Method(
    settings={
        "default": KNNDetector(),
        "euclidean": KNNDetector(k=3, normalize=False, mean=True, batch_size=7),
        "projection": KNNDetector(k=2, times_norm=True),
        "bank": KNNDetector(k=2, bank_size=0.5, random_state=0),
    },
    in_networks={"default": KNNDetector(k=3), "conv1": KNNDetector(layer="conv1", k=3)},
)

PARAMS = [
    {},
    {"k": 1},
    {"k": 3, "mean": True},
    {"k": 3, "normalize": False},
    {"k": 3, "normalize": False, "mean": True},
    {"k": 3, "times_norm": True},
]
EACH = pytest.mark.parametrize("params", PARAMS, ids=str)


def reference(H, X, k=10, normalize=True, mean=False, times_norm=False):
    """Score rows one by one, by sorting all distances."""

    def unit(h):
        return h / np.linalg.norm(h) if h.any() else h

    scores = []
    for x in np.asarray(X, dtype=np.float64):
        if times_norm:
            products = sorted((unit(x) @ unit(h) for h in H), reverse=True)
            scores.append(products[k - 1] * np.linalg.norm(x))
            continue
        near = sorted(
            np.linalg.norm(unit(x) - unit(h) if normalize else x - h)
            for h in np.asarray(H, dtype=np.float64)
        )[:k]
        scores.append(-np.mean(near) if mean else -near[-1])
    return np.array(scores)


@pytest.fixture
def rows(rng):
    """Return training rows, two of them zero, and rows to score."""
    H, X = rng.normal(size=(60, 5)) + 2, 3 * rng.normal(size=(40, 5))
    H[[3, 9]] = X[7] = 0
    return H, X


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, params, dtype, tolerance):
    H, X = (part.astype(dtype) for part in rows)
    found = KNNDetector(**params).fit(H).score_samples(X)
    np.testing.assert_allclose(found, reference(H, X, **params), tolerance)


@EACH
def test_rows_left_out(rows, params, left_out):
    H, _ = rows
    expected = [
        reference(np.delete(H, i, axis=0), H[i : i + 1], **params)[0] for i in range(len(H))
    ]
    np.testing.assert_allclose(left_out(KNNDetector(**params), H), expected, 1e-8)


def test_far_from_zero(rng):
    """Euclidean distances keep their digits, and rows their nearest."""
    H, X = rng.normal(size=(60, 5)), rng.normal(size=(40, 5))
    found = KNNDetector(k=2, normalize=False).fit(H + 1e6).score_samples(X + 1e6)
    np.testing.assert_allclose(found, reference(H, X, k=2, normalize=False), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(rows, scale):
    H, X = rows
    for params in ({}, {"times_norm": True}):
        found = KNNDetector(**params).fit(scale * H).score_samples(scale * X)
        grow = scale if params else 1
        np.testing.assert_allclose(found, grow * reference(H, X, **params), 1e-6, 1e-7 * grow)


@pytest.mark.parametrize("params", [{}, {"normalize": False}, {"times_norm": True}], ids=str)
def test_faiss(rows, params):
    pytest.importorskip("faiss")
    H, X = rows
    detector = KNNDetector(k=3, index="Flat", **params).fit(H)
    expected = KNNDetector(k=3, **params).fit(H)
    np.testing.assert_allclose(detector.score_samples(X), expected.score_samples(X), 1e-4, 1e-3)
    assert detector.offset_ == pytest.approx(expected.offset_, abs=1e-3)
    found = pickle.loads(pickle.dumps(detector)).score_samples(X)
    np.testing.assert_array_equal(found, detector.score_samples(X))


def test_bad_parameters(rows):
    for params in ({"mean": True}, {"normalize": False}):
        with pytest.raises(ValueError, match="times_norm=True takes the k-th largest cosine"):
            KNNDetector(times_norm=True, **params).fit(rows[0])
    with pytest.warns(UserWarning, match="k=100 is more than the 60 rows"):
        assert KNNDetector(k=100).fit(rows[0]).k_ == 60


@pytest.mark.parametrize("params", [{}, {"mean": True}, {"normalize": False}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_far_closer_to_each_other_than_to_zero(rng, params, dtype):
    """Of 1 - cosine no digit is left: distances are those of differences."""
    H, X = ((1 + 1e-3 * rng.normal(size=(n, 8))).astype(dtype) for n in (60, 40))
    X[:5] = H[:5]
    found = KNNDetector(k=2, **params).fit(H).score_samples(X)
    tolerance = 1e-3 if dtype == "float32" else 1e-8
    np.testing.assert_allclose(found, reference(H, X, k=2, **params), tolerance)
    assert (KNNDetector(k=1, **params).fit(H).score_samples(X[:5]) == 0).all()


def test_pairs_far_from_each_other(rng):
    """Where rows come in two groups, no mean is near either of them."""
    far = np.arange(60)[:, None] % 2 * 1e5
    H = rng.normal(size=(60, 5)) + far
    found = KNNDetector(k=2, normalize=False).fit(H).score_samples(H[:40])
    np.testing.assert_allclose(found, reference(H, H[:40], k=2, normalize=False), rtol=1e-5)
