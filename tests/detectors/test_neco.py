"""NECO: equal to a plain reference, with rows left out by folds, on constant features."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn

from skood import NECODetector
from tests import references as ref
from tests.detectors import Method
from tests.networks import SmallCNN, seeded

METHOD = Method(
    settings={
        "default": NECODetector(),
        "plain": NECODetector(
            n_components=0.9, standardize=False, times_max_logit=False, batch_size=7
        ),
    },
    in_networks={"default": NECODetector(), "conv1": NECODetector(layer="conv1")},
)

TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
EACH = pytest.mark.parametrize(
    "params",
    [{}, {"n_components": 2}, {"n_components": 0.6}, {"standardize": False}],
    ids=lambda params: "-".join(map(str, params.values())) or "default",
)


def shares(H, X, k, standardize=True):
    """Return what share of each row of X lies in the first k directions of H, a row at a time."""
    mean, std = H.mean(0), np.sqrt(((H - H.mean(0)) ** 2).mean(0))
    std = np.where((std > 1e-12 * abs(mean)) & standardize, std, 1.0)
    center, leading = ref.subspace((H - mean) / std, None, k)
    found = []
    for x in X:
        s = (x - mean) / std - center
        inside = sum((s @ direction) ** 2 for direction in leading)
        found.append(np.sqrt(inside / (s @ s)) if s.any() else 0.0)
    return np.array(found), len(leading)


def reference(H, X, L, L_new, folds, n_components=None, standardize=True, times_max_logit=True):
    """Return scores of new rows, and of training rows by the subspace of the other folds."""
    H, X, L, L_new = map(ref.as_array, (H, X, L, L_new))
    found, k = shares(H, X, L.shape[1] if n_components is None else n_components, standardize)
    left_out = np.empty(len(H))
    for fold in np.unique(folds):
        held_out = folds == fold
        left_out[held_out], _ = shares(H[~held_out], H[held_out], k, standardize)
    if times_max_logit:
        found, left_out = found * L_new.max(1), left_out * L.max(1)
    return found, left_out


@pytest.fixture
def rows(rng):
    """Return training rows that spread over some directions more than others, and new rows."""
    spread = np.diag([3, 2, 1, 1, 0.5, 0.3, 0.2]) @ np.linalg.qr(rng.normal(size=(7, 7)))[0]
    return rng.normal(size=(60, 7)) @ spread + 1, 3 * rng.normal(size=(20, 7))


@pytest.fixture
def head():
    """Return a linear layer of 7 features and 4 classes, whose largest logits are positive."""
    layer = seeded(nn.Linear, in_features=7, out_features=4).double()
    with torch.no_grad():
        layer.bias += 3
    return layer


@EACH
@DTYPES
@pytest.mark.parametrize("times_max_logit", [True, False])
def test_parity_and_cross_fit(rows, head, left_out, params, dtype, times_max_logit):
    H, X = (part.astype(dtype) for part in rows)
    head, params = head.to(getattr(torch, dtype)), {**params, "times_max_logit": times_max_logit}
    detector = NECODetector(head, **params)
    held_out = left_out(detector, H)
    logits = (head(torch.as_tensor(part)) for part in (H, X))
    expected = reference(H, X, *logits, ref.folds_of(H), **params)
    np.testing.assert_allclose(detector.score_samples(X), expected[0], TOLERANCE[dtype])
    np.testing.assert_allclose(held_out, expected[1], TOLERANCE[dtype])


@DTYPES
def test_layer_of_a_network(rng, dtype):
    H, X = (rng.normal(size=(n, 1, 8, 8)).astype(dtype) for n in (40, 12))
    net = seeded(SmallCNN).to(getattr(torch, dtype))
    with torch.no_grad():
        net.fc.bias += 5
    detector = NECODetector(net, "conv1", n_components=2).fit(H)
    pooled = (ref.features(net, part, "conv1").mean((2, 3)) for part in (H, X))
    logits = (ref.logits(net, part) for part in (H, X))
    expected, _ = reference(*pooled, *logits, ref.folds_of(H), n_components=2)
    np.testing.assert_allclose(detector.score_samples(X), expected, TOLERANCE[dtype])


def test_the_authors_steps(rows, head):
    H, X = rows
    scaler = StandardScaler().fit(H)
    reduced = PCA().fit(scaler.transform(H)).transform(scaler.transform(X))[:, :3]
    shares = np.linalg.norm(reduced, axis=1) / np.linalg.norm(scaler.transform(X), axis=1)
    expected = shares * head(torch.as_tensor(X)).detach().numpy().max(1)
    found = NECODetector(head, n_components=3).fit(H).score_samples(X)
    np.testing.assert_allclose(found, expected, 1e-10)


@pytest.mark.parametrize("n_logits", [3, 7, 12])
def test_as_many_directions_as_logits(rows, n_logits):
    """Unless these are no less than the features."""
    head = seeded(nn.Linear, in_features=7, out_features=n_logits).double()
    detector = NECODetector(head, times_max_logit=False).fit(rows[0])
    assert detector.n_components_ == 3
    assert detector.score_samples(rows[1]).max() < 1


def test_constant_features_are_not_divided(rows, head):
    H, X = rows
    H[:, 2] = 0.1
    expected, _ = reference(H, X, np.ones((60, 4)), np.ones((20, 4)), ref.folds_of(H))
    found = NECODetector(head, times_max_logit=False).fit(H).score_samples(X)
    np.testing.assert_allclose(found, expected, 1e-8)


def test_principal_components_are_not_divided(rows, head):
    """They would have equal variance in all directions."""
    H, X = rows
    pca = PCA().fit(H)
    H, X = pca.transform(H), pca.transform(X)
    expected, _ = shares(H, X, 4, standardize=False)
    with pytest.warns(UserWarning, match=r"uncorrelated(.|\n)*Give standardize=False"):
        detector = NECODetector(head, times_max_logit=False).fit(H)
    np.testing.assert_allclose(detector.score_samples(X), expected, 1e-8)


def test_the_unit_of_a_feature_does_not_count(rows, head):
    H, X = rows
    factors = np.geomspace(1e-20, 1e20, 7)
    expected = NECODetector(head, times_max_logit=False).fit(H).score_samples(X)
    detector = NECODetector(head, times_max_logit=False).fit(H * factors)
    np.testing.assert_allclose(detector.score_samples(X * factors), expected, 1e-6)


@pytest.mark.parametrize("standardize", [True, False])
def test_rows_at_the_center_and_far_away(rows, head, standardize):
    H, _ = rows
    detector = NECODetector(head, standardize=standardize).fit(H)
    center = detector.scorer_.share.center.numpy()[None]
    assert detector.score_samples(center)[0] == 0
    assert np.isfinite(detector.score_samples(H * 1e300)).all()


def test_equal_rows(head):
    for value in (0.0, 0.1):
        H = np.full((40, 7), value)
        with pytest.warns(UserWarning, match="equal variance"):
            detector = NECODetector(head).fit(H)
        assert (detector.predict(H) == 1).all()


def test_pieces_and_merged_parts_are_a_fit(rows, head, rng):
    H, X = rows
    whole, order = NECODetector(head).fit(H), rng.permutation(60)
    a, b = (NECODetector(head).partial_fit(H[some]) for some in np.split(order, 2))
    np.testing.assert_allclose(a.merge(b).score_samples(X), whole.score_samples(X), 1e-9)
    np.testing.assert_allclose(a.offset_, whole.offset_, 1e-9)


def test_negative_logits_are_warned_of(rows, head, recwarn):
    H, _ = rows
    NECODetector(head).fit(H)
    with torch.no_grad():
        head.bias -= 6
    NECODetector(head, times_max_logit=False).fit(H)
    assert not [w for w in recwarn if "negative" in str(w.message)]
    with pytest.warns(UserWarning, match=r"negative in \d+.\d% of the rows(.|\n)*times_max_logit"):
        NECODetector(head).fit(H)


def test_bad_input(rows, head):
    with pytest.raises(ValueError, match="n_components=7 must be less than n_features=7"):
        NECODetector(head, n_components=7).fit(rows[0])
    with pytest.raises(ValueError, match="overflow"):
        NECODetector(head).fit(rows[0] * 1e160)
