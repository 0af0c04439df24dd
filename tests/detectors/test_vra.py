"""VRA: plain reference, parity, quantiles of the others, inside of networks."""

import numpy as np
import pytest
import torch

from skood import VRADetector
from tests import references as ref
from tests.detectors import Method
from tests.networks import SmallCNN, ViT, seeded
from tests.parity import DTYPES, assert_parity, cast, linear

METHOD = Method(
    settings={
        "default": VRADetector(),
        "clip": VRADetector(lower=0.1, below="clip", lift=0.3, per_channel=False, batch_size=7),
    },
    in_networks={"default": VRADetector(), "conv1": VRADetector(layer="conv1", lower=0.2)},
    gives_maps=True,
)
SETTINGS = {
    "default": {},
    "VRA+": {"lift": 0.6, "upper": 0.9},
    "shared": {"lower": 0.3, "upper": 0.8, "per_channel": False, "lift": -0.1},
    "clip": {"lower": 0.0, "upper": 1.0, "below": "clip"},
}
EACH = pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS)


def vra_row(row, rows, axis=1, lower=0.6, upper=0.95, below="zero", lift=0.0, per_channel=True):
    """Shape the activations of one row, one at a time, by those of training rows (n, ...)."""
    row, rows = (np.moveaxis(ref.as_array(a), axis - b, 0) for a, b in ((row, 1), (rows, 0)))
    shaped = np.zeros(row.shape)
    for channel, values in enumerate(row):
        learned = (rows[channel] if per_channel else rows).ravel()
        low, high = np.quantile(learned, lower), np.quantile(learned, upper)
        for place, h in np.ndenumerate(values):
            small = 0.0 if below == "zero" else low
            shaped[(channel, *place)] = small if h < low else high if h > high else h + lift
    return np.moveaxis(shaped, 0, axis - 1)


def vra_network(net, X_train, X, layer, head_name, axis=1, **params):
    """Score images, one at a time, by a network whose layer's output is shaped."""
    rows = ref.features(net, X_train, layer, head_name)
    net = ref.as_double(net)

    def shape(output):
        return ref.as_tensor(vra_row(output[0].detach(), rows, axis, **params))[None]

    ref.hook(net, layer, shape, head_name)
    with torch.no_grad():
        return np.stack([ref.energy(net(x[None]))[0] for x in ref.as_tensor(X)])


@pytest.fixture
def rows(rng):
    """Return training rows as after a ReLU, and rows to score, far ones among them."""
    return np.maximum(rng.normal(size=(32, 4)), 0).round(1), 3 * rng.uniform(size=(20, 4))


def scores_at_head(head, rows, X, **params):
    """Score the logits of shaped features."""
    return np.array(
        [ref.energy(head(ref.as_tensor(vra_row(h, rows, **params)))[None])[0] for h in X]
    )


@DTYPES
@EACH
@torch.no_grad()
def test_features(rows, params, dtype):
    head, (X, X_new) = linear(0), rows
    net, X, X_new = cast(head, (X, X_new), dtype)
    found = VRADetector(net, **params).fit(X).score_samples(X_new)
    assert_parity(found, scores_at_head(head, X, X_new, **params), dtype)


@EACH
@torch.no_grad()
def test_leave_one_out_is_that_of_refits(rows, params):
    head, (X, _) = linear(0), rows
    scores = VRADetector(head, **params)._fit(X, None).numpy()
    for i, row in enumerate(X):
        (expected,) = scores_at_head(head, np.delete(X, i, axis=0), [row], **params)
        np.testing.assert_allclose(scores[i], expected, rtol=1e-10)


@pytest.mark.parametrize("params", [{"lower": 0.3}, SETTINGS["shared"]], ids=["own", "shared"])
@pytest.mark.parametrize(("cls", "layer", "axis"), [(SmallCNN, "conv1", 1), (ViT, "encoder.ln", 2)])
def test_in_a_network(X, cls, layer, axis, params):
    net, X_train, X_new = cast(seeded(cls), X, torch.float64)
    detector = VRADetector(net, layer, **params).fit(X_train)
    expected = vra_network(net, X_train, X_new, layer, net.head_names[0], axis, **params)
    assert_parity(detector.score_samples(X_new), expected, torch.float64)


def test_constant_channels(rows):
    X, X_new = (np.hstack([part, np.full((len(part), 1), 2.0)]) for part in rows)
    scores = VRADetector(linear(0, d=5)).fit(X).score_samples(X_new)
    X_new[:, 4] = 50.0
    np.testing.assert_allclose(VRADetector(linear(0, d=5)).fit(X).score_samples(X_new), scores)


def test_bounds_in_the_wrong_order(rows):
    with pytest.raises(ValueError, match=r"lower=0.9 must be less than upper=0.9"):
        VRADetector(lower=0.9, upper=0.9).fit(rows[0])
    with pytest.raises(ValueError, match="The 'lift' parameter of VRADetector"):
        VRADetector(lift=np.inf).fit(rows[0])


def test_signed_features_are_warned_of(rows):
    with pytest.warns(UserWarning, match="signed.*\n.*below='clip'"):
        VRADetector(linear(0)).fit(rows[0] - 1)
