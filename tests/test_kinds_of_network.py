"""Every detector, with its defaults and no layer named, on each kind of network."""

import functools

import numpy as np
import pytest
from sklearn.base import clone

from skood import DeepEnsembleDetector, PerturbedDetector, TransformsDetector
from skood.network import NetworkEnsemble
from skood.testing.common import assert_untouched, depends_on_keys, snapshot
from tests.networks import ChannelsLast, ResNet, Segmenter, Sequences, ViT, sample_inputs, seeded
from tests.registry import DEFAULTS, KINDS, each, method_of

# What random networks and labels bring about, and signed features.
pytestmark = pytest.mark.filterwarnings("ignore")

NETWORKS = {
    "ResNet": ResNet,
    "ViT": ViT,
    "BERT": None,
    "Conv1d": Sequences,
    "channels last": ChannelsLast,
    "segmenter": Segmenter,
}
N_TRAIN, N_ROWS = 40, 12


@functools.cache
def network(kind, seed=0):
    """Return a small network with float64 weights, the same for all detectors."""
    if kind != "BERT":
        return seeded(NETWORKS[kind], seed=seed).double()
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        max_position_embeddings=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=4,
    )
    return seeded(transformers.BertForSequenceClassification, config, seed=seed).double()


def rows(kind, n, seed, n_tokens=9):
    """Return inputs of a kind of network; texts of 3 to 8 tokens, padded."""
    if kind != "BERT":
        return sample_inputs(network(kind), n, seed).astype(np.float64)
    lengths = np.random.default_rng(seed).integers(3, 9, size=n)
    mask = np.arange(n_tokens) < lengths[:, None]
    ids = np.random.default_rng(seed).integers(1, 50, size=(n, 20))[:, :n_tokens]
    # What is padding means something.
    return {"input_ids": np.where(mask, ids, 7), "attention_mask": mask.astype(int)}


def labels(kind, is_map):
    """Return labels of rows, or of pixels, of which some are of no class and some are OOD."""
    rng = np.random.default_rng(0)
    if kind == "segmenter" and is_map:
        return rng.choice([0, 1, 2, 255, -1], size=(N_TRAIN, 8, 8))
    return np.arange(N_TRAIN) % 3


def one(X, i):
    """Return a row of X alone."""
    part = slice(i, i + 1)
    return {name: values[part] for name, values in X.items()} if isinstance(X, dict) else X[part]


def check_works(detector, kind, by_pixel=True):
    """Fit and score: finite, a row alone as among others, padding or none, nothing changed."""
    net = detector.model
    before = snapshot(net)
    y, X = labels(kind, by_pixel), rows(kind, N_ROWS, 2)
    detector.fit(rows(kind, N_TRAIN, 1), y)
    scores = detector.score_samples(X)
    if kind == "segmenter" and by_pixel:
        # Of logits, or of the features that these are enlarged from.
        assert scores.shape in ((N_ROWS, 8, 8), (N_ROWS, 4, 4))
    else:
        assert scores.shape == (N_ROWS,)
    assert np.isfinite(scores).all() and np.isfinite(detector.offset_)
    assert len(np.unique(scores)) > 1
    alone = np.concatenate([detector.score_samples(one(X, i)) for i in range(3)])
    np.testing.assert_allclose(alone, scores[:3], 1e-8, 1e-10)
    if kind == "BERT":
        wider = rows(kind, N_ROWS, 2, n_tokens=13)
        np.testing.assert_allclose(detector.score_samples(wider), scores, 1e-8, 1e-10)
        if not depends_on_keys(detector):
            again = clone(detector).fit(rows(kind, N_TRAIN, 1, n_tokens=13), y)
            np.testing.assert_allclose(again.score_samples(X), scores, 1e-8, 1e-10)
            assert again.offset_ == pytest.approx(detector.offset_, 1e-8, 1e-10)
    assert_untouched(net, before)


def check_refused(detector, kind, message):
    """Fit to get the error: what came, what is expected, the remedy."""
    net = detector.model
    before = snapshot(net)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        detector.fit(rows(kind, N_TRAIN, 1), labels(kind, is_map=True))
    assert len(str(caught.value).splitlines()) in (2, 3)
    assert_untouched(net, before)


@each(DEFAULTS, often=KINDS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_on_each_kind_of_network(detector, kind):
    method = method_of(detector)
    has_defaults = not isinstance(detector, (PerturbedDetector, TransformsDetector))
    detector = type(detector)() if has_defaults else clone(detector)
    detector, message = detector.set_params(model=network(kind)), method.refused(kind)
    if message is None:
        check_works(detector, kind, method.scores_pixels)
    else:
        check_refused(detector, kind, message)


@pytest.mark.parametrize("kind", NETWORKS)
def test_several_networks_of_each_kind(kind):
    nets = NetworkEnsemble(network(kind), network(kind, seed=1))
    check_works(DeepEnsembleDetector(nets), kind)
