"""fDBD: equal to a plain reference, with rows left out as if refitted."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import FDBDDetector
from tests.detectors import Method
from tests.networks import seeded

METHOD = Method(
    settings={
        "default": FDBDDetector(),
        "norm": FDBDDetector(normalizer="norm", batch_size=7),
    },
    in_networks={"default": FDBDDetector()},
)
EACH = pytest.mark.parametrize("normalizer", ["distance", "norm"])


def reference(H, X, W, b, normalizer):
    """Score rows one by one, by the distance of each from each boundary."""
    mean, scores = np.asarray(H, dtype=np.float64).mean(0), []
    for h in np.asarray(X, dtype=np.float64):
        logits = W @ h + b
        best, distances = int(np.argmax(logits)), []
        for c in range(len(W)):
            d = W[best] - W[c]
            if c != best and d.any():
                distances.append((logits[best] - logits[c]) / np.linalg.norm(d))
        size = np.linalg.norm(h - mean if normalizer == "distance" else h)
        scores.append(np.mean(distances or [0]) / size)
    return np.array(scores)


@pytest.fixture
def rows(rng):
    """Return training rows and rows to score."""
    return rng.normal(size=(40, 5)) + 1, 3 * rng.normal(size=(30, 5))


def head_of(dtype="float64", equal=False):
    """Return a linear head, its weight and its bias."""
    head = seeded(nn.Linear, in_features=5, out_features=4).to(getattr(torch, dtype))
    if equal:
        with torch.no_grad():
            head.weight[1] = head.weight[2]
    return head, *(p.detach().double().numpy().copy() for p in (head.weight, head.bias))


@EACH
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, normalizer, equal, dtype, tolerance):
    H, X = (part.astype(dtype) for part in rows)
    head, W, b = head_of(dtype, equal)
    found = FDBDDetector(head, normalizer=normalizer).fit(H).score_samples(X)
    np.testing.assert_allclose(found, reference(H, X, W, b, normalizer), tolerance)


@EACH
def test_rows_left_out(rows, normalizer, left_out):
    H, _ = rows
    head, W, b = head_of()
    expected = [reference(np.delete(H, i, 0), H[[i]], W, b, normalizer)[0] for i in range(len(H))]
    np.testing.assert_allclose(left_out(FDBDDetector(head, normalizer=normalizer), H), expected)


def test_weights_that_differ_in_the_last_digits(rows):
    """By |a|² - 2ab + |b|² their distance would be rounding, or the root of a negative number."""
    H, X = rows
    head, W, b = head_of()
    W[1] = W[2] * (1 + 1e-12)
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(W))
    W = head.weight.detach().numpy()
    found = FDBDDetector(head).fit(H).score_samples(X)
    np.testing.assert_allclose(found, reference(H, X, W, b, "distance"), 1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(rows, scale):
    H, X = rows
    head, W, b = head_of()
    with torch.no_grad():
        head.bias *= scale
    found = FDBDDetector(head).fit(scale * H).score_samples(scale * X)
    np.testing.assert_allclose(found, reference(H, X, W, b, "distance"), 1e-8)


@EACH
def test_rows_at_the_mean_and_at_zero(rows, normalizer):
    H, X = rows
    head, _, _ = head_of()
    X = np.r_[H.mean(0)[None], 0 * X, X * 1e150]
    assert np.isfinite(FDBDDetector(head, normalizer=normalizer).fit(H).score_samples(X)).all()
    # Of equal rows the mean differs from each by rounding.
    for constant in (np.full((30, 5), 0.1), np.zeros((30, 5))):
        detector = FDBDDetector(head, normalizer=normalizer, batch_size=7).fit(constant)
        assert (detector.predict(constant) == 1).all() and np.isfinite(detector.offset_)


def test_no_boundary(rows):
    H, X = rows
    head, _, _ = head_of()
    with torch.no_grad():
        head.weight[:] = 1.0
    assert (FDBDDetector(head).fit(H).score_samples(X) == 0).all()


def test_bad_input(rows):
    H, _ = rows
    with pytest.raises(ValueError, match="'normalizer' parameter"):
        FDBDDetector(head_of()[0], normalizer="mean").fit(H)
    with pytest.raises(ValueError, match="overflow"):
        FDBDDetector(head_of()[0]).fit(H * 1e307)
