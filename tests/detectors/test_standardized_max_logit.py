"""Standardized max logits: plain reference, boundaries, pixels left out, void labels."""

import numpy as np
import pytest
import torch

from skood import StandardizedMaxLogitDetector
from skood.learning.boundaries import smooth_boundaries
from tests.detectors import Method
from tests.networks import MLP, Segmenter, seeded

METHOD = Method(
    settings={
        "default": StandardizedMaxLogitDetector(),
        "small batches": StandardizedMaxLogitDetector(smooth=False, batch_size=7),
    },
    in_networks={"default": StandardizedMaxLogitDetector()},
    gives_maps=True,
)

SMALL = {"width": 2, "iterations": 1, "kernel": 3, "dilation": 2}


def standardized(values, columns, new, new_columns):
    """Score largest logits of rows or pixels, one by one."""
    values, columns = values.ravel(), columns.ravel()
    scores = []
    for value, column in zip(new.ravel(), new_columns.ravel(), strict=True):
        group = values[columns == column]
        if len(group) < 3 or np.ptp(group) == 0:
            group = values
        spread = group.std(ddof=1) if len(group) > 1 and np.ptp(group) else 1.0
        scores.append((value - group.mean()) / spread)
    return np.array(scores).reshape(new.shape)


def smoothed(scores, labels, width=4, iterations=4, kernel=7, dilation=6):
    """Smooth one map, pixel by pixel."""
    height, length = scores.shape
    inside_map = lambda i, j: 0 <= i < height and 0 <= j < length  # noqa: E731
    edge = lambda i, j: (min(max(i, 0), height - 1), min(max(j, 0), length - 1))  # noqa: E731
    places = list(np.ndindex(height, length))
    near = [-1, 0, 1]
    is_boundary = {}
    for i, j in places:
        cross = [(i, j), (i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
        square = [(i + a, j + b) for a in near for b in near]
        high = max(labels[p] for p in cross if inside_map(*p))
        is_boundary[i, j] = high != min(labels[p] for p in square if inside_map(*p))
    step, out = width // iterations, scores
    for iteration in range(iterations):
        radius = 0 if iteration == iterations - 1 else width - step * iteration - 1
        near_boundary = {
            (i, j): any(is_boundary[p] for p in places if abs(p[0] - i) + abs(p[1] - j) <= radius)
            for i, j in places
        }
        before, out = out, out.copy()
        for i, j in places:
            around = [edge(i + a, j + b) for a in near for b in near]
            around = [before[p] for p in around if not near_boundary[p]]
            if near_boundary[i, j] and around:
                out[i, j] = np.mean(around)
    r = range(-(kernel // 2), kernel // 2 + 1)
    weights = {(a, b): np.exp(-(a * a + b * b) / 2) for a in r for b in r}
    total = sum(weights.values())
    return (
        np.array(
            [
                sum(
                    w * out[edge(i + dilation * a, j + dilation * b)]
                    for (a, b), w in weights.items()
                )
                for i, j in places
            ]
        ).reshape(scores.shape)
        / total
    )


@pytest.fixture
def segments(rng):
    """Return a network that segments, images, their labels with void pixels, and new images."""
    net = seeded(Segmenter).double()
    X, X_new = rng.normal(size=(12, 1, 8, 8)), 2 * rng.normal(size=(5, 1, 8, 8))
    y = rng.integers(0, 3, (12, 8, 8))
    y[rng.uniform(size=y.shape) < 0.2] = 255
    y[0, :2] = -1
    largest = []
    for images in (X, X_new):
        values, columns = net(torch.from_numpy(images)).detach().max(1)
        largest.append((values.numpy(), columns.numpy()))
    return net, X, y, X_new, *largest


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rows(rng, dtype):
    net = seeded(MLP).double()
    X, X_new = rng.normal(size=(60, 8)), 3 * rng.normal(size=(40, 8))
    train, new = (net(torch.from_numpy(x)).detach().max(1) for x in (X, X_new))
    train, new = ([part.numpy() for part in pair] for pair in (train, new))
    detector = StandardizedMaxLogitDetector(net.to(getattr(torch, dtype))).fit(X.astype(dtype))
    expected, tolerance = standardized(*train, *new), {"float64": 1e-8, "float32": 1e-4}[dtype]
    found = detector.score_samples(X_new.astype(dtype))
    np.testing.assert_allclose(found, expected, tolerance, tolerance)


@pytest.mark.parametrize("smoothing", [{}, SMALL], ids=["default", "small"])
def test_smoothing(rng, smoothing):
    columns = rng.integers(0, 2, (2, 3, 4)).repeat(4, 1).repeat(3, 2)
    columns[1] = 1
    columns[1, 0, 0] = 0
    scores = rng.normal(size=columns.shape)
    found = smooth_boundaries(torch.from_numpy(scores), torch.from_numpy(columns), **smoothing)
    expected = [smoothed(*pair, **smoothing) for pair in zip(scores, columns, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("how", ["whole", "parts"])
def test_maps_with_void_pixels(segments, how):
    net, X, y, X_new, train, new = segments
    detector = StandardizedMaxLogitDetector(net, smooth=False)
    if how == "whole":
        detector.fit(X, y)
    else:
        for part in (slice(5), slice(5, 12)):
            detector.partial_fit(X[part], y[part])
    counts = (y >= 0) & (y != 255)
    kept = [part[counts] for part in train]
    expected = standardized(*kept, *new)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-10, atol=1e-12)
    # The threshold is that of pixels left out one by one, without void ones.
    alone = [
        standardized(*(np.delete(part, i) for part in kept), *(part[i : i + 1] for part in kept))
        for i in range(counts.sum())
    ]
    share = np.mean(np.concatenate(alone) < detector.offset_)
    assert 0.03 < share <= 0.05
    smooth = StandardizedMaxLogitDetector(net, **SMALL).fit(X, y).score_samples(X_new)
    pairs = zip(expected, new[1], strict=True)
    np.testing.assert_allclose(smooth, [smoothed(*pair, **SMALL) for pair in pairs], rtol=1e-8)


def test_rows_left_out(rng, left_out):
    """Also where a class has one, two or three rows."""
    net = seeded(MLP).double()
    X = rng.normal(size=(60, 8))
    values, columns = (part.numpy() for part in net(torch.from_numpy(X)).detach().max(1))
    most = np.bincount(columns).argsort()
    few = [np.flatnonzero(columns == most[k])[n:] for k, n in ((0, 1), (1, 3), (2, 2))]
    keep = np.setdiff1d(np.arange(60), np.concatenate(few))
    values, columns = values[keep], columns[keep]
    expected = [
        standardized(np.delete(values, i), np.delete(columns, i), values[i], columns[i])
        for i in range(len(keep))
    ]
    found = left_out(StandardizedMaxLogitDetector(net), X[keep])
    np.testing.assert_allclose(found, np.ravel(expected), rtol=1e-10, atol=1e-12)


def test_without_spread(segments):
    """Equal logits, and one that outweighs all others, give finite scores."""
    head = torch.nn.Linear(2, 2).double().requires_grad_(False)
    head.weight.copy_(torch.eye(2)), head.bias.zero_()
    equal = StandardizedMaxLogitDetector(head).fit(np.full((5, 2), 0.1))
    np.testing.assert_array_equal(equal.score_samples([[0.1, 0.1], [1.1, 0]]), [0, 1])
    far = np.array([[1.0, 0], [1, 0], [1, 0], [1e30, 0], [0, 2]])
    far = StandardizedMaxLogitDetector(head).fit(far)
    assert np.isfinite(far.score_samples([[-1e300, -1e300], [1e300, 0]])).all()
    assert np.isfinite(far.offset_)
    with pytest.raises(ValueError, match="squares of the features overflow"):
        StandardizedMaxLogitDetector(head).fit([[1e200, 0], [0, 1], [0, 2], [3, 4], [1, 0]])


def test_what_does_not_fit_is_told(segments):
    net, X, y, *_ = segments
    with pytest.raises(ValueError, match=r"labels of pixels, of shape \(12, 4, 4\).*\n.*that size"):
        StandardizedMaxLogitDetector(net).fit(X, y[:, ::2, ::2])
    for params in ({"width": 3, "iterations": 2}, {"kernel": 4}):
        with pytest.raises(ValueError, match="is no smoothing: width must be a multiple"):
            StandardizedMaxLogitDetector(net, **params).fit(X)
