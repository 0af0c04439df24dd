"""Why rows score as they do: contributions add up, neighbours are the nearest."""

import numpy as np
import pandas as pd
import pytest
import torch

from skood import (
    EnergyDetector,
    GMMDetector,
    KNNDetector,
    LayersDetector,
    MahalanobisDetector,
    NNGuideDetector,
)
from tests.networks import SmallCNN, seeded

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
]
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
    if detector.combine != "concat":
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
        assert found._repr_html_().count("<img") == 4 * 4


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
    with pytest.raises(TypeError, match="EnergyDetector does not say"):
        EnergyDetector().fit(X, y).explain(new)
    with pytest.raises(ValueError, match="no neighbours"):
        GMMDetector().fit(X, y).explain(new, X)
    with pytest.raises(ValueError, match="not fitted"):
        GMMDetector().explain(new)
    with pytest.raises(ValueError, match="NaN"):
        GMMDetector().fit(X, y).explain(np.full((1, 5), np.nan))
    assert torch.is_grad_enabled()
