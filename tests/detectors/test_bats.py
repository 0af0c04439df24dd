"""BATS: plain reference, parity, moments of the others, inside of networks."""

import numpy as np
import pytest
import torch

from skood import BATSDetector
from tests import references as ref
from tests.detectors import Method
from tests.networks import SmallCNN, ViT, seeded
from tests.parity import DTYPES, assert_parity, cast, linear

METHOD = Method(
    settings={
        "default": BATSDetector(),
        "wide": BATSDetector(n_std=3.25, logit_score="log_odds", batch_size=7),
    },
    in_networks={"default": BATSDetector(), "conv1": BATSDetector(layer="conv1")},
    gives_maps=True,
)
N_STD = pytest.mark.parametrize("n_std", [0.7, 1.05, 3.25])


def bats_row(row, rows, n_std=1.05, axis=1):
    """Clip the activations of one row, one channel at a time, by those of training rows."""
    row, rows = (np.moveaxis(ref.as_array(a), axis - b, 0) for a, b in ((row, 1), (rows, 0)))
    shaped = np.zeros(row.shape)
    for channel, values in enumerate(row):
        mean = rows[channel].mean()
        std = rows[channel].std(ddof=1) if rows[channel].size > 1 else 0.0
        shaped[channel] = np.clip(values, mean - n_std * std, mean + n_std * std)
    return np.moveaxis(shaped, 0, axis - 1)


def bats_network(net, X_train, X, layer=None, n_std=1.05, axis=1):
    """Score images, one at a time, by a network whose layer's output is clipped."""
    head_name = net.head_names[0]
    rows = ref.features(net, X_train, layer, head_name)
    net = ref.as_double(net)

    def shape(output):
        return ref.as_tensor(bats_row(output[0].detach(), rows, n_std, axis))[None]

    ref.hook(net, layer, shape, head_name)
    with torch.no_grad():
        return np.stack([ref.energy(net(x[None]))[0] for x in ref.as_tensor(X)])


@DTYPES
@N_STD
@pytest.mark.parametrize(
    ("cls", "layer", "axis"),
    [(SmallCNN, None, 1), (SmallCNN, "conv1", 1), (ViT, "encoder.ln", 2)],
    ids=["head", "maps", "tokens"],
)
def test_in_a_network(X, cls, layer, axis, n_std, dtype):
    net, X_train, X_new = cast(seeded(cls), X, dtype)
    detector = BATSDetector(net, layer, n_std=n_std).fit(X_train)
    expected = bats_network(net, X_train, X_new, layer, n_std, axis)
    assert_parity(detector.score_samples(X_new), expected, dtype)


@N_STD
def test_leave_one_out_at_the_head(data, n_std):
    X, head = data[0], linear(0, d=6)
    scores = BATSDetector(head, n_std=n_std)._fit(X, None).numpy()
    for i, row in enumerate(X):
        clipped = ref.as_tensor(bats_row(row, np.delete(X, i, axis=0), n_std))
        expected = ref.energy(head(clipped).detach()[None])[0]
        np.testing.assert_allclose(scores[i], expected, rtol=1e-10)


@pytest.mark.parametrize(("cls", "layer", "axis"), [(SmallCNN, "conv1", 1), (ViT, "encoder.ln", 2)])
def test_leave_one_out_in_a_network(X, cls, layer, axis):
    net, X_train, _ = cast(seeded(cls), X, torch.float64)
    scores = BATSDetector(net, layer)._fit(X_train, None).numpy()
    for i in (0, 7, 19):
        others = np.delete(X_train, i, axis=0)
        expected = bats_network(net, others, X_train[[i]], layer, axis=axis)
        np.testing.assert_allclose(scores[[i]], expected, rtol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_two_rows_and_constant_channels(offset):
    """Of two rows the other has no spread, so that each is moved onto it."""
    X, head = np.array([[1.0, 5.0, 0, 2], [2.0, 5.0, 0, 4]]) + offset, linear(0)
    scores = BATSDetector(head)._fit(X, None).numpy()
    expected = ref.energy(head(ref.as_tensor(X)).detach())
    np.testing.assert_allclose(scores, expected[::-1], rtol=1e-9)


def test_classes_that_come_later_change_nothing(data):
    X, y, X_new = data
    order = np.argsort(y)
    expected = BATSDetector(linear(0, 6, 4)).fit(X).score_samples(X_new)
    pieces = BATSDetector(linear(0, 6, 4))
    for some in np.array_split(order, 4):
        pieces.partial_fit(X[some], 10 - y[some])
    np.testing.assert_allclose(pieces.score_samples(X_new), expected, rtol=1e-12)


def test_bad_input(data):
    with pytest.raises(ValueError, match="The 'n_std' parameter of BATSDetector"):
        BATSDetector(n_std=0.0).fit(data[0])
    with pytest.raises(ValueError, match="squares of the features overflow"):
        BATSDetector(linear(0, d=6)).partial_fit(1e160 * data[0])
