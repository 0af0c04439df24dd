"""Energy: equal to a plain reference, at any temperature, size of logits and weights."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from skood import ASHDetector, EnergyDetector
from tests.detectors import Method
from tests.networks import MLP, seeded

METHOD = Method(
    settings={
        "default": EnergyDetector(),
        "hot": EnergyDetector(temperature=3.0, batch_size=7),
    },
    in_networks={"default": EnergyDetector()},
    gives_maps=True,
)

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])


def reference(logits, temperature=1.0, weights=None):
    """Score rows one by one."""
    scores = []
    for row in np.asarray(logits, dtype=np.float64):
        pairs = zip(row, np.ones(len(row)) if weights is None else weights, strict=True)
        total = sum(max(w, 0) * math.exp(value / temperature) for value, w in pairs)
        scores.append(temperature * math.log(total))
    return scores


@DTYPES
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1000.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2, -1.0, 0]])
def test_parity(rng, temperature, weights, dtype, tolerance):
    net = seeded(MLP).to(getattr(torch, dtype))
    X = rng.normal(size=(40, 8)).astype(dtype)
    detector = EnergyDetector(net, temperature=temperature, weights=weights).fit(X)
    logits = net(torch.from_numpy(X)).detach()
    expected = reference(logits, temperature, weights)
    np.testing.assert_allclose(detector.score_samples(X), expected, tolerance, tolerance)


def test_is_ash_that_removes_nothing(rng):
    X, net = rng.normal(size=(40, 8)), seeded(MLP).double()
    ash = ASHDetector(net, variant="p", percentile=0).fit(X).score_samples(X)
    np.testing.assert_allclose(EnergyDetector(net).fit(X).score_samples(X), ash)


def test_logits_whose_exponentials_overflow():
    identity = nn.Linear(2, 2).requires_grad_(False)
    nn.init.eye_(identity.weight), nn.init.zeros_(identity.bias)
    X = np.array([[1e4, 0], [3e38, 0], [-3e38, -3e38]], np.float32)
    for temperature in (1e-3, 1.0):
        detector = EnergyDetector(identity, temperature=temperature, weights=[0.5, 1]).fit(X)
        expected = X[:, 0] + temperature * np.log([0.5, 0.5, 1.5])
        np.testing.assert_allclose(detector.score_samples(X), expected, 1e-6)


@pytest.mark.parametrize("weights", [[1.0, 2], [0.0, -1, 0, 0]])
def test_weights_that_do_not_fit(weights, rng):
    with pytest.raises(ValueError, match="Expected one entry for each of 4 logits"):
        EnergyDetector(seeded(MLP), weights=weights).fit(rng.normal(size=(40, 8)))
