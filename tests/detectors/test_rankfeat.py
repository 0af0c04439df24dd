"""RankFeat: plain reference, parity, where there are no positions."""

import numpy as np
import pytest
import torch

from skood import EnergyDetector, RankFeatDetector
from skood.detectors.shaping.rankfeat import without_rank_one
from tests import references as ref
from tests.detectors import NEEDS_VECTORS, Method
from tests.networks import MLP, ResNet, Segmenter, SmallCNN, ViT, seeded
from tests.parity import DTYPES, TOLERANCE, assert_parity, cast, linear

pytestmark = pytest.mark.filterwarnings("ignore:The features are not the mean")

METHOD = Method(
    settings={"default": RankFeatDetector(), "msp": RankFeatDetector(logit_score="log_odds")},
    in_networks={
        "default": RankFeatDetector(),
        "two": RankFeatDetector(["conv1", "conv2"], weights=["conv2"]),
    },
    refuses={"segmenter": NEEDS_VECTORS},
)


def without_first(matrix):
    """Subtract the part of rank 1."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return matrix - s[0] * np.outer(u[:, 0], v[0])


def rankfeat(net, X, layers, weights=(), axis=1):
    """Score rows, one at a time: logits of networks with one layer changed each, averaged."""
    logits = []
    for layer in layers:
        twin = ref.as_double(net)
        for name in weights:
            weight = twin.get_submodule(name).weight
            rest = without_first(ref.as_array(weight).reshape(len(weight), -1))
            weight.data = torch.tensor(rest).view(weight.shape)

        def change(output):
            maps = np.moveaxis(ref.as_array(output[0]), axis - 1, 0)
            rest = without_first(maps.reshape(len(maps), -1)).reshape(maps.shape)
            return ref.as_tensor(np.moveaxis(rest, 0, axis - 1))[None]

        ref.hook(twin, layer, change, twin.head_names[0])
        with torch.no_grad():
            logits.append(np.concatenate([ref.as_array(twin(x[None])) for x in ref.as_tensor(X)]))
    return ref.energy(np.mean(logits, axis=0))


@DTYPES
@pytest.mark.parametrize(
    "params",
    [{"layers": ["conv2", "conv1"]}, {"layers": ["conv1"], "weights": ["conv2", "fc"]}],
    ids=["two", "weights"],
)
def test_in_a_network(X, params, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    found = RankFeatDetector(net, **params).fit(X_train).score_samples(X_new)
    assert_parity(found, rankfeat(net, X_new, **params), dtype)


def test_the_maps_that_are_averaged_by_default(X):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    found = RankFeatDetector(net).fit(X_train).score_samples(X_new)
    logits = []
    for maps in ref.features(net, X_new, "conv2"):
        maps = np.maximum(maps, 0)
        h = without_first(maps.reshape(len(maps), -1)).mean(1)
        logits.append(ref.as_array(net.fc(ref.as_tensor(h))))
    assert_parity(found, ref.energy(logits), torch.float64)


@pytest.mark.parametrize(
    ("cls", "layers", "axis"),
    [(ResNet, ["layer4", "layer3"], 1), (ViT, ["encoder.layers.0"], 2)],
    ids=["stages", "tokens"],
)
def test_stages_and_tokens(X, cls, layers, axis):
    net = seeded(cls, in_channels=1) if cls is ResNet else seeded(cls)
    rows = [np.repeat(np.repeat(x, 2, 2), 2, 3) for x in X] if cls is ResNet else X
    net, X_train, X_new = cast(net, rows, torch.float64)
    found = RankFeatDetector(net, layers).fit(X_train).score_samples(X_new)
    assert_parity(found, rankfeat(net, X_new, layers, axis=axis), torch.float64)


@DTYPES
@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4), (1, 5)])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_part_of_rank_one(rng, shape, size, dtype):
    matrices = torch.as_tensor(size * rng.normal(size=(5, *shape))).to(dtype)
    found = without_rank_one(matrices).double() / size
    expected = [without_first(matrix) / size for matrix in matrices.double().numpy()]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[dtype])
    assert not without_rank_one(torch.zeros(2, *shape)).any()


@pytest.mark.parametrize("net", [linear(0, 6, 4), seeded(MLP, in_features=6).double()])
def test_features_have_no_positions(data, net):
    Z, y, X_new = data
    with pytest.warns(UserWarning, match="RankFeat's score is then the energy alone"):
        detector = RankFeatDetector(net).fit(Z, y)
    expected = EnergyDetector(net).fit(Z, y).score_samples(X_new)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-12)


def test_bad_layers_and_weights(X):
    for layers, weights, message in (
        (["avgpool"], [], "The layer 'avgpool' gives one position for each channel"),
        (["conv3"], [], "has no layer 'conv3'"),
        (["conv1"], ["conv3"], "has no layer 'conv3'"),
        (["conv1"], ["avgpool"], "'avgpool', which has no weight that is a matrix"),
        ([], [], "layers is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            RankFeatDetector(seeded(SmallCNN), layers, weights=weights).fit(X[0])
    with pytest.raises(ValueError, match="there is no network to look in"):
        RankFeatDetector(linear(0, 6, 4), ["conv1"]).fit(np.eye(6))
    with pytest.raises(ValueError, match="this method needs"):
        RankFeatDetector(seeded(Segmenter)).fit(X[0])


def test_weights_of_the_network_stay(X):
    net = seeded(SmallCNN)
    before = net.conv2.weight.clone()
    RankFeatDetector(net, ["conv1"], weights=["conv2"]).fit(X[0])
    assert torch.equal(net.conv2.weight, before)
