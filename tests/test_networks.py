"""Every detector on every network: equal to the plain reference, or an error that says why."""

import copy
import pickle
import re
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from torch import nn

from skood import (
    ASHDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    NACDetector,
    NNGuideDetector,
)
from tests import references as ref
from tests.detectors.test_ash import ash_network
from tests.detectors.test_gmm import gmm_fit, gmm_scores
from tests.detectors.test_gradnorm import gradnorm, gradnorm_head
from tests.detectors.test_nac import nac_products, nac_products_features, nac_scores
from tests.detectors.test_nnguide import nnguide
from tests.networks import (
    MLP,
    Branching,
    ConvHead,
    DenseNetLike,
    EndsInSoftmax,
    ResNet,
    Segmenter,
    SharedModules,
    SmallCNN,
    TwoHeads,
    ViT,
    WeightNormed,
    WithDropout,
    sample_inputs,
    seeded,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:There is a performance drop", "ignore:k="
)


class InPlace(nn.Module):
    """A network whose head is followed by nothing, but whose layers are written to."""

    def __init__(self):
        super().__init__()
        self.input_shape = (8,)
        self.head_names = ["fc"]
        self.hidden = nn.Linear(8, 16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        """Map (n, 8) to logits."""
        h = self.hidden(x)
        h += 0.5
        return self.fc(h.relu_())


class Tokens(nn.Module):
    """A network of one array of integers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.fc = nn.Linear(6, 4)

    def forward(self, ids):
        """Map (n, T) to logits."""
        return self.fc(self.embedding(ids).mean(1))


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 4,
}


class HuggingFace(nn.Module):
    """A Hugging Face classifier behind one array, as the references take it."""

    def __init__(self, kind):
        super().__init__()
        transformers = pytest.importorskip("transformers")
        self.head_names = []
        if kind == "Bert":
            self.input_shape = (14,)
            config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)
            self.net = transformers.BertForSequenceClassification(config)
        else:
            self.input_shape = (1, 8, 8)
            config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **SMALL)
            self.net = transformers.ViTForImageClassification(config)
        nn.init.normal_(self.net.classifier.weight)

    @staticmethod
    def split(x):
        """Turn numbers into the entries of a dict: tokens and a mask, or images."""
        x = torch.as_tensor(x)
        if x.ndim == 4:
            return {"pixel_values": x}
        ids, mask = x[:, :7].abs() * 10, x[:, 7:] > -1
        mask[:, 0] = True
        return {"input_ids": ids.clamp(max=49).long(), "attention_mask": mask.long()}

    def forward(self, x):
        """Map numbers to logits."""
        return self.net(**self.split(x)).logits


# Network: the name of its head, a layer in the middle.
NETWORKS = {
    "MLP": (MLP, "fc", "hidden"),
    "SmallCNN": (SmallCNN, "fc", "conv1"),
    "ResNet": (ResNet, "fc", "layer2"),
    "ViT": (ViT, "head", "encoder.layers.0"),
    "DenseNetLike": (DenseNetLike, "classifier", "convs.1"),
    "ConvHead": (ConvHead, "head", "body"),
    "SharedModules": (SharedModules, "fc", "enter"),
    "SharedModules, a call": (SharedModules, "fc", "block:1"),
    "InPlace": (InPlace, "fc", "hidden"),
    "Branching": (Branching, "fc", "hidden"),
    "WeightNormed": (WeightNormed, "fc", "hidden"),
    "WithDropout": (WithDropout, "fc", "hidden"),
    "Segmenter": (Segmenter, "classifier", "backbone"),
    "TwoHeads": (TwoHeads, "fc", "hidden"),
    "TwoHeads, summed": (lambda: TwoHeads(returns="sum"), "fc", "hidden"),
    "EndsInSoftmax": (EndsInSoftmax, "fc", "hidden"),
    "BERT": (partial(HuggingFace, "Bert"), "net.classifier", "net.bert.encoder.layer.0.output"),
    "ViT of transformers": (partial(HuggingFace, "ViT"), "net.classifier", "net.vit.embeddings"),
}
METHODS = {
    "ASH": lambda net, layer: ASHDetector(net),
    "ASH layer": lambda net, layer: ASHDetector(net, layer),
    "GMM": lambda net, layer: GMMDetector(net, reg_covar=0.1),
    "GMM layer": lambda net, layer: GMMDetector(net, layer, reg_covar=0.1),
    "GradNorm": lambda net, layer: GradNormDetector(net),
    "GradNorm all": lambda net, layer: GradNormDetector(net, params="all"),
    "NAC": lambda net, layer: NACDetector(net, n_bins=20, o_star=10),
    "NAC layers": lambda net, layer: NACDetector(net, [layer], n_bins=20, o_star=10),
    "NNGuide": lambda net, layer: NNGuideDetector(net, k=3),
    "NNGuide layer": lambda net, layer: NNGuideDetector(net, layer, k=3),
}
ONE_ROW_A_SAMPLE = r"returns logits of shape .*; this method needs \(n_samples, n_classes\)"
# Where a method cannot work: what the error says.
ERRORS = {
    **{("EndsInSoftmax", method): "ends in a softmax" for method in METHODS},
    **{("TwoHeads", method): "in which no single entry is the logits" for method in METHODS},
    **{
        ("TwoHeads, summed", method): "does something after its last linear layer"
        for method in ("ASH", "GMM", "GradNorm", "NAC", "NNGuide")
    },
    **{("Segmenter", method): ONE_ROW_A_SAMPLE for method in METHODS},
}
for name in ("EndsInSoftmax", "TwoHeads", "Segmenter"):
    # A layer's features need no logits; ASH takes maps of them.
    del ERRORS[name, "GMM layer"]
for name in ("ASH", "ASH layer", "GMM", "GradNorm", "NNGuide"):
    # One score a pixel: see tests/test_pixels.py.
    del ERRORS["Segmenter", name]


def with_layer(net, layer):
    """Return a network that has the named call of a layer as a submodule, for the references."""
    if layer == "block:1":
        net = copy.deepcopy(net)
        net.again = copy.deepcopy(net.block)
        return net, "again"
    return net, layer


def averaged(features, masks=None):
    """Average maps and tokens, of texts those that are no padding."""
    if masks is not None and features.ndim == 3:
        return np.stack([row[mask != 0].mean(0) for row, mask in zip(features, masks, strict=True)])
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def expected_scores(method, net, head, layer, X_train, y, X):
    """Compute the scores of a method by the plain references."""
    twin, layer = with_layer(net, layer)
    texts = isinstance(net, HuggingFace) and len(net.input_shape) == 1
    both = [(x, net.split(x)["attention_mask"] if texts else None) for x in (X_train, X)]
    if method.startswith("ASH"):
        of = {"head_name": head} if method == "ASH" else {"layer": layer}
        return ash_network(twin, X, **of, max_ratio=44)
    if method == "GradNorm all":
        return gradnorm(net, X)
    if method == "NAC layers":
        products = [
            nac_products(twin, x, [layer], head_name=head, masks=masks) for x, masks in both
        ]
        return nac_scores(*products, n_bins=20, o_star=10)
    where = {"layer": layer} if method.endswith("layer") else {"head_name": head}
    H_train, H = (averaged(ref.features(twin, x, **where), masks) for x, masks in both)
    if method.startswith("GMM"):
        return gmm_scores(gmm_fit(H_train, y, reg_covar=0.1), H)
    if method.startswith("NNGuide"):
        energies = [ref.energy(ref.logits(net, x)) for x in (X_train, X)]
        return nnguide(H_train, energies[0], H, energies[1], 3)
    last = net.get_submodule(head)
    W, b = ref.as_array(last.weight).reshape(len(last.bias), -1), last.bias
    if method == "GradNorm":
        return gradnorm_head(H, W, b)
    return nac_scores(
        *([nac_products_features(h, W, b)] for h in (H_train, H)), n_bins=20, o_star=10
    )


def check(method, network):
    """Run a method on a network; return what happened, in a word or two."""
    cls, head, layer = NETWORKS[network]
    net = seeded(cls).double()
    net.train(network == "WithDropout")
    before = copy.deepcopy(net.state_dict())
    X_train, X = (sample_inputs(net, n, seed).astype(float) for n, seed in ((40, 1), (12, 2)))
    y = np.arange(40) % 4
    detector, given = METHODS[method](net, layer), (X_train, X)
    if isinstance(net, HuggingFace):
        detector = METHODS[method](net.net, layer.removeprefix("net."))
        given = net.split(X_train), net.split(X)
    message = ERRORS.get((network, method))
    if message:
        with pytest.raises((ValueError, TypeError), match=message):
            detector.fit(given[0], y)
        outcome = "error: " + re.sub(r"\\|\.\*", "", message)
    else:
        found = detector.fit(given[0], y).score_samples(given[1])
        if network == "Segmenter" and method in ("GMM", "GradNorm", "NNGuide"):
            assert found.shape == (12, 4, 4)
            return "one score a pixel: see tests/test_pixels.py"
        expected = expected_scores(method, net.eval(), head, layer, X_train, y, X)
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
        assert len(np.unique(found)) > 3
        outcome = "equal"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return outcome


def test_the_table_of_detectors_and_networks():
    """Print it with ``pytest -s``."""
    width = max(map(len, NETWORKS))
    print()
    for network in NETWORKS:
        outcomes = {method: check(method, network) for method in METHODS}
        equal = [method for method, outcome in outcomes.items() if outcome == "equal"]
        print(f"{network:{width}}  equal: {', '.join(equal) or 'none'}")
        for method, outcome in outcomes.items():
            if outcome != "equal":
                print(f"{'':{width}}  {method}: {outcome}")


def test_every_layer_of_a_resnet_and_a_vit():
    """`FeatureExtractor` reads each named layer as the reference does."""
    for cls in (ResNet, ViT, DenseNetLike):
        net = seeded(cls).double()
        X = sample_inputs(net, 4).astype(float)
        for name, _ in net.named_modules():
            if not name:
                continue
            try:
                found = FeatureExtractor(net, name).fit_transform(X)
            except (ValueError, TypeError) as error:
                assert re.search("Name the call|Name a layer", str(error)), error
                continue
            expected = averaged(ref.features(net, X, name))
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=name)


def test_eight_threads_on_one_network():
    """Five fitted detectors of one network, some at named layers, used and fitted at once."""
    net = seeded(ResNet)
    X, y = sample_inputs(net, 24), np.arange(24) % 4
    detectors = [
        ASHDetector(net, "layer3"),
        GMMDetector(net, reg_covar=0.1),
        GradNormDetector(net, params=["layer4.0.conv2.weight", "fc.bias"]),
        NACDetector(net, ["layer1", "layer4", None], random_state=0),
        NNGuideDetector(net, "layer2", k=3),
    ]
    expected = [clone(d).fit(X, y).score_samples(X) for d in detectors]
    for detector in detectors:
        detector.fit(X, y)
    calls = {cls: vars(nn.Module)[cls] for cls in ("__call__", "__getattr__")}
    state = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state()

    def work(thread):
        wrong = 0
        for call in range(50):
            i = (thread + call) % 5
            detector = clone(detectors[i]).fit(X, y) if call % 10 == 9 else detectors[i]
            wrong += not np.array_equal(detector.score_samples(X), expected[i])
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    assert {cls: vars(nn.Module)[cls] for cls in calls} == calls
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])


def test_tokens_without_a_dict(rng):
    """One array of integers goes to an embedding as integers, of any integer dtype."""
    net, ids, y = Tokens(), rng.integers(0, 20, size=(30, 7)), np.arange(30) % 3
    H = net.embedding.weight.detach().numpy()[ids].mean(1)
    for dtype in ("int64", "int32", "uint8", "uint16"):
        found = FeatureExtractor(net).fit_transform(ids.astype(dtype))
        np.testing.assert_allclose(found, H, rtol=1e-5, atol=1e-6)
    for method in METHODS:
        detector = METHODS[method](net, "embedding").fit(ids, y)
        twin = pickle.loads(pickle.dumps(detector))
        np.testing.assert_array_equal(twin.score_samples(ids), detector.score_samples(ids))
    with pytest.raises(ValueError, match="Tokens fails on two rows of X"):
        GMMDetector(net).fit(ids.astype(float), y)


def replaced_weights():
    """Yield a name and what replaces weights of a `SmallCNN`."""
    yield (
        "assign",
        lambda net: net.load_state_dict(seeded(SmallCNN, seed=1).state_dict(), assign=True),
    )
    yield "parameter", lambda net: setattr(net.fc, "weight", nn.Parameter(net.fc.weight * 2))
    yield "layer", lambda net: setattr(net, "fc", nn.Linear(*reversed(net.fc.weight.shape)))
    yield "double", lambda net: net.double()
    yield "data", lambda net: setattr(net.fc.weight, "data", net.fc.weight.detach() + 1)
    yield "removed", lambda net: setattr(net.fc, "bias", None)


@pytest.mark.parametrize("replace", [pytest.param(r, id=name) for name, r in replaced_weights()])
def test_replaced_weights_are_noticed(replace, images):
    X, y = images
    net = copy.deepcopy(seeded(SmallCNN))
    detector = GMMDetector(net).fit(X, y)
    expected = detector.score_samples(X)
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    with warnings.catch_warnings():
        # Other memory, the same values.
        warnings.simplefilter("error")
        detector.score_samples(X)
    replace(net)
    with pytest.warns(UserWarning, match="trained further, or its weights were replaced"):
        np.testing.assert_array_equal(detector.score_samples(X), expected)


class Renormalises(nn.Module):
    """Trap: its forward pass writes to a weight that is no module's own."""

    def __init__(self):
        super().__init__()
        self.tokens, self.fc = nn.Parameter(torch.randn(9, 4) * 9), nn.Linear(4, 3)

    def forward(self, ids):
        return self.fc(F.embedding(ids, self.tokens, max_norm=0.5).mean(1))


@pytest.mark.parametrize("detector", [GMMDetector(), GradNormDetector(params="all")], ids=repr)
def test_a_forward_that_writes_to_weights_leaves_them_alone(detector, rng):
    X = rng.integers(0, 9, size=(20, 5))
    net = seeded(Renormalises)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    versions = [parameter._version for parameter in net.parameters()]
    detector = clone(detector).set_params(model=net)
    expected = detector.fit(X).score_samples(X)
    for copied in (pickle.loads(pickle.dumps(detector)), clone(detector).fit(X)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_allclose(copied.score_samples(X), expected, rtol=1e-5)
        assert all(torch.equal(net.state_dict()[name], t) for name, t in before.items())
        assert [parameter._version for parameter in net.parameters()] == versions


class Stubborn(nn.Linear):
    """Trap: a copy of it is itself."""

    def __deepcopy__(self, memo):
        return self


def weakly(forward, reference, x):
    """Run the forward of a module that is held weakly, as wrappers of checkpoints do."""
    return forward(reference(), x)


def lead_back():
    """Yield a name and what makes a deep copy of an `MLP` run its own modules."""

    def closure(net):
        hidden = net.hidden
        net.relu.forward = lambda x: torch.relu(x + 0 * hidden(x[:, :8]))

    def bound(net):
        forward = net.hidden.forward
        net.hidden.forward = lambda x: forward(x)

    def compiled(net):
        net.hidden.forward = torch.compile(net.hidden.forward, backend="eager")

    def weak(net):
        part = net.hidden
        part.forward = partial(weakly, nn.Linear.forward, weakref.ref(part))

    def hook(net):
        norm = net.hidden
        net.relu.register_forward_hook(lambda part, args, out: out + 0 * norm(out[:, :8]))

    yield "deepcopy", lambda net: setattr(net, "hidden", Stubborn(8, 16))
    for change in (closure, bound, compiled, weak, hook):
        yield change.__name__, change


@pytest.mark.parametrize("change", [pytest.param(c, id=name) for name, c in lead_back()])
def test_copies_run_no_module_of_the_users(change, rng):
    net, X = seeded(MLP), rng.normal(size=(20, 8)).astype(np.float32)
    change(net)
    net.train()
    expected = net(torch.as_tensor(X)).detach()
    calls = []
    for part in net.modules():
        part.register_forward_pre_hook(lambda part, args: calls.append(part))
    before = [(part.training, len(part._forward_hooks)) for part in net.modules()]
    detector = ASHDetector(net, variant="p", percentile=0.0).fit(X)
    scores = detector.score_samples(X)
    assert not [part for part in calls if any(part is own for own in net.modules())]
    assert [(part.training, len(part._forward_hooks)) for part in net.modules()] == before
    assert all(parameter.grad is None for parameter in net.parameters())
    np.testing.assert_allclose(scores, expected.logsumexp(1), rtol=1e-4)
