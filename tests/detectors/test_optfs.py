"""OptFS: equal to a plain reference, with rows left out at the same edges, and which bins count."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.base import clone

from skood import OptFSDetector
from skood.learning import quantiles
from skood.learning.histograms import even_edges, find_bins
from tests import references as ref
from tests.detectors import Method
from tests.parity import DTYPES, TOLERANCE, blobs, linear

METHOD = Method(
    settings={
        "default": OptFSDetector(),
        "energy": OptFSDetector(n_bins=8, tails=0.05, logit_score="energy", batch_size=7),
    },
    in_networks={"default": OptFSDetector()},
)

SETTINGS = {
    "default": {},
    "few bins": {"n_bins": 5, "tails": 0.1},
    "all": {"n_bins": 1, "tails": 0},
    "energy": {"n_bins": 7, "tails": 0.02, "logit_score": "energy"},
}
EACH = pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS)


def bin_of(x, edges):
    """Return the bin of a number, None outside."""
    return next((k for k in range(len(edges) - 1) if edges[k] <= x < edges[k + 1]), None)


def by_bin(h, W, b, edges):
    """Return the contributions of a row's features to the largest logit, bin by bin."""
    weights, sums = W[np.argmax(W @ h + b)], np.zeros(len(edges) - 1)
    for x, w in zip(h, weights, strict=True):
        if bin_of(x, edges) is not None:
            sums[bin_of(x, edges)] += w * x
    return sums


def reference(H, head, H_new, n_bins=100, tails=1e-3, logit_score=None, edges=None):
    """Score rows one by one; also return the edges."""
    H, H_new, W, b = map(ref.as_array, (H, H_new, head.weight, head.bias))
    if edges is None:
        low, high = np.quantile(H, tails), np.quantile(H, 1 - tails)
        edges = [low + (high - low) / n_bins * k for k in range(n_bins + 1)]
    mean = np.mean([by_bin(h, W, b, edges) for h in H], axis=0)
    theta = 1000 * mean / np.linalg.norm(mean)
    scores = []
    for h in H_new:
        if logit_score is None:
            scores.append(theta @ by_bin(h, W, b, edges))
        else:
            bins = [bin_of(x, edges) for x in h]
            shaped = [0 if k is None else theta[k] * x for x, k in zip(h, bins, strict=True)]
            scores.append(logsumexp(W @ shaped + b))
    return np.array(scores), edges


@DTYPES
@EACH
def test_parity(params, dtype):
    (X, _), head = blobs(0, n=40, d=7), linear(0, d=7).to(dtype)
    X, X_new = (part.astype(str(dtype)[6:]) for part in (X - 3, 1.5 * blobs(1, d=7)[0] - 3))
    found = OptFSDetector(head, **params).fit(X).score_samples(X_new)
    expected, _ = reference(X, head, X_new, **params)
    assert len(np.unique(expected)) == len(X_new)
    atol = TOLERANCE[dtype] * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, TOLERANCE[dtype], atol)


@EACH
def test_rows_left_out(params, left_out):
    (X, _), head = blobs(2, n=30, d=7), linear(2, d=7)
    found = left_out(OptFSDetector(head, **params), X)
    _, edges = reference(X, head, X[:1], **params)
    for i, row in enumerate(X):
        others = np.delete(X, i, axis=0)
        expected, _ = reference(others, head, row[None], **params, edges=edges)
        np.testing.assert_allclose(found[i], expected[0], rtol=1e-9)


def test_rows_beyond_the_sample_are_scored_as_they_are(left_out, monkeypatch):
    monkeypatch.setattr(quantiles, "N_ACTIVATIONS", 4 * 10)
    monkeypatch.setattr(quantiles, "LEAST_ROWS", 10)
    (X, _), head = blobs(3, n=40), linear(3)
    detector = OptFSDetector(head, n_bins=10)
    scores = left_out(detector, X)
    plain = detector.score_samples(X)
    assert np.isclose(scores, plain, rtol=1e-12).sum() == 30
    pieces = clone(detector)
    for some in np.array_split(np.random.default_rng(0).permutation(40), 5):
        pieces.partial_fit(X[some])
    np.testing.assert_allclose(pieces.score_samples(X), plain, rtol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 0.7), (1e6, 1e6 + 1e-3), (-1e30, 2e30)])
def test_each_number_is_in_the_bin_of_its_edges(low, high):
    """Also the edges themselves, and the numbers next to them."""
    edges = even_edges(*torch.tensor([low, high], dtype=torch.float64), 100)
    assert len(edges) == 101
    around = [torch.nextafter(edges, edges + sign * torch.inf) for sign in (1, -1)]
    x = torch.cat([edges, *around, torch.linspace(-3e30, 3e30, 40).double()])[None]
    expected = np.searchsorted(edges.numpy(), x[0].numpy(), "right")
    np.testing.assert_array_equal(find_bins(x, edges)[0], expected)


@pytest.mark.parametrize("value", [0.0, -2.5, 1e30])
def test_features_that_are_all_equal_are_in_one_bin(value):
    head = linear(0).requires_grad_(False)
    detector = OptFSDetector(head).fit(np.full((20, 4), value))
    assert detector.scorer_.edges.shape == (2,)
    contribution = value * head.weight[head(torch.full((4,), value).double()).argmax()].sum()
    expected = [1000 * abs(float(contribution)), 0]
    found = detector.score_samples([[value] * 4, [value + 1e15] * 4])
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_what_lies_outside_of_the_bins_does_not_count():
    (X, _), head = blobs(0), linear(0)
    detector = OptFSDetector(head, logit_score="max_logit").fit(X)
    assert detector.scorer_.theta[0] == detector.scorer_.theta[-1] == 0
    assert detector.scorer_.theta.norm() == pytest.approx(1000)
    found = detector.score_samples([[1e9] * 4, [-1e9] * 4])
    np.testing.assert_allclose(found, float(head.bias.detach().max()))


@pytest.mark.parametrize(("name", "value"), [("tails", 0.5), ("tails", -0.1), ("n_bins", 0)])
def test_parameters_outside_of_the_range(name, value, iris):
    with pytest.raises(ValueError, match=f"'{name}' parameter of OptFSDetector"):
        OptFSDetector(**{name: value}).fit(*iris)
