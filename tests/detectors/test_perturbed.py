"""Perturbed: plain references of Lee et al. and of PRO; what learns does so from unmoved rows."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone

import skood
from skood import (
    ASHDetector,
    EnergyDetector,
    EntropyDetector,
    GENDetector,
    GMMDetector,
    KNNDetector,
    MahalanobisDetector,
    MSPDetector,
    NACDetector,
    NNGuideDetector,
    PerturbedDetector,
    ReActDetector,
)
from skood.learning.keys import row_keys
from skood.testing.in_network import (
    check_network_is_untouched,
    check_pickle_with_a_network,
    check_threads_share_a_detector,
)
from tests.detectors import Method
from tests.networks import MLP, SmallCNN, seeded
from tests.parity import DTYPES, TOLERANCE, blobs

METHOD = Method(
    settings={
        "default": PerturbedDetector(EnergyDetector(), 0.05),
        "PRO": PerturbedDetector(MSPDetector(), 0.01, "down", n_steps=2, keep="min"),
    },
    in_networks={"default": PerturbedDetector(EnergyDetector(), 0.05)},
    gives_maps=True,
    refuses={"BERT": "cannot be moved by a small step"},
)


def log_odds(logits):
    others = logits.scatter(1, logits.argmax(1, keepdim=True), -torch.inf)
    return logits.amax(1) - others.logsumexp(1)


def entropy(logits):
    log_p = logits.log_softmax(1)
    return (log_p.exp() * log_p).sum(1)


def gen(logits):
    p = logits.softmax(1)
    return -((p * (1 - p)) ** 0.1).sum(1)


def path(score, X, epsilon, direction, n_steps):
    """Return the rows after each step, moved one by one."""
    points = [torch.as_tensor(X)]
    for _ in range(n_steps):
        moved = []
        for row in points[-1]:
            x = row[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(score(x)[0], x)
            moved.append(row + direction * epsilon * gradient[0].sign())
        points.append(torch.stack(moved))
    return points


@DTYPES
@pytest.mark.parametrize("keep", ["last", "min"])
@pytest.mark.parametrize(
    ("detector", "score"),
    [
        (MSPDetector(), log_odds),
        (MSPDetector(log=False), lambda logits: logits.softmax(1).amax(1)),
        (EntropyDetector(log=False), entropy),
        (GENDetector(log=False), gen),
    ],
)
def test_pro(rng, detector, score, keep, dtype):
    net = seeded(MLP).to(dtype)
    X = torch.as_tensor(rng.normal(size=(40, 8))).to(dtype).numpy()
    points = path(lambda x: score(net(x)), X, 0.05, -1, 3)
    with torch.no_grad():
        scores = torch.stack([score(net(x)) for x in points])
    expected = scores[-1] if keep == "last" else scores.amin(0)
    found = PerturbedDetector(detector, 0.05, "down", n_steps=3, keep=keep, model=net).fit(X)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(found.score_samples(X), expected, tolerance, tolerance)


@pytest.mark.parametrize("scale", [None, 0.5, [0.5, 1, 2, 1, 1, 1, 1, 1]])
def test_mahalanobis_of_lee(rng, scale):
    """Gaussians of rows as they are; rows to score are moved up."""
    net, (X, y) = seeded(MLP).double(), blobs(0, 40, 8, 4)
    Z = rng.normal(size=(30, 8)) + 3
    with torch.no_grad():
        H = net.hidden(torch.as_tensor(X)).relu()
    means = torch.stack([H[y == k].mean(0) for k in range(4)])
    centred = H - means[torch.as_tensor(y)]
    precision = torch.linalg.inv(centred.T @ centred / len(H) + 0.1 * torch.eye(H.shape[1]))

    def score(x):
        delta = net.hidden(x).relu()[:, None] - means
        return -torch.einsum("nkd,de,nke->nk", delta, precision, delta).amin(1)

    step = 0.1 / torch.as_tensor(1.0 if scale is None else scale, dtype=torch.float64)
    moved = path(score, Z, step, 1, 1)[1]
    inner = MahalanobisDetector(normalize=False, reg_covar=0.1, model=net)
    plain = clone(inner).fit(X, y).score_samples(Z)
    np.testing.assert_allclose(plain, score(torch.as_tensor(Z)).detach(), 1e-8)
    found = PerturbedDetector(inner, 0.1, scale=scale).fit(X, y)
    np.testing.assert_allclose(found.score_samples(Z), score(moved).detach(), 1e-8)
    assert not np.allclose(found.score_samples(Z), plain)


LEARNING = [
    MahalanobisDetector(reg_covar=0.1),
    GMMDetector(reg_covar=0.1),
    GMMDetector(covariance_type="diag", reg_covar=0.1),
    KNNDetector(k=3),
    NNGuideDetector(k=3),
]


@pytest.mark.parametrize("inner", LEARNING, ids=lambda d: f"{type(d).__name__}")
def test_training_rows_are_moved_by_the_fitted_scorer_and_scored_left_out(inner):
    net, (X, y) = seeded(MLP).double(), blobs(0, 40, 8, 4)
    detector = PerturbedDetector(inner, 0.1, model=net)
    scores = detector._fit(X, y).numpy()
    plain = clone(inner).set_params(model=net)
    scorer = clone(plain).fit(X, y).scorer_
    moved = path(lambda x: scorer(net.hidden(x).relu()), X, 0.1, 1, 1)[1].numpy()
    expected = clone(plain).fit(X, y).score_samples(moved)
    np.testing.assert_allclose(detector.score_samples(X), expected, 1e-9)
    if isinstance(inner, KNNDetector | NNGuideDetector):
        refitted = [
            clone(plain).fit(X[rest], y[rest]).score_samples(moved[[i]])[0]
            for i, rest in enumerate(~np.eye(40, dtype=bool)[:8])
        ]
        np.testing.assert_allclose(scores[:8], refitted, 1e-8)
    else:
        # Without a tenth of the rows; the closed form would take out rows that are not in.
        folds = (row_keys(torch.as_tensor(X), 0) * 10).long().numpy()
        for fold in np.unique(folds)[:3]:
            own = folds == fold
            refitted = clone(plain).fit(X[~own], y[~own]).score_samples(moved[own])
            np.testing.assert_allclose(scores[own], refitted, 1e-8)
    assert (scores < detector.offset_).sum() == 2
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.score_samples(X), detector.score_samples(X))


def test_a_sample_of_the_rows_sets_the_threshold(monkeypatch):
    net, (X, y) = seeded(MLP).double(), blobs(0, 40, 8, 4)
    detector = PerturbedDetector(KNNDetector(k=3), 0.1, model=net)
    scores = detector._fit(X, y).numpy()
    monkeypatch.setattr("skood.learning.neighbours.BankScorer.n_threshold_rows", 15)
    few = clone(detector)._fit(X, y).numpy()
    assert len(few) == 15 and np.isin(few.round(9), scores.round(9)).all()


@pytest.mark.filterwarnings("ignore")
def test_the_logarithm_learns_with_the_probability():
    """ReAct by probabilities is moved by log-odds, at the threshold that it has learned."""
    net, (X, y) = seeded(MLP).double(), blobs(0, 40, 8, 4)
    inner = ReActDetector(logit_score="msp", percentile=0.5)
    detector = PerturbedDetector(inner, 0.1, model=net).fit(X, y)
    fitted = clone(inner).set_params(model=net).fit(X, y)

    def score(x):
        shaped = fitted.scorer_.shaping(net.hidden(x).relu())
        return log_odds(net.fc(shaped))

    moved = path(score, X, 0.1, 1, 1)[1].numpy()
    np.testing.assert_allclose(detector.score_samples(X), fitted.score_samples(moved), 1e-10)
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.score_samples(X), detector.score_samples(X))


def test_signs_where_the_network_is_sure(rng):
    """In float32 the probability is 1, its gradient 0."""
    net, X = seeded(MLP), 300 * rng.normal(size=(40, 8)).astype(np.float32)
    detector = PerturbedDetector(MSPDetector(log=False), 0.5, model=net).fit(X)
    (moved,) = detector._body(torch.from_numpy(X))
    still = net(torch.from_numpy(X))
    assert ((moved - still).abs().amax(1) > 0).all()
    assert (log_odds(moved) > log_odds(still)).all()


@pytest.mark.parametrize(
    "inner", [MahalanobisDetector(reg_covar=0.1), ASHDetector("conv1"), ReActDetector("conv2")]
)
@pytest.mark.filterwarnings("ignore")
def test_inside_of_networks(inner):
    for check in (
        check_network_is_untouched,
        check_pickle_with_a_network,
        check_threads_share_a_detector,
    ):
        check(PerturbedDetector(inner, 0.05, n_steps=2, keep="min"))


def test_the_network_is_that_of_the_detector(images, tmp_path):
    X, y = images
    net = seeded(SmallCNN)
    inside = PerturbedDetector(MahalanobisDetector(net, reg_covar=0.1), 0.05).fit(X, y)
    outside = PerturbedDetector(MahalanobisDetector(reg_covar=0.1), 0.05, model=net).fit(X, y)
    expected = outside.score_samples(X)
    np.testing.assert_array_equal(inside.score_samples(X), expected)
    assert inside.offset_ == outside.offset_ and inside.model is None
    for detector in (inside, outside):
        twin = pickle.loads(pickle.dumps(detector))
        np.testing.assert_array_equal(twin.score_samples(X), expected)
        skood.save(detector, tmp_path / "detector")
        loaded = skood.load(tmp_path / "detector", net)
        np.testing.assert_array_equal(loaded.score_samples(X), expected)
    # What was fitted stays, whatever is set.
    inside.set_params(detector__reg_covar=100.0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(inside)).score_samples(X), expected)
    assert pickle.loads(pickle.dumps(inside))._fitted_params["detector"].reg_covar == 0.1


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (PerturbedDetector(MahalanobisDetector(), 0.1), "gradient of a network, and there is none"),
        (PerturbedDetector(NACDetector(), 0.1), "do not depend on X by what torch can"),
        (PerturbedDetector(EnergyDetector(), 0.0), "'epsilon' parameter"),
        (PerturbedDetector("energy", 0.1), "'detector' parameter"),
        (PerturbedDetector(KNNDetector(k=0), 0.1), "'k' parameter of KNNDetector"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bad_parameters(detector, message, iris):
    with pytest.raises(ValueError, match=message):
        detector.fit(*iris)


class Items(torch.utils.data.Dataset):
    """Rows and labels; notes which are read."""

    def __init__(self, X, y):
        self.X, self.y, self.read = X, y, []

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        self.read.append(i)
        return self.X[i], self.y[i]


@pytest.mark.parametrize("shuffle", [False, True])
def test_data_in_batches_is_read_once(shuffle, monkeypatch):
    monkeypatch.setattr("skood.learning.neighbours.BankScorer.n_threshold_rows", 30)
    X, y = blobs(0, 40, 8, 4)
    items, detector = Items(X, y), PerturbedDetector(KNNDetector(seeded(MLP).double(), k=3), 0.1)
    if shuffle:
        monkeypatch.undo()
    found = clone(detector).fit(torch.utils.data.DataLoader(items, 7, shuffle=shuffle))
    assert sorted(items.read) == list(range(40))
    assert found.offset_ == pytest.approx(clone(detector).fit(X, y).offset_, rel=1e-9)


def test_what_learns_takes_all_rows_at_once(images):
    X, y = images
    detector = PerturbedDetector(MahalanobisDetector(seeded(SmallCNN), reg_covar=0.1), 0.05)
    with pytest.raises(ValueError, match="MahalanobisDetector learns, and only.*\nUse fit"):
        detector.partial_fit(X, y)
    PerturbedDetector(EnergyDetector(seeded(SmallCNN)), 0.05).partial_fit(X).score_samples(X)
