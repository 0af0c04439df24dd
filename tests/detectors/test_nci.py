"""NCI: equal to a plain reference, and what sets the threshold to refits without each row."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import NCIDetector
from tests.detectors import Method
from tests.networks import seeded

METHOD = Method(
    settings={
        "default": NCIDetector(),
        "lengths": NCIDetector(alpha=0.1, batch_size=7),
    },
    in_networks={"default": NCIDetector()},
)


def reference(H, X, W, b, alpha):
    """Score rows one by one."""
    mean, scores = np.asarray(H, dtype=np.float64).mean(0), []
    for h in np.asarray(X, dtype=np.float64):
        w, z = W[np.argmax(W @ h + b)], h - mean
        scores.append(sum(w * z) / np.sqrt(sum(z * z)) + alpha * sum(abs(h)))
    return np.array(scores)


@pytest.fixture
def rows(rng):
    """Return training rows and rows to score."""
    return rng.normal(size=(40, 5)) + 1, 3 * rng.normal(size=(30, 5))


def head_of(dtype="float64"):
    """Return a linear head, its weight and its bias."""
    head = seeded(nn.Linear, in_features=5, out_features=4).to(getattr(torch, dtype))
    return head, *(p.detach().double().numpy().copy() for p in (head.weight, head.bias))


@pytest.mark.parametrize("alpha", [0, 0.05])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, alpha, dtype, tolerance):
    H, X = (part.astype(dtype) for part in rows)
    head, W, b = head_of(dtype)
    found = NCIDetector(head, alpha=alpha).fit(H).score_samples(X)
    np.testing.assert_allclose(found, reference(H, X, W, b, alpha), tolerance, tolerance)


def test_rows_left_out(rows, left_out):
    H, _ = rows
    head, W, b = head_of()
    expected = [reference(np.delete(H, i, 0), H[[i]], W, b, 0.1)[0] for i in range(len(H))]
    np.testing.assert_allclose(left_out(NCIDetector(head, alpha=0.1), H), expected, 1e-8)


def test_far_features_keep_their_digits(rows):
    """⟨W, h⟩ less ⟨W, μ⟩ would lose what is small beside the distance of the mean."""
    H, X = rows
    head, W, b = head_of("float32")
    H, X = ((part + 2**12).astype(np.float32) for part in (H, X))
    found = NCIDetector(head, alpha=0).fit(H).score_samples(X)
    np.testing.assert_allclose(found, reference(H, X, W, b, 0), 1e-5, 1e-5)


def test_rows_at_the_mean_have_no_direction():
    head, W, b = head_of()
    # The mean of three times .1 is not .1.
    X = np.full((3, 5), 0.1)
    detector = NCIDetector(head, alpha=2.0, false_alarm_rate=0.5).fit(X)
    np.testing.assert_allclose(detector.score_samples(X), 1.0, 1e-14)
    assert (detector.predict(X) == 1).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(rows, scale):
    H, X = rows
    head, W, b = head_of()
    with torch.no_grad():
        head.bias *= scale
    found = NCIDetector(head, alpha=0.1 / scale).fit(scale * H).score_samples(scale * X)
    np.testing.assert_allclose(found, reference(H, X, W, b, 0.1), 1e-8)


def test_bad_input(rows):
    H, _ = rows
    with pytest.raises(ValueError, match="'alpha' parameter"):
        NCIDetector(head_of()[0], alpha=-1).fit(H)
    with pytest.raises(ValueError, match="overflow"):
        NCIDetector(head_of()[0]).fit(H * 1e307)
