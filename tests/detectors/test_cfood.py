"""CF-OOD: equal to a plain reference, with rows left out as if refitted."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from skood import CFOODDetector
from skood.detectors.features import cfood
from tests.detectors import Method

METHOD = Method(
    settings={
        "default": CFOODDetector(),
        "euclidean": CFOODDetector(share=0.1, normalize=False, batch_size=7),
        "bank": CFOODDetector(share=0.1, bank_size=0.5, random_state=0),
    },
    in_networks={"default": CFOODDetector(), "conv1": CFOODDetector(layer="conv1", share=0.1)},
)
EACH = pytest.mark.parametrize(
    "params", [{}, {"share": 0.1}, {"share": 0.5, "normalize": False}], ids=str
)


def reference(H, X, share=0.01, normalize=True):
    """Score rows one by one, by counting."""

    def scaled(h):
        return h / np.linalg.norm(h) if normalize and h.any() else h

    H, X = ([scaled(h) for h in np.asarray(part, dtype=np.float64)] for part in (H, X))
    n, scores = len(H), []
    for x in X:
        shares = []
        for i in range(n):
            own = np.linalg.norm(x - H[i])
            nearer = sum(np.linalg.norm(H[j] - H[i]) < own - 1e-9 for j in range(n) if j != i)
            shares.append(nearer / n)
        scores.append(-sorted(shares)[math.ceil(share * n) - 1])
    return np.array(scores)


@pytest.fixture
def rows(rng):
    """Return training rows, two of them zero and two equal, and rows to score."""
    H, X = rng.normal(size=(60, 5)) + 2, 3 * rng.normal(size=(40, 5))
    H[[3, 9]] = X[7] = 0
    H[20] = H[21]
    return H, X


@EACH
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_parity(rows, params, dtype):
    H, X = (part.astype(dtype) for part in rows)
    detector = CFOODDetector(**params).fit(H)
    expected = reference(H, X, **params)
    np.testing.assert_allclose(detector.score_samples(X), expected, atol=1e-7)
    assert len(np.unique(expected)) > (5 if params else 1)


@EACH
def test_rows_left_out(rows, params, left_out):
    H, _ = rows
    expected = [
        reference(np.delete(H, i, axis=0), H[i : i + 1], **params)[0] for i in range(len(H))
    ]
    np.testing.assert_allclose(left_out(CFOODDetector(**params), H), expected, atol=1e-12)


def test_a_large_bank_keeps_some_distances(rows, monkeypatch, rng):
    """Scores are those of the next share of the grid."""
    H, X = rng.normal(size=(700, 5)) + 1, 2 * rng.normal(size=(300, 5))
    exact = CFOODDetector().fit(H)
    expected = exact.score_samples(X)
    monkeypatch.setattr(cfood, "MOST_EXACT", 100)
    some = CFOODDetector().fit(H)
    found = some.score_samples(X)
    assert some.scorer_._sorted_distances()[0].shape == (230, 700)
    assert (expected - found >= -1e-12).all() and (expected - found < 0.02).all()
    assert spearmanr(found, expected).statistic > 0.98
    assert some.offset_ == pytest.approx(exact.offset_, abs=0.02)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(rows, scale):
    H, X = rows
    found = CFOODDetector().fit(scale * H).score_samples(scale * X)
    np.testing.assert_allclose(found, reference(H, X), atol=1e-12)


def test_bad_input(rows):
    for share in (0, 1, 1.5):
        with pytest.raises(ValueError, match="'share' parameter"):
            CFOODDetector(share=share).fit(rows[0])
