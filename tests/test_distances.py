"""Distances to classes keep their digits, however near and however far."""

import numpy as np
import pytest
import torch

from skood import GMMDetector, MahalanobisDetector
from skood.functional import radial
from skood.learning.gaussians import squared_distances
from skood.learning.norms import lengths


def exact(rows, means):
    """Sum squared differences in extended precision."""
    rows, means = (x.numpy().astype(np.longdouble) for x in (rows, means))
    return np.square(rows[:, None] - means).sum(2).astype(float)


@pytest.mark.parametrize("offset", [0, 1e3, 1e6])
@pytest.mark.parametrize("spread", [1e-9, 1e-3, 1, 1e6])
@pytest.mark.parametrize("n_near", [1, 20])
def test_distances_far_smaller_than_what_is_subtracted(rng, offset, spread, n_near):
    """Of n classes, each row is near some, at a tiny part of their distance to the others."""
    centers = offset + rng.normal(size=(3, 8)).repeat(n_near, 0)
    means = torch.from_numpy(centers + spread * rng.normal(size=(3 * n_near, 8)))
    rows = torch.from_numpy(centers[::2] + spread * rng.normal(size=centers[::2].shape))
    rows = torch.cat([rows, means[:2]])
    for center in (0.0, means[0]):
        found = squared_distances(rows, means, center).numpy()
        np.testing.assert_allclose(found, exact(rows, means), rtol=1e-10)
        assert found[-1, 1] == found[-2, 0] == 0


def test_few_rows_of_many_are_near(rng):
    means = torch.from_numpy(rng.normal(size=(50, 8)))
    rows = torch.from_numpy(rng.normal(size=(300, 8)))
    rows[::40] = means[:8] + 1e-7
    np.testing.assert_allclose(squared_distances(rows, means), exact(rows, means), rtol=1e-10)


def test_squares_that_overflow(rng):
    rows, means = (torch.from_numpy(rng.normal(size=(n, 8))) for n in (30, 20))
    rows[3], rows[7], means[5] = 1e200, -1e200, 1e200
    with np.errstate(over="ignore"):
        found, expected = squared_distances(rows, means), exact(rows, means)
    assert not found.isnan().any()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["tied", "spherical", "mahalanobis"])
def test_two_groups_of_classes_far_from_each_other(rng, kind):
    """Scores are those of classes that are near: shifting half of the classes changes nothing."""
    centers, y = 3 * rng.normal(size=(8, 5)), np.arange(400) % 8
    X = centers[y] + rng.normal(size=(400, 5))
    if kind == "mahalanobis":
        detector = MahalanobisDetector(normalize=False)
    else:
        detector = GMMDetector(covariance_type=kind)
    far = y[:, None] % 2 * np.eye(5)[0]
    near, apart = (detector.fit(X + s * far, y).score_samples(X + s * far) for s in (1e3, 1e7))
    np.testing.assert_allclose(apart, near, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [1, 0.5], ids=["largest", "middle"])
def test_lengths_of_the_largest_and_the_smallest_numbers(rng, dtype, share):
    """Their squares overflow, or are 0, in their own dtype."""
    info = torch.finfo(dtype)
    directions = torch.from_numpy(rng.uniform(0.3, 1, size=(4, 5))).to(dtype)
    scales = torch.tensor([info.max**share / 4, info.tiny**share * 4, 1.0, 0.0], dtype=dtype)
    rows = directions * scales[:, None]
    expected = np.sqrt(np.square(rows.numpy().astype(np.longdouble)).sum(1, keepdims=True))
    np.testing.assert_allclose(lengths(rows), expected[:, 0].astype(float), rtol=1e-14)
    expected[-1] = 1
    for power in (0.5, 1, 1.5, 2):
        found = radial(rows, power, torch.float64)
        assert found.dtype == torch.float64
        scaled = (rows.numpy() / expected * expected ** (1 - power)).astype(float)
        # What is below the smallest normal number has lost digits.
        tiny = np.finfo(float).tiny
        np.testing.assert_allclose(found, scaled, rtol=1e-13, atol=tiny)
