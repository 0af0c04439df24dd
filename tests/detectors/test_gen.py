"""GEN: equal to a plain reference, without ties, by the largest probabilities."""

import decimal

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from skood import GENDetector
from tests.detectors import Method
from tests.networks import MLP, seeded

METHOD = Method(
    settings={
        "default": GENDetector(),
        "two": GENDetector(gamma=0.5, n_classes=2, log=False, batch_size=7),
    },
    in_networks={"default": GENDetector()},
    gives_maps=True,
)

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])


def reference(logits, gamma=0.1, n_classes=100, log=True, temperature=1.0):
    """Score rows one by one, in 60 digits."""
    scores = []
    with decimal.localcontext(prec=60):
        gamma, temperature = decimal.Decimal(gamma), decimal.Decimal(temperature)
        for row in np.asarray(logits, dtype=np.float64):
            powers = sorted(((decimal.Decimal(v) / temperature).exp() for v in row), reverse=True)
            p = [power / sum(powers) for power in powers]
            rest = [sum(powers[:i] + powers[i + 1 :]) / sum(powers) for i in range(len(p))]
            total = sum((a * b) ** gamma for a, b in list(zip(p, rest, strict=True))[:n_classes])
            scores.append(float(-total.ln() if log else -total))
    return scores


@DTYPES
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"n_classes": 3, "temperature": 2.0},
        {"n_classes": 1, "gamma": 1.0},
        {"log": False, "gamma": 0.5},
    ],
    ids=str,
)
def test_parity(rng, params, dtype, tolerance):
    net = seeded(MLP).to(getattr(torch, dtype))
    X = 3 * rng.normal(size=(40, 8)).astype(dtype)
    scores = GENDetector(net, **params).fit(X).score_samples(X)
    logits = net.double()(torch.from_numpy(X).double()).detach()
    np.testing.assert_allclose(scores, reference(logits, **params), tolerance, tolerance)


def test_ranks_as_doctor(rng):
    """D_alpha = (1 - G) / G with G the sum of squares of the softmax."""
    X, net = 2 * rng.normal(size=(40, 8)), seeded(MLP).double()
    p = torch.softmax(net(torch.from_numpy(X)), 1).detach().numpy()
    squares = (p**2).sum(1)
    scores = GENDetector(net, gamma=1.0, n_classes=4).fit(X).score_samples(X)
    assert spearmanr(scores, -(1 - squares) / squares).statistic == pytest.approx(1)
