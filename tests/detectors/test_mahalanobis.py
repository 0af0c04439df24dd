"""Mahalanobis: equal to a plain reference, with rows left out as if refitted, at any scale."""

import numpy as np
import pytest
import torch

import skood
from skood import GMMDetector, MahalanobisDetector
from skood.detectors.features.mahalanobis import MahalanobisScorer
from skood.network.network import Network
from tests.detectors import Method
from tests.networks import SmallCNN, seeded

METHOD = Method(
    settings={
        "default": MahalanobisDetector(),
        "any length": MahalanobisDetector(normalize=False),
        "half": MahalanobisDetector(normalize=0.5, reg_covar=0.3, batch_size=7),
    },
    in_networks={
        "default": MahalanobisDetector(reg_covar=0.1),
        "conv1": MahalanobisDetector(layer="conv1", reg_covar=0.1),
    },
)
# They need two classes, and so are not for the tests that fit without labels.
RELATIVE = [
    MahalanobisDetector(relative=True),
    MahalanobisDetector(normalize=False, relative=True, reg_covar=0.0),
]
ALL = pytest.mark.parametrize("detector", [*METHOD.settings.values(), *RELATIVE], ids=str)
# At most 15 white directions and 4 classes.
N_TRAIN, N_FEATURES = 60, 7


@pytest.fixture
def data(rng):
    """Return features of 4 classes, their labels and rows to score, far ones among them."""
    y = np.arange(N_TRAIN) % 4
    mixing = rng.normal(size=(N_FEATURES, N_FEATURES))
    Z = (rng.normal(size=(N_TRAIN, N_FEATURES)) + 2 * rng.normal(size=(4, N_FEATURES))[y]) @ mixing
    X_new = np.vstack([rng.normal(size=(s * 10, N_FEATURES)) * s for s in (1, 5)]) @ mixing
    return Z + 3, y, X_new


def scaled(H, power):
    """Divide each row by a power of its length; zero rows stay."""
    rows = []
    for h in np.asarray(H, dtype=np.float64):
        length = np.sqrt(sum(value**2 for value in h))
        rows.append(h / length**power if length else h)
    return np.array(rows)


def auto_ridge(H, y, power):
    """Return 0.01 times the mean variance within the classes."""
    H = scaled(H, power)
    return 0.01 * sum(np.var(H[y == c], axis=0).sum() * (y == c).sum() for c in set(y)) / H.size


def reference(H, y, X, power=1.0, relative=False, ridge=0.0):
    """Score rows one by one, with explicit inverses."""
    H, X = scaled(H, power), scaled(X, power)
    classes = sorted(set(y))
    means = [H[y == c].mean(0) for c in classes]
    within, total, mean = 0.0, 0.0, H.mean(0)
    for h, label in zip(H, y, strict=True):
        delta = h - means[classes.index(label)]
        within = within + np.outer(delta, delta) / len(H)
        total = total + np.outer(h - mean, h - mean) / len(H)
    within, total = (np.linalg.inv(S + ridge * np.eye(len(S))) for S in (within, total))
    scores = []
    for x in X:
        distances = [(x - m) @ within @ (x - m) for m in means]
        scores.append(-(min(distances) - relative * (x - mean) @ total @ (x - mean)))
    return np.array(scores)


def settings_of(detector, Z, y):
    """Return the arguments of the reference."""
    power, ridge = float(detector.normalize), detector.reg_covar
    ridge = auto_ridge(Z, y, power) if ridge == "auto" else ridge
    return {"power": power, "relative": detector.relative, "ridge": ridge}


@ALL
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 1e-4)])
def test_parity(data, detector, dtype, tolerance):
    Z, y, X_new = (part.astype(dtype) if part.dtype.kind == "f" else part for part in data)
    scores = detector.fit(Z, y).score_samples(X_new)
    expected = reference(Z, y, X_new, **settings_of(detector, Z, y))
    assert len(np.unique(expected.round(6))) == len(expected) and scores.dtype == dtype
    np.testing.assert_allclose(scores, expected, tolerance, tolerance * np.abs(expected).max())


def test_without_labels_there_is_one_gaussian(data):
    Z, _, X_new = data
    zeros = np.zeros(len(Z), dtype=int)
    expected = reference(Z, zeros, X_new, ridge=auto_ridge(Z, zeros, 1))
    np.testing.assert_allclose(MahalanobisDetector().fit(Z).score_samples(X_new), expected, 1e-8)


@ALL
def test_rows_are_left_out_as_if_refitted(data, detector):
    Z, y, _ = data
    # A class of one row has no mean without it.
    y = np.r_[y[:-1], 9]
    how = settings_of(detector, Z, y)
    expected = [
        reference(np.delete(Z, i, 0), np.delete(y, i), Z[i : i + 1], **how)[0]
        for i in range(len(Z))
    ]
    np.testing.assert_allclose(detector._fit(Z, y).numpy(), expected, 1e-8)


def test_it_is_the_tied_gaussian_of_gmm(data):
    Z, y, X_new = data
    gmm = GMMDetector(covariance_type="tied", criterion="mahalanobis").fit(Z, y)
    detector = MahalanobisDetector(normalize=False).fit(Z, y)
    expected = N_FEATURES * gmm.score_samples(X_new)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, 1e-10)
    assert detector.offset_ == pytest.approx(N_FEATURES * gmm.offset_, rel=1e-10)


@ALL
def test_threshold_holds_on_fresh_rows(detector):
    """Of plain scores of training rows it would be 20 % and more."""
    rng, alarms = np.random.default_rng(0), []
    for _ in range(10):
        centers, y = 3 * rng.normal(size=(3, 40)), np.arange(210) % 3
        Z, fresh = (centers[y] + rng.normal(size=(210, 40)) for _ in range(2))
        alarms.append((detector.fit(Z, y).predict(fresh) < 0).mean())
    assert 0.03 < np.mean(alarms) < 0.08


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lengths_of_any_size(data, relative, dtype):
    """Norms of 1e30 squared overflow float32, and of 1e-30 underflow."""
    Z, y, X_new = data
    detector = MahalanobisDetector(relative=relative)
    expected = detector.fit(Z, y).score_samples(X_new)
    for factor in (1e30, 1e-30):
        rows = [(part * factor).astype(dtype) for part in (Z, X_new)]
        scores = detector.fit(rows[0], y).score_samples(rows[1])
        np.testing.assert_allclose(scores, expected, 1e-3)
        far = np.where(rows[1] > 0, np.finfo(dtype).max, 0).astype(dtype)
        assert np.isfinite(detector.score_samples(far)).all()


def test_relative_scores_of_far_rows(data):
    """What the distances have in common is not computed: rows of 1e10 keep their digits."""
    Z, y, _ = data
    detector = MahalanobisDetector(normalize=False, relative=True, reg_covar=0.1).fit(Z, y)
    near = detector.score_samples(Z[:5])
    directions = detector.scorer_.projection.numpy()
    outside = np.linalg.qr(directions, mode="complete")[0][:, directions.shape[1] :][:, 0]
    np.testing.assert_allclose(detector.score_samples(Z[:5] + 1e10 * outside), near, 1e-4)


def test_zero_rows_and_fewer_rows_than_features(rng):
    Z, y = rng.normal(size=(30, 100)), np.arange(30) % 3
    Z[0] = 0
    for power in (True, 0.5, 2):
        detector = MahalanobisDetector(normalize=power).fit(Z, y)
        expected = reference(Z, y, Z, power, ridge=auto_ridge(Z, y, power))
        np.testing.assert_allclose(detector.score_samples(Z), expected, 1e-7)
    with pytest.warns(UserWarning, match=r"The covariance of all classes .30 rows, 100 features"):
        scores = MahalanobisDetector(reg_covar=0).fit(Z, y).score_samples(Z)
    assert np.isfinite(scores).all()


def test_relative_needs_two_classes(data):
    Z, y, _ = data
    detector = MahalanobisDetector(relative=True)
    with pytest.raises(ValueError, match="pass y with two or more.*Got no y"):
        detector.fit(Z)
    with pytest.raises(ValueError, match="Got one class"):
        detector.fit(Z, np.zeros(len(Z)))
    for part in (y < 1, y > 0):
        detector.partial_fit(Z[part], y[part])
    np.testing.assert_allclose(
        detector.score_samples(Z), MahalanobisDetector(relative=True).fit(Z, y).score_samples(Z)
    )


@ALL
def test_pieces_and_merges(data, detector):
    Z, y, X_new = data
    whole = detector.fit(Z, y)
    expected, offset = whole.score_samples(X_new), whole.offset_
    parts = [
        type(detector)(**detector.get_params()).partial_fit(Z[i::3], y[i::3]) for i in range(3)
    ]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    np.testing.assert_allclose(merged.score_samples(X_new), expected, 1e-8)
    assert merged.offset_ == pytest.approx(offset, rel=1e-8)


def test_rows_too_large(data):
    Z, y, _ = data
    with pytest.raises(ValueError, match="squares of the features overflow"):
        MahalanobisDetector(normalize=False).fit(Z * 1e160, y)
    assert np.isfinite(MahalanobisDetector().fit(Z * 1e160, y).score_samples(Z)).all()


def test_in_a_network_and_exported(tmp_path):
    rng = np.random.default_rng(1)
    X, y, net = rng.normal(size=(40, 1, 8, 8)), np.arange(40) % 4, seeded(SmallCNN).double()
    for layer in (None, "conv1"):
        detector = MahalanobisDetector(net, layer).fit(X, y)
        skood.export(detector, tmp_path / "graph.pt2", X[:2])
        score, _ = torch.export.load(tmp_path / "graph.pt2").module()(torch.from_numpy(X))
        np.testing.assert_allclose(score.numpy(), detector.score_samples(X), 1e-8)
        skood.save(detector, tmp_path / "saved")
        twin = skood.load(tmp_path / "saved", net)
        np.testing.assert_array_equal(twin.score_samples(X), detector.score_samples(X))


def test_three_layers_in_one_pass(monkeypatch):
    """What a detector over several layers takes: each as its own detector has it."""
    rng = np.random.default_rng(1)
    X, y, net = rng.normal(size=(40, 1, 8, 8)), np.arange(40) % 4, seeded(SmallCNN).double()
    names = ["conv1", "conv2", None]
    expected = [MahalanobisDetector(net, name).fit(X, y).score_samples(X) for name in names]
    body = Network(net, "cpu", torch.float64, sample=torch.from_numpy(X[:2])).layers(names)
    passes, forward = [], SmallCNN.forward
    monkeypatch.setattr(SmallCNN, "forward", lambda *args: passes.append(1) or forward(*args))
    features = body(torch.from_numpy(X))
    assert len(passes) == 1
    for of_layer, scores in zip(features, expected, strict=True):
        scorer = MahalanobisScorer(1.0, relative=False, reg_covar="auto")
        state = scorer.init_state((of_layer,), 4, 40)
        scorer.update(state, (of_layer,), torch.from_numpy(y), None)
        scorer.finalize(state, np.arange(4))
        np.testing.assert_allclose(scorer(of_layer), scores, 1e-9)
