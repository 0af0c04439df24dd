"""Exported graphs give what the detector gives, on batches of any size."""

import pickle
import re
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM
from torch import nn

import skood
from skood import (
    ASHDetector,
    DeepEnsembleDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    MCDropoutDetector,
    NACDetector,
    NNGuideDetector,
    RankFeatDetector,
)
from skood.network import NetworkEnsemble
from tests.networks import SmallCNN, WithDropout, seeded
from tests.registry import (
    DEFAULTS,
    IN_NETWORKS,
    SETTINGS,
    each,
    is_tested_often,
    name_of,
    not_exportable,
    one_of_each_kind,
)
from tests.shipping import run_graph

# Such as those that differentiate the network in the middle.
NOT_EXPORTABLE = [detector for detector in IN_NETWORKS if not_exportable(detector)]


@pytest.fixture
def path(tmp_path):
    """Return where to export to."""
    return tmp_path / "graph"


def check(detector, path, format, X):
    """Export by a few rows, and compare on more and on one."""
    skood.export(detector, path, X[:2], format=format)
    run = run_graph(path, format)
    size = np.abs(detector.score_samples(X)).max()
    for rows in (X, X[:1]):
        before = rows.copy()
        score, decision = run(rows)
        expected = detector.score_samples(rows)
        assert score.dtype == decision.dtype == expected.dtype
        assert_allclose(score, expected, rtol=1e-5, atol=1e-5 * size)
        assert_allclose(decision, score - detector.offset_, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(rows, before)


def onnx_only_where_installed(format):
    """Skip where a format cannot be written and run."""
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")


def in_formats(detectors):
    """Parametrize a test by detectors and formats.

    A graph takes a second and more: those of settings, in networks all but one of each kind, and in
    ONNX all but one of each kind, are written nightly.
    """
    often = [(detector, "torch") for detector in detectors if is_tested_often(detector)]
    often += [(detector, "onnx") for detector in one_of_each_kind()]
    cases = [
        pytest.param(
            detector,
            format,
            id=f"{name_of(detector)}-{format}",
            marks=[] if (detector, format) in often else [pytest.mark.nightly],
        )
        for detector in detectors
        for format in ("torch", "onnx")
    ]
    return pytest.mark.parametrize(("detector", "format"), cases)


@each(DEFAULTS)
@pytest.mark.filterwarnings("ignore")
def test_what_is_fitted_keeps_no_larger_tensor(detector, iris):
    """Views would bring along what they are part of, into memory and files."""
    detector = clone(detector).fit(*iris)
    for name, buffer in detector.scorer_.named_buffers():
        assert buffer.untyped_storage().nbytes() == buffer.nbytes, name


@in_formats(SETTINGS)
def test_on_features(detector, format, iris, path, rng):
    onnx_only_where_installed(format)
    X, y = iris
    dtype = np.float32 if detector.batch_size else np.float64
    why = not_exportable(detector)
    detector = clone(detector).fit(X.astype(dtype), y)
    if why is not None:
        with pytest.raises(TypeError, match=re.escape(why)):
            skood.export(detector, path, X[:2], format=format)
        return
    check(detector, path, format, rng.uniform(0, 9, size=(41, 4)).astype(dtype))


@in_formats([detector for detector in IN_NETWORKS if detector not in NOT_EXPORTABLE])
def test_in_networks(detector, format, images, path, rng):
    onnx_only_where_installed(format)
    X, y = images
    detector = clone(detector).set_params(model=seeded(SmallCNN)).fit(X, y)
    if format == "onnx" and isinstance(detector, RankFeatDetector):
        with pytest.raises(ValueError, match='no operator for .*eigh.\nformat="torch" writes it'):
            skood.export(detector, path, X[:2], format=format)
        return
    check(detector, path, format, rng.normal(size=(17, 1, 8, 8)).astype(np.float32))


@each(NOT_EXPORTABLE)
def test_what_cannot_be_exported(detector, images, path):
    X, y = images
    why = re.escape(not_exportable(detector))
    detector = clone(detector).set_params(model=seeded(SmallCNN)).fit(X, y)
    with pytest.raises(TypeError, match=f"cannot be exported as it is: {why}"):
        skood.export(detector, path, X)
    assert not path.exists()


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_passes(format, path, rng):
    """Also where no batch has drawn the masks of dropout yet."""
    onnx_only_where_installed(format)
    nets = [seeded(WithDropout, seed=seed) for seed in range(2)]
    X = rng.normal(size=(24, 8)).astype(np.float32)
    ensemble = DeepEnsembleDetector(NetworkEnsemble(*nets)).fit(X)
    dropout = MCDropoutDetector(nets[0], n_passes=2).fit(X)
    for detector in (ensemble, pickle.loads(pickle.dumps(dropout))):
        check(detector, path, format, X)


def test_ties(path):
    rows = np.random.default_rng(0).integers(-2, 3, size=(60, 12)).astype(np.float32)
    for variant in "spb":
        detector = ASHDetector(seeded(nn.Linear, 12, 3), variant=variant, percentile=0.6)
        check(detector.fit(np.abs(rows)), path, "torch", rows)


def test_an_example_of_integers_rounds_no_rows(iris, path):
    X, y = iris
    detector = make_pipeline(FunctionTransformer(), GMMDetector()).fit(X, y)
    skood.export(detector, path, np.round(X[:3]).astype(int))
    score, decision = torch.export.load(path).module()(torch.from_numpy(X))
    assert_allclose(score, detector.score_samples(X), rtol=1e-9)
    assert ((decision < 0).numpy() == (detector.predict(X) == -1)).all()


def test_wide_gaussians(path, rng):
    # More features than a slice of the factors has columns.
    X, y = rng.normal(size=(400, 70)), np.arange(400) % 3
    check(GMMDetector().fit(X + 2 * y[:, None], y), path, "torch", X[:50])


def test_a_network_in_another_dtype(images, path):
    X, y = images
    check(GMMDetector(seeded(SmallCNN).double(), reg_covar=0.1).fit(X, y), path, "torch", X)
    X = X.astype(np.float64)
    check(NNGuideDetector(seeded(SmallCNN), k=3).fit(X, y), path, "torch", X)


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_named_inputs(format, path, rng):
    onnx_only_where_installed(format)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Embedding(9, 6), nn.Linear(6, 3)

        def forward(self, ids, mask):
            return {"logits": self.fc((self.embed(ids) * mask[..., None]).mean(1))}

    X = {"ids": rng.integers(0, 9, (30, 5)), "mask": np.ones((30, 5), np.float32)}
    detector = NNGuideDetector(Net(), k=3).fit(X)
    skood.export(detector, path, {name: part[:1] for name, part in X.items()}, format=format)
    if format == "torch":
        module = torch.export.load(path).module()
        score, _ = module({name: torch.as_tensor(part) for name, part in X.items()})
        score = score.numpy()
    else:
        score = pytest.importorskip("onnxruntime").InferenceSession(path).run(None, X)[0]
    assert_allclose(score, detector.score_samples(X), rtol=1e-5)


def test_maps_of_scores(path, rng):
    net = seeded(nn.Sequential, nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))
    X = rng.normal(size=(12, 1, 8, 8)).astype(np.float32)
    for detector in (ASHDetector(net), GradNormDetector(net)):
        check(detector.fit(X), path, "torch", X)


def test_what_is_no_detector(iris, path):
    for estimator in (FeatureExtractor(), make_pipeline(OneClassSVM())):
        with pytest.raises(TypeError, match="cannot be exported"):
            skood.export(estimator.fit(*iris), path, iris[0])
    detector = NACDetector().fit(*iris)
    with pytest.raises(ValueError, match="format must be"):
        skood.export(detector, path, iris[0], format="jit")
    with pytest.raises(ValueError, match="features"):
        skood.export(detector, path, iris[0][:, :3])
    with pytest.raises(TypeError, match="array"):
        skood.export(detector, path, torch.utils.data.TensorDataset(torch.tensor(iris[0])))


def test_a_network_that_cannot_be_traced(images, path):
    class Branching(SmallCNN):
        def forward(self, x):
            return super().forward(x if x.mean() > 0 else -x)

    X, y = images
    detector = GMMDetector(seeded(Branching), reg_covar=0.1).fit(X, y)
    with pytest.raises(ValueError, match="cannot trace GMMDetector"):
        skood.export(detector, path, X)


def test_faiss(iris, path):
    pytest.importorskip("faiss")
    detector = NNGuideDetector(index="Flat").fit(*iris)
    with pytest.raises(TypeError, match="searched by faiss"):
        skood.export(detector, path, iris[0])


def test_without_onnxscript(iris, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnxscript"):
        skood.export(GMMDetector().fit(*iris), path, iris[0], format="onnx")
