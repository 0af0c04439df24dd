"""Gram: sums without matrices, bounds without a row, classes without rows, padding."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import GramDetector
from skood.detectors.layers.gram import gram_sums
from tests.detectors import NEEDS_VECTORS, Method
from tests.networks import Segmenter, SmallCNN, seeded
from tests.parity import DTYPES, assert_parity, cast

INSIDE = "Rows of fit are never outside of the bounds that they span: none is called OOD."

METHOD = Method(
    settings={
        "default": GramDetector(),
        "labels": GramDetector(powers=[1, 4], by="label", eps=1e-6, batch_size=7),
    },
    in_networks={
        "stages": GramDetector(layers=["relu:0", "relu:1"]),
        "labels": GramDetector(layers=["conv2", None], by="label", divide_by_msp=False),
    },
    refuses={"segmenter": NEEDS_VECTORS},
    excused=dict.fromkeys(["check_outliers_fit_predict", "check_outliers_train"], INSIDE),
)
LABELS_OR_NOT = pytest.mark.parametrize("by", ["predicted", "label"])


# The reference


def sums_by_matrices(z, powers):
    """Return the sums of the rows of the Gram matrices of one sample (N, P), power by power."""
    found = []
    for p in powers:
        matrix = z**p @ (z**p).T
        found += [np.sign(row.sum()) * abs(row.sum()) ** (1 / p) for row in matrix]
    return np.array(found)


def bounds(sums, groups, group):
    """Return the least and largest sums of a group, of all rows where it has fewer than two."""
    rows = sums[groups == group] if (groups == group).sum() > 1 else sums
    return rows.min(0), rows.max(0)


def deviation(row, low, high, eps):
    """Return by how much of themselves the bounds are missed, one sum after the other."""
    total = 0.0
    for g, a, b in zip(row, low, high, strict=True):
        total += max(a - g, 0) / (abs(a) + eps) + max(g - b, 0) / (abs(b) + eps)
    return total


def gram_expected(layers, groups, eps):
    """Return E of each layer: the mean deviation of rows from the bounds of the others."""
    expected = []
    for sums, e in zip(layers, eps, strict=True):
        left = [(np.delete(sums, i, 0), np.delete(groups, i)) for i in range(len(sums))]
        deviations = [
            deviation(row, *bounds(*others, group), e)
            for row, others, group in zip(sums, left, groups, strict=True)
        ]
        expected.append(np.mean(deviations))
    return expected


def gram_scores(layers, groups, new, predicted, p, eps="auto"):
    """Return the scores of rows, from the sums of training rows at each layer."""
    if eps == "auto":
        every = range(p.shape[1])
        means = [np.mean(np.abs([bounds(sums, groups, k) for k in every])) for sums in layers]
        eps = [0.1 * mean for mean in means]
    else:
        eps = [eps] * len(layers)
    expected = gram_expected(layers, groups, eps)
    scores = []
    for i, k in enumerate(predicted):
        total = 0.0
        for sums, rows, e, mean in zip(layers, new, eps, expected, strict=True):
            total += deviation(rows[i], *bounds(sums, groups, k), e) / mean
        scores.append(-total / p[i].max())
    return np.array(scores)


class Net(SmallCNN):
    """A network whose layers can be read."""

    @torch.no_grad()
    def read(self, X):
        """Return what its two stages and the last layer give."""
        first = self.bn(self.conv1(torch.as_tensor(X))).relu()
        second = self.conv2(first).relu()
        return first, second, self.fc(second.mean((2, 3)))


@pytest.fixture
def net(rng):
    """Return a network with float64 weights, whose predictions differ."""
    net = seeded(Net).double().eval()
    with torch.no_grad():
        net.fc.bias -= net.read(rng.normal(size=(40, 1, 8, 8)))[-1].mean(0)
    return net


@pytest.fixture
def rows(rng):
    """Return images and labels to fit on, of one class a single one, and images to score."""
    X = rng.normal(size=(40, 1, 8, 8))
    return X, np.r_[3, np.arange(39) % 3], 1.5 * rng.normal(size=(20, 1, 8, 8))


def sums_of(net, X, powers):
    """Return the sums of both stages of all rows, and the logits."""
    *layers, logits = (t.double().numpy() for t in net.read(X))
    return [
        np.stack([sums_by_matrices(z.reshape(len(z), -1), powers) for z in maps]) for maps in layers
    ], logits


# Equal to it


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e30], ids=str)
@pytest.mark.parametrize("signed", [False, True])
def test_sums_without_matrices(rng, scale, signed):
    """Of channels of other sizes, one of zeros, and a row of zeros."""
    z = rng.normal(size=(5, 6, 9)) * np.logspace(-2, 0, 6)[:, None]
    z = z if signed else np.maximum(z, 0)
    z[0], z[:, 2], powers = 0, 0, [1, 2, 5, 10]
    expected = np.stack([sums_by_matrices(one, powers).reshape(4, 6).T for one in z])
    expected = np.sign(expected) * np.sqrt(np.abs(expected)) * scale
    for dtype, rtol in ((torch.float64, 1e-8), (torch.float32, 1e-4)):
        found = gram_sums(torch.as_tensor(scale * z).to(dtype), powers)
        assert found.dtype == dtype
        np.testing.assert_allclose(found.numpy(), expected, rtol, rtol * scale * 1e-2)


@DTYPES
@LABELS_OR_NOT
@pytest.mark.parametrize("eps", ["auto", 1e-6])
@pytest.mark.filterwarnings("ignore:.*fewer than two")
def test_parity(net, rows, dtype, by, eps):
    X, y, X_new = rows
    powers = [1, 2, 3] if eps == "auto" else [2, 5]
    layers, logits = sums_of(net, X, powers)
    new, new_logits = sums_of(net, X_new, powers)
    groups = y if by == "label" else logits.argmax(1)
    p = torch.softmax(torch.as_tensor(new_logits), 1).numpy()
    expected = gram_scores(layers, groups, new, new_logits.argmax(1), p, eps)
    net, X, X_new = cast(net, [X, X_new], dtype)
    detector = GramDetector(net, powers=powers, by=by, eps=eps).fit(X, y)
    assert detector.layers_ == ["relu:0", "relu:1"]
    assert_parity(detector.score_samples(X_new), expected, dtype)


@LABELS_OR_NOT
@pytest.mark.filterwarnings("ignore:.*fewer than two")
def test_rows_left_out(net, rows, by, left_out):
    """As refits do, but for E; among them the only row of a class, and one of two."""
    X = rows[0][:24]
    y = np.r_[3, 2, 2, np.arange(21) % 2]
    settings = {"layers": ["relu:0", None], "by": by, "eps": 1e-3, "divide_by_msp": False}
    detector = GramDetector(net, **settings)
    found, E = left_out(detector, X, y), detector.scorer_.expected
    assert len(np.unique(net.read(X)[-1].argmax(1))) > 2
    expected = []
    for i in range(24):
        refitted = GramDetector(net, **settings).fit(np.delete(X, i, 0), np.delete(y, i))
        refitted.scorer_.expected = E
        expected.append(refitted.score_samples(X[i : i + 1])[0])
    np.testing.assert_allclose(found, expected, 1e-8, 1e-10)
    layers = detector._body(torch.as_tensor(X))[:2]
    groups = y if by == "label" else net.read(X)[-1].argmax(1).numpy()
    sums = [(x * x.abs()).numpy() for x in layers]
    np.testing.assert_allclose(E, gram_expected(sums, groups, [1e-3] * 2), 1e-8)


def test_fresh_rows_are_flagged_as_often_as_told(rng):
    """Training rows that are not left out are never outside: of these 0 would be the threshold."""
    head = seeded(nn.Linear, 200, 3).double()
    X, fresh = (np.maximum(rng.normal(size=(n, 200)) + 1, 0) for n in (400, 1000))
    detector = GramDetector(head).fit(X)
    assert 0.02 < (detector.predict(fresh) == -1).mean() < 0.09
    assert (detector.score_samples(X) == 0).all()
    assert (detector.score_samples(fresh) < 0).mean() > 0.3


# Traps


def test_a_class_that_is_not_predicted_in_fit(rng):
    head = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(torch.eye(3))
    X = np.abs(rng.normal(size=(60, 3))) * [1, 1, 0.01]
    with pytest.warns(UserWarning, match="To 1 of 3 classes fewer than two rows of fit count"):
        detector = GramDetector(head).fit(X)
    scores = detector.score_samples([[0.1, 0.1, 0.2], [0.5, 0.4, 1e-3], [0.5, 0.4, 5.0]])
    assert np.isfinite(scores).all() and scores[2] < scores[0] < 0 == scores[1]


def test_layers_that_tell_nothing_are_left_out(net, rows):
    X, y, X_new = rows
    net.bn.register_forward_hook(lambda _, args, output: torch.ones_like(output))
    with pytest.warns(UserWarning, match=r"At \['bn'\] no training row is outside"):
        detector = GramDetector(net, ["bn", "conv1"]).fit(X, y)
    alone = GramDetector(net, ["conv1"]).fit(X, y)
    np.testing.assert_allclose(detector.score_samples(X_new), alone.score_samples(X_new))
    assert detector.offset_ == pytest.approx(alone.offset_)


def test_bounds_of_zero(rng):
    """A channel that is silent in training does not outweigh all others."""
    head = seeded(nn.Linear, 4, 2).double()
    X = np.abs(rng.normal(size=(80, 4))) * [1, 1, 1, 0]
    near = np.array([[0.5, 0.5, 0.5, 1e-3]])
    auto, tiny = (GramDetector(head, eps=eps).fit(X).score_samples(near) for eps in ("auto", 1e-6))
    assert auto > -2 and tiny < -20


class Tokens(nn.Module):
    """Tokens to logits, with padding left out, channels last or first."""

    def __init__(self, channels_first=False):
        super().__init__()
        self.embed, self.fc = nn.Linear(5, 6), nn.Linear(6, 3)
        self.turn = nn.Identity()
        self.channels_first = channels_first

    def forward(self, x, attention_mask):
        """Map (n, T, 5) and (n, T) to logits."""
        tokens = self.embed(x).relu()
        tokens = self.turn(tokens.mT if self.channels_first else tokens)
        tokens = tokens.mT if self.channels_first else tokens
        counts = attention_mask[:, :, None]
        return self.fc((tokens * counts).sum(1) / counts.sum(1))


def test_padding_does_not_count(rng):
    X, mask = rng.normal(size=(30, 7, 5)).astype("f"), np.ones((30, 7), "f")
    short = {"x": X[:, :4].copy(), "attention_mask": mask[:, :4].copy()}
    mask[:, 4:] = 0
    scores = [
        GramDetector(seeded(Tokens), ["embed"]).fit(given).score_samples(given)
        for given in (short, {"x": X, "attention_mask": mask})
    ]
    np.testing.assert_allclose(*scores, 1e-4, 1e-5)


def test_axis_of_the_channels(rng):
    given = {"x": rng.normal(size=(30, 6, 5)).astype("f"), "attention_mask": np.ones((30, 6), "f")}
    last = GramDetector(seeded(Tokens), ["turn"], channel_axis=-1).fit(given)
    first = GramDetector(seeded(Tokens, True), ["turn"], channel_axis=[1]).fit(given)
    np.testing.assert_allclose(last.score_samples(given), first.score_samples(given), 1e-5)
    wrong = GramDetector(seeded(Tokens, True), ["turn"], channel_axis=2).fit(given)
    assert wrong.offset_ != pytest.approx(first.offset_)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"powers": []}, "integers from 1 on"),
        ({"powers": [0, 1]}, "integers from 1 on"),
        ({"powers": [1.5]}, "integers from 1 on"),
        ({"layers": []}, "at least one layer"),
        ({"layers": ["conv1", "conv1"]}, "each once"),
        ({"channel_axis": [1, 1, 1]}, "channel_axis has 3 entries for 2 layers"),
        ({"eps": 0.0}, "'eps' parameter"),
        ({"model": None, "layers": ["conv1"]}, "there is no network"),
        ({"model": seeded(Segmenter)}, "needs .n_samples, n_classes"),
    ],
    ids=str,
)
def test_bad_parameters(images, params, match):
    X, y = images
    X = X.reshape(len(X), -1) if params.get("model", 0) is None else X
    with pytest.raises(ValueError, match=match):
        GramDetector(**{"model": seeded(SmallCNN), **params}).fit(X, y)
