"""ActSub: equal to a plain reference, with rows left out of the bank, and what is cut where."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import ActSubDetector
from skood.detectors.head.actsub import familiarity
from skood.learning.subspaces import part_norms
from tests import references as ref
from tests.detectors import Method
from tests.networks import seeded

METHOD = Method(
    settings={
        "default": ActSubDetector(),
        "half": ActSubDetector(
            percentile=0.3, power=0.5, k=3, bank_size=0.5, batch_size=7, random_state=0
        ),
    },
    in_networks={"default": ActSubDetector()},
)
TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
EACH = pytest.mark.parametrize(
    "params", [{}, {"percentile": 0.3, "power": 1, "k": 2}, {"power": 0.5}, {"power": 0}]
)


def cut(H, V):
    """Return at which number of directions both parts are closest to equally long, by loops."""
    gaps = []
    for k in range(1, len(V) + 1):
        inside = [np.linalg.norm(V[:k].T @ (V[:k] @ h)) for h in H]
        outside = [np.linalg.norm(h - V[:k].T @ (V[:k] @ h)) for h in H]
        gaps.append(abs(np.mean(inside) - np.mean(outside)))
    return 1 + int(np.argmin(gaps))


def directions(head):
    """Return the right singular vectors of the weights, none beyond their rank."""
    W = ref.as_array(head.weight)
    return np.linalg.svd(W)[2][: min(len(W), W.shape[1] - 1)]


def reference(H, X, head, n_components=None, percentile=0.65, power=2, k=10):
    """Score rows one by one."""
    H, X, W, b = map(ref.as_array, (H, X, head.weight, head.bias))
    V = directions(head)
    V = V[: cut(H, V) if n_components is None else n_components]
    bank = ref.normalised([h - V.T @ (V @ h) for h in H])
    scores = []
    for x in X:
        inside = V.T @ (V @ x)
        n_kept = max(1, len(x) - round(len(x) * percentile))
        exponent = inside.sum() / np.sort(inside)[-n_kept:].sum() if inside.any() else 0
        energy = ref.energy([W @ (np.exp(exponent) * inside) + b])[0]
        rest = ref.normalised([x - inside])[0]
        similarity = np.mean(sorted(bank @ rest)[-k:])
        log = -np.log(1 - similarity)
        scores.append(energy * (np.sign(log) * abs(log) ** power if power else 1))
    return np.array(scores)


@pytest.fixture
def rows(rng):
    """Return a head, training rows and rows to score: 0, and opposite to all."""
    head = seeded(nn.Linear, in_features=9, out_features=5).double()
    H, X = np.abs(rng.normal(size=(60, 9))) + 0.3, np.abs(2 * rng.normal(size=(25, 9)))
    X[3], X[4] = 0, -X[4]
    return head, H, X


@DTYPES
@EACH
def test_parity(rows, params, dtype):
    head, H, X = rows
    head, H, X = head.to(getattr(torch, dtype)), H.astype(dtype), X.astype(dtype)
    detector = ActSubDetector(head, **params).fit(H)
    assert detector.n_components_ == cut(ref.as_array(H), directions(head)) > 1
    found, expected = detector.score_samples(X), reference(H, X, head, **params)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, TOLERANCE[dtype], TOLERANCE[dtype] * scale)


@EACH
def test_rows_left_out(rows, left_out, params):
    """Of the bank; the cut stays."""
    head, H, _ = rows
    detector, expected = ActSubDetector(head, **params), []
    found = left_out(detector, H)
    for i in range(len(H)):
        rest = np.arange(len(H)) != i
        expected += [*reference(H[rest], H[[i]], head, detector.n_components_, **params)]
    np.testing.assert_allclose(found, expected, 1e-9)


def test_rows_left_out_of_a_drawn_bank(rows, left_out):
    head, H, _ = rows
    detector = ActSubDetector(head, bank_size=20, k=3, random_state=0)
    found = left_out(detector, H)
    plain, bank = detector.score_samples(H), detector.scorer_.bank.numpy()
    V = detector.scorer_.basis.numpy()
    directions = ref.normalised(H - H @ V @ V.T)
    in_bank = np.array([np.isclose(row, bank).all(1).any() for row in directions])
    assert in_bank.sum() == 20
    np.testing.assert_allclose(found[~in_bank], plain[~in_bank], 1e-12)
    for i in np.flatnonzero(in_bank):
        rest = in_bank & (np.arange(len(H)) != i)
        expected = reference(H[rest], H[[i]], head, detector.n_components_, k=3)
        np.testing.assert_allclose(found[i], expected[0], 1e-9)


def test_norms_of_parts(rng):
    rows = torch.as_tensor(rng.normal(size=(7, 5)))
    V = torch.linalg.qr(torch.as_tensor(rng.normal(size=(5, 3)))).Q.T
    inside, outside = part_norms(rows, V)
    for k in range(1, 4):
        projected = rows @ V[:k].T @ V[:k]
        torch.testing.assert_close(inside[:, k - 1], projected.norm(dim=1))
        torch.testing.assert_close(outside[:, k - 1], (rows - projected).norm(dim=1))


def test_what_is_unlike_all_rows_never_counts_as_familiar():
    """Squared, the logarithm of a negative similarity would be positive."""
    similarity = torch.tensor([-0.9, -0.1, 0.0, 0.1, 0.9], dtype=torch.float64)
    for power in (0.5, 1, 2):
        found = familiarity(similarity, power)
        assert bool((found.diff() > 0).all())
        assert found[2] == 0
    assert (familiarity(similarity, 0) == 1).all()


def test_rows_with_copies_in_the_bank_have_finite_scores(rows):
    """Their similarity is 1, of which the logarithm would be infinite."""
    head, H, _ = rows
    for dtype in ("float32", "float64"):
        detector = ActSubDetector(head.to(getattr(torch, dtype)), k=3)
        scores = detector.fit(H.repeat(5, 0).astype(dtype)).score_samples(H.astype(dtype))
        assert np.isfinite(scores).all()


@pytest.mark.filterwarnings("ignore:Some energies are negative")
def test_cut_does_not_go_beyond_the_rank_of_the_head(rows):
    """There V is what the algorithm happens to give."""
    head, H, X = rows
    with torch.no_grad():
        head.weight[2:] = head.weight[:1] + head.weight[1:2]
    detector = ActSubDetector(head).fit(H)
    assert detector.n_components_ <= 2
    Q = np.linalg.svd(ref.as_array(head.weight))[2][:2]
    basis = detector.scorer_.basis.numpy()
    np.testing.assert_allclose(Q.T @ (Q @ basis), basis, atol=1e-12)
    found = detector.score_samples(X)
    np.testing.assert_allclose(found, reference(H, X, head, detector.n_components_), 1e-8)


def test_similarities_next_to_one_have_digits_in_float32(rows):
    """Of 1 - 1e-7 float32 holds none; the bank lies around one direction."""
    head, H, X = rows
    H, X = (H[:1] + 1e-3 * part for part in (H, X))
    exact = ActSubDetector(head).fit(H.astype("float32").astype(float))
    exact = exact.score_samples(X.astype("float32").astype(float))
    found = ActSubDetector(head.float()).fit(H.astype("float32")).score_samples(X.astype("float32"))
    np.testing.assert_allclose(found, exact, 1e-3)


def test_cut_is_that_of_all_pieces(rows):
    head, H, X = rows
    H = H[np.argsort(np.linalg.norm(H, axis=1))]
    whole, pieces = ActSubDetector(head).fit(H), ActSubDetector(head)
    for some in np.array_split(H, 4):
        pieces.partial_fit(some)
    assert pieces.n_components_ == whole.n_components_
    np.testing.assert_allclose(pieces.score_samples(X), whole.score_samples(X), 1e-10)


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_features(rng, width):
    head = seeded(nn.Linear, in_features=width, out_features=3).double()
    detector = ActSubDetector(head).fit(rng.normal(size=(30, width)))
    assert detector.n_components_ == 1
    assert np.isfinite(detector.score_samples(rng.normal(size=(9, width)))).all()


def test_any_scale(rows):
    head, H, X = rows
    detector = ActSubDetector(head).fit(H)
    assert np.isfinite(detector.score_samples(np.r_[X * 1e-300, X * 1e30])).all()
    detector.fit(H[:1].repeat(40, 0))
    assert (detector.predict(H[:1]) == 1).all()
    with pytest.raises(ValueError, match="squares of the features overflow"):
        ActSubDetector(head).fit(H * 1e200)


@pytest.mark.filterwarnings("ignore:k=10 is more", "ignore:false_alarm_rate")
def test_two_rows(rows):
    head, H, X = rows
    for bank_size in (None, 1):
        detector = ActSubDetector(head, bank_size=bank_size, random_state=0).fit(H[:2])
        assert np.isfinite(np.r_[detector.score_samples(X), detector.offset_]).all()


def test_negative_energies_are_warned_of(rows):
    head, H, _ = rows
    with torch.no_grad():
        head.bias.fill_(-1e4)
    with pytest.warns(UserWarning, match="energies are negative"):
        ActSubDetector(head).fit(H)


@pytest.mark.parametrize("bad", [{"percentile": 1.0}, {"power": -1}, {"k": 0}])
def test_bad_input(rows, bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter"):
        ActSubDetector(rows[0], **bad).fit(rows[1])
