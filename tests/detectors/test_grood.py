"""GrOOD: equal to gradients by autograd, rows left out of the bank, noise, far rows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skood import GrOODDetector
from skood.detectors.gradients.grood import prototype_gradients
from tests import references as ref
from tests.detectors import Method
from tests.networks import MLP, SmallCNN, seeded

METHOD = Method(
    settings={
        "default": GrOODDetector(),
        "bank": GrOODDetector(k=1, temperature=2.0, bank_size=0.5, random_state=0, batch_size=7),
    },
    in_networks={
        "default": GrOODDetector(),
        "noise": GrOODDetector(ood="noise", random_state=0),
    },
    fixed={"ood": "mean"},
)


def autograd(h, prototypes, other, temperature=1.0, own=0):
    """Return the gradient of one row's cross-entropy with respect to the OOD prototype."""
    leaf = ref.as_tensor(other).requires_grad_()
    centres = torch.cat([ref.as_tensor(prototypes), leaf[None]])
    scores = -torch.linalg.vector_norm(ref.as_tensor(h) - centres, dim=1) / temperature
    loss = temperature * F.cross_entropy(scores[None], torch.tensor([own]))
    return torch.autograd.grad(loss, leaf)[0].numpy()


def reference(H, y, predicted, new, k=2, ood="mean", temperature=1.0):
    """Score rows one by one against the rows of `bank`."""
    prototypes = np.array([np.mean(H[y == c], axis=0) for c in np.unique(y)])
    other = prototypes.mean(0) if isinstance(ood, str) else ood
    bank = [autograd(h, prototypes, other, temperature) for h in H[y == predicted]]
    scores = []
    for h in new:
        gradient = autograd(h, prototypes, other, temperature, own=1)
        scores.append(-sorted(((gradient - g) ** 2).sum() for g in bank)[k - 1])
    return np.array(scores)


@pytest.fixture
def rows(rng):
    """Return a network, rows with labels of which some are predicted, and rows to score."""
    net = seeded(MLP, in_features=6).double()
    X, X_new = rng.normal(size=(60, 6)), 2 * rng.normal(size=(20, 6))
    H, new = (ref.features(net, part) for part in (X, X_new))
    predicted = net(torch.from_numpy(X)).argmax(1).numpy()
    y = np.where(rng.uniform(size=60) < 0.6, predicted, rng.integers(0, 4, 60))
    assert len(set(y)) == 4 and 0 < (y != predicted).sum()
    return net, X, y, X_new, H, predicted, new


PARAMS = [{}, {"k": 1, "temperature": 2.0}, {"ood": "array"}]
EACH = pytest.mark.parametrize("params", PARAMS, ids=str)


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, params, dtype, tolerance):
    net, X, y, X_new, H, predicted, new = rows
    if "ood" in params:
        params = {"ood": np.linspace(-1, 1, H.shape[1])}
    detector = GrOODDetector(net.to(getattr(torch, dtype)), **params).fit(X.astype(dtype), y)
    expected = reference(H, y, predicted, new, **params)
    found = detector.score_samples(X_new.astype(dtype))
    np.testing.assert_allclose(found, expected, tolerance, tolerance * np.abs(expected).max())


def test_without_labels(rows):
    net, X, _, X_new, H, predicted, new = rows
    found = GrOODDetector(net).fit(X).score_samples(X_new)
    np.testing.assert_allclose(found, reference(H, predicted, predicted, new), rtol=1e-8)


def test_rows_left_out(rows, left_out):
    """Out of the bank; prototypes stay."""
    net, X, y, _, H, predicted, _ = rows
    prototypes = np.array([H[y == c].mean(0) for c in range(4)])
    G = np.array([autograd(h, prototypes, prototypes.mean(0)) for h in H])
    expected = [
        -min(((G[i] - G[j]) ** 2).sum() for j in range(60) if j != i and y[j] == predicted[j])
        for i in range(60)
    ]
    np.testing.assert_allclose(left_out(GrOODDetector(net, k=1), X, y), expected, rtol=1e-8)


def test_noise(images):
    """The mean features of the tenth of uniform noise of the lowest energy, from one seed."""
    X, y = images
    net = seeded(SmallCNN)
    detector = GrOODDetector(net, ood="noise", random_state=3).fit(X, y)
    rng = np.random.RandomState(3)
    low, high = X.min((0, 2, 3), keepdims=True), X.max((0, 2, 3), keepdims=True)
    shares = np.concatenate([rng.random_sample((100, *X.shape[1:])) for _ in range(10)])
    noise = (low + shares * (high - low)).astype(np.float32)
    energies = torch.logsumexp(net(torch.from_numpy(noise)), 1).detach().numpy()
    expected = ref.features(net, noise)[np.argsort(energies)[:100]].mean(0)
    np.testing.assert_allclose(detector.scorer_.other, expected, rtol=1e-4, atol=1e-6)
    again = GrOODDetector(net, ood="noise", random_state=3).fit(X, y)
    np.testing.assert_array_equal(again.score_samples(X), detector.score_samples(X))


@pytest.mark.filterwarnings("ignore")
def test_noise_takes_networks_of_floats(rows, rng):
    tokens = rng.integers(1, 9, (30, 5))
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    with pytest.raises(ValueError, match="ood='noise' draws inputs of a network"):
        GrOODDetector(ood="noise").fit(rows[1], rows[2])
    with pytest.raises(ValueError, match="one array of floats"):
        GrOODDetector(net, ood="noise").fit(tokens)


def test_far_rows():
    """As rows go to infinity their share tends to that of their direction; 0 at the prototype."""
    far = np.array([[1e30, 0], [1e12, 0], [1e300, 0], [0, 0], [0, 1e30]])
    prototypes, other, far = map(
        torch.from_numpy, (np.array([[1.0, 0], [-1, 0]]), np.zeros(2), far)
    )
    share = np.exp([0, 0, 0]) / np.exp([[0, 1, -1]] * 3).sum(1)
    expected = [[share[0], 0]] * 3 + [[0, 0], [0, 1 / 3]]
    found = prototype_gradients(far, prototypes, other, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_large_features_are_told(rows):
    """Gradients fall exponentially with distances over the temperature."""
    net, X, y, X_new, *_ = rows
    with torch.no_grad():
        net.fc.weight.mul_(1e-3), net.hidden.weight.mul_(1e3)
    with pytest.warns(UserWarning, match="Give a temperature of about the distance .*, [0-9]"):
        detector = GrOODDetector(net).fit(X, y)
    assert np.isfinite(detector.score_samples(X_new)).all()


def test_a_prototype_of_another_width_is_told(rows):
    net, X, y, *_ = rows
    with pytest.raises(ValueError, match=r"ood has shape \(2,\), but there are \d+ features"):
        GrOODDetector(net, ood=[0.0, 1.0]).fit(X, y)
