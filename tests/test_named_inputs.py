"""X as a dict of arrays, and Hugging Face networks, which take it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from skood import (
    AdaSCALEDetector,
    ASHDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    MCDropoutDetector,
    NACDetector,
    NNGuideDetector,
    ODINDetector,
    PerturbedDetector,
    TransformsDetector,
)
from tests import references as ref
from tests.detectors.test_ash import ash_scores
from tests.detectors.test_gmm import gmm_fit, gmm_scores
from tests.detectors.test_gradnorm import gradnorm_head
from tests.detectors.test_nnguide import nnguide
from tests.networks import MLP, seeded
from tests.registry import DEFAULTS, each

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:There is a performance drop", "ignore:k="
)


class Text(nn.Module):
    """A network of tokens and a mask, taken by name."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.mlp = seeded(MLP, in_features=6)

    def forward(self, input_ids, mask=None):
        """Average the embeddings of the tokens that the mask leaves."""
        tokens = self.embedding(input_ids)
        mask = torch.ones_like(tokens[..., 0]) if mask is None else mask
        return self.mlp((tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.fixture
def text(rng):
    """Return a network, a dict X of 24 rows, and labels of 4 classes."""
    torch.manual_seed(0)
    X = {
        "input_ids": rng.integers(0, 20, size=(24, 7)),
        "mask": np.c_[np.ones((24, 3)), rng.integers(0, 2, size=(24, 4))].astype(np.float32),
    }
    return Text(), X, np.arange(24) % 4


def rows(X, index):
    """Return rows of a dict."""
    return {name: values[index] for name, values in X.items()}


DETECTORS_OF_TEXT = [
    ASHDetector(),
    ASHDetector(layer="mlp.hidden"),
    GMMDetector(reg_covar=0.1),
    GMMDetector(layer="mlp.hidden", reg_covar=0.1),
    GradNormDetector(),
    GradNormDetector(params="all"),
    NACDetector(),
    NACDetector(layers=["mlp.hidden", None]),
    NNGuideDetector(k=3),
]


@pytest.mark.parametrize("detector", DETECTORS_OF_TEXT, ids=str)
def test_rows_of_a_dict_go_together(detector, text):
    """Beside the same network behind one array that holds both entries."""
    net, X, y = text

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.text = net

        def forward(self, x):
            return self.text(x[:, :7].long(), x[:, 7:])

    packed = np.hstack([X["input_ids"].astype(np.float32), X["mask"]])
    names = {"layer": "text.mlp.hidden", "layers": ["text.mlp.hidden", None]}
    given = {name: v for name, v in names.items() if clone(detector).get_params().get(name)}
    direct = clone(detector).set_params(model=Packed(), **given).fit(packed, y)
    found = clone(detector).set_params(model=net, batch_size=7).fit(X, y)
    expected = direct.score_samples(packed)
    np.testing.assert_allclose(found.score_samples(X), expected, rtol=1e-4, atol=1e-5)
    part = np.array([3, 1, 20])
    np.testing.assert_allclose(
        found.score_samples(rows(X, part)), expected[part], rtol=1e-4, atol=1e-5
    )
    tensors = {name: torch.as_tensor(values) for name, values in X.items()}
    np.testing.assert_array_equal(found.score_samples(tensors), found.score_samples(X))
    twin = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(twin.score_samples(X), found.score_samples(X))


def test_ood_rows_of_a_dict_are_left_out(text):
    net, X, y = text
    inside = y != 3
    expected = GMMDetector(net, reg_covar=0.1).fit(rows(X, inside), y[inside])
    found = GMMDetector(net, reg_covar=0.1).fit(X, np.where(inside, y, -1))
    assert found.offset_ == expected.offset_
    assert 0 <= found.score(X, np.where(inside, y, -1)) <= 1


def test_features_of_a_dict(text, tmp_path):
    net, X, _ = text
    features = FeatureExtractor(net).fit_transform(X)
    again = FeatureExtractor(net, memory=str(tmp_path)).fit(X)
    assert features.shape == (24, 16)
    for _ in range(2):
        np.testing.assert_array_equal(again.transform(X), features)
    changed = {**X, "mask": np.ones_like(X["mask"])}
    assert not np.allclose(again.transform(changed), features)


def test_an_unfitted_skorch_net_takes_a_dict(text):
    from skorch import NeuralNetClassifier

    _, X, y = text
    net = NeuralNetClassifier(
        Text, criterion=nn.CrossEntropyLoss, max_epochs=2, train_split=None, verbose=0
    )
    assert np.isfinite(GMMDetector(net, reg_covar=0.1).fit(X, y).score_samples(X)).all()


@each(DEFAULTS)
def test_bad_dicts(detector, text):
    (net, X, y), cls = text, type(detector)

    def of(model):
        return clone(detector).set_params(model=model)

    with pytest.raises(ValueError, match="entries have different numbers of rows"):
        of(net).fit({**X, "mask": X["mask"][:5]}, y)
    with pytest.raises(TypeError, match="X is a dict of arrays"):
        of(nn.Linear(4, 3)).fit(X, y)
    with pytest.raises(ValueError, match="X.'mask'. contains NaN"):
        of(net).fit({**X, "mask": np.full_like(X["mask"], np.nan)}, y)
    with pytest.raises(ValueError, match="Text fails on two rows of X, words of shape"):
        of(net).fit({"words": X["input_ids"]}, y)
    with pytest.raises(TypeError, match="X is a dict of arrays"):
        of(None).fit(X, y)
    if cls in (AdaSCALEDetector, ODINDetector, PerturbedDetector, TransformsDetector):
        with pytest.raises(ValueError, match="which cannot be moved|take arrays of floats"):
            of(net).fit(X, y)
        return
    # The network has no dropout of its own.
    params = {"rate": 0.5} if cls is MCDropoutDetector else {}
    fitted = cls(net, **params).fit(X, y)
    turned = dict(reversed(X.items()))
    np.testing.assert_array_equal(fitted.score_samples(turned), fitted.score_samples(X))
    with pytest.raises(ValueError, match="is expecting .'input_ids', 'mask'."):
        fitted.score_samples({"input_ids": X["input_ids"]})


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}


@pytest.fixture(scope="module")
def bert():
    """Return a small BERT classifier of random weights and inputs of 16 texts."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        max_position_embeddings=16,
        **SMALL,
    )
    rng = np.random.default_rng(0)
    X = {
        "input_ids": rng.integers(1, 50, size=(16, 9)),
        "attention_mask": (np.arange(9) < rng.integers(3, 10, size=(16, 1))).astype(int),
    }
    return transformers.BertForSequenceClassification(config).eval(), X


@pytest.fixture(scope="module")
def vit():
    """Return a small ViT classifier of random weights and 16 images."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        **SMALL,
    )
    X = np.random.default_rng(0).normal(size=(16, 1, 8, 8)).astype(np.float32)
    return transformers.ViTForImageClassification(config).eval(), X


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_hugging_face_networks(name, request):
    """Every detector beside its reference on features and logits read by hand."""
    net, X = request.getfixturevalue(name)
    y = np.arange(16) % 3
    before = {key: value.clone() for key, value in net.state_dict().items()}
    double = copy.deepcopy(net).double()
    kept = []
    double.classifier.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        tensors = {n: torch.as_tensor(v) for n, v in X.items()} if name == "bert" else None
        double(**tensors) if tensors else double(torch.as_tensor(X).double())
    H = ref.as_array(kept[0])
    W, b = ref.as_array(net.classifier.weight), ref.as_array(net.classifier.bias)
    energies = ref.energy(H @ W.T + b)
    expected = {
        ASHDetector(net, percentile=0.3): ash_scores(
            H, lambda h: h @ torch.as_tensor(W).T + torch.as_tensor(b), "s", 0.3, max_ratio=44
        ),
        GMMDetector(net, reg_covar=0.1): gmm_scores(gmm_fit(H, y, reg_covar=0.1), H),
        GradNormDetector(net): gradnorm_head(H, W, b),
        NNGuideDetector(net, k=3): nnguide(H, energies, H, energies, 3),
    }
    for detector, scores in expected.items():
        found = detector.fit(X, y).score_samples(X)
        np.testing.assert_allclose(found, scores, rtol=1e-3, err_msg=str(type(detector)))
    for detector in (
        NACDetector(net),
        NACDetector(
            net, [f"{name}.encoder.layer.0.output" if name == "bert" else f"{name}.embeddings"]
        ),
        GradNormDetector(net, params="all"),
    ):
        assert np.isfinite(detector.fit(X, y).score_samples(X)).all()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
