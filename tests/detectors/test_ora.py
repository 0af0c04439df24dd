"""ORA: equal to a plain reference, with rows left out as if refitted."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import ORADetector
from tests.detectors import Method
from tests.networks import seeded

METHOD = Method(
    settings={
        "default": ORADetector(),
        "mean": ORADetector(aggregate="mean", batch_size=7),
        "largest": ORADetector(aggregate="max"),
    },
    in_networks={"default": ORADetector(), "mean": ORADetector(aggregate="mean")},
)
EACH = pytest.mark.parametrize("aggregate", ["min", "mean", "max"])


def reference(H, y, X, W, b, aggregate):
    """Score rows one by one, by explicit projections and angles."""
    H, X = (np.asarray(part, dtype=np.float64) for part in (H, X))
    center = np.mean([H[y == c].mean(0) for c in np.unique(y)], axis=0)
    scores = []
    for h in X:
        logits = W @ h + b
        best, angles = int(np.argmax(logits)), []
        for c in range(len(W)):
            d = W[best] - W[c]
            if c == best or not d.any():
                continue
            projection = h - (logits[best] - logits[c]) / (d @ d) * d
            u, v = (p / np.linalg.norm(p) for p in (h - center, projection - center))
            angles.append(2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v)) / np.pi)
        scores.append({"min": min, "mean": np.mean, "max": max}[aggregate](angles or [0]))
    return np.array(scores)


@pytest.fixture
def rows(rng):
    """Return training rows, their classes, one of them of one row, and rows to score."""
    y = np.arange(40) % 3
    H = rng.normal(size=(40, 5)) + 2 * rng.normal(size=(3, 5))[y]
    y[7] = 9
    return H, y, 3 * rng.normal(size=(30, 5))


def head_of(dtype="float64", equal=False, bias=True):
    """Return a linear head, its weight and its bias."""
    head = seeded(nn.Linear, in_features=5, out_features=4, bias=bias).to(getattr(torch, dtype))
    if equal:
        with torch.no_grad():
            head.weight[1] = head.weight[2]
    b = head.bias.detach().double().numpy().copy() if bias else 0
    return head, head.weight.detach().double().numpy(), b


@EACH
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, aggregate, equal, dtype, tolerance):
    H, y, X = rows
    head, W, b = head_of(dtype, equal)
    H, X = H.astype(dtype), X.astype(dtype)
    detector = ORADetector(head, aggregate=aggregate).fit(H, y)
    expected = reference(H, y, X, W, b, aggregate)
    np.testing.assert_allclose(detector.score_samples(X), expected, tolerance)


@EACH
def test_rows_left_out(rows, aggregate, left_out):
    H, y, _ = rows
    head, W, b = head_of(bias=False)
    expected = []
    for i in range(len(H)):
        rest = np.arange(len(H)) != i
        expected += [*reference(H[rest], y[rest], H[[i]], W, b, aggregate)]
    found = left_out(ORADetector(head, aggregate=aggregate), H, y)
    np.testing.assert_allclose(found, expected, 1e-8)


def test_without_labels_the_prediction_stands_in(rows, left_out):
    H, _, X = rows
    head, W, b = head_of()
    predicted = (H @ W.T + b).argmax(1)
    detector = ORADetector(head).fit(H)
    np.testing.assert_allclose(
        detector.score_samples(X), reference(H, predicted, X, W, b, "min"), 1e-8
    )
    np.testing.assert_allclose(
        left_out(ORADetector(head), H), left_out(ORADetector(head), H, predicted), 1e-12
    )


def test_rows_on_a_boundary_are_at_no_angle(rows):
    H, y, X = rows
    head, W, b = head_of()
    d = W[0] - W[1]
    on = X - np.outer((X @ d + b[0] - b[1]) / (d @ d), d)
    logits = on @ W.T + b
    on = on[np.sort(logits, 1)[:, -1] - logits[:, 0] < 1e-9]
    assert len(on) > 3
    assert np.abs(ORADetector(head).fit(H, y).score_samples(on)).max() < 1e-12


def test_small_angles_keep_their_digits(rows):
    """Of the arc cosine of 1 - 1e-17 none is left."""
    H, y, X = rows
    head, W, b = head_of()
    X = X[:10] * 0 + H.mean(0)
    d = W[0] - W[1]
    X = X - np.outer((X @ d + b[0] - b[1]) / (d @ d), d) + 1e-9 * d
    scores = ORADetector(head, aggregate="min").fit(H, y).score_samples(X)
    expected = reference(H, y, X, W, b, "min")
    np.testing.assert_allclose(scores, expected, 1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(rows, scale):
    H, y, X = rows
    head, W, b = head_of()
    with torch.no_grad():
        head.bias *= scale
    found = ORADetector(head).fit(scale * H, y).score_samples(scale * X)
    np.testing.assert_allclose(found, reference(H, y, X, W, b, "min"), 1e-8)


def test_no_boundary_and_rows_at_the_center(rows):
    H, y, X = rows
    head, _, _ = head_of()
    detector = ORADetector(head).fit(H, y)
    center = detector.scorer_.center.numpy()[None]
    assert np.isfinite(detector.score_samples(np.r_[center, X * 1e307, X * 0])).all()
    with torch.no_grad():
        head.weight[:] = 1.0
    for aggregate in ("min", "mean", "max"):
        detector = ORADetector(head, aggregate=aggregate).fit(H, y)
        assert (detector.score_samples(X) == 0).all()


def test_bad_input(rows):
    H, y, _ = rows
    with pytest.raises(ValueError, match="'aggregate' parameter"):
        ORADetector(aggregate="sum").fit(H, y)
    with pytest.raises(ValueError, match="overflow"):
        ORADetector(head_of()[0]).fit(H * 1e307, y)
