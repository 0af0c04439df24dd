"""Entropy: equal to a plain reference, without ties."""

import decimal

import numpy as np
import pytest
import torch
from torch import nn

from skood import EntropyDetector
from tests.detectors import Method
from tests.networks import MLP, seeded

METHOD = Method(
    settings={
        "default": EntropyDetector(),
        "plain": EntropyDetector(log=False, temperature=2.0, batch_size=7),
    },
    in_networks={"default": EntropyDetector()},
    gives_maps=True,
)

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])


def reference(logits, temperature=1.0, log=True):
    """Score rows one by one, in 60 digits."""
    scores = []
    with decimal.localcontext(prec=60):
        for row in np.asarray(logits, dtype=np.float64):
            powers = [(decimal.Decimal(v) / decimal.Decimal(temperature)).exp() for v in row]
            entropy = -sum(power / sum(powers) * (power / sum(powers)).ln() for power in powers)
            scores.append(float(-entropy.ln() if log else -entropy))
    return scores


@DTYPES
@pytest.mark.parametrize("temperature", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("log", [True, False])
def test_parity(rng, temperature, log, dtype, tolerance):
    net = seeded(MLP).to(getattr(torch, dtype))
    X = 2 * rng.normal(size=(40, 8)).astype(dtype)
    detector = EntropyDetector(net, temperature=temperature, log=log).fit(X)
    logits = net.double()(torch.from_numpy(X).double()).detach()
    expected = reference(logits, temperature, log)
    np.testing.assert_allclose(detector.score_samples(X), expected, tolerance, tolerance)


@DTYPES
def test_confident_rows_do_not_tie(dtype, tolerance):
    identity = nn.Linear(2, 2).to(getattr(torch, dtype)).requires_grad_(False)
    nn.init.eye_(identity.weight), nn.init.zeros_(identity.bias)
    X = np.array([[30, 0], [60, 0], [100, 0]], dtype)
    scores = EntropyDetector(identity).fit(X).score_samples(X)
    np.testing.assert_allclose(scores, reference(X), tolerance)
    assert (np.diff(scores) > 20).all()
