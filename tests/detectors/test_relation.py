"""Relation: equal to a plain reference, with rows left out as if refitted, in tiles."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import RelationDetector
from skood.learning import products
from tests import references as ref
from tests.detectors import Method
from tests.networks import SmallCNN, seeded

METHOD = Method(
    settings={
        "default": RelationDetector(),
        "half": RelationDetector(power=1.5, bank_size=0.5, batch_size=7, random_state=0),
    },
    in_networks={"default": RelationDetector(), "conv1": RelationDetector(layer="conv1")},
)
TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


def reference(H, X, L, L_new, power=4, threshold=0.03):
    """Return the mean edge of each row to the training rows, by loops."""
    H, X = ref.normalised(H), ref.normalised(X)
    P, P_new = (np.exp(part - ref.energy(part)[:, None]) for part in map(ref.as_array, (L, L_new)))
    scores = []
    for x, p in zip(X, P_new, strict=True):
        edges = [max(x @ h, 0) * (p @ q) for h, q in zip(H, P, strict=True)]
        scores.append(np.mean([e**power if e > threshold else 0 for e in edges]))
    return np.array(scores)


@pytest.fixture
def rows(rng):
    """Return a head, training rows and rows to score, one of them 0."""
    head = seeded(nn.Linear, in_features=6, out_features=4).double()
    with torch.no_grad():
        head.weight *= 2
    H, X = rng.normal(size=(60, 6)), 2 * rng.normal(size=(25, 6))
    X[3] = 0
    return head, H, X


def logits(head, *parts):
    """Return the logits of arrays."""
    return (head(torch.as_tensor(part)).detach().numpy() for part in parts)


@pytest.fixture(params=[products.TILE, 7])
def tile(request, monkeypatch):
    """Set the size of tiles."""
    monkeypatch.setattr(products, "TILE", request.param)


@DTYPES
@pytest.mark.parametrize(("power", "threshold"), [(4, 0.03), (1, 0.2), (0.5, 0.0)])
def test_parity(rows, tile, power, threshold, dtype):
    head, H, X = rows
    head, H, X = head.to(getattr(torch, dtype)), H.astype(dtype), X.astype(dtype)
    detector = RelationDetector(head, power=power, threshold=threshold).fit(H)
    expected = reference(H, X, *logits(head, H, X), power, threshold)
    found = detector.score_samples(X)
    np.testing.assert_allclose(found, expected, TOLERANCE[dtype], TOLERANCE[dtype] ** 2)
    assert found[3] == 0


@pytest.mark.parametrize("power", [4, 1])
def test_rows_left_out(rows, tile, left_out, power):
    head, H, _ = rows
    H[7] = H[8]
    L, expected = next(logits(head, H)), []
    for i in range(len(H)):
        rest = np.arange(len(H)) != i
        expected += [*reference(H[rest], H[[i]], L[rest], L[[i]], power)]
    found = left_out(RelationDetector(head, power=power), H)
    np.testing.assert_allclose(found, expected, 1e-9)


def test_rows_left_out_of_a_drawn_bank(rows, left_out):
    """Of those that are not in it nothing is taken away."""
    head, H, _ = rows
    detector = RelationDetector(head, bank_size=20, random_state=0)
    found = left_out(detector, H)
    plain, bank = detector.score_samples(H), detector.scorer_.bank.numpy()
    in_bank = np.array([np.isclose(h, bank).all(1).any() for h in ref.normalised(H)])
    assert in_bank.sum() == 20
    np.testing.assert_allclose(found[~in_bank], plain[~in_bank], 1e-12)
    p = torch.softmax(head(torch.as_tensor(H)), 1).detach().numpy()
    without = (20 * plain - (p**2).sum(1) ** 4) / 19
    np.testing.assert_allclose(found[in_bank], without[in_bank], 1e-9)


@DTYPES
def test_layer_of_a_network(rng, dtype):
    H, X = (rng.normal(size=(n, 1, 8, 8)).astype(dtype) for n in (40, 12))
    net = seeded(SmallCNN).to(getattr(torch, dtype))
    found = RelationDetector(net, "conv1").fit(H).score_samples(X)
    pooled = (ref.features(net, part, "conv1").mean((2, 3)) for part in (H, X))
    expected = reference(*pooled, *(ref.logits(net, part) for part in (H, X)))
    np.testing.assert_allclose(found, expected, TOLERANCE[dtype])


def test_a_share_of_the_bank_scores_alike(rows):
    """The mean does not grow with the bank, as the peers' sum does."""
    head, _, X = rows
    H = np.random.default_rng(1).normal(size=(2000, 6))
    whole = RelationDetector(head).fit(H).score_samples(X)
    half = RelationDetector(head, bank_size=0.5, random_state=0).fit(H).score_samples(X)
    assert 0.9 < half.mean() / whole.mean() < 1.1


def test_any_scale(rows):
    head, H, X = rows
    detector = RelationDetector(head).fit(H)
    assert np.isfinite(detector.score_samples(np.r_[X * 1e-300, X * 1e30])).all()
    detector.fit(H[:1].repeat(40, 0))
    assert (detector.predict(H[:1]) == 1).all()


def test_two_rows(rows):
    head, H, X = rows
    for bank_size in (None, 1):
        detector = RelationDetector(head, bank_size=bank_size, random_state=0).fit(H[:2])
        assert np.isfinite(np.r_[detector.score_samples(X), detector.offset_]).all()


@pytest.mark.parametrize("bad", [{"power": 0.0}, {"threshold": 1.0}, {"bank_size": 0}])
def test_bad_input(rows, bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter"):
        RelationDetector(rows[0], **bad).fit(rows[1])
