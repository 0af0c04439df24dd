"""WeiPer: equal to a plain reference, with rows left out in the same bins, its heads and blocks."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import WeiPerDetector
from skood.detectors.head import weiper
from skood.detectors.head.weiper import perturbed_weights
from skood.learning import blocks as sized
from skood.learning import quantiles
from tests import references as ref
from tests.detectors import Method
from tests.networks import seeded

METHOD = Method(
    settings={
        "default": WeiPerDetector(),
        "few": WeiPerDetector(
            n_heads=3, distance=0.5, n_bins=8, smoothing=2, logits_smoothing=3, batch_size=7
        ),
    },
    in_networks={"default": WeiPerDetector(n_heads=10)},
)
TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
EACH = pytest.mark.parametrize(
    "params",
    [
        {"n_heads": 5},
        {"n_heads": 2, "n_bins": 9, "smoothing": 1, "logits_smoothing": 12},
        {"n_heads": 3, "n_bins": 20, "logits_weight": 0, "msp_weight": 3},
    ],
    ids=["default", "few bins", "features"],
)


def histogram(numbers, edges):
    """Return the share of numbers in each bin."""
    bins = zip(edges[:-1], edges[1:], strict=True)
    return np.array([np.mean((low <= numbers) & (numbers < high)) for low, high in bins])


def smoothed(shares, width):
    """Return the means over `width` neighbours, the ends repeated; one more of them after."""
    last, before = len(shares) - 1, (width - 1) // 2
    window = range(-before, width - before)
    return [np.mean([shares[min(max(i + j, 0), last)] for j in window]) for i in range(last + 1)]


def divergence(mean, shares, width, least):
    """Return KL(p || q) + KL(q || p) of the mean and of smoothed shares."""
    p, q = mean + least, np.array(smoothed(shares, width)) + least
    p, q = p / p.sum(), q / q.sum()
    return np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p))


def reference(
    H,
    X,
    weight,
    bias,
    n_heads,
    n_bins=100,
    smoothing=4,
    logits_smoothing=15,
    logits_weight=2.5,
    msp_weight=2.5,
    edges=None,
):
    """Score rows one by one; also return the edges of both histograms."""
    H, X, weight, bias = map(ref.as_array, (H, X, weight, bias))
    L, L_new = (np.array([[W @ h + bias for W in weight] for h in part]) for part in (H, X))
    if edges is None:
        edges = [np.linspace(part.min(), part.max(), n_bins + 1) for part in (H, L)]
        for some in edges:
            # The largest number is in the last bin.
            some[0], some[-1] = some[0] - 1e-9, some[-1] + 1e-9
    means = [
        np.mean([histogram(row, some) for row in part], axis=0)
        for part, some in zip((H, L), edges, strict=True)
    ]
    scores = []
    for x, logits in zip(X, L_new, strict=True):
        msp = np.mean([np.exp(max(row) - ref.energy(row[None])[0]) for row in logits])
        far = divergence(means[0], histogram(x, edges[0]), smoothing, 0.01)
        logits_far = divergence(means[1], histogram(logits, edges[1]), logits_smoothing, 0.025)
        scores.append(msp_weight * msp - far - logits_weight * logits_far)
    return np.array(scores), edges


@pytest.fixture
def rows(rng):
    """Return a head, training rows and rows to score."""
    head = seeded(nn.Linear, in_features=7, out_features=4).double()
    return head, np.abs(rng.normal(size=(40, 7))), 1.5 * rng.normal(size=(20, 7))


@DTYPES
@EACH
def test_parity(rows, params, dtype):
    head, H, X = rows
    head, H, X = head.to(getattr(torch, dtype)), H.astype(dtype), X.astype(dtype)
    detector = WeiPerDetector(head, **params).fit(H)
    found = detector.score_samples(X)
    expected, _ = reference(H, X, detector.scorer_.weight, head.bias, **params)
    assert len(np.unique(expected.round(6))) == len(X)
    np.testing.assert_allclose(found, expected, TOLERANCE[dtype], TOLERANCE[dtype])


@EACH
def test_rows_left_out(rows, left_out, params):
    head, H = rows[0], rows[1][:25]
    detector, expected = WeiPerDetector(head, **params), []
    found = left_out(detector, H)
    weight = detector.scorer_.weight
    _, edges = reference(H, H[:1], weight, head.bias, **params)
    for i, row in enumerate(H):
        others = np.delete(H, i, axis=0)
        score, _ = reference(others, row[None], weight, head.bias, **params, edges=edges)
        expected.append(score[0])
    np.testing.assert_allclose(found, expected, 1e-9)


def test_rows_beyond_the_sample_are_scored_as_they_are(rows, left_out, monkeypatch):
    monkeypatch.setattr(quantiles, "N_ACTIVATIONS", 70)
    monkeypatch.setattr(quantiles, "LEAST_ROWS", 10)
    head, H, _ = rows
    detector = WeiPerDetector(head, n_heads=5)
    scores = left_out(detector, H)
    assert np.isclose(scores, detector.score_samples(H), rtol=1e-12).sum() == 30


def test_blocks_of_rows_and_of_heads(rows, monkeypatch):
    """At a time 3 rows are in memory, or what 2 of the 5 heads make of them."""
    head, H, X = rows
    whole = WeiPerDetector(head, n_heads=5).fit(H)
    for module in (sized, weiper):
        by_size = lambda n_bytes, device: 3 if n_bytes == whole.scorer_.row_bytes else 2  # noqa: E731
        monkeypatch.setattr(module, "block_rows", by_size)
    heads = [len(part[0]) for part in whole.scorer_.logits(torch.as_tensor(X))]
    assert heads == [2, 2, 1]
    blocks = WeiPerDetector(head, n_heads=5).fit(H)
    found = blocks.score_samples(X)
    np.testing.assert_allclose(found, whole.score_samples(X), 1e-12)
    np.testing.assert_allclose(blocks.offset_, whole.offset_, 1e-12)


def test_heads():
    """Their noise has the given length, and is that of the seed in every dtype."""
    weight = seeded(nn.Linear, in_features=7, out_features=4).weight.detach().double()
    weight[2] = 0
    heads = perturbed_weights(weight, 6, 1.8, 3)
    noise = heads - weight
    lengths = 1.8 * weight.norm(dim=1).expand(6, 4)
    torch.testing.assert_close(noise.norm(dim=2), lengths)
    directions = torch.nn.functional.normalize(noise[:, [0, 1, 3]].flatten(0, 1), dim=1)
    assert float((directions @ directions.T).fill_diagonal_(0).abs().max()) < 0.99
    torch.testing.assert_close(perturbed_weights(weight.float(), 6, 1.8, 3), heads.float())
    assert not torch.equal(perturbed_weights(weight, 6, 1.8, 4), heads)
    assert torch.equal(perturbed_weights(weight, 2, 0.0, 0), weight.expand(2, 4, 7))


def test_random_state_draws_the_heads(rows):
    head, H, X = rows
    scores = [
        WeiPerDetector(head, n_heads=3, random_state=seed).fit(H).score_samples(X)
        for seed in (None, 0, 1)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.allclose(scores[0], scores[2])


def test_extremes_of_fit_are_in_bins(rows):
    head, H, _ = rows
    scorer = WeiPerDetector(head, n_heads=5).fit(H).scorer_
    for histogram in (scorer.of_features, scorer.of_logits):
        assert float(histogram.mean.sum()) == pytest.approx(1, abs=1e-12)
        assert bool((histogram.mean[[0, -1]] > 0).all())


@pytest.mark.parametrize("value", [0.0, -2.5, 1e30])
def test_features_that_are_all_equal_are_in_one_bin(rows, value):
    detector = WeiPerDetector(rows[0], n_heads=5).fit(np.full((20, 7), value))
    assert np.isfinite(detector.score_samples([[value] * 7, [1e3] * 7, [-1e200] * 7])).all()
    assert detector.predict([[value] * 7])[0] == 1


def test_logits_that_overflow(rows):
    head, H, _ = rows
    with pytest.raises(ValueError, match="overflows: scale the features"):
        WeiPerDetector(head.float()).fit((H * 1e38).astype("float32"))


@pytest.mark.parametrize("bad", [{"n_heads": 0}, {"distance": -1}, {"n_bins": 0}, {"smoothing": 0}])
def test_bad_input(rows, bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter"):
        WeiPerDetector(rows[0], **bad).fit(rows[1])
