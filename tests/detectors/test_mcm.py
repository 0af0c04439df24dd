"""MCM: equal to a plain reference, at any scale and temperature."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import MCMDetector
from tests.detectors import Method
from tests.networks import seeded

METHOD = Method(
    settings={
        "default": MCMDetector(),
        "log-odds": MCMDetector(temperature=0.5, log=True, batch_size=7),
    },
    in_networks={"default": MCMDetector()},
)
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])


def reference(X, W, temperature=1.0):
    """Return the largest probability, row by row."""
    scores = []
    for x in np.asarray(X, dtype=np.float64):
        cosines = [x @ w / np.linalg.norm(x) / np.linalg.norm(w) if x.any() else 0.0 for w in W]
        terms = [np.exp((c - max(cosines)) / temperature) for c in cosines]
        scores.append(max(terms) / sum(terms))
    return np.array(scores)


@pytest.fixture
def texts():
    """Return a head with the embeddings of 5 classes."""
    return seeded(nn.Linear, in_features=6, out_features=5, bias=False).double()


@DTYPES
@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_parity(texts, rng, temperature, dtype, tolerance):
    X = rng.normal(size=(40, 6)).astype(dtype)
    X[3] = 0
    texts = texts.to(getattr(torch, dtype))
    expected = reference(X, texts.weight.detach().double().numpy(), temperature)
    found = MCMDetector(texts, temperature=temperature).fit(X).score_samples(X)
    np.testing.assert_allclose(found, expected, tolerance)
    odds = MCMDetector(texts, temperature=temperature, log=True).fit(X).score_samples(X)
    np.testing.assert_allclose(odds, np.log(expected / (1 - expected)), tolerance, tolerance)


def test_biases_and_lengths_do_not_count(rng):
    X, head = rng.normal(size=(40, 6)), seeded(nn.Linear, in_features=6, out_features=5).double()
    expected = MCMDetector(head).fit(X).score_samples(X)
    with torch.no_grad():
        head.bias += torch.arange(5)
        head.weight *= torch.arange(1, 6)[:, None]
    found = MCMDetector(head).fit(X).score_samples(X * rng.uniform(1, 9, size=(40, 1)))
    np.testing.assert_allclose(found, expected, 1e-12)


def test_near_probabilities_do_not_tie(texts, rng):
    """Of 1000 classes all probabilities are near 1/1000: float32 has ten digits left of float64."""
    X = rng.normal(size=(500, 6)).astype("float32")
    head = seeded(nn.Linear, in_features=6, out_features=1000, bias=False)
    assert len(np.unique(MCMDetector(head).fit(X).score_samples(X))) > 495
    # At CLIP's temperature p rounds to 1.
    sure = 9 * texts.weight.detach().float().numpy()[np.arange(500) % 5]
    sure += 0.1 * rng.normal(size=sure.shape).astype("float32")
    detector = MCMDetector(texts.float(), temperature=0.01).fit(sure)
    assert len(np.unique(detector.score_samples(sure))) < 400
    assert len(np.unique(detector.set_params(log=True).fit(sure).score_samples(sure))) > 495


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("temperature", [1e-300, 1e300])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_any_scale_and_temperature(texts, rng, scale, temperature, log):
    X = rng.normal(size=(40, 6))
    detector = MCMDetector(texts, temperature=temperature, log=log).fit(X)
    found = detector.score_samples(scale * X)
    assert np.isfinite(found).all()
    if scale:
        np.testing.assert_allclose(found, detector.score_samples(X), 1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, "hot"])
def test_bad_temperature(texts, rng, temperature):
    with pytest.raises(ValueError, match="'temperature' parameter"):
        MCMDetector(texts, temperature=temperature).fit(rng.normal(size=(40, 6)))
