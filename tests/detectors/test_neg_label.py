"""NegLabel: equal to a plain reference, without ties, at any scale and temperature."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import NegLabelDetector
from tests.detectors import Method
from tests.networks import seeded

METHOD = Method(
    settings={
        "default": NegLabelDetector(),
        "seed": NegLabelDetector(random_state=0, batch_size=7),
        "share": NegLabelDetector(temperature=0.5, log=False),
    },
    # A temperature of 0.01 makes 1e-7 of the network's float32 1e-5 of the score.
    in_networks={
        "default": NegLabelDetector(temperature=1.0),
        "one known": NegLabelDetector(n_known=1, n_groups=1, temperature=1.0),
    },
)


def reference(W, X, n_known, groups, temperature=0.01):
    """Return the share of the known labels, row by row."""
    scores = []
    for x in np.asarray(X, dtype=np.float64):
        cosines = [x @ w / np.linalg.norm(x) / np.linalg.norm(w) for w in W]
        terms = np.exp((np.array(cosines) - max(cosines)) / temperature)
        known = terms[:n_known].sum()
        scores.append(np.mean([known / (known + terms[group].sum()) for group in groups]))
    return np.array(scores)


@pytest.fixture
def labels():
    """Return a head with the embeddings of 3 known and 11 negative labels."""
    return seeded(nn.Linear, in_features=6, out_features=14, bias=False).double()


@pytest.mark.parametrize("n_groups", [1, 4, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(labels, rng, n_groups, dtype, tolerance):
    X = rng.normal(size=(40, 6)).astype(dtype)
    labels = labels.to(getattr(torch, dtype))
    W = labels.weight.detach().double().numpy()
    settings = {"n_known": 3, "n_groups": n_groups, "temperature": 0.2, "random_state": 1}
    detector = NegLabelDetector(labels, log=False, **settings).fit(X)
    groups = detector.scorer_.groups.numpy()
    used = np.unique(groups)
    assert groups.shape == {1: (1, 11), 4: (4, 2), 100: (11, 1)}[n_groups]
    assert len(used) == groups.size and used.min() >= 3
    expected = reference(W, X, 3, groups, 0.2)
    np.testing.assert_allclose(detector.score_samples(X), expected, tolerance, tolerance)
    odds = NegLabelDetector(labels, **settings).fit(X).score_samples(X)
    np.testing.assert_allclose(odds, np.log(expected / (1 - expected)), tolerance, tolerance)


def test_groups_are_drawn(labels, rng):
    X = rng.normal(size=(40, 6))

    def groups(random_state):
        detector = NegLabelDetector(labels, n_known=3, n_groups=4, random_state=random_state)
        return detector.fit(X).scorer_.groups.tolist()

    assert groups(None) == groups(None)
    assert groups(1) == groups(1) != groups(2)


def test_all_but_the_last_are_known(labels, rng):
    X = rng.normal(size=(40, 6))
    found, expected = (
        NegLabelDetector(labels, n_known=n).fit(X).score_samples(X) for n in (None, 13)
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shares_of_nearly_one_do_not_tie(labels, rng, dtype):
    """At CLIP's temperature 1 - p is e⁻¹⁰⁰."""
    labels = labels.to(getattr(torch, dtype))
    known = labels.weight[:3].detach().double().numpy()
    X = (known[np.arange(200) % 3] + 0.05 * rng.normal(size=(200, 6))).astype(dtype)
    detector = NegLabelDetector(labels, n_known=3, temperature=0.005).fit(X)
    assert len(np.unique(detector.score_samples(X))) == 200
    shares = detector.set_params(log=False).fit(X).score_samples(X)
    assert len(np.unique(shares)) < 200


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(labels, rng, scale):
    X = rng.normal(size=(40, 6)).astype("float32")
    X[3] = 0
    labels = labels.float()
    detector = NegLabelDetector(labels, n_known=3).fit(X)
    found = detector.score_samples(X * np.float32(scale))
    np.testing.assert_allclose(found, detector.score_samples(X), 1e-4, 1e-4)


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_any_temperature(labels, rng, temperature):
    X = rng.normal(size=(40, 6))
    detector = NegLabelDetector(labels, n_known=3, temperature=temperature).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()


@pytest.mark.parametrize("n_known", [14, 15])
def test_no_negative_labels(labels, rng, n_known):
    with pytest.raises(ValueError, match="one known and one negative label"):
        NegLabelDetector(labels, n_known=n_known).fit(rng.normal(size=(40, 6)))
