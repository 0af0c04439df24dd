"""A network cut in two computes what the whole computes, and nothing else notices."""

import copy
import itertools
import pickle
import threading
import time
from functools import partial

import pytest
import torch
from torch import nn

from skood import ASHDetector, FeatureExtractor
from skood.network import split
from tests import networks


class TracedViT(networks.ViT):
    """Trap: a parameter of the network, and one of a module around the cut, enter the pass."""

    def forward(self, x):
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1)
        return self.head(self.encoder(tokens)[:, 0])


class Scaled(networks.MLP):
    """Trap: a parameter is read before the cut and again after it; so is a plain tensor."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = torch.tensor(0.5)

    def forward(self, x):
        h = self.relu(self.hidden(x * self.scale + self.shift))
        return self.fc(h * self.scale + self.shift)


class Hooked(networks.MLP):
    """Trap: a hook of the network itself, and one of a layer, change what passes."""

    def __init__(self):
        super().__init__()
        self.register_forward_pre_hook(double)
        self.relu.register_forward_pre_hook(double)


def double(module, args):
    return (2 * args[0],)


def returns(make):
    """Return a class of networks that return their features and logits by `make`."""

    class Returns(networks.MLP):
        def forward(self, x):
            h = self.relu(self.hidden(x))
            return make(self.fc(h), h)

    return Returns


def build(cls, *args, n=5, **kwargs):
    net = networks.seeded(cls, *args, **kwargs)
    return net, torch.from_numpy(networks.sample_inputs(net, n))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


HEADS = [
    networks.MLP,
    networks.SmallCNN,
    networks.ResNet,
    networks.ViT,
    TracedViT,
    networks.DenseNetLike,
    networks.Branching,
    networks.WeightNormed,
    networks.WithDropout,
    Scaled,
    Hooked,
]
NAMED = {
    networks.MLP: "hidden relu fc",
    networks.SmallCNN: "conv1 bn conv2 avgpool fc",
    networks.ResNet: "conv1 bn1 relu layer1 layer2.0 layer2.1 layer2 layer3.0 layer4.1 avgpool fc",
    TracedViT: "encoder encoder.layers encoder.layers.0 encoder.layers.1 encoder.ln head",
    networks.DenseNetLike: "conv0 norm classifier",
    networks.Segmenter: "backbone backbone.1 backbone.4 classifier",
    networks.EndsInSoftmax: "hidden relu fc",
    networks.WeightNormed: "hidden relu fc",
    networks.WithDropout: "hidden relu dropout",
    Scaled: "hidden relu",
    Hooked: "hidden relu",
}
CUTS = [(cls, layer) for cls, layers in NAMED.items() for layer in layers.split()]


def deep(cls):
    return {"blocks": 2} if cls is networks.ResNet else {}


@pytest.mark.parametrize("cls", HEADS)
def test_the_head_is_cut_off(cls):
    net, x = build(cls)
    body, rest = split(net)
    assert isinstance(rest, nn.Linear)
    torch.testing.assert_close(rest(body(x)), net(x), rtol=0, atol=0)
    assert not body.training and not rest.training


@pytest.mark.parametrize(("cls", "layer"), CUTS)
def test_the_rest_of_the_body_is_the_network(cls, layer):
    net, x = build(cls, **deep(cls))
    given = []
    handle = net.get_submodule(layer).register_forward_hook(lambda *call: given.append(call[2]))
    body, rest = split(net, layer)
    expected = net(x)
    given, _ = [value.clone() for value in given[-1:]], handle.remove()
    features = body(x)
    before = features.clone()
    for _ in range(2):
        torch.testing.assert_close(rest(features), expected, rtol=0, atol=0)
        torch.testing.assert_close(features, before, rtol=0, atol=0)
    assert features.shape == given[0].shape
    assert not any(part.training for half in (body, rest) for part in half.modules())


@pytest.mark.parametrize(("cls", "layer"), [(cls, None) for cls in HEADS] + CUTS)
def test_halves_can_be_copied_and_pickled(cls, layer):
    net, x = build(cls, **deep(cls))
    halves = split(net, layer)
    expected = net(x)
    body, rest = copy.deepcopy(halves)
    torch.testing.assert_close(rest(body(x)), expected, rtol=0, atol=0)
    if cls is not networks.WeightNormed:  # torch refuses to pickle what is parametrized.
        body, rest = pickle.loads(pickle.dumps(halves))
        torch.testing.assert_close(rest(body(x)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("cls", "layer"), [(cls, None) for cls in HEADS] + CUTS)
def test_half_precision(cls, layer):
    net, x = build(cls, **deep(cls))
    net, x = net.bfloat16(), x.bfloat16()
    if cls is Scaled:
        net.shift = net.shift.bfloat16()
    body, rest = split(net, layer)
    assert rest(body(x)).dtype == torch.bfloat16
    torch.testing.assert_close(rest(body(x)), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("layer", [None, "layer2", "avgpool"])
def test_gradients_pass_and_weights_get_none(layer):
    net, x = build(networks.ResNet)
    body, rest = split(net, layer)
    with torch.enable_grad():
        x.requires_grad_()
        rest(body(x)).square().sum().backward()
        other = x.detach().clone().requires_grad_()
        net(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert all(p.grad is None for half in (body, rest) for p in half.parameters())


def test_halves_share_the_weights_of_the_network_and_nothing_else():
    net, _ = build(networks.ResNet)
    body, rest = split(net, "layer2")
    pointers = {p.data_ptr() for p in net.parameters()}
    halves = [{p.data_ptr() for p in half.parameters()} for half in (body, rest)]
    assert not halves[0] & halves[1] and halves[0] | halves[1] == pointers
    assert not set(body.modules()) & set(rest.modules())
    assert not {b.data_ptr() for half in (body, rest) for b in half.buffers()} & {
        b.data_ptr() for b in net.buffers()
    }


@pytest.mark.parametrize(
    ("make", "entry"),
    [
        (lambda logits, h: (logits, h), lambda out: out[0]),
        (lambda logits, h: [h, logits], lambda out: out[1]),
        (lambda logits, h: {"logits": logits, "features": h}, lambda out: out["logits"]),
    ],
)
def test_outputs_are_kept_as_they_are(make, entry):
    net, x = build(returns(make))
    expected = net(x)
    body, rest = split(net, "hidden")
    torch.testing.assert_close(rest(body(x)), expected, rtol=0, atol=0)
    body, rest = split(net)
    torch.testing.assert_close(rest(body(x)), entry(expected), rtol=0, atol=0)


def test_two_heads():
    net, x = build(networks.TwoHeads)
    body, rest = split(net, "hidden")
    torch.testing.assert_close(rest(body(x)), net(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="skip connection.*There are: 'hidden'"):
        split(net, "fc")


def test_a_layer_that_is_the_network():
    layer = nn.Linear(3, 2)
    body, rest = split(layer)
    x = torch.ones(4, 3)
    assert body(x) is x
    torch.testing.assert_close(rest(x), layer(x))


def test_a_half_is_cut_again():
    net, x = build(networks.ResNet)
    first, rest = split(net, "layer1")
    middle, rest = split(rest, "layer3")
    last, head = split(rest)
    torch.testing.assert_close(head(last(middle(first(x)))), net(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("cls", "layers"),
    [
        (networks.ResNet, "layer2.1.conv1 layer2.0.downsample layer4.0.bn2 layer1.1.conv2"),
        (TracedViT, "encoder.layers.0.ln_1 encoder.layers.1.mlp encoder.layers.1.mlp.0"),
        (networks.DenseNetLike, "norms.1 convs.0 convs.2"),
    ],
)
def test_a_crossed_cut_is_refused_with_names_that_do(cls, layers):
    net, x = build(cls, **deep(cls))
    for layer in layers.split():
        with pytest.raises(ValueError, match="skip connection") as caught:
            split(net, layer)
        offered = str(caught.value).split("There are: ")[1].rstrip(".").split(", ")
        assert len(offered) > 2
        for name in offered:
            body, rest = split(net, name.strip("'"))
            torch.testing.assert_close(rest(body(x)), net(x), rtol=0, atol=0)


def test_the_input_used_after_the_cut_is_a_crossing():
    class Skips(networks.MLP):
        def forward(self, x):
            return self.fc(self.relu(self.hidden(x))) + x.mean(1, keepdim=True)

    net, _ = build(Skips)
    with pytest.raises(ValueError, match="skip connection"):
        split(net, "hidden")


@pytest.mark.parametrize(
    ("cls", "layer", "match"),
    [
        (networks.ResNet, "layer9", "no layer 'layer9'. Did you mean 'layer4'"),
        (networks.ResNet, "", "no layer ''"),
        (networks.SmallCNN, "relu", "'relu' 2 times"),
        (networks.ResNet, "layer1.0.relu", "'layer1.0.relu' 2 times"),
        (networks.DenseNetLike, "norms", "never calls the layer 'norms'.*'norms.0'"),
        (networks.Branching, "hidden", "cannot be traced.*control flow.*module of its own"),
        (networks.ViT, "encoder", r"cannot be traced.*x.shape\[0\] for len"),
        (networks.Segmenter, None, "does not return what one nn.Linear gives.*'classifier'"),
        (networks.EndsInSoftmax, None, "does not return what one nn.Linear gives"),
        (networks.TwoHeads, None, "does not return what one nn.Linear gives"),
    ],
)
def test_what_cannot_be_cut(cls, layer, match):
    net, _ = build(cls)
    with pytest.raises(ValueError, match=match):
        split(net, layer)


def test_a_branch_on_values_in_a_module_of_its_own_is_no_obstacle():
    branching = networks.seeded(networks.Branching, classes=6)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), branching, nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.randn(4, 8)
    for layer in ("0", "1", "2", None):
        body, rest = split(net, layer)
        torch.testing.assert_close(rest(body(x)), net(x), rtol=0, atol=0)


def test_wrappers():
    net, x = build(networks.MLP)
    for wrapped in (nn.DataParallel(net), torch.compile(net)):
        body, rest = split(wrapped, "hidden")
        torch.testing.assert_close(rest(body(x)), net(x))
    with pytest.raises(TypeError, match="TorchScript"):
        split(torch.jit.trace(net, x), "hidden")


def snapshot(net):
    """Return all there is to a network."""
    parts = [
        (id(part), type(part), part.training, {k: id(v) for k, v in vars(part).items()})
        for part in net.modules()
    ]
    tensors = [
        (id(t), t._version, t.requires_grad, t.grad, t.clone())
        for t in (*net.parameters(), *net.buffers())
    ]
    hooks = [
        list(hooks)
        for part in net.modules()
        for hooks in (part._forward_hooks, part._forward_pre_hooks)
    ]
    return parts, hooks, tensors


@pytest.mark.parametrize(
    ("cls", "layer"),
    [
        (networks.WithDropout, None),
        (networks.WithDropout, "hidden"),
        (networks.ResNet, "layer2"),
        (networks.ResNet, "layer2.0.conv1"),
        (networks.Branching, None),
        (networks.Branching, "hidden"),
        (networks.Segmenter, None),
        (Scaled, "relu"),
    ],
)
def test_the_network_is_left_alone(cls, layer):
    net, x = build(cls)
    reference = copy.deepcopy(net)
    net.train()
    call, getattribute = nn.Module.__call__, nn.Module.__getattr__
    before = snapshot(net)
    try:
        body, rest = split(net, layer)
        torch.testing.assert_close(rest(body(x)), reference(x), rtol=0, atol=0)
        torch.testing.assert_close(rest(body(x)), rest(body(x)), rtol=0, atol=0)
    except ValueError:
        pass
    after = snapshot(net)
    assert before[:2] == after[:2]
    for old, new in zip(before[2], after[2], strict=True):
        assert old[:4] == new[:4] and torch.equal(old[4], new[4])
    assert nn.Module.__call__ is call and nn.Module.__getattr__ is getattribute


def test_no_class_of_the_user_hears_of_ours():
    made = []

    class Registered(networks.MLP):
        def __init_subclass__(cls, **kwargs):
            made.append(cls)

    net, _ = build(Registered)
    split(net, "hidden")
    assert made == []


def test_threads():
    """Two cut while a third runs a network of its own, compiled and not."""
    resnet, vit = build(networks.ResNet), build(TracedViT)
    own, x = build(networks.SmallCNN)
    compiled = torch.compile(own, backend="eager")
    expected = compiled(x)
    call, getattribute = nn.Module.__call__, nn.Module.__getattr__
    errors, turns = [], []
    until = time.monotonic() + 3

    def repeat(step):
        """Catch what a step raises; no longer than 3 s, 200 times at most."""
        try:
            for turn in itertools.count(1):
                with torch.no_grad():
                    step()
                if nn.Module.__call__ is not call or nn.Module.__getattr__ is not getattribute:
                    errors.append("patched")
                if turn == 200 or time.monotonic() > until:
                    return turns.append(turn)
        except Exception as error:
            errors.append(error)

    def cut(net, inputs, layers):
        layer = next(layers)
        body, rest = split(net, layer)
        assert torch.equal(rest(body(inputs)), net(inputs))

    def run():
        assert torch.equal(own(x), expected) and torch.equal(compiled(x), expected)

    steps = [
        partial(cut, *resnet, itertools.cycle(["layer1", "layer3", None])),
        partial(cut, *vit, itertools.cycle(["encoder.layers.0", None])),
        run,
    ]
    threads = [threading.Thread(target=repeat, args=[step]) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(turns) == 3


def test_detectors_on_halves():
    net, x = build(networks.ResNet, n=30)
    expected = ASHDetector(net).fit(x).decision_function(x)
    for layer in (None, "layer3"):
        body, rest = split(net, layer)
        features = body(x)
        scores = ASHDetector(rest).fit(features).decision_function(features)
        torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(
        FeatureExtractor(body, layer="layer2").fit_transform(x),
        FeatureExtractor(net, layer="layer2").fit_transform(x),
    )
    body, _ = split(networks.seeded(networks.Branching))
    x = torch.from_numpy(networks.sample_inputs(networks.Branching(), 9))
    assert FeatureExtractor(body, layer="hidden").fit_transform(x).shape == (9, 16)


@pytest.mark.parametrize("call", [0, 1])
def test_a_call_of_a_layer(call):
    net = networks.seeded(networks.SmallCNN)
    x = torch.from_numpy(networks.sample_inputs(net, 5))
    body, rest = split(net, f"relu:{call}")
    assert torch.equal(rest(body(x)), net(x))
    assert body(x).shape[1] == 6 * (call + 1)
