"""ReAct: plain reference, parity, quantiles of the others, inside of networks."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from torch import nn

from skood import ReActDetector
from skood.detectors.shaping.rectify import rectify
from skood.learning import quantiles
from skood.network import services
from skood.network.cutting import ReadAndKeep
from tests import references as ref
from tests.detectors import Method
from tests.networks import MLP, ResNet, Segmenter, SmallCNN, ViT, seeded

METHOD = Method(
    settings={
        "default": ReActDetector(),
        "two-sided": ReActDetector(percentile=0.8, lower=0.1, per_channel=True, batch_size=7),
        "threshold": ReActDetector(threshold=2.0, logit_score="msp"),
    },
    in_networks={"default": ReActDetector(), "conv1": ReActDetector(layer="conv1")},
    gives_maps=True,
)

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
SETTINGS = {
    "default": {},
    "two-sided": {"percentile": 0.8, "lower": 0.1},
    "per_channel": {"percentile": 0.7, "lower": 0.2, "per_channel": True},
    "largest": {"percentile": 1.0},
    "msp": {"percentile": 0.6, "logit_score": "msp"},
}
EACH = pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS)


def react_bounds(activations, percentile=0.9, lower=None, per_channel=False, axis=1, **others):
    """Return the bounds for one row's activations, from those of all training rows (n, ...)."""
    activations = ref.as_array(activations)
    bounds = []
    for level in (lower, percentile):
        if level is None:
            bounds.append(np.full(activations.shape[1:], -np.inf))
        elif per_channel:
            values = np.moveaxis(activations, axis, 0)
            of_channels = np.array([np.quantile(channel.ravel(), level) for channel in values])
            ones = [1] * (activations.ndim - 1)
            ones[axis % activations.ndim - 1] = -1
            bounds.append(np.broadcast_to(of_channels.reshape(ones), activations.shape[1:]))
        else:
            of_all = np.quantile(activations.ravel(), level)
            bounds.append(np.full(activations.shape[1:], of_all))
    return bounds


def react_scores(activations, rest, bounds, logit_score="energy", **others):
    """Score the logits that `rest` gives for the activations of each row, clipped to bounds."""
    scores = []
    for row in ref.as_array(activations):
        clipped = ref.as_tensor(np.minimum(np.maximum(row, bounds[0]), bounds[1]))
        with torch.no_grad():
            scores.append(ref.score_of_logits(rest(clipped[None]), logit_score)[0])
    return np.stack(scores)


def react_network(net, X_train, X, layer, axis=1, **params):
    """Score images, one at a time, by a network whose layer's output is clipped."""
    bounds = react_bounds(ref.features(net, X_train, layer), axis=axis, **params)
    net = ref.as_double(net)

    def clip(output):
        low, high = map(torch.tensor, map(np.array, bounds))
        return torch.minimum(torch.maximum(output, low), high)

    handle = ref.hook(net, layer, clip, "fc")
    with torch.no_grad():
        logits = [net(x[None]) for x in ref.as_tensor(X)]
    handle.remove()
    score = params.get("logit_score", "energy")
    return np.stack([ref.score_of_logits(row, score)[0] for row in logits])


def assert_parity(found, expected, dtype=torch.float64):
    """Compare scores to those of a reference."""
    atol = TOLERANCE[dtype] * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[dtype], atol=atol)


def linear(dtype=torch.float64):
    """Return a head of 6 features and 4 classes."""
    return seeded(MLP, in_features=6, hidden=6, classes=4).fc.to(dtype)


@pytest.fixture
def rows(rng):
    """Return training rows as after a ReLU, and rows to score, far ones among them."""
    return np.maximum(rng.normal(size=(32, 6)), 0), 3 * rng.uniform(size=(20, 6))


@pytest.fixture
def images():
    """Return images to fit on and to score."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(20, 1, 8, 8)), 2 * rng.normal(size=(12, 1, 8, 8))


@pytest.fixture
def left_out(monkeypatch):
    """Return a function that fits a detector and gives its leave-one-out scores."""
    found = []
    threshold = ReActDetector._threshold

    def spy(self, scores, dtype):
        found.append(scores.numpy().copy())
        return threshold(self, scores, dtype)

    monkeypatch.setattr(ReActDetector, "_threshold", spy)
    return lambda detector, X: detector.fit(X) and found[-1]


@pytest.fixture(params=["cut", "replayed"])
def way(request, monkeypatch):
    """Let networks be cut, or be run again with the shaped activations in their place."""
    if request.param != "cut":
        monkeypatch.setattr(services, "traced_cut", lambda *network: None)
    return request.param


@DTYPES
@EACH
def test_features(rows, params, dtype):
    X, X_new = (part.astype(str(dtype)[6:]) for part in rows)
    head = linear(dtype)
    found = ReActDetector(head, **params).fit(X).score_samples(X_new)
    rest = copy.deepcopy(head).double()
    assert_parity(found, react_scores(X_new, rest, react_bounds(X, **params), **params), dtype)


def test_a_threshold_is_taken_as_it_is(rows):
    X, X_new = rows
    bounds = np.full(6, -np.inf), np.full(6, 0.3)
    detector = ReActDetector(linear(), threshold=0.3).fit(X)
    assert_parity(detector.score_samples(X_new), react_scores(X_new, linear(), bounds))
    assert detector.n_features_in_ == 6


@DTYPES
@EACH
@pytest.mark.parametrize("layer", ["conv1", "conv2", "avgpool"])
def test_in_a_network(images, layer, params, dtype, way):
    X, X_new = (part.astype(str(dtype)[6:]) for part in images)
    net = seeded(SmallCNN).to(dtype)
    detector = ReActDetector(net, layer, **params).fit(X)
    assert isinstance(detector._body, ReadAndKeep) == (way == "replayed")
    assert_parity(
        detector.score_samples(X_new), react_network(net, X, X_new, layer, **params), dtype
    )


def test_a_layer_inside_of_a_skip_connection(images):
    X, X_new = images
    net = seeded(ResNet, in_channels=1).double()
    detector = ReActDetector(net, "layer2.0.conv1", percentile=0.8).fit(X)
    assert isinstance(detector._body, ReadAndKeep)
    expected = react_network(net, X, X_new, "layer2.0.conv1", percentile=0.8)
    assert_parity(detector.score_samples(X_new), expected)


def test_tokens_have_their_channels_last(rng, way):
    X, X_new = rng.normal(size=(2, 12, 1, 8, 8))
    net = seeded(ViT).double()
    layer, params = "encoder.ln", {"percentile": 0.8, "lower": 0.1, "per_channel": True}
    detector = ReActDetector(net, layer, **params).fit(X)
    expected = react_network(net, X, X_new, layer, axis=-1, **params)
    assert_parity(detector.score_samples(X_new), expected)


@pytest.mark.parametrize("layer", ["backbone", None])
def test_maps_of_logits(images, layer):
    X, X_new = images
    net = seeded(Segmenter).double()
    detector = ReActDetector(net, layer, percentile=0.8).fit(X)
    clip = float(np.quantile(ref.features(net, X, layer, head_name="classifier"), 0.8))
    twin = ref.as_double(net)
    ref.hook(twin, layer, lambda output: output.clamp(max=clip), "classifier")
    with torch.no_grad():
        expected = twin(ref.as_tensor(X_new)).logsumexp(1)
    assert_parity(detector.score_samples(X_new), expected.numpy())


@pytest.mark.parametrize("layer", ["conv1", None])
def test_half_precision(images, layer):
    X, X_new = (part.astype(np.float32) for part in images)
    net = seeded(SmallCNN)
    expected = ReActDetector(net, layer).fit(X).score_samples(X_new)
    half = ReActDetector(copy.deepcopy(net).to(torch.bfloat16), layer).fit(X).score_samples(X_new)
    assert half.dtype == np.float32 and np.corrcoef(half, expected)[0, 1] > 0.99


@EACH
def test_leave_one_out_is_that_of_refits(rows, params, left_out):
    X, _ = rows
    X = np.round(X, 1)
    scores = left_out(ReActDetector(linear(), **params), X)
    for i, row in enumerate(X):
        others = np.delete(X, i, axis=0)
        expected = react_scores([row], linear(), react_bounds(others, **params), **params)
        np.testing.assert_allclose(scores[i], expected[0], rtol=1e-10)


@pytest.mark.parametrize("params", [{}, SETTINGS["per_channel"]], ids=["default", "per_channel"])
def test_leave_one_out_in_a_network(images, params, left_out, way):
    X, _ = images
    net = seeded(SmallCNN).double()
    scores = left_out(ReActDetector(net, "conv1", **params), X)
    for i in (0, 7, 19):
        expected = react_network(net, np.delete(X, i, axis=0), X[[i]], "conv1", **params)
        np.testing.assert_allclose(scores[i], expected[0], rtol=1e-10)


def test_rows_beyond_the_sample_are_scored_as_they_are(rows, left_out, monkeypatch):
    monkeypatch.setattr(quantiles, "N_ACTIVATIONS", 6 * 10)
    monkeypatch.setattr(quantiles, "LEAST_ROWS", 10)
    X, _ = rows
    detector = ReActDetector(linear(), percentile=0.7)
    scores = left_out(detector, X)
    plain = detector.score_samples(X)
    assert 22 <= np.isclose(scores, plain, rtol=1e-12).sum() < 32
    pieces = clone(detector)
    for some in np.array_split(np.random.default_rng(0).permutation(32), 5):
        pieces.partial_fit(X[some])
    np.testing.assert_allclose(pieces.score_samples(X), plain, rtol=1e-12)


class Counting(nn.Module):
    """A network that counts the rows which pass through it."""

    def __init__(self):
        super().__init__()
        self.net, self.count = seeded(SmallCNN), Count()

    def forward(self, x):
        return self.net(self.count(x))


class Count(nn.Module):
    n_rows = 0

    def forward(self, x):
        Count.n_rows += len(x)
        return x


@pytest.mark.parametrize("layer", ["net.conv1", None])
def test_fit_takes_one_pass(images, layer):
    X = images[0].astype(np.float32)
    Count.n_rows = 0
    ReActDetector(Counting(), layer).fit(X)
    # Two rows show where the logits are made, and that the parts give what the network does.
    assert 20 <= Count.n_rows <= 26


def test_bounds_in_the_wrong_order(rows):
    X, _ = rows
    with pytest.raises(ValueError, match=r"lower=0.9 must be less than percentile=0.9"):
        ReActDetector(lower=0.9).fit(X)
    for threshold in (np.nan, np.inf):
        with pytest.raises(ValueError, match="The 'threshold' parameter of ReActDetector"):
            ReActDetector(threshold=threshold).fit(X)
    with pytest.raises(ValueError, match="with a threshold nothing is learned"):
        ReActDetector(lower=0.1, threshold=1.0).fit(X)


def test_signed_features_are_warned_of(rows):
    X, _ = rows
    with pytest.warns(UserWarning, match="signed.*Give lower"):
        ReActDetector(linear()).fit(X - 1)
    ReActDetector(linear(), lower=0.1).fit(X - 1)


def test_a_network_that_takes_a_dict(images):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = seeded(SmallCNN)

        def forward(self, image, shift):
            return self.net(image + shift)

    X, X_new = (part.astype(np.float32) for part in images)
    expected = ReActDetector(seeded(SmallCNN), "conv1").fit(X).score_samples(X_new)
    X, X_new = ({"image": part, "shift": np.zeros_like(part)} for part in (X, X_new))
    found = ReActDetector(Named(), "net.conv1").fit(X).score_samples(X_new)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@given(
    arrays(np.float64, (5, 3, 2), elements=st.integers(0, 4)),
    st.floats(0, 1),
)
def test_quantiles_of_all_and_of_the_others(values, level):
    columns = torch.as_tensor(values)
    ordered = quantiles.ascending(columns.flatten(0, 1))
    expected = np.quantile(values.reshape(15, 2), level, axis=0)
    np.testing.assert_allclose(quantiles.quantile(ordered, level), expected, atol=1e-12)
    of_others = [np.quantile(np.delete(values, i, 0).reshape(12, 2), level, 0) for i in range(5)]
    found = quantiles.quantile(ordered, level, columns)
    np.testing.assert_allclose(found, of_others, atol=1e-12)


def test_rectifying_by_zero_and_lift(rng):
    x = rng.normal(size=(20, 5))
    low, high = torch.tensor([-0.5]), torch.tensor([0.5])
    expected = [[0 if v < -0.5 else 0.5 if v > 0.5 else v + 0.1 for v in row] for row in x]
    found = rectify(torch.as_tensor(x), low, high, below="zero", lift=0.1)
    np.testing.assert_allclose(found, expected)
