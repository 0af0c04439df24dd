"""GAIA: plain reference, what is no norm, exact zeros, even rows, where it does not apply."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import skood
from skood import GAIADetector
from skood.detectors.gradients.gaia import of_the_largest
from skood.network import Network
from skood.testing.common import assert_untouched, snapshot
from tests import references as ref
from tests.detectors import NEEDS_VECTORS, Method
from tests.networks import (
    MLP,
    ConvHead,
    DenseNetLike,
    ResNet,
    SmallCNN,
    ViT,
    sample_inputs,
    seeded,
)
from tests.parity import DTYPES, TOLERANCE

pytestmark = pytest.mark.filterwarnings("ignore:There are no normalisation layers")

NO_ZEROS = r"no gradient at its layers .* is 0 on two rows"

METHOD = Method(
    settings={"default": GAIADetector()},
    in_networks={"default": GAIADetector(), "z": GAIADetector(["bn", "relu:0"], variant="z")},
    refuses={"segmenter": NEEDS_VECTORS},
)
KINDS = {"z": GAIADetector(variant="z"), "a": GAIADetector()}
EACH = pytest.mark.parametrize("variant", KINDS)


def one_row(net, x, layers, head):
    """Return what the layers and the head take of one row, and the logits, by autograd."""
    outputs, features = {}, []

    def keep(name):
        def hook(part, args, output):
            output.retain_grad()
            outputs[name] = output
            return output.clone()

        return hook

    handles = [net.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    handles.append(
        net.get_submodule(head).register_forward_pre_hook(lambda _, args: features.append(args[0]))
    )
    x = torch.as_tensor(x)[None].clone().requires_grad_()
    logits = net(x)
    for handle in handles:
        handle.remove()
    features[0].retain_grad()
    return [outputs[name] for name in layers], features[0], logits


def reference(net, X, layers, head, variant, last=False):
    """Score each row alone, channel by channel, by the definition; `last`: the channel axis."""
    net, scores = ref.as_double(net), []
    for x in np.asarray(X, dtype=np.float64):
        outputs, features, logits = one_row(net, x, layers, head)
        top = max(range(logits.shape[1]), key=lambda c: (logits[0, c].item(), -c))
        (logits[0, top] if variant == "z" else features.sum()).backward(retain_graph=True)
        values = []
        for output in outputs:
            grad = ref.as_array(output.grad[0])
            channels = np.moveaxis(grad, -1, 0) if last else grad
            for channel in channels.reshape(len(channels), -1):
                if variant == "z":
                    values.append((np.count_nonzero(channel) / channel.size) ** 2)
                else:
                    values.append(channel.mean() ** 2)
        size = 1.0
        if variant == "a":
            features.grad = None
            logits.log_softmax(1).sum().backward()
            size = np.mean(np.abs(ref.as_array(features.grad[0])))
        scores.append(-np.mean(values) / size)
    return np.array(scores)


CASES = {
    "CNN": (SmallCNN, ["bn"], "fc", False),
    "ResNet": (ResNet, None, "fc", False),
    "DenseNet": (DenseNetLike, ["norms.0", "norms.1", "norms.2", "norm"], "classifier", False),
    "ViT": (ViT, None, "head", True),
}


@EACH
@DTYPES
@pytest.mark.parametrize("case", CASES)
def test_parity(case, variant, dtype):
    cls, layers, head, last = CASES[case]
    if (case, variant) == ("ViT", "z"):
        pytest.skip("has no zeros")
    net = seeded(cls).to(dtype)
    kinds = nn.BatchNorm2d, nn.LayerNorm
    layers = layers or [name for name, part in net.named_modules() if isinstance(part, kinds)]
    X = sample_inputs(net, 12, 0).astype(str(dtype).removeprefix("torch."))
    before = snapshot(net)
    detector = GAIADetector(net, variant=variant).fit(X)
    assert sorted(detector.layers_) == sorted(layers)
    expected = reference(net, X, layers, head, variant, last)
    assert len(np.unique(expected)) > 8
    np.testing.assert_allclose(detector.score_samples(X), expected, TOLERANCE[dtype])
    np.testing.assert_allclose(detector.score_samples(X[:1]), expected[:1], TOLERANCE[dtype])
    assert_untouched(net, before)


def test_features_alone(rng):
    """As by autograd through the head."""
    head, X = seeded(nn.Linear, 6, 4).double(), rng.normal(size=(20, 6))
    with pytest.warns(UserWarning, match="There are no normalisation layers"):
        detector = GAIADetector(head).fit(X)
    h = torch.from_numpy(X).requires_grad_()
    head(h).log_softmax(1).sum().backward()
    np.testing.assert_allclose(detector.score_samples(X), -1 / h.grad.abs().mean(1), 1e-10)
    assert detector.layers_ == []


def test_maps_that_enter_a_convolution():
    net = seeded(ConvHead).double()
    X = sample_inputs(net, 12, 0).astype(float)
    expected = reference(net, X, ["body.1"], "head", "a")
    np.testing.assert_allclose(GAIADetector(net).fit(X).score_samples(X), expected, 1e-8)


class Called(nn.Module):
    """Norms that are called twice, never, and of a kind of their own."""

    class TinyNorm(nn.Module):
        def forward(self, x):
            return x / (1 + x.abs().amax(1, keepdim=True))

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(5, 6)
        self.norm, self.unused, self.own = nn.BatchNorm1d(6), nn.BatchNorm1d(6), self.TinyNorm()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        """Map (n, 5) to logits."""
        x = self.norm(self.enter(x)).relu()
        return self.fc(self.own(self.norm(x)).relu())


def test_norms_are_found_and_remembered(rng, tmp_path):
    net, X = Called().double().eval(), rng.normal(size=(30, 5))
    detector = GAIADetector(net, variant="z").fit(X)
    assert detector.layers_ == ["norm:0", "norm:1", "own"]
    scores = detector.score_samples(X)
    skood.save(detector, tmp_path / "file")
    for twin in (pickle.loads(pickle.dumps(detector)), skood.load(tmp_path / "file", net)):
        assert twin.layers_ == detector.layers_
        np.testing.assert_array_equal(twin.score_samples(X), scores)
    # What norms a weight gives no rows.
    normed = Called().double().eval()
    nn.utils.parametrizations.weight_norm(normed.enter)
    sample = torch.from_numpy(X[:2])
    found = Network(normed, "cpu", torch.float64, sample=sample).norms()
    assert found == ("norm:0", "norm:1", "own")


def test_of_equal_logits_the_first_counts(rng):
    """Only the first is behind a layer that is dead."""
    net = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2, bias=False)).double().eval()
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    X = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 1.0], [-1.0, 2.0]] * 8)
    scores = GAIADetector(net, variant="z").fit(X).score_samples(X[:4])
    np.testing.assert_array_equal(scores, [-0.5] * 4)
    body = Network(net, "cpu", torch.float64, sample=torch.from_numpy(X[:2]))
    found = body.gradients(["0"], of_the_largest, lambda z, g, **where: g)(torch.from_numpy(X[:4]))
    assert (found[0] != 0).tolist() == [[True, False]] * 3 + [[False, True]]


def test_rows_whose_classes_are_all_as_likely(rng):
    """The gradient of the head vanishes: the score is the lowest there is, and finite."""
    net = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2, bias=False)).double().eval()
    nn.init.eye_(net[2].weight)
    X = rng.uniform(0.5, 2, size=(30, 2))
    X[0] = 1
    scores = GAIADetector(net).fit(X).score_samples(X)
    assert np.isfinite(scores).all() and scores[0] < -1e300 and (scores[1:] > -1e6).all()


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Tanh()], ids=str)
def test_without_zeros_z_is_refused(activation, rng):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), activation, nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    X = rng.normal(size=(20, 1, 6, 6)).astype(np.float32)
    GAIADetector(net).fit(X)
    for model in (net, seeded(ViT)):
        rows = X if model is net else sample_inputs(model, 20, 0)
        with pytest.raises(ValueError, match=NO_ZEROS) as caught:
            GAIADetector(model, variant="z").fit(rows)
        assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("net", "params", "message"),
    [
        (MLP, {"variant": "z"}, "MLP has no normalisation layers"),
        (None, {"variant": "z"}, "X has no normalisation layers"),
        (None, {"layers": ["bn"]}, "no network to look in"),
        (SmallCNN, {"layers": []}, "at least one layer"),
        (SmallCNN, {"layers": ["bn", "bn"]}, "each once"),
        (SmallCNN, {"layers": ["bn", None]}, "must name submodules"),
        (SmallCNN, {"layers": ["fc"]}, "not called in a pass"),
        (SmallCNN, {"channel_axis": [1, 1]}, "channel_axis has 2 entries for 1 layers"),
        (SmallCNN, {"variant": "x"}, "'variant' parameter"),
    ],
    ids=str,
)
def test_bad_parameters(net, params, message, rng):
    model = net and seeded(net)
    X = sample_inputs(model, 20, 0) if model else rng.normal(size=(20, 3))
    with pytest.raises(ValueError, match=message):
        GAIADetector(model, **params).fit(X, np.arange(20) % 3)
