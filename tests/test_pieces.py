"""`partial_fit` and `merge`: data in pieces gives what one `fit` gives."""

import copy
import io
import math
import pickle
import threading
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import skood
from skood import (
    ASHDetector,
    GMMDetector,
    GradNormDetector,
    NACDetector,
    NNGuideDetector,
)
from skood.calibration import ConformalDetector
from skood.detectors.head.nnguide import NNGuideScorer
from skood.learning import accumulated
from skood.learning.reservoir import Reservoir
from tests.networks import MLP, Segmenter, SmallCNN, sample_inputs, seeded
from tests.registry import DEFAULTS, IN_NETWORKS, each, name_of, with_fixed

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:k=", "ignore:The covariance"
)

N_ROWS, N_FEATURES, N_CLASSES = 60, 5, 4


def data(dtype=np.float64, n_rows=N_ROWS):
    """Return rows of four classes, and their labels."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, N_CLASSES, n_rows)
    means = 2 * rng.normal(size=(N_CLASSES, N_FEATURES))
    return (means[y] + rng.normal(size=(n_rows, N_FEATURES))).astype(dtype), y


def head(dtype=torch.float64):
    """Return a linear head for `data`."""
    return seeded(nn.Linear, in_features=N_FEATURES, out_features=N_CLASSES).to(dtype)


@st.composite
def pieces(draw):
    """Draw an order of the rows, cuts (equal ones make empty parts), and classes apart or not."""
    order = np.random.default_rng(draw(st.integers(0, 999))).permutation(N_ROWS)
    if draw(st.booleans()):
        # Some classes appear in some parts only.
        order = order[np.argsort(data()[1][order], kind="stable")]
    cuts = draw(st.lists(st.integers(0, N_ROWS), min_size=1, max_size=6))
    return np.split(order, sorted(cuts))


def learn_parts(detector, X, y, parts, draw):
    """Return what a random binary tree over the parts has learned."""
    learned = []
    for part in filter(len, parts):
        own = clone(detector)
        for piece in np.array_split(part, min(len(part), draw(st.integers(1, 3)))):
            own.partial_fit(X[piece], None if y is None else y[piece])
        learned.append(own)
    while len(learned) > 1:
        one = learned.pop(draw(st.integers(0, len(learned) - 1)))
        other = learned.pop(draw(st.integers(0, len(learned) - 1)))
        learned.append(one.merge(other))
    return learned[0]


def assert_same(found, expected, X, tolerance):
    """Compare scores, relative to max(1, |score|), and thresholds."""
    wanted = expected.score_samples(X).astype(np.float64)
    error = np.abs(found.score_samples(X) - wanted) / np.maximum(1, np.abs(wanted))
    assert error.max() <= tolerance
    eps = 1e-5 if X.dtype == np.float32 else 1e-9
    assert found.offset_ == pytest.approx(expected.offset_, rel=eps, abs=eps)
    assert found.n_samples_seen_ == len(X)
    if hasattr(expected, "known_classes_"):
        np.testing.assert_array_equal(found.known_classes_, expected.known_classes_)


some = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def in_network(cls, **params):
    return cls(seeded(MLP, in_features=N_FEATURES).double(), **params)


EXACT = [
    (ASHDetector(head()), 0),
    (GradNormDetector(head()), 0),
    (GradNormDetector(head(), loss="bce"), 0),
    (NACDetector(head(), alpha=3.0), 0),
    (NACDetector(head(), alpha=3.0, o_star=4.0, bins="geometric"), 0),
    (in_network(NACDetector, layers=["hidden", None], alpha=[3.0, 20.0]), 0),
    (in_network(NNGuideDetector, k=3), 1e-12),
    (NNGuideDetector(head(), k=3), 1e-12),
    (NNGuideDetector(head(), k=3, energy_weighted=False), 1e-12),
]


@pytest.mark.parametrize("case", EXACT, ids=lambda case: name_of(case[0]))
@given(parts=pieces(), draws=st.data())
@some
def test_any_pieces_and_merges(case, parts, draws):
    detector, tolerance = case
    X, y = data()
    found = learn_parts(detector, X, y, parts, draws.draw)
    expected = clone(detector).fit(X, y)
    # A row's products with a matrix depend in the last digit on the rows beside it.
    assert_same(found, expected, X, tolerance)
    if isinstance(detector, NACDetector):
        assert torch.equal(found.scorer_.counts, expected.scorer_.counts)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@given(parts=pieces(), draws=st.data(), labelled=st.booleans())
@some
def test_any_pieces_and_merges_of_gaussians(
    covariance_type, criterion, dtype, parts, draws, labelled
):
    X, y = data(dtype)
    y = y if labelled else None
    detector = GMMDetector(covariance_type=covariance_type, criterion=criterion)
    found = learn_parts(detector, X, y, parts, draws.draw)
    assert_same(found, detector.fit(X, y), X, 1e-9 if dtype == np.float64 else 1e-5)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_gaussians_far_from_zero(covariance_type):
    """At 1000 standard deviations, in pieces of 7 rows."""
    X, y = data(n_rows=700)
    detector = GMMDetector(covariance_type=covariance_type)
    expected = clone(detector).fit(X, y)
    for part in np.split(np.arange(len(X)), 100):
        detector.partial_fit(X[part] + 1000.0, y[part])
    np.testing.assert_allclose(
        detector.score_samples(X + 1000.0), expected.score_samples(X), rtol=1e-8
    )
    assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-8)


def test_gaussians_too_far_from_zero():
    X, y = data()
    for learn in (GMMDetector().fit, GMMDetector().partial_fit):
        with pytest.raises(ValueError, match="overflow"):
            _ = learn(X * 1e160, y).offset_


# -- samples


def fill(reservoir, keys, rows, step):
    for part in range(0, len(keys), step):
        chosen = reservoir.choose(keys[part : part + step])
        where = slice(part, part + step)
        reservoir.add([rows[where][chosen]], keys[where][chosen])
    return reservoir


@pytest.mark.parametrize("size", [None, 7, 400, 0.03, 0.5])
@given(draws=st.data())
@some
def test_reservoir(size, draws):
    """The sample is that of the smallest keys, whatever the tree, and no key is lost."""
    keys = torch.from_numpy(np.random.default_rng(1).random(3000))
    rows = torch.arange(3000)
    n_wanted = {None: 3000, 0.03: 90, 0.5: 1500}.get(size, size)
    expected = torch.argsort(keys)[:n_wanted]
    cuts = draws.draw(st.lists(st.integers(0, 3000), max_size=6))
    parts = []
    for part in np.split(np.arange(3000), sorted(cuts)):
        step = draws.draw(st.integers(20, 900))
        parts.append(fill(Reservoir(size), keys[part], rows[part], step))
    while len(parts) > 1:
        one, other = (parts.pop(draws.draw(st.integers(0, len(parts) - 1))) for _ in range(2))
        kept = [t.clone() for t in (other.keys, *other.rows)] if other.n_kept else []
        one.merge(other)
        assert all(map(torch.equal, kept, [other.keys, *other.rows] if kept else []))
        parts.append(one)
    assert parts[0].n_seen == 3000
    found, (sample,) = parts[0].sample()
    assert torch.equal(sample, expected)
    torch.testing.assert_close(found, keys[expected], rtol=0, atol=1e-14)
    foreseen = fill(Reservoir(size, n_expected=3000), keys, rows, 100).sample()[1][0]
    assert torch.equal(foreseen, expected)


@pytest.mark.parametrize("size", [5, 1000, 0.001, 0.1])
def test_no_wanted_row_lies_beyond_the_bound(size):
    """By simulation, and by the binomial distribution."""
    for n_rows in (10, 1000, 50_000):
        reservoir = Reservoir(size)
        reservoir.n_seen = n_rows
        bound, wanted = reservoir.bound, reservoir.n_wanted
        if bound < 1:
            # To keep fewer than are wanted.
            assert stats.binom.logcdf(wanted - 1, n_rows, bound) < -50
        rng = np.random.default_rng(0)
        for _ in range(20):
            assert np.partition(rng.random(n_rows), wanted - 1)[wanted - 1] < max(bound, 1e-9)


def bank_of(detector):
    """Return the numbers of the rows in a bank: their directions are angles."""
    bank = detector.scorer_.bank
    return torch.atan2(bank[:, 1], bank[:, 0]).mul(200).round().long().numpy()


def circle(n_rows):
    """Return rows whose directions tell their numbers."""
    angles = np.arange(n_rows) / 200
    return np.c_[np.cos(angles), np.sin(angles)]


@pytest.mark.parametrize(("bank_size", "n_bank"), [(30, 30), (0.25, 50), (500, 200)])
def test_banks_are_random_samples(bank_size, n_bank):
    """Of exact size, no row twice, each row equally often, reproducible."""
    X, net = circle(200), nn.Linear(2, 3).double()
    counts, n_seeds = np.zeros(200), 150
    for seed in range(n_seeds):
        detector = NNGuideDetector(
            net, k=1, bank_size=bank_size, random_state=seed, energy_weighted=False
        )
        parts = [clone(detector).partial_fit(part) for part in np.split(X, [70, 75])]
        found = bank_of(parts[1].merge(parts[2]).merge(parts[0]))
        assert len(found) == len(set(found.tolist())) == n_bank
        counts[found] += 1
    # 200 rows at once: each within its own 1e-8 quantiles.
    low, high = stats.binom.ppf([1e-8, 1 - 1e-8], n_seeds, n_bank / 200)
    assert low <= counts.min() and counts.max() <= high
    one = clone(detector).partial_fit(X)
    for step in (1, 7, 111):
        again = clone(detector)
        for start in range(0, 200, step):
            again.partial_fit(X[start : start + step])
        assert set(bank_of(again)) == set(bank_of(one))
    if n_bank < 200:
        assert set(bank_of(clone(detector).set_params(random_state=1).partial_fit(X))) != set(
            bank_of(one)
        )


def test_parts_draw_on_their_own():
    """With one random_state, other content still draws other positions."""
    detector = NNGuideDetector(nn.Linear(2, 3).double(), bank_size=30, random_state=0)
    one, other = (clone(detector).partial_fit(part) for part in np.split(circle(200), 2))
    assert set(bank_of(one)) != set(bank_of(other) - 100)


def test_parts_with_equal_first_rows():
    """Their keys are the same random numbers; each row is still left out on its own."""
    X, y = data()
    X[[20, 40]] = X[0]
    detector = NNGuideDetector(head(), k=1)
    parts = [clone(detector).partial_fit(part) for part in np.split(X, [20, 40])]
    found = parts[0].merge(parts[2].merge(parts[1]))
    assert_same(found, detector.fit(X), X, 1e-12)
    assert len(set(found.scorer_.bank[:, 0].tolist())) == N_ROWS - 2


def assert_threshold(detector, expected, X, n_rows):
    """Compare with five standard errors, the density by the scores around the threshold."""
    alpha = expected.false_alarm_rate
    share = math.sqrt(alpha * (1 - alpha) / n_rows)
    low, high = np.quantile(expected.score_samples(X), [alpha - 0.01, alpha + 0.01])
    assert abs(detector.offset_ - expected.offset_) < 5 * share * (high - low) / 0.02
    assert abs(np.mean(detector.predict(X) < 0) - alpha) < 5 * share


def test_thresholds_of_a_sample():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60_000)
    X = 3 * rng.normal(size=(3, 4))[y] + rng.normal(size=(60_000, 4))
    net = seeded(nn.Linear, in_features=4, out_features=3).double()
    for detector in (
        GMMDetector(),
        ASHDetector(net),
        GradNormDetector(net),
        NACDetector(net, alpha=1.0, o_star=5000.0),
    ):
        expected = clone(detector).fit(X, y)
        for part in np.array_split(rng.permutation(60_000), 100):
            detector.partial_fit(X[part], y[part])
        assert_threshold(detector, expected, X, accumulated.N_THRESHOLD_ROWS)


def test_threshold_of_a_sample_of_neighbours(monkeypatch):
    """Samples of 1000 rows, where those of 20 000 take long."""
    monkeypatch.setattr(accumulated, "N_THRESHOLD_ROWS", 1000)
    X, y = data(n_rows=6000)
    detector = NNGuideDetector(head())
    expected = clone(detector).fit(X, y)
    for part in np.array_split(np.random.default_rng(0).permutation(6000), 100):
        detector.partial_fit(X[part], y[part])
    np.testing.assert_allclose(detector.score_samples(X), expected.score_samples(X), rtol=1e-12)
    assert_threshold(detector, expected, X, 1000)


def test_neighbours_compare_part_of_the_sample(monkeypatch):
    """In chunks as in `fit`, whose time it is; copies of a row in their share."""
    monkeypatch.setattr(NNGuideScorer, "n_threshold_rows", 500)
    X, y = data(n_rows=4000)
    X[:400] = X[0]
    detector, compared = NNGuideDetector(head()), []
    leave_one_out = NNGuideScorer.leave_one_out

    def spy(self, inputs, class_indices, keys):
        compared.append(inputs[0].numpy())
        return leave_one_out(self, inputs, class_indices, keys)

    monkeypatch.setattr(NNGuideScorer, "leave_one_out", spy)
    expected = clone(detector).fit(X, y)
    assert sum(map(len, compared)) == 500
    compared.clear()
    for part in np.array_split(np.random.default_rng(0).permutation(4000), 10):
        detector.partial_fit(X[part], y[part])
    assert detector.offset_ == pytest.approx(expected.offset_, rel=0.05)
    assert sum(map(len, compared)) == 500
    assert 45 <= (np.concatenate(compared) == X[0]).all(1).sum() <= 55


def test_memory_does_not_grow(monkeypatch):
    """What is kept is bounded by the samples, whatever the number of pieces."""
    monkeypatch.setattr(accumulated, "N_THRESHOLD_ROWS", 2000)
    rng = np.random.default_rng(0)
    detector = NNGuideDetector(nn.Linear(4, 3), bank_size=1000, random_state=0)
    sizes = []
    for _ in range(200):
        detector.partial_fit(rng.normal(size=(5000, 4)).astype(np.float32))
        learned = detector._learned
        sizes.append([sum(t.nbytes for t in s._buffers) for s in (learned.state, learned.sample)])
    sizes = np.array(sizes)
    assert detector.n_samples_seen_ == 1_000_000
    # Between one and four times a sample of 1000 (2000) rows, and 12 √ of them, + 100.
    assert (sizes[100:] <= 1.1 * sizes[:100].max(0)).all()
    assert (sizes.max(0) <= np.array([32 * 6000, 40 * 11_000])).all()
    assert len(detector.scorer_.bank) == 1000


# -- networks


@each(IN_NETWORKS)
def test_networks_of_images(detector, images):
    """Arrays and loaders as pieces, OOD rows among them."""
    X, y = images
    y = np.where(y == 3, -1, y)
    detector = with_fixed(detector).set_params(model=seeded(SmallCNN))
    expected = clone(detector).fit(X, y)
    loader = DataLoader(TensorDataset(*map(torch.from_numpy, (X[:10], y[:10]))), batch_size=4)
    pieces = clone(detector).partial_fit(loader).partial_fit(X[10:11], y[10:11])
    pieces.partial_fit(X[11:12], y[11:12]).partial_fit(torch.from_numpy(X[12:]), y[12:])
    assert pieces.n_samples_seen_ == (y >= 0).sum()
    np.testing.assert_allclose(
        pieces.score_samples(X), expected.score_samples(X), rtol=1e-5, atol=1e-6
    )
    assert pieces.offset_ == pytest.approx(expected.offset_, rel=1e-5, abs=1e-6)
    np.testing.assert_array_equal(pieces.known_classes_, [0, 1, 2])
    # The network runs once over a piece, the first included, which a loader gives only once.
    again = clone(detector).partial_fit(loader)
    assert again.n_samples_seen_ == (y[:10] >= 0).sum()


@each(DEFAULTS)
def test_pieces_without_rows_to_learn_from(detector, images):
    X, y = images
    ood = np.full(24, -1)
    detector = clone(detector).set_params(model=seeded(SmallCNN))
    expected = clone(detector).partial_fit(X, y)
    for loads in (False, True):
        empty = (X, ood)
        if loads:
            empty = (DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(ood))),)
        found = clone(detector).partial_fit(*empty)
        assert not hasattr(found, "offset_") and not hasattr(found, "n_features_in_")
        with pytest.raises(NotFittedError):
            found.score_samples(X)
        found.partial_fit(X, y).partial_fit(*empty)
        assert found.n_samples_seen_ == 24
        assert found.offset_ == expected.offset_
        fitted = clone(detector).fit(X, y)
        with pytest.warns(UserWarning, match="starts anew"):
            fitted.partial_fit(*empty)
        assert fitted.n_features_in_ == 1 and np.isfinite(fitted.offset_)


@pytest.mark.parametrize("cls", [ASHDetector, GradNormDetector, NACDetector, NNGuideDetector])
def test_a_head_is_fitted_to_the_first_piece(cls):
    X, y = data()
    found = cls().partial_fit(X[:40], y[:40])
    first = LogisticRegression(max_iter=1000).fit(X[:40], y[:40])
    np.testing.assert_allclose(found._network.head.weight.numpy(), first.coef_)
    found.partial_fit(X[40:], y[40:])
    expected = cls(FrozenEstimator(first))
    if cls is NACDetector:
        expected.set_params(alpha=float(found.scorer_.alphas[0]))
    expected.fit(X, y)
    np.testing.assert_allclose(found.score_samples(X), expected.score_samples(X), rtol=1e-9)
    with pytest.raises(ValueError, match="with 1 sample"):
        cls().partial_fit(X[:1], y[:1])
    other = cls().partial_fit(X[20:], y[20:])
    with pytest.raises(ValueError, match="fitted to its own first rows"):
        found.merge(other)


def test_a_net_is_fitted_to_the_first_piece():
    from skorch import NeuralNetClassifier

    X, y = data(np.float32)
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(N_FEATURES, 8), nn.ReLU(), nn.Linear(8, N_CLASSES)),
        criterion=nn.CrossEntropyLoss,
        max_epochs=1,
        train_split=None,
        verbose=0,
    )
    found = GMMDetector(net, reg_covar=0.1).partial_fit(X[:40], y[:40])
    trained = found.model_
    again = pickle.loads(pickle.dumps(found))
    found.partial_fit(X[40:], y[40:])
    assert found.model_ is trained
    expected = GMMDetector(FrozenEstimator(trained), reg_covar=0.1).fit(X, y)
    np.testing.assert_allclose(found.score_samples(X), expected.score_samples(X), rtol=1e-5)
    again.partial_fit(X[40:], y[40:])
    np.testing.assert_array_equal(again.score_samples(X), found.score_samples(X))


def test_dicts(rng):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = seeded(MLP, in_features=N_FEATURES)

        def forward(self, x, scale):
            return self.mlp(x * scale)

    X, y = data(np.float32)
    named = {"x": X, "scale": np.ones((N_ROWS, 1), np.float32)}
    net = Net()
    found = GMMDetector(net, reg_covar=0.1)
    for part in np.array_split(np.arange(N_ROWS), 4):
        found.partial_fit({name: values[part] for name, values in named.items()}, y[part])
    expected = GMMDetector(net, reg_covar=0.1).fit(named, y)
    np.testing.assert_allclose(found.score_samples(named), expected.score_samples(named), rtol=1e-5)
    with pytest.raises(ValueError, match="rows of shape"):
        found.partial_fit({"x": X}, y)
    assert found.n_samples_seen_ == N_ROWS


@each(DEFAULTS)
def test_bfloat16_networks(detector):
    X, y = data(np.float32)
    net = seeded(MLP, in_features=N_FEATURES).bfloat16()
    detector = with_fixed(detector).set_params(model=net)
    found = clone(detector).partial_fit(X[:30], y[:30])
    found = pickle.loads(pickle.dumps(found)).partial_fit(X[30:], y[30:])
    # How much rounding changes scores, by which thresholds are lowered, is measured on first rows.
    assert found.offset_ == pytest.approx(detector.fit(X, y).offset_, 1e-4, 1e-4)


def test_label_maps(rng):
    net = seeded(Segmenter)
    X = sample_inputs(net, 24)
    y = rng.choice([0, 1, 255, -1], size=(24, 8, 8))
    for detector in (ASHDetector(net), ASHDetector(net, variant="p", logit_score="msp")):
        expected = clone(detector).fit(X, y)
        parts = [clone(detector).partial_fit(X[i::3], y[i::3]) for i in range(3)]
        found = parts[0].merge(parts[2]).merge(parts[1])
        assert found.offset_ == pytest.approx(expected.offset_, rel=1e-6)
        np.testing.assert_allclose(found.score_samples(X), expected.score_samples(X), rtol=1e-5)
        assert found.n_samples_seen_ == 24
        detector.partial_fit(X, y, classes=[0, 1])
        with pytest.raises(ValueError, match="label 1, which is none"):
            detector.partial_fit(X, y, classes=[0])
        with pytest.raises(NotFittedError, match="no in-distribution pixel"):
            _ = clone(detector).partial_fit(X, np.full_like(y, 255)).offset_


def test_faiss_index():
    pytest.importorskip("faiss")
    X, y = data(np.float32)
    net = head(torch.float32)
    found = NNGuideDetector(net, k=3, index="Flat").partial_fit(X[:30], y[:30])
    _ = found.offset_
    found.partial_fit(X[30:], y[30:])
    expected = NNGuideDetector(net, k=3).fit(X, y)
    np.testing.assert_allclose(found.score_samples(X), expected.score_samples(X), rtol=1e-5)
    assert found.offset_ == pytest.approx(expected.offset_, rel=1e-5)


# -- labels


def test_new_classes_and_words():
    """Words of other widths; new classes among old ones in the order."""
    X, y = data()
    words = np.array(["cat", "a much longer name", "dog", "be"])
    found = GMMDetector()
    for k in (2, 0, 3, 1):
        found.partial_fit(X[y == k], words[[k] * (y == k).sum()])
        found.partial_fit(X[:3], [-1, -1, -1])
    assert found.known_classes_.tolist() == sorted(words)
    expected = GMMDetector().fit(X, words[y])
    np.testing.assert_allclose(found.score_samples(X), expected.score_samples(X), rtol=1e-9)
    y_true = np.where(y == 1, -1, words[y].astype(object))
    assert found.score(X, y_true) == pytest.approx(expected.score(X, y_true))


@each(DEFAULTS)
def test_what_is_refused_changes_nothing(detector):
    """NaN in the first or last batch, labels, shapes, parameters; before and after `offset_`."""
    X, y = data()
    y = np.where(y == 3, 2, y)
    start = clone(detector).set_params(model=head(), batch_size=7).partial_fit(X[:30], y[:30])
    expected = clone(start).partial_fit(X, y)
    for asked in (False, True):
        found = copy.deepcopy(start)
        if asked:
            _ = found.offset_
        for where in (0, 59):
            bad = X.copy()
            bad[where] = np.nan
            with pytest.raises(ValueError, match="NaN"):
                found.partial_fit(bad, np.full(60, 7))
            tensors = torch.from_numpy(bad), torch.full((60,), 7)
            with pytest.raises(ValueError, match="NaN"):
                found.partial_fit(DataLoader(TensorDataset(*tensors), batch_size=9))
        for bad_X, bad_y, classes, error, message in [
            (X, None, None, ValueError, "give y always or never"),
            (X, list("abc") * 20, None, TypeError, "labels of"),
            (X, y[:9], None, ValueError, "inconsistent numbers"),
            (X, np.full(60, 3), [0, 1, 2], ValueError, "label 3, which is none"),
            (X, np.full(60, 0.5), None, ValueError, "continuous"),
            (X, ["a", 1] * 30, None, TypeError, "mix the types"),
            (X[:, :3], y, None, ValueError, "has 3 features"),
            (X[:0], y[:0], None, ValueError, "0 sample"),
        ]:
            with pytest.raises(error, match=message):
                found.partial_fit(bad_X, bad_y, classes=classes)
        with pytest.raises(ValueError, match="none of the given"):
            data_3 = TensorDataset(torch.from_numpy(X), torch.full((60,), 3))
            found.partial_fit(DataLoader(data_3), classes=[0, 1])
        net = found.model
        with pytest.raises(ValueError, match="model=.* is another value"):
            found.set_params(model=head()).partial_fit(X, y)
        found.set_params(model=net)
        with pytest.raises(ValueError, match="false_alarm_rate"):
            found.set_params(false_alarm_rate=2.0).partial_fit(X, y)
        found.set_params(false_alarm_rate=0.05)
        assert found.n_samples_seen_ == 30 and found.n_features_in_ == N_FEATURES
        assert vars(found).keys() - {"model"} >= {"_learned"}
        assert found.offset_ == start.offset_
        assert found.known_classes_.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(found.score_samples(X), start.score_samples(X))
    found.partial_fit(X[30:], y[30:])
    rest = copy.deepcopy(start).partial_fit(X[30:], y[30:])
    assert found.offset_ == rest.offset_
    assert expected.n_samples_seen_ == N_ROWS


@pytest.mark.parametrize("n_rows", [N_ROWS, 1])
@each(DEFAULTS)
def test_a_piece_too_large_to_learn_from_is_refused(detector, n_rows):
    """What is accepted leaves a detector that works; what is not, the one that was."""
    X, y = data()
    huge = X * 1e200
    huge[:-n_rows] = 0
    found = clone(detector).set_params(model=head(), batch_size=7).partial_fit(X, y)
    expected = found.score_samples(X)
    for n_seen in (2 * N_ROWS, 3 * N_ROWS):
        try:
            found.partial_fit(huge, y)
        except ValueError as error:
            assert "overflow" in str(error)
            np.testing.assert_array_equal(found.score_samples(X), expected)
            assert found.n_samples_seen_ == N_ROWS
        else:
            assert found.n_samples_seen_ == n_seen
    assert np.isfinite(found.decision_function(X)).all()


@pytest.mark.parametrize("n_rows", [N_ROWS, 1])
@each(DEFAULTS)
def test_rows_too_large_to_learn_from_are_refused_by_fit_too(detector, n_rows):
    detector = clone(detector).set_params(model=head(), batch_size=7)
    X, y = data()
    huge = X * 1e200
    huge[:-n_rows] = 0

    def said_by(learn):
        try:
            return np.isfinite(learn(huge, y).offset_)
        except ValueError as error:
            return str(error)

    said = said_by(clone(detector).fit)
    assert said == said_by(clone(detector).partial_fit)
    assert said is np.True_ or "overflow" in said


@each(DEFAULTS)
def test_a_first_piece_that_is_refused(detector):
    """A detector that was fitted stays so; one that was not, too."""
    X, y = data()
    bad = X.copy()
    bad[-1] = np.nan
    found = clone(detector).set_params(model=head(), batch_size=7)
    with pytest.raises(ValueError, match="NaN"):
        found.partial_fit(bad, y)
    assert vars(found).keys() == vars(clone(found)).keys()
    found.fit(X, y)
    before = dict(vars(found))
    with pytest.warns(UserWarning, match="starts anew"), pytest.raises(ValueError, match="NaN"):
        found.partial_fit(bad, y)
    assert vars(found) == before


def test_fit_and_partial_fit_start_anew():
    X, y = data()
    found = NNGuideDetector(head(), k=3).fit(X, y)
    with pytest.warns(UserWarning, match="keeps nothing to go on from"):
        found.partial_fit(X[:30], y[:30])
    assert found.n_samples_seen_ == 30
    expected = NNGuideDetector(head(), k=3).fit(X[:30], y[:30])
    np.testing.assert_allclose(found.score_samples(X), expected.score_samples(X), rtol=1e-12)
    found.fit(X, y)
    assert not hasattr(found, "n_samples_seen_") and "_learned" not in vars(found)


def test_what_follows_waits(monkeypatch):
    """It is computed once, when it is asked for, and by one thread."""
    X, y = data()
    found, count = NNGuideDetector(head(), k=3), []
    conclude = NNGuideDetector._finalize
    monkeypatch.setattr(
        NNGuideDetector, "_finalize", lambda self: (count.append(1), conclude(self))[1]
    )
    for part in np.array_split(np.arange(N_ROWS), 6):
        found.partial_fit(X[part], y[part])
    check_is_fitted(found)
    clone(found), repr(found), pickle.dumps(found), copy.deepcopy(found)
    assert not count and not hasattr(found, "model_")
    results = []
    threads = [threading.Thread(target=lambda: results.append(found.offset_)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 1 and len(set(results)) == 1 and len(results) == 8
    assert found.k_ == 3 and found.scorer_ is found.scorer_
    with pytest.raises(AttributeError, match="no attribute 'classes_'"):
        _ = found.classes_


def test_parameters_are_those_of_the_last_piece():
    X, y = data()
    found = NNGuideDetector(head(), k=3).partial_fit(X[:30], y[:30])
    found.set_params(false_alarm_rate=0.3, batch_size=5).partial_fit(X[30:], y[30:])
    found.set_params(false_alarm_rate=0.01, k=1)
    expected = NNGuideDetector(head(), k=3, false_alarm_rate=0.3).fit(X, y)
    assert found.k_ == 3 and found.offset_ == pytest.approx(expected.offset_)
    with pytest.raises(ValueError, match="k=1 is another value than that of the first chunk, 3"):
        found.partial_fit(X, y)


def test_one_row():
    X, y = data()
    found = GMMDetector().partial_fit(X[:1], y[:1])
    check_is_fitted(found)
    with pytest.raises(NotFittedError, match="has seen 1 in-distribution rows; it needs 2"):
        found.predict(X)
    assert np.isfinite(found.partial_fit(X[1:2], y[1:2]).score_samples(X)).all()


# -- merge


def test_what_merge_refuses():
    X, y = data()

    def learned(detector, X=X, y=y):
        return detector.partial_fit(X, y)

    net = head()
    one = learned(NNGuideDetector(net, k=3))
    wider = seeded(nn.Linear, in_features=N_FEATURES + 1, out_features=4).double()
    for other, error, message in [
        (learned(ASHDetector(net)), TypeError, "merges with another NNGuideDetector, got ASH"),
        (one, ValueError, "with itself"),
        (NNGuideDetector(net, k=3), ValueError, "call that on both first"),
        (NNGuideDetector(net, k=3).fit(X, y), ValueError, "call that on both first"),
        (learned(NNGuideDetector(net, k=2)), ValueError, "k=3 is another value .* detector, 2"),
        (learned(NNGuideDetector(nn.Linear(5, 4).double(), k=3)), ValueError, "other weights"),
        (learned(NNGuideDetector(wider, k=3), np.c_[X, X[:, :1]]), ValueError, r"\(5,\).*\(6,\)"),
        (learned(NNGuideDetector(head(torch.float32), k=3)), ValueError, "float64.*float32"),
        (learned(NNGuideDetector(net, k=3), X, None), ValueError, "always or never"),
        (learned(NNGuideDetector(net, k=3), X, list("abc") * 20), TypeError, "labels of"),
    ]:
        with pytest.raises(error, match=message):
            one.merge(other)
        assert one.n_samples_seen_ == N_ROWS
    # What was learned counts, not what was set since.
    with pytest.raises(ValueError, match="covariance_type='full'"):
        learned(GMMDetector()).set_params(covariance_type="diag").merge(
            learned(GMMDetector(covariance_type="diag"))
        )
    with pytest.raises(ValueError, match='other alphas from their first rows.*place of "auto"'):
        learned(NACDetector(net)).merge(learned(NACDetector(net), X[:30], y[:30]))
    frames = [pd.DataFrame(X, columns=list(names)) for names in ("abcde", "abced")]
    with pytest.raises(ValueError, match="'e' comes where this one has 'd'"):
        learned(GMMDetector(), frames[0]).merge(learned(GMMDetector(), frames[1]))
    # Equal weights are as good as the same network.
    assert one.merge(learned(NNGuideDetector(copy.deepcopy(net), k=3))).n_samples_seen_ == 120


@each(DEFAULTS)
def test_merge_leaves_the_other_as_it_was(detector):
    X, y = data()
    y[y == 3] = 0
    detector, net = with_fixed(detector), head()
    one = clone(detector).set_params(model=net).partial_fit(X[:20], np.full(20, 3))
    other = clone(detector).set_params(model=net).partial_fit(X[20:], y[20:])
    twin = copy.deepcopy(other)
    for asked in (False, True):
        if asked:
            _ = other.offset_, one.offset_
        one.merge(other)
        # What one of them learns from then on is not the other's.
        one.partial_fit(X, y)
        assert other.n_samples_seen_ == 40
        assert other.offset_ == twin.offset_
        np.testing.assert_array_equal(other.score_samples(X), twin.score_samples(X))
    assert one.known_classes_.tolist() == [0, 1, 2, 3]
    assert one.n_samples_seen_ == 20 + 2 * (40 + 60)


# -- copies


def by_joblib(detector):
    file = io.BytesIO()
    joblib.dump(detector, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, by_joblib, lambda d: pickle.loads(pickle.dumps(d))]
)
@each(DEFAULTS)
def test_copies_in_the_middle_go_on(detector, copied):
    X, y = data()
    for asked in (False, True):
        found = clone(detector)
        if hasattr(found, "random_state"):
            found.set_params(random_state=0)
        found.partial_fit(X[:30], y[:30])
        if asked:
            _ = found.offset_
        twin = copied(found)
        assert twin.n_samples_seen_ == 30
        twin.partial_fit(X[30:40], y[30:40])
        # Nothing is shared.
        assert found.n_samples_seen_ == found._learned.n_rows == 30
        found.partial_fit(X[30:40], y[30:40])
        for one, other in ((found, twin), (found, copied(twin))):
            assert one.offset_ == other.offset_
            np.testing.assert_array_equal(one.score_samples(X), other.score_samples(X))
        assert not hasattr(clone(found), "offset_")


def test_saving(tmp_path):
    """What is computed when asked for is in the file, though none has asked."""
    pytest.importorskip("safetensors")
    X, y = data()
    for detector in DEFAULTS:
        found = clone(detector).partial_fit(X, y)
        skood.save(found, tmp_path / "one")
        loaded = skood.load(tmp_path / "one")
        assert loaded.offset_ == found.offset_
        np.testing.assert_array_equal(loaded.score_samples(X), found.score_samples(X))
        with pytest.warns(UserWarning, match="starts anew"):
            loaded.partial_fit(X, y)


def test_around_detectors_of_pieces():
    """Frozen, in a Pipeline, calibrated."""
    X, y = data()
    found = GMMDetector().partial_fit(X[:30], y[:30]).partial_fit(X[30:], y[30:])
    frozen = FrozenEstimator(found)
    check_is_fitted(frozen)
    pipeline = make_pipeline(FunctionTransformer(), frozen).fit(X, y)
    np.testing.assert_array_equal(pipeline.score_samples(X), found.score_samples(X))
    calibrated = ConformalDetector(FrozenEstimator(found)).fit(X[:40])
    assert ((calibrated.p_values(X) > 0) & (calibrated.p_values(X) <= 1)).all()
    assert clone(frozen).estimator is found and found.n_samples_seen_ == N_ROWS


def test_features_are_warned_of_once():
    X, y = data()
    detector = ASHDetector(head())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for start in range(0, N_ROWS, 6):
            detector.partial_fit(X[start : start + 6], y[start : start + 6])
    assert len(caught) == 1 and "signed" in str(caught[0].message)


def test_subclasses_without_random_state():
    class Own(GMMDetector):
        """The same."""

    X, y = data()
    assert Own().partial_fit(X, y).offset_ == pytest.approx(GMMDetector().fit(X, y).offset_)
    with pytest.raises(TypeError, match="merges with another"):
        GMMDetector().partial_fit(X, y).merge(Own().partial_fit(X, y))
