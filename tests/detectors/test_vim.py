"""ViM: plain reference, parity, folds, heads of lower rank, rows without a residual."""

import inspect
import pydoc
import re
import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from torch import nn

import skood
from skood import ViMDetector
from skood.learning.subspaces import head_origin
from tests import references as ref
from tests.detectors import Method
from tests.networks import SmallCNN, seeded

METHOD = Method(
    settings={
        "default": ViMDetector(),
        "train": ViMDetector(n_components=0.5, center="mean", alpha="train", batch_size=7),
    },
    in_networks={
        "default": ViMDetector(),
        "conv1": ViMDetector(layer="conv1", center="mean"),
    },
)

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
SETTINGS = {
    "default": {},
    "mean": {"center": "mean", "n_components": 3},
    "train": {"alpha": "train", "n_components": 5},
    "share": {"n_components": 0.7, "alpha": 2.5},
}
EACH = pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS)


def vim(H, W, b, H_new, folds=None, center="origin", alpha="auto", **params):
    """Return scores of new rows, and of training rows by the subspace of the other folds."""
    H, H_new, W = map(ref.as_array, (H, H_new, W))
    b = ref.as_array(b)
    origin = -np.linalg.pinv(W) @ b if center == "origin" else None
    space = ref.subspace(H, origin, **params)
    # The number of directions is that of all rows.
    params = {**params, "n_components": len(space[1])}
    held_out = []
    for i, h in enumerate(H):
        others = folds != folds[i]
        held_out.append(ref.residual_norm(h, *ref.subspace(H[others], origin, **params)))
    held_out = np.array(held_out)
    if isinstance(alpha, str):
        norms = held_out if alpha == "auto" else [ref.residual_norm(h, *space) for h in H]
        alpha = np.mean([max(W @ h + b) for h in H]) / np.mean(norms)
    new = [logsumexp(W @ h + b) - alpha * ref.residual_norm(h, *space) for h in H_new]
    return np.array(new), np.array([logsumexp(W @ h + b) for h in H]) - alpha * held_out


@pytest.fixture
def rows(rng):
    """Return training rows that spread over some directions more than others, and new rows."""
    spread = np.diag([3, 2, 1, 1, 0.5, 0.3, 0.2]) @ np.linalg.qr(rng.normal(size=(7, 7)))[0]
    return rng.normal(size=(60, 7)) @ spread + 1, 3 * rng.normal(size=(20, 7))


@pytest.fixture
def head(rng):
    """Return a linear layer of 7 features and 4 classes, whose logits are positive mostly."""
    layer = nn.Linear(7, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(rng.normal(size=(4, 7))))
        layer.bias.copy_(torch.as_tensor([5.0, 4.0, 5.0, 6.0]))
    return layer


@pytest.fixture
def left_out(monkeypatch):
    """Return a function that fits a detector and gives its leave-one-out scores."""
    found = []
    threshold = ViMDetector._threshold

    def spy(self, scores, dtype):
        found.append(scores.numpy().copy())
        return threshold(self, scores, dtype)

    monkeypatch.setattr(ViMDetector, "_threshold", spy)
    return lambda detector, X: detector.fit(X) and found[-1]


@DTYPES
@EACH
def test_parity_and_cross_fit(rows, head, params, dtype, left_out):
    X, X_new = (part.astype(str(dtype)[6:]) for part in rows)
    head = head.to(dtype)
    detector = ViMDetector(head, **params)
    held_out = left_out(detector, X)
    expected = vim(X, head.weight, head.bias, X_new, ref.folds_of(X), **params)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * 10}
    np.testing.assert_allclose(detector.score_samples(X_new), expected[0], **tolerance)
    np.testing.assert_allclose(held_out, expected[1], **tolerance)


@DTYPES
@pytest.mark.parametrize("alpha", ["auto", "train"])
def test_layer_of_a_network(dtype, alpha):
    rng = np.random.default_rng(1)
    X, X_new = rng.normal(size=(40, 1, 8, 8)), 2 * rng.normal(size=(12, 1, 8, 8))
    X, X_new = (part.astype(str(dtype)[6:]) for part in (X, X_new))
    net = seeded(SmallCNN).to(dtype)
    with torch.no_grad():
        net.fc.bias += 5
    detector = ViMDetector(net, "conv1", center="mean", alpha=alpha).fit(X)
    H, H_new = (ref.features(net, part, "conv1").mean((2, 3)) for part in (X, X_new))
    # The logits stay the network's: here those of a head that gives them.
    L, L_new = ref.logits(net, X), ref.logits(net, X_new)
    space = ref.subspace(H, None)
    folds = ref.folds_of(X)
    norms = [
        ref.residual_norm(h, *(space if alpha == "train" else ref.subspace(H[folds != fold], None)))
        for h, fold in zip(H, folds, strict=True)
    ]
    weight = L.max(1).mean() / np.mean(norms)
    expected = logsumexp(L_new, axis=1) - weight * np.array(
        [ref.residual_norm(h, *space) for h in H_new]
    )
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=10 * TOLERANCE[dtype])


def test_threshold_holds_on_fresh_rows():
    """Of plain scores of training rows it would call 20 % and more out-of-distribution."""
    rng, alarms, plain = np.random.default_rng(0), [], []
    head = nn.Linear(64, 6, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(rng.normal(size=(6, 64)))), head.bias.fill_(3)
    spread = np.geomspace(3, 0.3, 64)
    for _ in range(20):
        X, fresh = rng.normal(size=(2, 217, 64)) * spread
        detector = ViMDetector(head).fit(X)
        alarms.append((detector.predict(fresh) < 0).mean())
        scores = detector.score_samples(fresh)
        plain.append((scores < np.quantile(detector.score_samples(X), 0.05)).mean())
    assert 0.03 < np.mean(alarms) < 0.07 < np.mean(plain)


def test_a_layer_takes_the_mean(rows):
    X = np.random.default_rng(1).normal(size=(20, 1, 8, 8))
    with pytest.raises(ValueError, match="Give center='mean' with a layer"):
        ViMDetector(seeded(SmallCNN).double(), "conv1").fit(X)


@pytest.mark.parametrize("scale", [1, 1e3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("load", [load_iris, load_digits])
@pytest.mark.filterwarnings("ignore:lbfgs failed")
def test_the_origin_of_a_logistic_regression(load, dtype, scale):
    """It has rank C - 1: what comes after is rounding, which a pseudo-inverse may invert."""
    X, y = load(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit((scale * X).astype(dtype), y)
    layer = nn.Linear(X.shape[1], len(model.coef_), dtype=getattr(torch, dtype))
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(model.coef_))
        layer.bias.copy_(torch.as_tensor(model.intercept_))
    U, S, V = np.linalg.svd(model.coef_.astype(float), full_matrices=False)
    n = len(S) - 1
    expected = -(V[:n].T / S[:n]) @ (U[:, :n].T @ model.intercept_.astype(float))
    np.testing.assert_allclose(head_origin(layer).detach(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_origin_of_the_head_that_stands_in(dtype):
    """Of iris it lies 3.5 away; inverted rounding made that 10.5 and more."""
    X, y = load_iris(return_X_y=True)
    detector = ViMDetector().fit(X.astype(dtype), y)
    assert 3.3 < float(detector.scorer_.residual.center.norm()) < 3.7


def test_a_head_without_bias(rows, head):
    X, X_new = rows
    head = nn.Linear(7, 4, bias=False, dtype=torch.float64)
    expected, _ = vim(X, head.weight, np.zeros(4), X_new, ref.folds_of(X), alpha=1.0)
    found = ViMDetector(head, alpha=1.0).fit(X).score_samples(X_new)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.nightly
def test_few_rows_of_many_features(rng):
    """Outside of a subspace of so many directions those rows have nothing that taught it."""
    X, y = rng.normal(size=(100, 512)), np.arange(100) % 4
    X[np.arange(100), y] += 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [
            float(ViMDetector(n_components=k, alpha=alpha).fit(X, y).scorer_.alpha)
            for k, alpha in ((90, "auto"), (90, "train"), (256, "auto"))
        ]
        with pytest.raises(ValueError, match="n_components=256 directions"):
            ViMDetector(n_components=256, alpha="train").fit(X, y)
    assert found[1] > 4 * found[0]
    assert 0.2 < found[0] < found[2] < 0.4


@DTYPES
@pytest.mark.parametrize("alpha", ["auto", "train"])
def test_rows_without_a_residual_are_refused(rng, head, alpha, dtype):
    X = torch.as_tensor(rng.normal(size=(40, 3)) @ rng.normal(size=(3, 7))).to(dtype)
    detector = ViMDetector(head.to(dtype), center="mean", alpha=alpha)
    for n_components in (3, 5):
        detector.set_params(n_components=n_components)
        with pytest.raises(ValueError, match=f"n_components={n_components} directions: there is"):
            detector.fit(X)
    detector.set_params(n_components=2).fit(X)
    # With a weight of its own the score has all that it takes.
    detector.set_params(n_components=3, alpha=2.0).fit(X)
    scores, energies = detector.score_samples(10 * X), torch.logsumexp(head(10 * X), 1).detach()
    np.testing.assert_allclose(scores, energies, rtol=1e-3)
    assert (detector.predict(X + torch.eye(7)[0].to(dtype) * 50) == -1).all()


def test_equal_rows_are_scored_by_the_energy(head):
    X = np.full((40, 7), 0.1)
    with pytest.warns(UserWarning, match="All training rows are equal"):
        detector = ViMDetector(head.double()).fit(X)
    energies = torch.logsumexp(head(torch.as_tensor(X) + 1), 1).detach()
    np.testing.assert_allclose(detector.score_samples(X + 1), energies, rtol=1e-12)
    assert (detector.predict(X) == 1).all()


@pytest.mark.filterwarnings("ignore:false_alarm_rate")
def test_directions_of_equal_variance_are_warned_of(rng, head):
    with pytest.warns(UserWarning, match="equal variance in 3 rows(.|\n)*Give more rows"):
        ViMDetector(head.double(), n_components=5, alpha=1.0).fit(rng.normal(size=(3, 7)))


def test_negative_logits_do_not_turn_the_residual_around(rows, head):
    X, _ = rows
    with torch.no_grad():
        head.double().bias -= 100
    with pytest.warns(UserWarning, match="largest logits are negative"):
        detector = ViMDetector(head, center="mean").fit(X)
    assert float(detector.scorer_.alpha) > 0


def test_squares_that_overflow(rows, head):
    with pytest.raises(ValueError, match="squares of the features overflow"):
        ViMDetector(head.double(), center="mean").fit(rows[0] * 1e160)


def test_as_many_components_as_features(rows, head):
    with pytest.raises(ValueError, match="n_components=7 must be less than n_features=7"):
        ViMDetector(head.double(), n_components=7).fit(rows[0])


@pytest.mark.parametrize(("n_features", "k"), [(6, 3), (767, 383), (768, 512), (2048, 1000)])
def test_the_number_of_directions(n_features, k):
    from skood.learning.subspaces import n_leading

    assert n_leading(torch.ones(n_features), None) == k


@pytest.mark.filterwarnings("ignore:The largest logit is that of the label")
def test_out_of_distribution_rows_teach_nothing(rows, head):
    X, X_new = rows
    y = np.r_[np.zeros(60), -np.ones(20)]
    detector = ViMDetector(head.double())
    expected = clone(detector).fit(X).score_samples(X)
    np.testing.assert_array_equal(detector.fit(np.vstack([X, X_new]), y).score_samples(X), expected)


@EACH
def test_pieces_and_merged_parts_are_a_fit(rows, head, params, rng):
    X, X_new = rows
    whole = ViMDetector(head.double(), **params).fit(X)
    order = rng.permutation(60)
    pieces = ViMDetector(head, **params)
    for some in np.array_split(order, 7):
        pieces.partial_fit(X[some])
    parts = [ViMDetector(head, **params).partial_fit(X[some]) for some in np.array_split(order, 3)]
    for learned in (pieces, parts[2].merge(parts[0]).merge(parts[1])):
        np.testing.assert_allclose(
            learned.score_samples(X_new), whole.score_samples(X_new), rtol=1e-9
        )
        np.testing.assert_allclose(learned.offset_, whole.offset_, rtol=1e-9)
        assert learned.n_components_ == whole.n_components_


def test_far_features_keep_their_digits(rng, head):
    """Squares would lose what is small beside the distance of the center."""
    X = rng.normal(size=(200, 7)) * [100, 100, 100, 100, 1, 1, 1]
    near = ViMDetector(head.double(), center="mean", alpha=1.0, n_components=4).fit(X)
    far = clone(near).set_params(alpha=1.0).fit(X + 2**20)
    far.scorer_.head = near.scorer_.head = nn.Linear(7, 2, dtype=torch.float64)
    with torch.no_grad():
        near.scorer_.head.weight.zero_(), near.scorer_.head.bias.zero_()
    np.testing.assert_allclose(far.score_samples(X + 2**20), near.score_samples(X), atol=1e-7)


def test_help_describes_every_parameter():
    """Own and common ones, in the order of the signature, each by a sentence of its own."""
    parameters = list(inspect.signature(ViMDetector).parameters)
    assert {"n_components", "layer", "channel_axis", "device", "random_state"} < set(parameters)
    text = pydoc.plain(pydoc.render_doc(skood.ViMDetector)).replace("\n |  ", "\n")
    section = text.split("\nParameters\n----------\n")[1].split("\n\n")[0]
    entries = re.split(r"^(?=\w+ : )", section, flags=re.MULTILINE)[1:]
    assert [entry.split(" : ")[0] for entry in entries] == parameters
    for entry in entries:
        first, *description = entry.splitlines()
        assert "default=" in first and len(" ".join(description)) > 30
