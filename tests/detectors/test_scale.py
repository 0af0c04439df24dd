"""SCALE and LTS: instances, plain reference, parity."""

import copy

import numpy as np
import pytest
import torch

from skood import ASHDetector, EnergyDetector, SCALEDetector
from tests import references as ref
from tests.detectors import Method
from tests.networks import MLP, ResNet, Segmenter, SmallCNN, ViT, seeded
from tests.parity import DTYPES, assert_parity, cast, logistic_head

pytestmark = pytest.mark.filterwarnings("ignore:The features are signed")

METHOD = Method(
    settings={
        "default": SCALEDetector(),
        "logits": SCALEDetector(scaled="logits", percentile=0.5, logit_score="gen"),
    },
    in_networks={
        "default": SCALEDetector(),
        "conv1": SCALEDetector(layer="conv1", scaled="logits"),
    },
    gives_maps=True,
)

SETTINGS = pytest.mark.parametrize(
    ("scaled", "percentile"),
    [(s, p) for s in ("features", "logits") for p in (0.0, 0.3, 0.85)],
)


def ratio_of(row, percentile):
    """Return s1 / s2 of one sample, 0 / 0 counting as 0."""
    values = sorted(ref.as_array(row).ravel())
    k = max(1, len(values) - int(np.round(len(values) * percentile)))
    s1, s2 = sum(values), sum(values[-k:])
    return 0.0 if s1 == s2 == 0 else s1 / s2


def scale_network(
    net, X, layer=None, scaled="features", percentile=0.65, score="energy", head_name="fc"
):
    """Run a network on one sample at a time, with a layer's output or the logits scaled."""
    net, ratios = ref.as_double(net), []

    def shape(output):
        seen = output if scaled == "features" else output.clamp(min=0)
        ratios.append(ratio_of(seen.detach(), percentile))
        return output * np.exp(ratios[-1]) if scaled == "features" else output

    ref.hook(net, layer, shape, head_name)
    scores = []
    for x in ref.as_tensor(X):
        with torch.no_grad():
            logits = net(x[None])
        if scaled == "logits" and ratios[-1] != 0:
            logits = logits * ratios[-1] ** 2
        scores.append(ref.score_of_logits(logits, score)[0])
    return np.stack(scores)


@DTYPES
@SETTINGS
@pytest.mark.parametrize("layer", [None, "conv1", "conv2"])
def test_in_a_network(X, scaled, percentile, layer, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    params = {"scaled": scaled, "percentile": percentile}
    detector = SCALEDetector(net, layer, **params).fit(X_train)
    assert_parity(detector.score_samples(X_new), scale_network(net, X_new, layer, **params), dtype)


@SETTINGS
def test_without_a_network(data, scaled, percentile):
    Z, y, X_new = data
    Z, X_new = np.abs(Z), np.abs(X_new)
    head = torch.nn.Linear(6, 4).double()
    for own, fitted in zip((head.weight, head.bias), logistic_head(Z, y), strict=True):
        own.data.copy_(torch.as_tensor(fitted))
    params = {"scaled": scaled, "percentile": percentile}
    net = torch.nn.Sequential()
    net.fc = head
    expected = scale_network(net, X_new, **params)
    found = SCALEDetector(**params).fit(Z, y).score_samples(X_new)
    assert_parity(found, expected, torch.float64)


@pytest.mark.parametrize("scaled", ["features", "logits"])
@pytest.mark.parametrize(
    ("cls", "layer"),
    [
        (ResNet, "layer2.0.conv1"),
        (ViT, "encoder.ln"),
        (Segmenter, "backbone"),
        (Segmenter, None),
    ],
    ids=["in a block", "tokens", "maps", "maps at the head"],
)
def test_places_in_networks(X, cls, layer, scaled):
    net = seeded(cls, in_channels=1) if cls is ResNet else seeded(cls)
    net, X_train, X_new = cast(net, X, torch.float64)
    (head_name,) = net.head_names or ["classifier"]
    detector = SCALEDetector(net, layer, scaled=scaled).fit(X_train)
    expected = scale_network(net, X_new, layer, scaled, head_name=head_name)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-8)


def test_by_hand():
    """Of (1, 4, 0, 3) the two largest hold 7 of 8; the head passes features on."""
    head = torch.nn.Linear(4, 4).double()
    torch.nn.init.eye_(head.weight), torch.nn.init.ones_(head.bias)
    row, rows = np.array([1.0, 4.0, 0.0, 3.0]), np.eye(4) + 1
    detector = SCALEDetector(head, percentile=0.5).fit(rows)
    for scaled, logits in (
        ("features", np.exp(8 / 7) * row + 1),
        ("logits", (8 / 7) ** 2 * (row + 1)),
    ):
        detector = SCALEDetector(head, percentile=0.5, scaled=scaled).fit(rows)
        found = detector.score_samples([row, np.zeros(4), -row])
        np.testing.assert_allclose(found[0], ref.energy([logits])[0], rtol=1e-14)
        # Without activations above 0 nothing tells how to scale.
        np.testing.assert_allclose(found[1], 1 + np.log(4), rtol=1e-14)
    np.testing.assert_allclose(found[2], ref.energy([1 - row])[0], rtol=1e-14)


def test_classes_stay(X):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    order = ref.logits(net, X_new).argsort(1)
    seen = []

    def keep(logits):
        seen.append(logits)
        return logits.logsumexp(1)

    SCALEDetector(net, scaled="logits", logit_score=keep).fit(X_train).score_samples(X_new)
    np.testing.assert_array_equal(seen[-1].argsort(1), order)


def test_nothing_left_out_is_the_energy_of_e_times_the_features(X):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    plain = EnergyDetector(net).fit(X_train).score_samples(X_new)
    found = SCALEDetector(net, scaled="logits", percentile=0).fit(X_train).score_samples(X_new)
    np.testing.assert_allclose(found, plain, rtol=1e-12)
    ash = ASHDetector(net, percentile=0).fit(X_train).score_samples(X_new)
    found = SCALEDetector(net, percentile=0).fit(X_train).score_samples(X_new)
    np.testing.assert_allclose(found, ash, rtol=1e-12)


@pytest.mark.parametrize("scaled", ["features", "logits"])
def test_signed_features_are_warned_of_and_scored(rng, scaled):
    X = rng.normal(-0.4, 1, size=(1000, 16)).astype(np.float32)
    head = seeded(MLP, in_features=16).fc
    with pytest.warns(UserWarning, match="signed, which SCALE does not assume"):
        detector = SCALEDetector(copy.deepcopy(head), scaled=scaled).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()


def test_bad_percentiles():
    for percentile in (1.0, -0.1, 85):
        with pytest.raises(ValueError, match="The 'percentile' parameter of SCALEDetector"):
            SCALEDetector(percentile=percentile).fit(np.eye(4), [0, 1, 2, 3])
