"""What the tests of methods share: networks and rows, and the comparison to a reference."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from tests import networks

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
N_TRAIN = 32
IMAGE_NETWORKS = [
    (networks.SmallCNN, "conv1"),
    (networks.ResNet, "layer2"),
    (networks.ViT, "encoder.layers.0"),
    (networks.DenseNetLike, "conv0"),
]
SEEDS = st.integers(0, 2**32 - 1)


def assert_parity(scores, expected, dtype):
    """Compare scores to a reference that has power."""
    expected = np.asarray(expected)
    assert len(np.unique(np.round(expected, 6))) > expected.size / 2
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        np.asarray(scores), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale
    )


def has_power(scores):
    """Tell whether the scores take distinct, finite values on more than four rows in five."""
    return np.isfinite(scores).all() and len(np.unique(scores.round(9))) > 0.8 * len(scores)


def cast(net, X, dtype):
    """Return a network and arrays in a dtype."""
    net = copy.deepcopy(net).to(dtype)
    return net, *(torch.as_tensor(x).to(dtype).numpy() for x in X)


def logistic_head(Z, y):
    """Return weight and bias of the head that model=None fits."""
    classifier = LogisticRegression(max_iter=1000).fit(Z, y)
    return classifier.coef_, classifier.intercept_


def with_inputs(cls, n):
    """Build a seeded network and `n` inputs for it."""
    net = networks.seeded(cls)
    return net, networks.sample_inputs(net, n)


def blobs(seed, n=30, d=4, n_classes=3, scale=1.0):
    """Return features around class means, positive mostly, and their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return scale * (rng.normal(size=(n, d)) + 3 * rng.uniform(size=(n_classes, d))[y] + 3), y


def linear(seed, d=4, n_classes=3, bias=True):
    """Return a float64 head."""
    rng = np.random.default_rng(seed)
    head = nn.Linear(d, n_classes, bias=bias).double()
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(rng.normal(size=(n_classes, d))))
        if bias:
            head.bias.copy_(torch.as_tensor(rng.normal(size=n_classes)))
    return head
