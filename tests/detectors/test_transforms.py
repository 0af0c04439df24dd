"""Transforms: plain references of each; what learns does so from rows as they are."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skood import (
    EnergyDetector,
    GMMDetector,
    GrOODDetector,
    KNNDetector,
    LayersDetector,
    MahalanobisDetector,
    MSPDetector,
    NACDetector,
    PerturbedDetector,
    SHEDetector,
    StandardizedMaxLogitDetector,
    TransformsDetector,
)
from tests.detectors import Method
from tests.networks import Segmenter, SmallCNN, seeded
from tests.parity import DTYPES, TOLERANCE

METHOD = Method(
    settings={
        "default": TransformsDetector(EnergyDetector(), ["noise"]),
        "learns": TransformsDetector(
            KNNDetector(k=3), ["contrast", "noise"], combine="min", batch_size=7
        ),
    },
    in_networks={
        "default": TransformsDetector(EnergyDetector(), ["mirror", "shift"]),
        "learns": TransformsDetector(MahalanobisDetector(reg_covar=0.1), ["blur", "contrast"]),
    },
    gives_maps=True,
    refuses={"BERT": "take arrays of floats"},
)


def reference(name, X):
    """Return each transform of a name, row by row and pixel by pixel."""
    n, n_channels, height, width = X.shape
    moves = {"mirror": [None], "shift": [(-1, 0), (1, 0), (0, -1), (0, 1)], "blur": [None]}
    outputs = [np.zeros_like(X) for _ in moves.get(name, [None])]
    field = np.random.RandomState(0).standard_normal(X.shape[1:])
    for out, move in zip(outputs, moves.get(name, [None]), strict=True):
        for i in range(n):
            for c in range(n_channels):
                for a in range(height):
                    for b in range(width):
                        if name == "mirror":
                            value = X[i, c, a, width - 1 - b]
                        elif name == "shift":
                            y, x = a - move[0], b - move[1]
                            inside = 0 <= y < height and 0 <= x < width
                            value = X[i, c, y, x] if inside else 0
                        elif name == "blur":
                            value = 0
                            for dy, dx in np.ndindex(3, 3):
                                y, x = (
                                    min(max(at + d - 1, 0), size - 1)
                                    for at, d, size in ((a, dy, height), (b, dx, width))
                                )
                                value += (1, 2, 1)[dy] * (1, 2, 1)[dx] / 16 * X[i, c, y, x]
                        elif name == "contrast":
                            value = X[i, c].mean() + (X[i, c, a, b] - X[i, c].mean()) / 2
                        else:
                            value = X[i, c, a, b] + 0.1 * X[i].std() * field[c, a, b]
                        out[i, c, a, b] = value
    return outputs


@DTYPES
@pytest.mark.parametrize("name", ["mirror", "shift", "blur", "contrast", "noise"])
def test_parity(rng, name, dtype):
    net, X = seeded(SmallCNN).to(dtype), rng.normal(size=(20, 1, 8, 8))
    X = torch.as_tensor(X).to(dtype).numpy()
    energy = EnergyDetector(net).fit(X)
    scores = np.stack([energy.score_samples(x) for x in (X, *reference(name, X))])
    tolerance = TOLERANCE[dtype]
    for settings, expected in (
        ({}, scores.mean(0)),
        ({"combine": "min"}, scores.min(0)),
        ({"include_input": False}, scores[1:].mean(0)),
    ):
        found = TransformsDetector(EnergyDetector(net), [name], **settings).fit(X)
        np.testing.assert_allclose(found.score_samples(X), expected, tolerance)
        assert (expected < found.offset_).sum() == 1


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    "inner",
    [
        KNNDetector(k=3),
        MahalanobisDetector(reg_covar=0.1),
        GMMDetector(reg_covar=0.1),
        MSPDetector(temperature="fit"),
        NACDetector(layers=["conv2"]),
    ],
    ids=lambda d: type(d).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_learns_from_rows_as_they_are(images, inner):
    X, y = images
    include_input = not isinstance(inner, GMMDetector)
    X, net = X.astype(np.float64), seeded(SmallCNN).double()
    plain = clone(inner).set_params(model=net)
    detector = TransformsDetector(plain, ["mirror", double], include_input=include_input)
    scores = detector._fit(X, y).numpy()
    fitted = clone(plain).fit(X, y)
    inputs = [X[..., ::-1].copy(), 2 * X, *([X] if include_input else [])]
    expected = np.mean([fitted.score_samples(x) for x in inputs], 0)
    np.testing.assert_allclose(detector.score_samples(X), expected, 1e-9)
    if isinstance(inner, KNNDetector):
        for i in (0, 7):
            rest = np.arange(24) != i
            refitted = clone(plain).fit(X[rest], y[rest])
            left_out = np.mean([refitted.score_samples(x[[i]]) for x in inputs])
            np.testing.assert_allclose(scores[i], left_out, 1e-9)
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.score_samples(X), detector.score_samples(X))


@pytest.mark.parametrize("layers", [["conv1", "conv2"], ["conv2"]])
def test_of_several_layers(images, layers):
    """What `LayersDetector` calibrates on training rows it does so on transformed ones."""
    X, y = images
    net = seeded(SmallCNN)
    inner = LayersDetector(layers=layers, detector=KNNDetector(k=2), combine="std")
    detector = TransformsDetector(inner, ["mirror"], model=net)
    scores = detector._fit(X, y).numpy()
    assert scores.shape == (24,) and detector.layers_ == layers
    scorer = detector.scorer_.scorer
    parts = [KNNDetector(net, layer, k=2, normalize=True).fit(X, y) for layer in layers]
    at = [[part.score_samples(x) for part in parts] for x in (X, X[..., ::-1].copy())]
    expected = (np.mean(at, 0).T - scorer.centers.numpy()) / scorer.scales.numpy()
    np.testing.assert_allclose(detector.score_samples(X), expected.sum(1), 1e-4, 1e-4)


def test_what_else_a_method_learns_by(images):
    """The labels of the columns, those of pixels, and noise in the range of X."""
    X, y = images
    cnn, segmenter = seeded(SmallCNN), seeded(Segmenter)
    pixels = np.random.default_rng(0).integers(-1, 3, size=(len(X), 8, 8))
    for inner, labels in (
        (SHEDetector(cnn), y + 5),
        (GrOODDetector(cnn, ood="noise", random_state=0), y),
        (StandardizedMaxLogitDetector(segmenter), pixels),
    ):
        plain = clone(inner).fit(X, labels)
        found = TransformsDetector(inner, [double]).fit(X, labels)
        for name, buffer in plain.scorer_.named_buffers():
            learned = dict(found.scorer_.named_buffers())
            of_name = [learned[key] for key in learned if key.endswith(f"scorer.{name}")]
            torch.testing.assert_close(of_name[0], buffer)


def test_a_transform_may_write_to_what_it_is_given(images):
    X, _ = images
    net, before = seeded(SmallCNN), images[0].copy()
    writing = TransformsDetector(EnergyDetector(net), [lambda x: x.mul_(2), lambda x: x]).fit(X)
    plain = TransformsDetector(EnergyDetector(net), [double, lambda x: x]).fit(X)
    np.testing.assert_array_equal(writing.score_samples(X), plain.score_samples(X))
    np.testing.assert_array_equal(X, before)


def test_of_what_moves_by_what_it_learns(images):
    inner = PerturbedDetector(MahalanobisDetector(seeded(SmallCNN), reg_covar=0.1), 0.05)
    with pytest.raises(ValueError, match="Transform inside of it"):
        TransformsDetector(inner, ["mirror"]).fit(*images)


def test_of_a_network_that_it_is_given(images):
    X, y = images
    net = seeded(SmallCNN)
    inside = TransformsDetector(KNNDetector(net, k=3), ["mirror"]).fit(X, y)
    outside = TransformsDetector(KNNDetector(k=3), ["mirror"], model=net).fit(X, y)
    np.testing.assert_array_equal(inside.score_samples(X), outside.score_samples(X))
    assert inside.k_ == 3 and inside.accuracy_ == outside.accuracy_


def test_maps_are_mirrored_back(images):
    X, _ = images
    net = seeded(Segmenter)
    energy = EnergyDetector(net).fit(X)
    expected = energy.score_samples(X[..., ::-1].copy())[..., ::-1] + energy.score_samples(X)
    found = TransformsDetector(EnergyDetector(net), ["mirror"]).fit(X).score_samples(X)
    np.testing.assert_allclose(found, expected / 2, 1e-5)
    with pytest.raises(ValueError, match="Leave out 'shift'"):
        TransformsDetector(EnergyDetector(net), ["shift"]).fit(X)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (["rotate"], "transforms has 'rotate': name 'mirror', 'shift'"),
        ([], "names no transform"),
        (["mirror"], r"transforms=\['mirror'\] take images"),
        ([lambda x: x[:, :2]], r"A transform maps X of shape \(\d+, 4\)"),
        ("mirror", "'transforms' parameter"),
    ],
)
def test_bad_transforms(transforms, message, iris):
    with pytest.raises(ValueError, match=message):
        TransformsDetector(EnergyDetector(), transforms).fit(*iris)


def test_tokens_take_callables(rng):
    net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(12, 3))
    ids = rng.integers(0, 9, size=(30, 3))
    with pytest.raises(ValueError, match="take arrays of floats"):
        TransformsDetector(EnergyDetector(net), ["noise"]).fit(ids)
    backwards = TransformsDetector(EnergyDetector(net), [lambda ids: ids.flip(1)]).fit(ids)
    energy = EnergyDetector(net).fit(ids)
    expected = energy.score_samples(ids) + energy.score_samples(ids[:, ::-1].copy())
    np.testing.assert_allclose(backwards.score_samples(ids), expected / 2, 1e-5)
