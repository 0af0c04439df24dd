"""Why rows score as they do: contributions add up, neighbours are the nearest."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skood import (
    EnergyDetector,
    GMMDetector,
    GramDetector,
    KNNDetector,
    LayersDetector,
    MahalanobisDetector,
    NACDetector,
    NNGuideDetector,
    ODINDetector,
)
from skood.testing.common import assert_untouched, random_images, snapshot
from tests.networks import SmallCNN, seeded
from tests.registry import DEFAULTS, IN_NETWORKS, KINDS, each, fitted, name_of

ON_FEATURES = [
    *(
        GMMDetector(covariance_type=kind, criterion=criterion)
        for kind in ("full", "tied", "diag", "spherical")
        for criterion in ("log_likelihood", "mahalanobis")
    ),
    *(MahalanobisDetector(normalize=n, relative=r) for n in (True, False) for r in (True, False)),
    *(KNNDetector(k=3, normalize=n, mean=m) for n in (True, False) for m in (True, False)),
    KNNDetector(k=3, times_norm=True),
    NNGuideDetector(k=3),
    NNGuideDetector(k=3, energy_weighted=False),
]
LAYERS = ["conv1", None]
IN_LAYERS = [
    *(LayersDetector(None, LAYERS, combine=how) for how in ("sum", "std", "fisher", "min")),
    LayersDetector(None, LAYERS, combine="concat", detector=GMMDetector()),
    LayersDetector(None, LAYERS, weights=[1.0, 3.0], detector=MahalanobisDetector()),
    LayersDetector(None, LAYERS, combine="concat"),
    GramDetector(None, LAYERS),
    GramDetector(None, LAYERS, divide_by_msp=False),
    NACDetector(None, LAYERS),
]
# Scores that step, or that depend on X by gradients which are taken as they are.
WITHOUT_GRADIENT = ("NAC", "CFOOD", "ODIN", "Perturbed", "AdaSCALE-network", "GAIA-network")
WITHOUT_GRADIENT += ("GradNorm-network-all", "GradNorm-network-l2")
pytestmark = pytest.mark.filterwarnings("ignore:.*is singular", "ignore:The largest logit")


def data(rng, dtype=np.float64):
    y = np.arange(90) % 3
    X = (rng.normal(size=(90, 5)) * [1, 2, 1, 1, 0.5] + 3 * np.eye(3, 5)[y]).astype(dtype)
    return X, y, (2 * rng.normal(size=(12, 5))).astype(dtype)


def assert_adds_up(explanation, scores, dtype):
    total = explanation.base + explanation.contributions.sum(1)
    tolerance = 1e-9 if dtype is np.float64 else 3e-4
    np.testing.assert_array_equal(explanation.scores, scores)
    scale = np.abs(explanation.contributions).sum(1).max()
    np.testing.assert_allclose(total, scores, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("detector", ON_FEATURES, ids=repr)
def test_contributions_of_features_add_up(detector, dtype, rng):
    X, y, new = data(rng, dtype)
    detector = detector.fit(X, y)
    explanation = detector.explain(new)
    assert explanation.contributions.shape == new.shape
    assert explanation.names == [0, 1, 2, 3, 4] and explanation.offset == detector.offset_
    assert_adds_up(explanation, detector.score_samples(new), dtype)


@pytest.mark.parametrize("detector", IN_LAYERS, ids=repr)
def test_contributions_of_layers_add_up(detector, images):
    X, y = images
    detector = detector.set_params(model=seeded(SmallCNN)).fit(X, y)
    explanation = detector.explain(X[:5] + 0.5)
    assert_adds_up(explanation, detector.score_samples(X[:5] + 0.5), X.dtype.type)
    if isinstance(detector, NACDetector):
        assert explanation.names[:2] == ["conv1 0", "conv1 1"]
        assert explanation.names[-1].startswith("features ")
        assert (explanation.base == 1).all() and explanation.contributions.max() <= 0
    elif isinstance(detector, GramDetector) or detector.combine != "concat":
        assert explanation.names == ["conv1", "features"]


def test_distances_of_gaussians_by_their_definition(rng):
    X, y, new = data(rng)
    label = np.array(["a", "b", "c"])[y]
    detector = GMMDetector(reg_covar=0.1).fit(X, label)
    found = detector.explain(new)
    for i, row in enumerate(new):
        each = {}
        for name in "abc":
            own = X[label == name]
            inverse = np.linalg.inv(np.cov(own.T, bias=True) + 0.1 * np.eye(5))
            delta = row - own.mean(0)
            each[name] = (-delta * (inverse @ delta) / 2, np.linalg.slogdet(inverse)[1] / 2)
        nearest = max(each, key=lambda name: each[name][0].sum() + each[name][1])
        assert found.nearest_class[i] == nearest
        np.testing.assert_allclose(found.contributions[i], each[nearest][0], rtol=1e-8)
    tied = MahalanobisDetector(normalize=False, reg_covar=0.1).fit(X, y).explain(new)
    means = np.stack([X[y == k].mean(0) for k in range(3)])
    inverse = np.linalg.inv(np.cov((X - means[y]).T, bias=True, ddof=0) + 0.1 * np.eye(5))
    delta = new - means[tied.nearest_class]
    np.testing.assert_allclose(tied.contributions, -delta * (delta @ inverse), rtol=1e-7)


@pytest.mark.parametrize("bank_size", [None, 40])
@pytest.mark.parametrize("normalize", [True, False])
def test_neighbours_are_the_nearest_rows(normalize, bank_size, rng):
    X, y, new = data(rng)
    X[7] = X[3]
    detector = KNNDetector(k=4, normalize=normalize, bank_size=bank_size, random_state=0).fit(X)
    found = detector.explain(new, X)
    unit = (lambda rows: rows / np.linalg.norm(rows, axis=1)[:, None]) if normalize else np.array
    distances = np.linalg.norm(unit(new)[:, None] - unit(X), axis=2)
    picked = np.take_along_axis(distances, found.neighbors, 1)
    np.testing.assert_allclose(found.distances, picked, atol=1e-12)
    np.testing.assert_allclose(-found.distances[:, -1], found.scores, atol=1e-12)
    assert (np.diff(found.distances) >= 0).all()
    if bank_size is None:
        np.testing.assert_allclose(found.distances, np.sort(distances)[:, :4], atol=1e-12)
    # Others than those of fit are none of them.
    assert (detector.explain(new, X + 0.1).neighbors == -1).all()


def test_neighbours_in_a_network(images):
    X, y = images
    for detector in (KNNDetector(seeded(SmallCNN), k=3), NNGuideDetector(seeded(SmallCNN), k=3)):
        found = detector.fit(X, y).explain(X[:4], X)
        assert found.neighbors.shape == (4, 3) and found.neighbors.min() >= 0
        if isinstance(detector, KNNDetector):
            assert found.neighbors[:, 0].tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(found.neighbor_rows, X[found.neighbors])
        assert found._repr_html_().count("<img") == 4 * 5


def test_names_rows_and_tables(rng):
    X, y, new = data(rng)
    frame = pd.DataFrame(X, columns=list("abcde"))
    detector = GMMDetector().fit(frame, y)
    found = detector.explain(frame[:4].assign(c=9.0))
    assert found.names == list("abcde") and found.top(0, 2)[0][0] == "c"
    values = [value for _, value in found.top(1, 5)]
    assert values == sorted(values)
    table = found.to_frame()
    assert list(table) == ["score", "offset", "nearest_class", "base", *"abcde"]
    np.testing.assert_allclose(table[["base", *"abcde"]].sum(axis=1), table.score)
    assert len(found[1:3]) == 2 and found[2].scores[0] == found.scores[2]
    html = found._repr_html_()
    assert html.count("out-of-distribution") == 4 and "nearest class" in html
    assert "Explanation of 4 rows" in repr(found)
    np.testing.assert_array_equal(GMMDetector().fit(X).explain(new).nearest_class, None)


def test_equal_and_huge_rows_are_numbers(rng):
    X, y, _ = data(rng)
    for detector in ON_FEATURES:
        found = detector.fit(X, y).explain(np.r_[X[:1], np.zeros((1, 5)), np.full((1, 5), 1e30)])
        assert np.isfinite(found.contributions).all()


def test_what_has_nothing_to_say(rng):
    X, y, new = data(rng)
    with pytest.raises(TypeError, match="ODINDetector does not say"):
        ODINDetector().fit(X, y).explain(new)
    with pytest.raises(ValueError, match="no neighbours"):
        GMMDetector().fit(X, y).explain(new, X)
    with pytest.raises(ValueError, match="not fitted"):
        GMMDetector().explain(new)
    with pytest.raises(ValueError, match="NaN"):
        GMMDetector().fit(X, y).explain(np.full((1, 5), np.nan))
    assert torch.is_grad_enabled()


@each([*DEFAULTS, *IN_NETWORKS], often=KINDS)
def test_gradients_are_those_of_small_differences(detector, rng):
    if any(detector is one for one in IN_NETWORKS):
        X, y = random_images()
        X, net = X.astype(np.float64), seeded(SmallCNN).double()
        found = clone(detector).set_params(model=net).fit(X, y)
    else:
        found, X = fitted(detector), 4.0 + rng.normal(size=(12, 4))
    X = X[:12] + 0.3 * rng.normal(size=X[:12].shape)
    if name_of(detector).startswith(WITHOUT_GRADIENT):
        # Those that say something all the same do so without.
        says = getattr(found.scorer_, "explain", None)
        assert says is None or found.explain(X).gradient is None
        return
    gradient, step = found.explain(X).gradient, 1e-6 * rng.normal(size=X.shape)
    assert gradient.shape == X.shape
    expected = (gradient * step).reshape(len(X), -1).sum(1)
    up, down = found.score_samples(X + step), found.score_samples(X - step)
    same = np.isclose((up - down) / 2, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    # A row may lie at an edge.
    assert same.mean() > 0.8


def test_gradients_come_with_the_rows(images):
    """Whatever they come in and in which batches; networks and rows stay what they are."""
    X, y = images
    net = seeded(SmallCNN)
    before, rows = snapshot(net), X[:7].copy()
    detector = EnergyDetector(net, batch_size=3).fit(X, y)
    found = detector.explain(rows)
    assert_untouched(net, before)
    np.testing.assert_array_equal(rows, X[:7])
    np.testing.assert_array_equal(found.scores, detector.score_samples(rows))
    shuffled = DataLoader(TensorDataset(torch.from_numpy(rows)), batch_size=2, shuffle=True)
    other = detector.explain(shuffled)
    order = [int(np.abs(found.scores - score).argmin()) for score in other.scores]
    assert sorted(order) == list(range(7))
    np.testing.assert_allclose(other.gradient, found.gradient[order], rtol=1e-3, atol=1e-6)
    html = found._repr_html_()
    assert html.count("<img") == 2 * 7 and "gradient" in html


def test_gradients_of_tables(rng):
    X, y, new = data(rng)
    frame = pd.DataFrame(X, columns=["<b>", *"bcde"])
    found = EnergyDetector().fit(frame, y).explain(frame[:2])
    assert found.columns == ["<b>", *"bcde"] and found.contributions is None
    html = found._repr_html_()
    assert "gradient of the score by each column" in html and "&lt;b&gt;" in html
    assert "<td><b>" not in html
    with pytest.raises(ValueError, match="no contributions"):
        found.top(0)
    # A row of zeros has no direction.
    zero = KNNDetector().fit(X).explain(np.zeros((1, 5)))
    assert np.isfinite(zero.gradient).all()


def test_tokens_and_maps_have_no_gradient(images):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.embedding(x).mean(1))

    X = np.random.default_rng(0).integers(0, 9, (60, 5))
    found = GMMDetector(seeded(Tokens)).fit(X, X[:, 0] % 3).explain(X[:4])
    assert found.gradient is None and found.contributions.shape == (4, 4)
    maps = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with pytest.raises(TypeError, match="one score a row"):
        EnergyDetector(maps).fit(images[0]).explain(images[0][:2])
