"""LogitGap: equal to a plain reference."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import LogitGapDetector
from tests.detectors import Method
from tests.networks import MLP, seeded

METHOD = Method(
    settings={
        "default": LogitGapDetector(),
        "margin": LogitGapDetector(n_next=1, batch_size=7),
    },
    in_networks={"default": LogitGapDetector()},
    gives_maps=True,
)


def reference(logits, n_next=None):
    """Score rows one by one."""
    scores = []
    for row in np.asarray(logits, dtype=np.float64):
        first, *others = sorted(row, reverse=True)
        others = others[:n_next]
        scores.append(first - sum(others) / len(others))
    return scores


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
@pytest.mark.parametrize("n_next", [None, 1, 2, 50])
def test_parity(rng, n_next, dtype, tolerance):
    net = seeded(MLP).to(getattr(torch, dtype))
    X = rng.normal(size=(40, 8)).astype(dtype)
    scores = LogitGapDetector(net, n_next=n_next).fit(X).score_samples(X)
    logits = net(torch.from_numpy(X)).detach()
    np.testing.assert_allclose(scores, reference(logits, n_next), tolerance, tolerance)


def test_large_logits():
    """Their sum, and their difference in float32, would overflow."""
    identity = nn.Linear(3, 3).requires_grad_(False)
    nn.init.eye_(identity.weight), nn.init.zeros_(identity.bias)
    X = np.array([[1e38, 0, 0], [1e38, 1e38, 1e38]], np.float32)
    scores = LogitGapDetector(identity).fit(X).score_samples(X)
    np.testing.assert_allclose(scores, [1e38, 0], 1e-6)
