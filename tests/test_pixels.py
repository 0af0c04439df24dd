"""Maps of logits: each pixel is scored as the same detector scores it as a row."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import skood
from skood import (
    EnergyDetector,
    FDBDDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    GrOODDetector,
    KNNDetector,
    LayersDetector,
    MSPDetector,
    NNGuideDetector,
    PerturbedDetector,
    ReActDetector,
    TransformsDetector,
    ViMDetector,
)
from skood.calibration import ConformalDetector
from skood.learning.pixels import Pixelwise
from tests.detectors import NEEDS_VECTORS
from tests.networks import Segmenter, seeded
from tests.registry import DEFAULTS, KINDS, each, method_of, needs_logits
from tests.shipping import run_graph

# One number an image.
REFUSED = [d for d in DEFAULTS if method_of(d).refused("segmenter") == NEEDS_VECTORS]
SCORED = [d for d in DEFAULTS if d not in REFUSED and not isinstance(d, LayersDetector)]
# Else it follows from folds, which are drawn by what the image of a pixel holds.
EXACT = {"ViMDetector": {"alpha": 1.0}}
BY_ROW = [d for d in SCORED if not method_of(d).gives_maps]
WIDTH = 8


def segmenter(enlarged=False, classes=4):
    """Return a network whose logits are maps, at half of the size of X or enlarged to it."""
    return seeded(Segmenter, classes=classes, width=WIDTH, enlarged=enlarged).double()


def data(n, seed=0):
    """Return images and labels of pixels at half of their size, void and OOD ones among them."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 1, 8, 8))
    y = segmenter()(torch.from_numpy(X)).detach().argmax(1).numpy()
    y[rng.uniform(size=y.shape) < 0.1] = 255
    y[:, 0, 1] = -1
    return X, y


def rows_of(net, X):
    """Return what enters the 1×1 convolution, pixel by pixel."""
    maps = net.backbone(torch.from_numpy(X)).detach()
    return maps.permute(0, 2, 3, 1).reshape(-1, WIDTH).numpy()


def as_rows(detector, net, X, y):
    """Return a detector that was fitted to the pixels that count, as rows."""
    head = None
    if needs_logits(detector):
        head = nn.Linear(WIDTH, net.classifier.out_channels).double().requires_grad_(False)
        head.weight.copy_(net.classifier.weight[..., 0, 0]), head.bias.copy_(net.classifier.bias)
    counts = ((y >= 0) & (y != 255)).ravel()
    return clone(detector).set_params(model=head).fit(rows_of(net, X)[counts], y.ravel()[counts])


def assert_close(found, expected, rtol=1e-8):
    """Compare scores, to the size of all of them."""
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@each(BY_ROW)
def test_pixels_score_as_rows_do(detector):
    net, (X, y), X_new = segmenter(), data(12), data(5, seed=1)[0]
    detector = clone(detector).set_params(**EXACT.get(type(detector).__name__, {}))
    found = clone(detector).set_params(model=net).fit(X, y)
    expected = as_rows(detector, net, X, y)
    scores = found.score_samples(X_new)
    assert scores.shape == (5, 4, 4) and len(np.unique(scores)) > 5
    assert_close(scores.ravel(), expected.score_samples(rows_of(net, X_new)))
    np.testing.assert_array_equal(found.predict(X_new) == -1, scores < found.offset_)
    assert isinstance(found.scorer_, Pixelwise)
    assert found.known_classes_.tolist() == [0, 1, 2, 3]
    if not found.scorer_.folds_by_key:
        spread = np.ptp(scores)
        assert found.offset_ == pytest.approx(expected.offset_, abs=1e-6 * spread)


@each(SCORED, often=KINDS)
def test_chunks_merge_and_pickles(detector):
    net, (X, y) = segmenter(), data(12)
    detector = clone(detector).set_params(model=net, **method_of(detector).fixed)
    expected = clone(detector).fit(X, y)
    parts = [clone(detector).partial_fit(X[i::3], y[i::3]) for i in range(3)]
    found = parts[0].merge(parts[2]).merge(pickle.loads(pickle.dumps(parts[1])))
    scores = expected.score_samples(X)
    assert_close(found.score_samples(X), scores, 1e-7)
    assert found.offset_ == pytest.approx(expected.offset_, abs=1e-6 * np.ptp(scores))
    assert found.n_samples_seen_ == 12 and not hasattr(expected, "_learned")
    twin = pickle.loads(pickle.dumps(expected))
    np.testing.assert_array_equal(twin.score_samples(X), scores)
    assert twin.score(X, y) == expected.score(X, y) > 0


@each(BY_ROW, often={FDBDDetector})
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_export(detector, format, tmp_path):
    net, (X, y) = segmenter().float(), data(12)
    X = X.astype(np.float32)
    found = clone(detector).set_params(model=net).fit(X, y)
    skood.export(found, tmp_path / "graph", X[:2], format=format)
    run = run_graph(tmp_path / "graph", format)
    for rows in (X, X[:1]):
        assert_close(run(rows)[0], found.score_samples(rows), 1e-4)
    skood.save(found, tmp_path / "file")
    twin = skood.load(tmp_path / "file", net)
    np.testing.assert_array_equal(twin.score_samples(X), found.score_samples(X))


@pytest.mark.parametrize("detector", [GMMDetector(), KNNDetector(k=3), EnergyDetector()])
def test_streams_and_labels_at_the_size_of_images(detector):
    """Labels of images of 8 × 8 count for maps of 4 × 4: at each pixel the nearest."""
    net, (X, y) = segmenter(), data(12)
    expected = clone(detector).set_params(model=net).fit(X, y)
    large = y.repeat(2, 1).repeat(2, 2)
    whole = clone(detector).set_params(model=net).fit(X, large)
    stream = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(large)), 5)
    streamed = clone(detector).set_params(model=net).fit(stream)
    for found in (whole, streamed):
        assert found.offset_ == pytest.approx(expected.offset_, rel=1e-9)
        assert_close(found.score_samples(X), expected.score_samples(X))
        assert found.score(X, large) == pytest.approx(expected.score(X, y))
    assert streamed.score(stream) == pytest.approx(expected.score(X, y))
    for wrong in (y[:, :2], large[:, :6, :6]):
        with pytest.raises(ValueError, match=r"labels of pixels, of shape.*\n.*a whole multiple"):
            clone(detector).set_params(model=net).fit(X, wrong)


def test_enlarged_logits():
    """What is in front of the convolution is scored at its size, logits at theirs."""
    X, y = data(12)
    net, plain = segmenter(enlarged=True), segmenter()
    assert torch.equal(net.classifier.weight, plain.classifier.weight)
    large = y.repeat(2, 1).repeat(2, 2)
    for detector in (ViMDetector(), GradNormDetector(), NNGuideDetector(k=3)):
        found = clone(detector).set_params(model=net).fit(X, large)
        expected = clone(detector).set_params(model=plain).fit(X, y)
        assert_close(found.score_samples(X), expected.score_samples(X))
        assert found.score_samples(X).shape == (12, 4, 4)
    assert EnergyDetector(net).fit(X, large).score_samples(X).shape == (12, 8, 8)


def test_labels_of_images_are_those_of_their_pixels():
    net, (X, _) = segmenter(), data(12)
    y = np.array(["a", "b", "b"] * 4, dtype=object)
    y[5] = -1
    maps = np.where(y == "a", 0, np.where(y == "b", 1, -1)).astype(int)
    maps = maps.repeat(16).reshape(12, 4, 4)
    found, expected = (GMMDetector(net).fit(X, labels) for labels in (y, maps))
    assert found.known_classes_.tolist() == ["a", "b"]
    assert_close(found.score_samples(X), expected.score_samples(X))
    assert found.offset_ == pytest.approx(expected.offset_)
    alone = GMMDetector(net).fit(X)
    assert not hasattr(alone, "known_classes_") and alone.score_samples(X).shape == (12, 4, 4)


def test_a_batch_that_fails_teaches_nothing():
    net, (X, y) = segmenter(), data(12)
    detector = GMMDetector(net, batch_size=4).partial_fit(X, y)
    bad = X.copy()
    bad[-1] = 1e308
    state = copy.deepcopy(detector._learned)
    with pytest.raises(ValueError, match=r"NaN or infinity|overflow"):
        detector.partial_fit(bad, y)
    assert torch.equal(detector._learned.state.counts, state.state.counts)
    with pytest.raises(ValueError, match="label 3, which is none"):
        detector.partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="no in-distribution pixel"):
        GMMDetector(net).fit(X, np.full_like(y, 255))


def test_a_head_that_is_not_the_last_step():
    """A 1×1 convolution whose output is clipped gives features, and no logits."""

    class Clipped(Segmenter):
        def forward(self, x):
            return super().forward(x).clamp(-0.5, 0.5)

    net, (X, y) = seeded(Clipped, width=WIDTH).double(), data(12)
    large = y.repeat(2, 1).repeat(2, 2)
    assert KNNDetector(net).fit(X, large).score_samples(X).shape == (12, 4, 4)
    with pytest.raises(ValueError, match="needs .n_samples, n_classes"):
        NNGuideDetector(net).fit(X, large)


@each(REFUSED)
def test_one_number_an_image_is_refused(detector):
    net, X = segmenter(), data(12)[0]
    expected = r"\n.*EnergyDetector\(net\).*KNNDetector\(net\).\n.*layer=\.\.\."
    with pytest.raises(ValueError, match=expected) as error:
        clone(detector).set_params(model=net).fit(X)
    assert str(error.value).count("\n") == 2


def test_detectors_that_change_inputs_take_methods_on_logits():
    for inner in (KNNDetector(segmenter()), MSPDetector(segmenter(), temperature="fit")):
        for detector in (PerturbedDetector(inner, 0.1), TransformsDetector(inner, ["mirror"])):
            with pytest.raises(ValueError, match="scores each pixel of this network as a row"):
                detector.fit(*data(12))


def test_what_needs_one_number_an_image():
    net, (X, y) = segmenter(), data(12)
    for refused in (GrOODDetector(net, ood="noise"), FeatureExtractor(net)):
        with pytest.raises(ValueError, match="needs .n_samples, n_classes"):
            refused.fit(X)
    for one in (LayersDetector(net), GMMDetector(net, "backbone")):
        assert one.fit(X).score_samples(X).shape == (12,)
        with pytest.raises(ValueError, match=r"one score a row.\n.*\n.*KNNDetector\(net\)"):
            clone(one).fit(X, y)
    for detector in (KNNDetector(net), EnergyDetector(net)):
        for method in ("loo", "split"):
            with pytest.raises(ValueError, match="one number a row"):
                ConformalDetector(detector, method).fit(X)


@pytest.mark.parametrize(
    "detector",
    [EnergyDetector(), ReActDetector(), KNNDetector(k=3), NNGuideDetector(k=3), MSPDetector()],
)
def test_samples_are_bounded(detector, monkeypatch):
    """What is kept does not grow with the number of images, and the threshold stays in place."""
    monkeypatch.setattr("skood.learning.accumulated.N_THRESHOLD_ROWS", 600)
    monkeypatch.setattr("skood.learning.pixels.N_BANK_PIXELS", 300)
    net, (X, y) = segmenter(), data(160)
    drawn = {"random_state": 0} if hasattr(detector, "random_state") else {}
    detector = clone(detector).set_params(model=net, **drawn)
    found = clone(detector).fit(X, y)
    share = np.mean(found.predict(X)[(y >= 0) & (y != 255)] == -1)
    assert share == pytest.approx(0.05, abs=0.03)
    if hasattr(found.scorer_, "bank"):
        assert len(found.scorer_.bank) == 300
    if isinstance(detector, ReActDetector):
        return
    again = clone(detector).partial_fit(X[80:], y[80:]).partial_fit(X[:80], y[:80])
    assert again.offset_ == pytest.approx(found.offset_, rel=1e-9)
    assert again._learned.sample.n_kept <= 1300


@pytest.mark.parametrize("detector", [KNNDetector(k=3), EnergyDetector(), ReActDetector()])
def test_the_threshold_moves(detector):
    net, (X, y) = segmenter(), data(12)
    detector = clone(detector).set_params(model=net)
    found = clone(detector).fit(X, y).set_threshold(false_alarm_rate=0.2)
    expected = clone(detector).set_params(false_alarm_rate=0.2).fit(X, y)
    assert found.offset_ == pytest.approx(expected.offset_, rel=1e-12)
    share = np.mean(found.set_threshold(X, y).predict(X)[(y >= 0) & (y != 255)] == -1)
    assert share == pytest.approx(0.2, abs=0.01)
