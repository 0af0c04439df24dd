"""KL matching: equal to a plain reference, with rows left out as if refitted."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from torch import nn

from skood import KLMatchingDetector
from tests.detectors import Method
from tests.networks import MLP, seeded

METHOD = Method(
    settings={
        "default": KLMatchingDetector(),
        "predicted": KLMatchingDetector(assign="predicted", batch_size=7),
    },
    in_networks={"default": KLMatchingDetector()},
)

EACH = pytest.mark.parametrize("assign", ["closest", "predicted"])


def reference(logits, new, assign="closest"):
    """Score rows one by one."""
    groups = {}
    for row in np.asarray(logits, dtype=np.float64):
        groups.setdefault(int(row.argmax()), []).append(log_softmax(row))
    means = {k: logsumexp(rows, axis=0) - np.log(len(rows)) for k, rows in groups.items()}
    scores = []
    for row in np.asarray(new, dtype=np.float64):
        log_p = log_softmax(row)
        found = {k: sum(np.exp(log_p) * (log_p - mean)) for k, mean in means.items()}
        scores.append(
            -found.get(int(row.argmax()) if assign == "predicted" else -1, min(found.values()))
        )
    return np.array(scores)


@pytest.fixture
def rows(rng):
    """Return a network of four classes, one of them never predicted in training, and rows."""
    net = seeded(MLP).double()
    with torch.no_grad():
        net.fc.weight.mul_(4)
    X, X_new = rng.normal(size=(40, 8)), 2 * rng.normal(size=(30, 8))
    logits, new = (net(torch.from_numpy(x)).detach().numpy() for x in (X, X_new))
    keep = logits.argmax(1) != 2
    assert (new.argmax(1) == 2).any() and 0 < keep.sum() < 40
    return net, X[keep], X_new, logits[keep], new


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, assign, dtype, tolerance):
    net, X, X_new, logits, new = rows
    net = net.to(getattr(torch, dtype))
    detector = KLMatchingDetector(net, assign=assign).fit(X.astype(dtype))
    found = detector.score_samples(X_new.astype(dtype))
    np.testing.assert_allclose(found, reference(logits, new, assign), tolerance, tolerance)


@EACH
def test_rows_left_out(rows, assign, left_out):
    """Also where a class has one row."""
    net, X, _, logits, _ = rows
    classes, counts = np.unique(logits.argmax(1), return_counts=True)
    alone = np.flatnonzero(logits.argmax(1) == classes[counts.argmin()])[1:]
    X, logits = np.delete(X, alone, axis=0), np.delete(logits, alone, axis=0)
    found = left_out(KLMatchingDetector(net, assign=assign), X)
    expected = [
        reference(np.delete(logits, i, axis=0), logits[i : i + 1], assign)[0]
        for i in range(len(logits))
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_confident_networks():
    """Probabilities of e⁻¹⁰⁰⁰ are no zeros, nor is what one row leaves of a sum."""
    identity = nn.Linear(3, 3).double().requires_grad_(False)
    nn.init.eye_(identity.weight), nn.init.zeros_(identity.bias)
    X = np.array([[1000.0, 0, 0], [1100, 0, 0], [0.0, 0.1, 0], [0, 1000, 0], [1e30, 0, 0]])
    detector = KLMatchingDetector(identity).fit(X)
    new = np.array([[0.0, 0, 0], [500, 0, 500], [0, 1e3, 0]])
    np.testing.assert_allclose(detector.score_samples(new), reference(X, new), rtol=1e-10)
    assert np.isfinite(detector.offset_)
