"""Deep ensembles: equal to a plain reference, in whatever way their networks are held."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset

import skood
from skood import DeepEnsembleDetector, EntropyDetector, MSPDetector
from skood.calibration import ConformalDetector
from skood.detectors.logits.passes import CRITERIA
from skood.ensemble import EnsembleDetector
from skood.network import NetworkEnsemble
from skood.testing.common import assert_untouched, snapshot
from tests.detectors.test_mc_dropout import reference
from tests.networks import MLP, Segmenter, SmallCNN, sample_inputs, seeded

CLASSES = 4

pytestmark = pytest.mark.filterwarnings(
    "ignore:The largest logit is that", "ignore:There are .* calibration rows"
)


def networks(cls=MLP, n=3, dtype=torch.float64, **how):
    """Return networks of several seeds."""
    return [seeded(cls, seed=seed, **how).to(dtype) for seed in range(n)]


@pytest.fixture
def rows(rng):
    """Return rows of MLPs, and labels."""
    return rng.normal(size=(60, 8)), np.arange(60) % CLASSES


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(criterion, average, dtype, tolerance, rows):
    X, y = rows[0].astype(dtype), rows[1]
    nets = networks(dtype=getattr(torch, dtype))
    model = NetworkEnsemble(*nets, average=average)
    detector = DeepEnsembleDetector(model, criterion=criterion).fit(X, y)
    passes = torch.stack([net(torch.from_numpy(X)) for net in nets]).detach()
    expected = reference(passes, criterion)
    found = detector.score_samples(X)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, tolerance, tolerance)
    for batch_size in (1, 7):
        found = detector.set_params(batch_size=batch_size).score_samples(X)
        np.testing.assert_allclose(found, expected, tolerance, tolerance)
    mean = passes.softmax(2).mean(0).argmax(1).numpy()
    assert detector.accuracy_ == pytest.approx((mean == y).mean())


def test_scores_of_the_mean_are_those_of_detectors_on_the_network(rows):
    model = NetworkEnsemble(*networks())
    for criterion, detector in (("msp", MSPDetector(model)), ("entropy", EntropyDetector(model))):
        found = DeepEnsembleDetector(model, criterion=criterion).fit(rows[0])
        expected = detector.fit(rows[0])
        np.testing.assert_allclose(
            found.score_samples(rows[0]), expected.score_samples(rows[0]), rtol=1e-9
        )
        assert found.offset_ == pytest.approx(expected.offset_)


def test_maps():
    nets = networks(Segmenter, n=2)
    X = sample_inputs(nets[0], 20, 0).astype(np.float64)
    found = DeepEnsembleDetector(NetworkEnsemble(*nets)).fit(X).score_samples(X)
    passes = torch.stack([net(torch.from_numpy(X)) for net in nets]).detach().movedim(2, -1)
    expected = reference(passes.reshape(2, -1, 3), "mutual_information").reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_networks_of_one_logit(rows):
    nets = networks(classes=1)
    logits = torch.stack([net(torch.from_numpy(rows[0])) for net in nets]).detach()
    found = DeepEnsembleDetector(NetworkEnsemble(*nets)).fit(rows[0], rows[1] % 2)
    expected = reference(torch.cat([-logits / 2, logits / 2], 2), "mutual_information")
    np.testing.assert_allclose(found.score_samples(rows[0]), expected)


def test_pieces_copies_and_files(rows, tmp_path):
    X, y = rows
    model = NetworkEnsemble(*networks())
    detector = DeepEnsembleDetector(model).fit(X, y)
    expected = detector.score_samples(X)
    parts = [DeepEnsembleDetector(model).partial_fit(X[i::2], y[i::2]) for i in range(2)]
    merged = parts[0].merge(parts[1])
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    streamed = clone(detector).fit(DataLoader(data, batch_size=7))
    skood.save(detector, tmp_path / "file")
    loaded = skood.load(tmp_path / "file", model)
    wrapped = clone(detector).set_params(model=torch.nn.DataParallel(model)).fit(X, y)
    pickled = pickle.loads(pickle.dumps(detector))
    for twin in (merged, streamed, loaded, wrapped, pickled, copy.deepcopy(detector)):
        np.testing.assert_allclose(twin.score_samples(X), expected, rtol=1e-10)
        assert twin.offset_ == pytest.approx(detector.offset_, rel=1e-10)


def test_the_networks_are_left_alone(images):
    X, y = images
    model = NetworkEnsemble(*networks(SmallCNN, n=2, dtype=torch.float32)).train()
    before = snapshot(model)
    detector = DeepEnsembleDetector(model).fit(X, y)
    assert np.isfinite(detector.decision_function(X)).all()
    together = EnsembleDetector(
        [("of networks", DeepEnsembleDetector(model)), ("msp", MSPDetector(model))]
    )
    assert np.isfinite(together.fit(X, y).score_samples(X)).all()
    assert np.isfinite(
        ConformalDetector(DeepEnsembleDetector(model)).fit(X, y).score_samples(X)
    ).all()
    assert_untouched(model, before)


def test_huge_logits():
    nets = [torch.nn.Linear(2, 2).double().requires_grad_(False) for _ in range(2)]
    for net, sign in zip(nets, (1, -1), strict=True):
        net.weight.copy_(sign * torch.eye(2)), net.bias.zero_()
    X = np.array([[0.0, 0], [1, 0], [1e3, 0], [1e30, -1e30]] * 6)
    for criterion in CRITERIA:
        detector = DeepEnsembleDetector(NetworkEnsemble(*nets), criterion=criterion).fit(X)
        assert np.isfinite(detector.score_samples(X)).all()
    scores = DeepEnsembleDetector(NetworkEnsemble(*nets)).fit(X).score_samples(X)
    np.testing.assert_allclose(scores[[0, 2, 3]], [0, -np.log(2), -np.log(2)], atol=1e-12)


def test_what_is_no_ensemble_is_refused(rows):
    X, y = rows
    head = FrozenEstimator(LogisticRegression().fit(X, y))
    for model, what in (
        (None, "None"),
        (networks()[0], "a MLP"),
        (head, "a Linear"),
        (NetworkEnsemble(networks()[0]), "a NetworkEnsemble of one network"),
    ):
        with pytest.raises(ValueError, match=f"model is {what}[.] .* two networks at least"):
            DeepEnsembleDetector(model).fit(X, y)
    with pytest.raises(TypeError, match="NetworkEnsemble"):
        DeepEnsembleDetector(networks()).fit(X, y)
    with pytest.raises(ValueError, match="'criterion' parameter"):
        DeepEnsembleDetector(NetworkEnsemble(*networks()), criterion="votes").fit(X, y)
