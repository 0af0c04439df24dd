"""Rows, heads and networks for the tests of methods."""

import numpy as np
import pytest

from tests.networks import seeded
from tests.parity import N_TRAIN


@pytest.fixture
def data(rng):
    """Return features of 4 classes, their labels and rows to score, far ones among them."""
    y = np.arange(N_TRAIN) % 4
    Z = rng.normal(size=(N_TRAIN, 6)) + 2 * rng.normal(size=(4, 6))[y]
    X_new = np.vstack([rng.normal(size=(10, 6)) + 1, 5 * rng.normal(size=(10, 6))])
    return Z, y, X_new


@pytest.fixture
def few_rows(rng):
    """Return features and labels of classes of 1, 2, 9 and 20 rows."""
    y = np.repeat([3, 1, 0, 2], [1, 2, 9, 20])
    return rng.normal(size=(32, 4)) + 2 * rng.normal(size=(4, 4))[y], y


@pytest.fixture
def X():
    """Return images to fit on and to score."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(20, 1, 8, 8)), 2 * rng.normal(size=(12, 1, 8, 8))


@pytest.fixture
def vectors(data):
    """Return a function of a class of networks: one in float64, and data."""
    return lambda cls: (seeded(cls, in_features=6).double(), *data)


@pytest.fixture
def head():
    """Draw 40 non-negative feature rows, as after a ReLU, and a linear head of 4 classes."""
    rng = np.random.default_rng(0)
    H = np.maximum(rng.normal(size=(40, 6)), 0)
    return H, rng.normal(size=(4, 6)), rng.normal(size=4)
