"""NNGuide: instances, plain reference, parity."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from skood import NNGuideDetector
from tests import references as ref
from tests.detectors import Method
from tests.networks import MLP, SmallCNN, WeightNormed, seeded
from tests.parity import (
    DTYPES,
    N_TRAIN,
    SEEDS,
    assert_parity,
    blobs,
    cast,
    has_power,
    linear,
    logistic_head,
)

pytestmark = pytest.mark.filterwarnings("ignore:k=.*is more than")

METHOD = Method(
    settings={
        "default": NNGuideDetector(),
        "unweighted": NNGuideDetector(k=3, energy_weighted=False),
        "half": NNGuideDetector(k=2, bank_size=0.5, batch_size=7, random_state=0),
        "five rows": NNGuideDetector(k=2, bank_size=5, false_alarm_rate=0.2, random_state=0),
    },
    in_networks={"default": NNGuideDetector(k=3), "conv1": NNGuideDetector(layer="conv1", k=3)},
)


# The reference


def nnguide(H_train, E_train, H, E, k=10, energy_weighted=True):
    """Score G(x) E(x), G = mean of the k largest inner products of h/||h|| with the bank.

    The bank holds h_i/||h_i|| times E_i, or without `energy_weighted` alone. `k` larger than the
    bank means the whole bank.
    """
    bank = ref.normalised(H_train)
    if energy_weighted:
        bank = np.array([h * e for h, e in zip(bank, ref.as_array(E_train), strict=True)])
    scores = []
    for h, e in zip(ref.normalised(H), ref.as_array(E), strict=True):
        products = np.array([h @ row for row in bank])
        scores.append(np.sort(products)[::-1][:k].mean() * e)
    return np.array(scores)


def nnguide_leave_one_out(H_train, E_train, k=10, energy_weighted=True):
    """Score each training row with a bank that lacks it; `k` is not reduced otherwise."""
    H, E = ref.as_array(H_train), ref.as_array(E_train)
    scores = []
    for i in range(len(H)):
        others = np.arange(len(H)) != i
        scores.append(nnguide(H[others], E[others], H[[i]], E[[i]], k, energy_weighted)[0])
    return np.array(scores)


# The reference agrees with what was found without it


@pytest.fixture
def bank():
    """Draw a training bank and queries with energies of both signs, and one zero row."""
    rng = np.random.default_rng(2)
    H_train, H = rng.normal(size=(30, 5)), rng.normal(size=(20, 5))
    H[0] = 0
    return H_train, rng.normal(1.0, 1.0, size=30), H, rng.normal(1.0, 1.0, size=20)


@pytest.mark.parametrize("k", [1, 4, 30, 99])
def test_nnguide_matrix_form(bank, k):
    """Loops and one matrix product agree; a zero row scores 0; k above the bank is the bank."""
    H_train, E_train, H, E = bank
    scaled = H_train / np.linalg.norm(H_train, axis=1, keepdims=True) * E_train[:, None]
    unit = H / np.maximum(np.linalg.norm(H, axis=1, keepdims=True), 1e-300)
    expected = np.sort(unit @ scaled.T, axis=1)[:, -min(k, 30) :].mean(axis=1) * E
    got = nnguide(H_train, E_train, H, E, k)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14)
    assert got[0] == 0
    assert has_power(got)


def test_nnguide_unweighted_is_cosine(bank):
    """Without energies the guidance is 1 - the mean cosine distance of scikit-learn's search."""
    H_train, E_train, H, E = (array[1:] for array in bank)
    search = NearestNeighbors(n_neighbors=4, metric="cosine").fit(H_train)
    expected = (1 - search.kneighbors(H)[0].mean(axis=1)) * E
    got = nnguide(H_train, E_train, H, E, 4, energy_weighted=False)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert has_power(got)
    assert not np.allclose(got, nnguide(H_train, E_train, H, E, 4))


@pytest.mark.parametrize("energy_weighted", [True, False])
@pytest.mark.parametrize("k", [1, 4, 29, 99])
def test_nnguide_leave_one_out(bank, k, energy_weighted):
    """Refitting equals striking the row itself out of the matrix of inner products."""
    H, E, *_ = bank
    unit = H / np.linalg.norm(H, axis=1, keepdims=True)
    products = unit @ unit.T * (E if energy_weighted else 1.0)
    np.fill_diagonal(products, -np.inf)
    expected = np.sort(products, axis=1)[:, -min(k, 29) :].mean(axis=1) * E
    got = nnguide_leave_one_out(H, E, k, energy_weighted)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert has_power(got)


# The detector equals it


@DTYPES
@pytest.mark.parametrize("k", [1, 5, N_TRAIN])
@pytest.mark.parametrize("energy_weighted", [True, False])
def test_nnguide_on_features(data, k, energy_weighted, dtype):
    Z, y, X_new = (torch.as_tensor(a).to(dtype).numpy() if a.ndim > 1 else a for a in data)
    W, b = logistic_head(Z, y)
    detector = NNGuideDetector(k=k, energy_weighted=energy_weighted).fit(Z, y)
    energies = [ref.energy(ref.as_array(z) @ W.T + b) for z in (Z, X_new)]
    expected = nnguide(Z, energies[0], X_new, energies[1], k, energy_weighted)
    assert_parity(detector.score_samples(X_new), expected, dtype)


@DTYPES
@pytest.mark.parametrize("layer", [None, "conv1", "relu"])
def test_nnguide_in_a_network(X, layer, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    if layer == "relu":
        with pytest.raises(ValueError, match="calls the layer 'relu' 2 times"):
            NNGuideDetector(net, layer).fit(X_train)
        return
    detector = NNGuideDetector(net, layer, k=3).fit(X_train)
    H_train, H = (ref.features(net, x, layer) for x in (X_train, X_new))
    if layer:
        H_train, H = H_train.mean((2, 3)), H.mean((2, 3))
    energies = [ref.energy(ref.logits(net, x)) for x in (X_train, X_new)]
    expected = nnguide(H_train, energies[0], H, energies[1], 3)
    assert_parity(detector.score_samples(X_new), expected, dtype)


def test_nnguide_with_a_random_subset(data):
    Z, y, X_new = data
    first = NNGuideDetector(k=3, bank_size=9, random_state=1).fit(Z, y)
    bank = first.scorer_.bank.numpy()
    W, b = logistic_head(Z, y)
    weighted = Z / np.linalg.norm(Z, axis=1, keepdims=True) * ref.energy(Z @ W.T + b)[:, None]
    rows = [int(np.flatnonzero(np.isclose(weighted, row).all(1))[0]) for row in bank]
    assert len(set(rows)) == 9
    expected = nnguide(
        Z[rows], ref.energy(Z @ W.T + b)[rows], X_new, ref.energy(X_new @ W.T + b), 3
    )
    assert_parity(first.score_samples(X_new), expected, torch.float64)
    again = NNGuideDetector(k=3, bank_size=9 / N_TRAIN, random_state=1).fit(Z, y)
    assert (again.scorer_.bank.numpy() == bank).all()
    other = NNGuideDetector(k=3, bank_size=9, random_state=2).fit(Z, y)
    assert (other.scorer_.bank.numpy() != bank).any()


@pytest.mark.parametrize("cls", [MLP, WeightNormed])
def test_nnguide_on_a_network_of_vectors(vectors, cls):
    net, Z, y, X_new = vectors(cls)
    energies = [ref.energy(ref.logits(net, x)) for x in (Z, X_new)]
    expected = nnguide(ref.features(net, Z), energies[0], ref.features(net, X_new), energies[1])
    assert_parity(NNGuideDetector(net).fit(Z, y).score_samples(X_new), expected, torch.float64)


# The threshold's scores


@pytest.mark.parametrize("k", [1, 5, 31, 32])
@pytest.mark.parametrize("energy_weighted", [True, False])
@pytest.mark.parametrize("bias", [0.0, -50.0])
@pytest.mark.filterwarnings("ignore:k=")
def test_nnguide_leaves_one_out(left_out, few_rows, k, energy_weighted, bias):
    """Also with negative energies, where a row is not its own nearest neighbour."""
    Z, y = few_rows
    classifier = LogisticRegression(max_iter=1000).fit(Z, y)
    classifier.intercept_ = classifier.intercept_ + bias
    energies = ref.energy(Z @ classifier.coef_.T + classifier.intercept_)
    detector = NNGuideDetector(FrozenEstimator(classifier), k=k, energy_weighted=energy_weighted)
    found = left_out(detector, Z, y)
    expected = nnguide_leave_one_out(Z, energies, min(k, 31), energy_weighted)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("k", [3, 10, 30])
@pytest.mark.parametrize("batch_size", [None, 1, 7])
@pytest.mark.filterwarnings("ignore:k=")
def test_nnguide_with_a_subset_leaves_rows_out_of_the_bank(left_out, few_rows, k, batch_size):
    """A row of the bank is compared to the rest of the bank, any other row to all of it."""
    Z, y = few_rows
    classifier = LogisticRegression(max_iter=1000).fit(Z, y)
    detector = NNGuideDetector(
        FrozenEstimator(classifier), k=k, bank_size=10, random_state=0, batch_size=batch_size
    )
    found = left_out(detector, Z, y)
    energies = ref.energy(Z @ classifier.coef_.T + classifier.intercept_)
    weighted = Z / np.linalg.norm(Z, axis=1, keepdims=True) * energies[:, None]
    bank = detector.scorer_.bank.numpy()
    in_bank = np.array([np.isclose(bank, row).all(1).any() for row in weighted])
    assert in_bank.sum() == 10
    for i in range(len(Z)):
        rest = in_bank & (np.arange(len(Z)) != i)
        expected = nnguide(Z[rest], energies[rest], Z[[i]], energies[[i]], min(k, rest.sum()))
        np.testing.assert_allclose(found[i], expected[0], rtol=1e-9)


# Properties


@given(seed=SEEDS, k=st.integers(1, 30))
def test_nnguide_does_not_change_with_rotations_of_features_and_head(seed, k):
    X, y = blobs(seed)
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    head, rotated = linear(seed), linear(seed)
    with torch.no_grad():
        rotated.weight.copy_(head.weight @ torch.as_tensor(Q))
    before = NNGuideDetector(head, k=k).fit(X, y)
    after = NNGuideDetector(rotated, k=k).fit(X @ Q, y)
    np.testing.assert_allclose(after.score_samples(X @ Q), before.score_samples(X), rtol=1e-9)


@given(seed=SEEDS)
def test_nnguide_falls_as_k_grows(seed):
    """The mean of more neighbours is no larger; the energies here are positive."""
    X, _ = blobs(seed)
    head = linear(seed)
    with torch.no_grad():
        head.bias.fill_(100)
    guided = [NNGuideDetector(head, k=k).fit(X).score_samples(X) for k in (1, 3, 10, 30)]
    assert (np.diff(guided, axis=0) <= 1e-9).all()
