"""Feature norm: equal to a plain reference, at any scale."""

import math

import numpy as np
import pytest

from skood import FeatureNormDetector
from tests.detectors import Method

METHOD = Method(
    settings={
        "default": FeatureNormDetector(),
        "sum": FeatureNormDetector(order=1, batch_size=7),
        "largest": FeatureNormDetector(order=math.inf),
    },
    in_networks={
        "default": FeatureNormDetector(),
        "conv1": FeatureNormDetector(layer="conv1", order=1),
    },
)


def reference(X, order):
    """Score rows one by one."""
    scores = []
    for row in np.asarray(X, dtype=np.float64):
        sizes = [abs(value) for value in row]
        scores.append(
            max(sizes) if order == math.inf else sum(s**order for s in sizes) ** (1 / order)
        )
    return np.array(scores)


@pytest.mark.parametrize("order", [1, 2, math.inf])
@pytest.mark.parametrize("scale", [1, 1e30, 1e-30])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rng, order, scale, dtype, tolerance):
    X = rng.normal(size=(50, 6))
    X[3] = 0
    found = FeatureNormDetector(order=order).fit(scale * X).score_samples((scale * X).astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, scale * reference(X, order), tolerance)


def test_finite_at_the_end_of_the_range(rng):
    X = np.full((4, 6), np.finfo(np.float64).max)
    for order in (1, 2, math.inf):
        detector = FeatureNormDetector(order=order).fit(rng.normal(size=(50, 6)))
        assert np.isfinite(detector.score_samples(X)).all()


def test_bad_order(rng):
    for order in (0, 3, -1):
        with pytest.raises(ValueError, match="'order' parameter"):
            FeatureNormDetector(order=order).fit(rng.normal(size=(50, 6)))
