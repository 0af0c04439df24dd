"""MSP: equal to a plain reference, without ties, at the temperature that scipy finds."""

import decimal
import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch import nn

import skood
from skood import ASHDetector, MSPDetector, ReActDetector
from skood.functional import entropy, gen, log_odds, log_probabilities
from skood.learning.agreement import logit_columns
from tests.detectors import Method
from tests.networks import MLP, Segmenter, SmallCNN, seeded

# temperature="fit" takes labels, and so is not for the tests that fit without.
METHOD = Method(
    settings={
        "default": MSPDetector(),
        "plain": MSPDetector(log=False, temperature=2.0, batch_size=7),
    },
    in_networks={"default": MSPDetector()},
    gives_maps=True,
)

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])


def reference(logits, temperature=1.0, log=True):
    """Score rows one by one, in 60 digits."""
    with decimal.localcontext(prec=60):
        scores = []
        for row in np.asarray(logits, dtype=np.float64):
            powers = sorted((decimal.Decimal(v) / decimal.Decimal(temperature)).exp() for v in row)
            p = powers[-1] / sum(powers)
            scores.append(float((p / (sum(powers[:-1]) / sum(powers))).ln() if log else p))
    return np.array(scores)


def loss(logits, y, temperature):
    """Return the cross-entropy with Platt's targets."""
    n, C = logits.shape
    total = 0.0
    for row, label in zip(logits / temperature, y, strict=True):
        log_p = row - logsumexp(row)
        targets = np.full(C, 1 / (n + 2) / C)
        targets[label] += 1 - 1 / (n + 2)
        total -= targets @ log_p
    return total


@pytest.fixture
def head(rng):
    """Return a head, features of three classes of which a part is labelled wrongly, and labels."""
    centers, y = 3 * rng.normal(size=(3, 5)), np.arange(90) % 3
    X = centers[y] + rng.normal(size=(90, 5))
    head = nn.Linear(5, 3).double()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(centers))
        head.bias.copy_(torch.from_numpy(-(centers**2).sum(1) / 2))
    return head, X, np.where(np.arange(90) % 10 == 0, (y + 1) % 3, y)


@DTYPES
@pytest.mark.parametrize("temperature", [1.0, 0.3, 20.0])
@pytest.mark.parametrize("log", [True, False])
def test_parity(rng, temperature, log, dtype, tolerance):
    net = seeded(MLP).to(getattr(torch, dtype))
    X = 2 * rng.normal(size=(40, 8)).astype(dtype)
    scores = MSPDetector(net, temperature=temperature, log=log).fit(X).score_samples(X)
    logits = net.double()(torch.from_numpy(X).double()).detach()
    expected = reference(logits, temperature, log)
    assert len(np.unique(scores)) > 20 and scores.dtype == dtype
    np.testing.assert_allclose(scores, expected, tolerance, tolerance)


@DTYPES
def test_confident_rows_do_not_tie(dtype, tolerance):
    gaps = np.r_[30, 50, 1e3, 1e30].astype(dtype)
    logits = np.stack([gaps, np.zeros(4), np.full(4, -1)], 1).astype(dtype)
    identity = nn.Linear(3, 3).to(getattr(torch, dtype))
    nn.init.eye_(identity.weight), nn.init.zeros_(identity.bias)
    detector = MSPDetector(identity).fit(logits)
    np.testing.assert_allclose(detector.score_samples(logits), gaps, 2e-2)
    plain = MSPDetector(identity, log=False).fit(logits).score_samples(logits)
    np.testing.assert_allclose(plain, 1, 1e-12)
    assert len(np.unique(plain)) < 4
    ash = ASHDetector(identity, variant="p", percentile=0, logit_score="log_odds").fit(logits)
    np.testing.assert_allclose(ash.score_samples(logits), detector.score_samples(logits))


def test_maps(images):
    X, _ = images
    net = seeded(Segmenter)
    detector = MSPDetector(net).fit(X)
    logits = net(torch.from_numpy(X)).detach().movedim(1, -1).flatten(0, 2)
    scores = detector.score_samples(X)
    np.testing.assert_allclose(scores.ravel(), reference(logits), 1e-4, 1e-5)
    assert scores.shape == (24, 8, 8)
    y = logits.argmax(1).view(24, 8, 8).numpy()
    y[:, 0] = 2
    y[:, 1] = 255
    counts = y.ravel() != 255
    same = nn.Linear(3, 3)
    nn.init.eye_(same.weight), nn.init.zeros_(same.bias)
    expected = MSPDetector(same, temperature="fit").fit(logits[counts], y.ravel()[counts])
    detector = MSPDetector(net, temperature="fit").fit(X, y)
    assert detector.temperature_ == pytest.approx(expected.temperature_, rel=1e-4)


def test_the_temperature_is_scipys(head):
    head, X, y = head
    logits = head(torch.from_numpy(X)).detach().numpy()
    detector = MSPDetector(head, temperature="fit").fit(X, y)
    found = minimize_scalar(
        lambda log_t: loss(logits, y, np.exp(log_t)), (0, 2), options={"xtol": 1e-12}
    )
    # A minimum is known to half of the digits.
    assert detector.temperature_ == pytest.approx(np.exp(found.x), rel=1e-6)
    slopes = [loss(logits, y, detector.temperature_ * (1 + step)) for step in (-1e-3, 0, 1e-3)]
    assert slopes[1] < min(slopes[0], slopes[2])
    expected = MSPDetector(head, temperature=detector.temperature_).fit(X, y)
    np.testing.assert_array_equal(detector.score_samples(X), expected.score_samples(X))
    assert detector.offset_ == pytest.approx(expected.offset_) and expected.temperature_ > 2


def test_the_slope_vanishes_to_the_last_digits(head):
    head, X, y = head
    T = MSPDetector(head, temperature="fit").fit(X, y).temperature_
    logits, n = head(torch.from_numpy(X)).detach().numpy(), len(X)
    p = np.exp(logits / T - logsumexp(logits / T, 1, keepdims=True))
    targets = np.eye(3)[y] * (1 - 1 / (n + 2)) + 1 / (n + 2) / 3
    curvature = ((p * logits**2).sum(1) - (p * logits).sum(1) ** 2).sum()
    assert abs(((p - targets) * logits).sum() / curvature * T) < 1e-9


def test_rows_that_are_all_right_have_a_temperature(head):
    head, X, _ = head
    y = head(torch.from_numpy(X)).argmax(1).numpy()
    assert 0.05 < MSPDetector(head, temperature="fit").fit(X, y).temperature_ < 5


def test_temperatures_out_of_bounds(head):
    head, X, y = head
    with pytest.warns(UserWarning, match="the bound temperature=100"):
        detector = MSPDetector(head, temperature="fit").fit(X, (y + 1) % 3)
    assert detector.temperature_ == 100
    with torch.no_grad():
        head.weight.mul_(1e-6), head.bias.mul_(1e-6)
    with pytest.warns(UserWarning, match="the bound temperature=0.01"):
        MSPDetector(head, temperature="fit").fit(X, y)


def test_a_temperature_takes_labels(head):
    head, X, y = head
    with pytest.raises(ValueError, match="compares logits with labels: pass y"):
        MSPDetector(head, temperature="fit").fit(X)
    with pytest.raises(ValueError, match="Without a network, y needs two classes"):
        MSPDetector(temperature="fit").fit(X, np.zeros(90))
    with pytest.raises(ValueError, match="cannot be told which are whose"):
        MSPDetector(head, temperature="fit").fit(X[y > 0], np.array(["a", "b", "c"])[y][y > 0])


def test_labels_and_logits(head):
    """Words in their order, numbers of the logits, classes of a frozen classifier; one held out."""
    head, X, y = head
    expected = MSPDetector(head, temperature="fit").fit(X, y).temperature_
    for labels in (np.array(["a", "b", "c"])[y], y + 1, np.array([0, 5, 9])[y]):
        found = MSPDetector(head, temperature="fit").fit(X, labels).temperature_
        assert found == pytest.approx(expected)
    kept = y != 1
    some = MSPDetector(head, temperature="fit").fit(X[kept], y[kept]).temperature_
    words = np.array(["z", "m", "a"])[y]
    classifier = LogisticRegression().fit(X, words)
    classifier.coef_, classifier.intercept_ = (
        p.detach().numpy()[::-1].copy() for p in (head.weight, head.bias)
    )
    frozen = MSPDetector(FrozenEstimator(classifier), temperature="fit")
    assert frozen.fit(X[kept], words[kept]).temperature_ == pytest.approx(some)


def test_columns():
    for classes, n_logits, known, expected in (
        ([1, 4], 5, None, [1, 4]),
        ([1, 2, 3], 3, None, [0, 1, 2]),
        (["a", "b"], 2, None, [0, 1]),
        (["a", "b"], 3, ["b", "x", "a"], [2, 0]),
        (["a", "c"], 2, ["a", "b"], [0, -1]),
        # What a skorch net was fitted to, with more logits than classes.
        ([2, 4], 10, [2, 4], [0, 1]),
    ):
        found = logit_columns(np.array(classes), n_logits, known)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("with_head", [True, False])
def test_pieces_and_merges(head, with_head):
    """Each piece lacks a class, so that its labels alone do not tell their logits."""
    net, X, y = head
    words = np.array(["a", "b", "c"])[y]
    detector = MSPDetector(net if with_head else None, temperature="fit")
    if not with_head:
        # The head is fitted to the first piece.
        first = MSPDetector(temperature="fit").partial_fit(X[:45], words[:45])
        first = pickle.loads(pickle.dumps(first)).partial_fit(X[45:], words[45:])
        assert 0.1 < first.temperature_ < 10
        return
    whole = detector.fit(X, words)
    expected, offset = whole.temperature_, whole.offset_
    order = np.argsort(words, kind="stable")
    one = MSPDetector(net, temperature="fit").partial_fit(X[order[:50]], words[order[:50]])
    other = MSPDetector(net, temperature="fit").partial_fit(X[order[50:]], words[order[50:]])
    merged = pickle.loads(pickle.dumps(other)).merge(one)
    assert merged.temperature_ == expected and merged.offset_ == pytest.approx(offset)


def test_of_many_rows_a_sample_tells_the_temperature(head, monkeypatch, rng):
    """The same one in any order and in any chunks."""
    monkeypatch.setattr("skood.detectors.logits.msp.N_ROWS", 40)
    net, X, y = head
    whole = MSPDetector(net, temperature="fit").fit(X, y)
    order = rng.permutation(90)
    shuffled = MSPDetector(net, temperature="fit").fit(X[order], y[order])
    chunks = MSPDetector(net, temperature="fit")
    for some in np.array_split(order, 7):
        chunks.partial_fit(X[some], y[some])
    assert whole.temperature_ == pytest.approx(shuffled.temperature_, rel=1e-9)
    assert whole.temperature_ == pytest.approx(chunks.temperature_, rel=1e-9)
    monkeypatch.undo()
    of_all = MSPDetector(net, temperature="fit").fit(X, y).temperature_
    assert of_all != pytest.approx(whole.temperature_, rel=1e-3)


def test_a_class_of_one_row_without_a_network(head):
    _, X, y = head
    labels = np.where(np.arange(90) == 7, 9, y)
    detector = MSPDetector(temperature="fit").fit(X, labels)
    assert np.isfinite(detector.offset_) and detector.known_classes_.tolist() == [0, 1, 2, 9]


def test_files_and_graphs(head, tmp_path):
    net, X, y = head
    words = np.array(["a", "b", "c"])[y]
    for model in (net, None):
        for temperature in (2.0, "fit"):
            detector = MSPDetector(model, temperature=temperature).fit(X, words)
            skood.save(detector, tmp_path / "saved")
            twin = skood.load(tmp_path / "saved")
            np.testing.assert_array_equal(twin.score_samples(X), detector.score_samples(X))
            assert twin.temperature_ == detector.temperature_
            skood.export(detector, tmp_path / "graph.pt2", X[:2])
            score, _ = torch.export.load(tmp_path / "graph.pt2").module()(torch.from_numpy(X))
            np.testing.assert_allclose(score.numpy(), detector.score_samples(X), 1e-8)


def test_detectors_of_heads_keep_their_classes_in_pickles(images):
    X, y = images
    detector = MSPDetector(seeded(SmallCNN), temperature="fit").fit(X, y)
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.score_samples(X), detector.score_samples(X))


# What methods on logits share


@pytest.mark.parametrize("temperature", [1.0, 0.2, 50.0])
def test_probabilities_are_exact_at_any_confidence(rng, temperature):
    logits = rng.normal(size=(20, 6)) * np.geomspace(0.1, 300, 20)[:, None]
    log_p, log_rest = log_probabilities(torch.from_numpy(logits), temperature)
    entropies, gens = [], []
    with decimal.localcontext(prec=400):
        for row, found, rest in zip(logits, log_p, log_rest, strict=True):
            powers = [(decimal.Decimal(v) / decimal.Decimal(temperature)).exp() for v in row]
            p = [power / sum(powers) for power in powers]
            others = [sum(powers[:i] + powers[i + 1 :]) / sum(powers) for i in range(len(p))]
            # The logarithm of 1 - 1e-400 is smaller than any float64.
            np.testing.assert_allclose(found, [float(v.ln()) for v in p], 1e-12, 1e-300)
            np.testing.assert_allclose(rest, [float(v.ln()) for v in others], 1e-12, 1e-300)
            entropies.append(-float((-sum(v * v.ln() for v in p)).ln()))
            tenth = decimal.Decimal("0.1")
            terms = [(v * q) ** tenth for v, q in zip(p, others, strict=True)]
            largest = sorted(range(len(p)), key=lambda i: -p[i])[:4]
            gens.append(-float(sum(terms[i] for i in largest).ln()))
    logits = torch.from_numpy(logits)
    np.testing.assert_allclose(entropy(logits, temperature), entropies, 1e-12)
    np.testing.assert_allclose(gen(logits, 0.1, 4, temperature), gens, 1e-12)


@pytest.mark.parametrize("score", [log_odds, entropy, gen])
def test_scores_of_logits_without_ties_and_of_one_class(score):
    gaps = torch.tensor([1e2, 1e3, 1e30])
    logits = torch.stack([gaps, 0 * gaps, 0 * gaps], 1)
    scores = score(logits)
    assert bool(torch.isfinite(scores).all()) and bool((scores.diff() > 0).all())
    assert score(torch.ones(2, 1, 3)).tolist() == [[0.0] * 3] * 2
    if score is not log_odds:
        assert (score(logits, log=False) <= 0).all()


@pytest.mark.parametrize("detector", [ASHDetector(percentile=0.5), ReActDetector()])
def test_confident_rows_do_not_tie_in_shaping_methods(rng, detector):
    """Of a confident network probabilities tie in float32, their log-odds do not."""
    net = seeded(MLP)
    with torch.no_grad():
        net.fc.weight.mul_(300)
    X = (2 * rng.normal(size=(200, 8))).astype("float32")
    n_distinct = {}
    for logit_score in ("log_odds", "msp"):
        detector = clone(detector).set_params(model=net, logit_score=logit_score).fit(X)
        n_distinct[logit_score] = len(np.unique(detector.score_samples(X)))
    assert n_distinct["log_odds"] > 195
    assert n_distinct["msp"] < 100


@pytest.mark.parametrize("logit_score", ["log_odds", "entropy", "gen"])
def test_shaping_methods_have_them_too(iris, logit_score, tmp_path):
    X, y = iris
    detector = ASHDetector(percentile=0.5, logit_score=logit_score).fit(X, y)
    assert len(np.unique(detector.score_samples(X))) > 100
    skood.export(detector, tmp_path / "graph.pt2", X[:2])
