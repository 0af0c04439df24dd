"""NAC's settings: right at any number of rows and any scale, one a layer, told when they fail."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from torch import nn

import skood
from skood import NACDetector
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score
from tests import references as ref
from tests.networks import SmallCNN, seeded


def auroc(detector, X, ood):
    """Return how well scores tell rows from OOD rows."""
    labels = np.repeat([1, -1], [len(X), len(ood)])
    return auroc_score(labels, detector.score_samples(np.concatenate([X, ood])))


def relu_features(rng, n_rows, spread=1.0):
    """Draw features of four classes as a ReLU network has them; return the centres too."""
    centres = 3 * np.random.default_rng(0).random((4, 16))
    rows = centres[rng.integers(0, 4, n_rows)] + spread * rng.normal(size=(n_rows, 16))
    return np.maximum(rows, 0), centres


@pytest.fixture
def head():
    """Return a linear head that tells the classes of `relu_features` apart."""
    _, centres = relu_features(np.random.default_rng(0), 1)
    linear = nn.Linear(16, 4).double()
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(centres))
        linear.bias.copy_(torch.from_numpy(-(centres**2).sum(1) / 2))
    return linear


def test_many_rows_are_as_good_as_few(head, rng):
    X, new, ood = (relu_features(rng, n, s)[0] for n, s in ((40_000, 1), (2000, 1), (2000, 2)))
    few, many = (
        auroc(NACDetector(head, random_state=0).fit(X[:n]), new, ood) for n in (1000, 40_000)
    )
    assert few > 0.65
    assert many > few - 0.01


def test_features_of_length_one_are_not_upside_down():
    """OOD rows lie in the fullest bins there, those around 0, unless states are steep enough."""
    data = load_digits_ood(as_images=False)
    detector = make_pipeline(PCA(32, whiten=True), Normalizer(), NACDetector(random_state=0))
    detector.fit(data.X_train, data.y_train)
    for ood in data.ood.values():
        assert auroc(detector, data.X_test, ood) > 0.9


@pytest.mark.parametrize("bins", ["log", "geometric"])
def test_the_scale_of_features_does_not_matter(head, rng, bins):
    X, new = (relu_features(rng, n, 1.5)[0] for n in (300, 100))
    small = nn.Linear(16, 4).double()
    small.load_state_dict({"weight": head.weight / 16, "bias": head.bias})
    scores = NACDetector(head, bins=bins).fit(X).score_samples(new)
    scaled = NACDetector(small, bins=bins).fit(16 * X).score_samples(16 * new)
    np.testing.assert_array_equal(scores, scaled)


def test_equal_scores_of_most_rows_are_told(head, rng):
    X, _ = relu_features(rng, 20_000)
    with pytest.warns(UserWarning, match="100% of the training rows score the same with o_star=1,"):
        NACDetector(head, o_star=1).fit(X)
    with warnings.catch_warnings(action="error"):
        NACDetector(head).fit(X)


MIXED = [
    {"n_bins": [8, 50], "alpha": [3.0, 2.0], "o_star": [4, 2.5]},
    {"n_bins": (50, 20)},
    {"n_bins": np.array([7, 12]), "bins": "geometric"},
]


@pytest.fixture
def pictures(images):
    """Return images and a network for them, in float64."""
    return seeded(SmallCNN).double(), images[0].astype(np.float64)


@pytest.mark.parametrize("settings", MIXED)
def test_numbers_of_bins_of_layers(pictures, settings, tmp_path):
    net, X = pictures
    layers = ["conv1", None]
    detector = NACDetector(net, layers, **settings).fit(X[:16])
    products = [ref.nac_products(net, x, layers) for x in (X[:16], X)]
    scores = detector.score_samples(X)
    np.testing.assert_allclose(scores, ref.nac_scores(*products, **settings), rtol=1e-10)
    left_out = detector.scorer_.leave_one_out(detector._body(torch.from_numpy(X[:16])), None, None)
    expected = ref.nac_leave_one_out(products[0], **settings)
    np.testing.assert_allclose(left_out.detach(), expected, rtol=1e-10)
    skood.save(detector, tmp_path / "nac.safetensors")
    loaded = skood.load(tmp_path / "nac.safetensors", model=net)
    for again in (loaded, pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(again.score_samples(X), scores)


def test_layers_of_other_numbers_of_bins_learn_in_pieces(pictures):
    net, X = pictures
    detector = NACDetector(net, ["conv1", None], n_bins=[8, 50], alpha=[3.0, 2.0])
    whole = clone(detector).fit(X).score_samples(X)
    pieces = [clone(detector).partial_fit(piece) for piece in (X[:10], X[10:])]
    merged = pieces[0].merge(pieces[1]) or pieces[0]
    np.testing.assert_array_equal(merged.score_samples(X), whole)


@pytest.mark.parametrize(
    "n_bins, message",
    [
        ([50, 20], "n_bins has 2 entries for 1 layers"),
        ([7], "n_bins=7 must be even"),
        ([1], "n_bins must be integers from 2 on, got 1"),
        (["auto"], "n_bins must be integers from 2 on, got 'auto'"),
    ],
)
def test_numbers_of_bins_that_do_not_fit(head, rng, n_bins, message):
    with pytest.raises(ValueError, match=message):
        NACDetector(head, n_bins=n_bins).fit(relu_features(rng, 20)[0])
