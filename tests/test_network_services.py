"""What methods are given of a network: logits, layers, gradients, moved inputs, passes."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import skood
from skood import ASHDetector, GMMDetector, MSPDetector, NNGuideDetector
from skood.functional import energy, kl_to_uniform_grad, pool
from skood.network import Network, NetworkEnsemble
from tests.networks import (
    MLP,
    Block,
    Branching,
    ChannelsLast,
    ConvHead,
    DenseNetLike,
    ResNet,
    Segmenter,
    SharedModules,
    ViT,
    WithDropout,
    sample_inputs,
    seeded,
)

LAYERS = ["layer1", "layer3", "layer4"]


@pytest.fixture(autouse=True)
def seed():
    """Draw weights from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def network_of(net, n_rows=6, seed=0):
    """Return a `Network` around a module and some rows of X, in the network's dtype."""
    dtype = next(net.parameters()).dtype
    x = torch.from_numpy(sample_inputs(net, n_rows, seed)).to(dtype)
    return Network(net, "cpu", dtype, sample=x[:2]), x


def reloaded(network, net):
    """Return a network as a pickle or a file brings it back."""
    state = pickle.loads(pickle.dumps(network.get_state(with_weights=False)))
    return Network(net, "cpu", network.dtype, state=state)


def n_calls(body, x):
    """Return how often each module of a body is called in a pass."""
    called = []
    for name, part in body.named_modules():
        part.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    body(x)
    return called


class Words(nn.Module):
    """A transformer on tokens, called by name."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.fc = nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        """Return logits in a dict."""
        h = self.embed(input_ids)
        for block in self.blocks:
            h = h + block(h)
        return {"hidden": h, "logits": self.fc(pool(h, mask=attention_mask))}


def words(n=4):
    """Return a network of words and some rows, of which the last tokens are padding."""
    ids = torch.randint(0, 20, (n, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::2, 3:] = 0
    x = {"input_ids": ids, "attention_mask": mask}
    net = Words()
    return net, Network(net, "cpu", torch.float32, sample={k: v[:2] for k, v in x.items()}), x


# Logits.


@pytest.mark.parametrize("cls", [MLP, ResNet, ViT, Segmenter])
def test_logits_are_those_of_the_network(cls):
    net = seeded(cls)
    network, x = network_of(net)
    torch.testing.assert_close(network.logits()(x), net(x))


def test_logits_of_features_are_the_heads():
    head = nn.Linear(6, 1)
    x = torch.randn(5, 6)
    logit = head(x).detach()
    logits = Network(head, "cpu", torch.float32, sample=x[:2]).logits()(x)
    torch.testing.assert_close(logits, torch.cat([-logit, logit], 1) / 2)
    network, rows = network_of(seeded(MLP).half())
    assert network.logits()(rows).dtype == torch.float32


# Several layers.


@pytest.mark.parametrize("how", ["avg", "max", None])
def test_several_layers_in_one_pass_equal_separate_readers(how):
    network, x = network_of(seeded(ResNet))
    found = network.layers([*LAYERS, None], how, with_logits=True)(x)
    expected = [*(network.layer(n, how=how)(x) for n in LAYERS), network.features()(x)]
    expected.append(network.logits()(x))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    found = network.layers([None, "layer3", "layer1"], how)(x)
    for a, i in zip(found, [3, 1, 0], strict=True):
        torch.testing.assert_close(a, expected[i], rtol=0, atol=0)


def test_a_pass_ends_at_the_last_layer_that_is_needed():
    network, x = network_of(seeded(ResNet))
    called = n_calls(network.layers(["layer2", "layer1"]), x)
    assert "network.layer2.0.conv2" in called
    assert not any("layer3" in name or "fc" in name for name in called)
    assert called.count("network.conv1") == 1
    called = n_calls(network.layers(["layer1", None]), x)
    assert "network.layer4" in called and called.count("network.conv1") == 1


def test_a_callable_reduces_where_the_layer_is_and_its_output_is_not_held():
    alive = []

    def gram(z, *, channel_axis, mask):
        # In-place layers follow: what is seen is what the layer gave.
        alive.append(z.shape)
        z = z.movedim(channel_axis, 1).flatten(2)
        return (z @ z.mT).sum(2)

    net = seeded(Block, 3, 4, 1)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.ReLU(True),
        nn.Flatten(),
        nn.Linear(4 * 36, 3),
    ).eval()
    x = torch.randn(5, 3, 8, 8)
    network = Network(net, "cpu", torch.float32, sample=x[:2])
    (found, raw, logits) = network.layers(["0", "0.1"], gram, with_logits=True)(x)
    z = net[0](x).flatten(2)
    torch.testing.assert_close(found, (z @ z.mT).sum(2))
    torch.testing.assert_close(raw, found)
    torch.testing.assert_close(logits, net(x))
    (kept, _) = network.layers(["0.1"], None, with_logits=True)(x)
    torch.testing.assert_close(kept, net[0](x))


def test_a_token_is_a_copy_that_holds_no_other_tokens():
    network, x = network_of(seeded(ViT))
    token, _ = network.layers(["encoder.layers.0", None], "token")(x)
    assert token.untyped_storage().nbytes() == token.nbytes


def test_layers_heed_padding_and_calls():
    net, network, x = words()
    one, two = network.layers(["blocks.0", "blocks.1"])(x)
    short = {k: v[:1, :3] for k, v in x.items()}
    torch.testing.assert_close(network.layers(["blocks.0"])(short)[0], one[:1])
    torch.testing.assert_close(two, network.layer("blocks.1")(x))
    network, x = network_of(seeded(SharedModules))
    first, second = network.layers(["block:0", "block:1"])(x)
    assert not torch.equal(first, second)


def test_layers_of_features_are_the_features():
    x = torch.randn(5, 6)
    for head in (None, nn.Linear(6, 3)):
        network = Network(head, "cpu", torch.float32, sample=x[:2])
        assert network.stages() == (None,)
        (found,) = network.layers(network.stages())(x)
        torch.testing.assert_close(found, x)
        with pytest.raises(ValueError, match="no network to look in"):
            network.layers(["0"])


def test_eight_threads_read_their_own_rows():
    network, _ = network_of(seeded(ResNet))
    body = network.layers([*LAYERS, None], with_logits=True)
    gradients = network.gradients(LAYERS, None, lambda z, g, **where: (z * g).flatten(1))
    moved = network.moved(energy, 0.01)
    passes = NetworkEnsemble(seeded(WithDropout), seeded(WithDropout))
    rows = [torch.from_numpy(sample_inputs(network.module, 3, s)) for s in range(8)]
    (_, dropout), y = network_of(passes.networks[0])[0].passes(3), torch.randn(8, 3, 8)
    alone = [(*body(x), *gradients(x), moved(x), dropout(v)) for x, v in zip(rows, y, strict=True)]

    def work(i):
        i %= 8
        found = (*body(rows[i]), *gradients(rows[i]), moved(rows[i]), dropout(y[i]))
        return all(torch.equal(a, b) for a, b in zip(found, alone[i], strict=True))

    with ThreadPoolExecutor(8) as pool_of_threads:
        assert all(pool_of_threads.map(work, range(64)))


# Stages.


class Bottleneck(nn.Module):
    """A block whose first layer keeps the size of the maps that its second one halves."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 3, 2, padding=1)
        self.short = nn.MaxPool2d(2)

    def forward(self, x):
        """Map (n, 4, H, W) to (n, 4, H / 2, W / 2)."""
        return self.second(self.first(x).relu()) + self.short(x)


class Attention(nn.Module):
    """Attention between the positions of maps."""

    def __init__(self):
        super().__init__()
        self.query, self.dropout = nn.Conv2d(4, 4, 1), nn.Dropout(0.1)

    def forward(self, x):
        """Map (n, 4, H, W) to the same shape."""
        tokens = self.query(x).flatten(2)
        weights = self.dropout((tokens.mT @ tokens).unsqueeze(1).softmax(3)).squeeze(1)
        return x + (tokens @ weights.mT).view_as(x)


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (seeded(ResNet), ("layer1", "layer2", "layer3", "layer4")),
        (seeded(ViT), (None,)),
        (seeded(MLP), (None,)),
        (Segmenter(), ("backbone",)),
        (Segmenter(enlarged=False), ("backbone",)),
        (ChannelsLast(), ("norm", "block", None)),
        (DenseNetLike(), ("norm", None)),
        (ConvHead(), ("body",)),
        (nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                       nn.Linear(27, 9), nn.ReLU(), nn.Linear(9, 3)), ("1", "2", None)),
        (nn.Sequential(nn.Conv1d(1, 3, 3, 2), nn.ReLU(), nn.Conv1d(3, 4, 3), nn.Flatten(),
                       nn.Linear(4 * 5, 3)), ("1", "2", None)),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Sequential(Bottleneck(), nn.ReLU()),
                       Bottleneck(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
         ("1", "2", "3")),
        (nn.Sequential(nn.Conv2d(1, 4, 2, 2), Attention(), nn.Flatten(), nn.Linear(64, 3)),
         ("1", None)),
    ],
    ids=["resnet", "vit", "mlp", "segmenter", "maps", "channels last", "dense", "1x1", "vgg", "1d",
         "bottlenecks", "attention"],
)  # fmt: skip
def test_stages_are_the_ends_of_the_sizes_of_maps(net, expected):
    shape = getattr(net, "input_shape", (1, 8, 8))
    if isinstance(net[0] if isinstance(net, nn.Sequential) else None, nn.Conv1d):
        shape = (1, 15)
    x = torch.randn(3, *shape)
    network = Network(net.eval(), "cpu", torch.float32, sample=x[:2])
    assert network.stages() == expected
    body, again = network.layers(expected), reloaded(network, net)
    assert again.stages() == expected
    for a, b in zip(body(x), again.layers(expected)(x), strict=True):
        assert a.ndim == 2
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_stages_of_words_are_the_features():
    assert words()[1].stages() == (None,)


# Cutting.


class Doubled(nn.Module):
    """A shaping that learns nothing, for tests."""

    def forward(self, x):
        """Return other values."""
        return x.clamp(max=0.5) * 2


CUTS = [
    (seeded(ResNet), "layer2", 1),
    # A skip connection crosses this one; an in-place ReLU follows.
    (seeded(ResNet), "layer2.0.bn1", 2),
    (seeded(ResNet), "bn1", 1),
    (seeded(Branching), "hidden", 2),
    (seeded(SharedModules), "block:0", 1),
    (seeded(ViT), "encoder.layers.0", 2),
    (Segmenter(), "backbone", 1),
]


@pytest.mark.parametrize(("net", "layer", "n_parts"), CUTS, ids=lambda value: str(value)[:20])
def test_what_follows_a_cut_gives_the_logits(net, layer, n_parts):
    net = net.eval()
    network, x = network_of(net)
    before = x.clone()
    body, rest = network.cut(layer)
    parts = body(x)
    parts = parts if isinstance(parts, tuple) else (parts,)
    assert len(parts) == n_parts
    kept = [part.clone() for part in parts]
    torch.testing.assert_close(parts[0], network.layer(layer, how=None)(x))
    torch.testing.assert_close(rest(*parts), net(x))
    transformed = network.with_layer_transform(layer, Doubled())(x)
    torch.testing.assert_close(rest(Doubled()(parts[0]), *parts[1:]), transformed)
    assert not torch.allclose(transformed, net(x))
    for part, was in zip((*parts, x), (*kept, before), strict=True):
        assert torch.equal(part, was)
    again_body, again_rest = reloaded(network, net).cut(layer)
    parts = again_body(x)
    assert type(again_rest) is type(rest)
    parts = parts if isinstance(parts, tuple) else (parts,)
    torch.testing.assert_close(again_rest(*parts), net(x))


def test_a_cut_of_words_and_in_front_of_the_head():
    net, network, x = words()
    body, rest = network.cut("blocks.0")
    for again in (body, rest), reloaded(network, net).cut("blocks.0"):
        torch.testing.assert_close(again[1](*again[0](x)), net(**x)["logits"])
    for model in (seeded(ResNet), seeded(ConvHead), Segmenter(enlarged=False)):
        network, x = network_of(model.eval())
        body, rest = network.cut()
        torch.testing.assert_close(rest(body(x)), model(x))


def test_what_the_tracer_takes_for_a_constant_is_found_out():
    class Typed(MLP):
        def forward(self, x):
            x = self.hidden(x)
            return self.fc(x * 3 if isinstance(x, torch.Tensor) else x)

    net = seeded(Typed)
    network, x = network_of(net)
    body, rest = network.cut("hidden")
    torch.testing.assert_close(rest(*body(x)), net(x))


# Gradients.


@pytest.mark.parametrize("seed", [kl_to_uniform_grad, None, lambda logits: 2 * logits])
def test_gradients_of_any_function_of_the_logits(seed):
    net = seeded(ResNet).double()
    network, x = network_of(net)
    body = network.gradients(["layer1", None], seed, lambda z, g, **where: torch.stack([z, g], 1))
    found = body(x)
    outputs = []
    net.layer1.register_forward_hook(lambda m, a, out: outputs.append(out) or out.clone())
    net.fc.register_forward_pre_hook(lambda m, a: outputs.append(a[0]))
    logits = net(x)
    value = {kl_to_uniform_grad: -torch.log_softmax(logits, 1).mean(1).sum(), None: logits.sum()}
    expected = torch.autograd.grad(value.get(seed, (logits**2).sum()), outputs)
    for both, output, grad in zip(found, outputs, expected, strict=True):
        torch.testing.assert_close(both[:, 0], output.detach())
        torch.testing.assert_close(both[:, 1], grad)
    # One row alone, in a batch of its own.
    torch.testing.assert_close(body(x[:1])[0], found[0][:1])


def test_gradients_of_a_layers_output_end_the_pass_there():
    net = seeded(ResNet).double()
    network, x = network_of(net)
    body = network.gradients(["layer1", "layer2"], None, lambda z, g, **where: g, of="layer3")
    called = n_calls(body, x)
    assert "network.layer3" in called and "network.layer4" not in called
    z = net.layer1(net.relu(net.bn1(net.conv1(x)))).detach().requires_grad_()
    (expected,) = torch.autograd.grad(net.layer3(net.layer2(z.clone())).sum(), z)
    torch.testing.assert_close(body(x)[0], expected)
    assert net.conv1.weight.grad is None and net.conv1.weight.requires_grad
    with pytest.raises(ValueError, match="'layer1' does not depend on the layer 'layer3'|called"):
        network.gradients(["layer3"], None, lambda z, g, **where: g, of="layer1")(x)


# Moved inputs.


def log_odds(logits):
    """Largest logit against all others."""
    top = logits.amax(1)
    others = logits.scatter(1, logits.argmax(1, keepdim=True), -torch.inf)
    return top - others.logsumexp(1)


@pytest.mark.parametrize("cls", [MLP, ResNet, ViT, Segmenter])
@pytest.mark.parametrize("function", [energy, log_odds])
def test_inputs_move_by_the_signs_of_their_gradient(cls, function):
    net = seeded(cls).double()
    network, x = network_of(net)
    before = x.clone()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(net(leaf)).sum(), leaf)
    torch.testing.assert_close(network.input_gradient(function)(x), expected)
    moved = network.moved(function, 0.01)(x)
    torch.testing.assert_close(moved, before + 0.01 * expected.sign())
    assert torch.equal(x, before) and not moved.requires_grad
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    # A row alone moves as among others.
    torch.testing.assert_close(network.moved(function, 0.01)(x[:1]), moved[:1])
    scale = torch.linspace(1, 2, x.shape[1]).view(1, -1, *[1] * (x.ndim - 2))
    torch.testing.assert_close(
        network.moved(function, -0.01 / scale)(x), before - 0.01 / scale * expected.sign()
    )


def test_some_inputs_move():
    net = seeded(MLP).double()
    network, x = network_of(net)
    gradient = network.input_gradient(energy)(x)
    one = network.moved(energy, 1.0, n_inputs=1)(x) - x
    assert ((one != 0).sum(1) == 1).all()
    assert torch.equal(one.abs().argmax(1), gradient.abs().argmax(1))
    few = network.moved(energy, 1.0, n_inputs=(0.3, "smallest"))(x) - x
    assert ((few != 0).sum(1) == 2).all()
    least = gradient.abs().sort(1).indices[:, :2].sort(1).values
    assert torch.equal(few.nonzero()[:, 1].view(-1, 2), least)


def test_inputs_move_by_what_is_learned_of_several_layers():
    net = seeded(ResNet).double()
    network, x = network_of(net)
    body = network.layers(["layer1", None])
    found = network.input_gradient(lambda a, b: a.sum(1) + b.square().sum(1), body)(x)
    leaf = x.clone().requires_grad_()
    z = net.layer1(net.relu(net.bn1(net.conv1(leaf))))
    value = z.mean((2, 3)).sum()
    h = net.layer4(net.layer3(net.layer2(z))).mean((2, 3))
    (expected,) = torch.autograd.grad(value + h.square().sum(), leaf)
    torch.testing.assert_close(found, expected)


def test_inputs_that_cannot_be_moved_are_refused_by_name():
    _, network, _ = words()
    with pytest.raises(ValueError, match="Words takes a dict of arrays"):
        network.input_gradient(energy)
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    ids = torch.randint(0, 9, (4, 3))
    with pytest.raises(ValueError, match="Sequential takes whole numbers"):
        Network(tokens, "cpu", torch.float32, sample=ids[:2]).moved(energy, 0.1)
    with pytest.raises(ValueError, match="there is none: X holds"):
        Network(None, "cpu", torch.float32).input_gradient(energy)
    network, x = network_of(seeded(MLP))
    with pytest.raises(ValueError, match="do not depend on X"):
        network.input_gradient(lambda logits: logits.detach().sum(1))(x)


def test_recurrent_layers_can_be_moved_through():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.LSTM(3, 5, 2, batch_first=True, dropout=0.5), nn.Linear(5, 2)

        def forward(self, x):
            return self.fc(self.rnn(x)[0][:, -1])

    net, x = Recurrent().eval(), torch.randn(4, 6, 3)
    moved = Network(net, "cpu", torch.float32, sample=x[:2]).moved(energy, 0.1).eval()
    assert torch.equal(moved(x), moved(x)) and not torch.equal(moved(x), x)


# Repeated passes.


def passes_of(network, n_passes, **how):
    """Return a function that maps X to the logits of all passes."""
    body, passes = network.passes(n_passes, **how)
    return lambda x: passes(*tuple_of(body(x)))


def test_passes_with_dropout_do_not_depend_on_the_batch():
    class Dropping(ResNet):
        def __init__(self):
            super().__init__()
            self.avgpool = nn.Sequential(nn.Dropout2d(0.3), self.avgpool, nn.Dropout(0.5))

    net = seeded(Dropping).double()
    network, x = network_of(net, n_rows=7)
    passes = passes_of(network, 40, seed=3)
    found = passes(x)
    assert found.shape == (7, 40, 5)
    torch.testing.assert_close(torch.cat([passes(part) for part in x.split(3)]), found)
    torch.testing.assert_close(passes_of(reloaded(network, net), 40, seed=3)(x), found)
    assert not torch.allclose(passes_of(network, 40, seed=4)(x), found)
    assert len(found[0].unique(dim=0)) == 40
    # Masked features are those of the network, doubled or 0.
    net.train()
    assert passes_of(network, 2)(x).shape == (7, 2, 5)


def test_a_pass_is_the_network_with_its_mask():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    x = torch.randn(5, 8).double()
    network = Network(net.eval(), "cpu", torch.float64, sample=x[:2])
    hidden = []
    _, passes = network.passes(200)
    passes.network[3].register_forward_pre_hook(lambda m, args: hidden.append(args[0]))
    logits = passes(x)
    # The first two passes tell the shapes of the masks.
    hidden = hidden[2:]
    h = net[1](net[0](x))
    masks = torch.stack(hidden, 1) / torch.where(h == 0, 1, h).unsqueeze(1)
    assert set(masks.round(decimals=6).unique().tolist()) == {0.0, 2.0}
    rows = torch.where((h > 0).unsqueeze(1), masks, torch.nan)
    assert (rows.nanmean(0, keepdim=True) - rows).nan_to_num().abs().max() < 1e-9
    assert abs(float(rows.detach().nanmean()) - 1) < 0.1
    torch.testing.assert_close(logits[:, 7], net[3](hidden[7]))


@pytest.mark.parametrize("model", ["features", "network"])
def test_features_are_dropped_at_a_rate(model):
    net = seeded(ResNet).double()
    network, x = network_of(net)
    if model == "features":
        x = network.features()(x)
        network = Network(net.fc, "cpu", torch.float64, sample=x[:2])
    passes = passes_of(network, 400, rate=0.25)
    found = passes(x)
    torch.testing.assert_close(torch.cat([passes(x[:1]), passes(x[1:])]), found)
    assert (found.mean(1) - network.logits()(x)).abs().max() < 4 * (found.std(1) / 20).max()
    with pytest.raises(ValueError, match="Give `rate`"):
        network.passes(3)


def test_selus_dropout_keeps_mean_and_variance():
    net = nn.Sequential(nn.AlphaDropout(0.2), nn.Linear(400, 400))
    nn.init.eye_(net[1].weight), nn.init.zeros_(net[1].bias)
    x = torch.randn(3, 400)
    values = passes_of(Network(net.eval(), "cpu", torch.float32, sample=x[:2]), 50)(x)
    assert abs(float(values.mean())) < 0.1 and abs(float(values.std()) - 1) < 0.1


def test_logits_of_an_ensemble_are_log_mean_probability_and_mean_energy():
    nets = [seeded(MLP, seed=s).double() for s in range(3)]
    network, x = network_of(NetworkEnsembleOf(nets))
    found = network.logits()(x)
    p = torch.stack([net(x).softmax(1) for net in nets]).mean(0)
    torch.testing.assert_close(found.softmax(1), p)
    energies = torch.stack([energy(net(x)) for net in nets]).mean(0)
    torch.testing.assert_close(energy(found), energies)
    torch.testing.assert_close(found, p.log() + energies[:, None])
    members = network.layer("members", how=None)(x)
    torch.testing.assert_close(members, torch.stack([net(x) for net in nets], 1))
    mean = NetworkEnsemble(*nets, average="logits")(x)
    torch.testing.assert_close(mean, torch.stack([net(x) for net in nets]).mean(0))
    # Sure networks underflow nowhere.
    sure = NetworkEnsemble(*[nn.Sequential(net, Times(1e4)) for net in nets])(x)
    assert sure.isfinite().all()


class Times(nn.Module):
    """Multiply."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        """Return a multiple."""
        return x * self.factor


def NetworkEnsembleOf(nets):
    """Return an ensemble that knows the shape of its rows."""
    ensemble = NetworkEnsemble(*nets)
    ensemble.input_shape = nets[0].input_shape
    return ensemble


def test_detectors_take_an_ensemble(tmp_path):
    nets = [seeded(ResNet, seed=s) for s in range(2)]
    X = sample_inputs(nets[0], 40, 0)
    detector = MSPDetector(NetworkEnsemble(*nets)).fit(X)
    p = torch.stack([net(torch.from_numpy(X)).softmax(1) for net in nets]).mean(0).amax(1)
    np.testing.assert_allclose(detector.score_samples(X), torch.logit(p).detach(), rtol=1e-4)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.score_samples(X), detector.score_samples(X))
    skood.save(detector, tmp_path / "detector.safetensors")
    again = skood.load(tmp_path / "detector.safetensors", model=detector.model)
    np.testing.assert_array_equal(again.score_samples(X), detector.score_samples(X))
    layer = GMMDetector(NetworkEnsemble(*nets), layer="networks.0.layer4", reg_covar=0.1).fit(X)
    alone = GMMDetector(nets[0], layer="layer4", reg_covar=0.1).fit(X)
    np.testing.assert_allclose(layer.score_samples(X), alone.score_samples(X), rtol=1e-6)
    with pytest.raises(ValueError, match="no features in common"):
        NNGuideDetector(NetworkEnsemble(*nets)).fit(X)
    maps = NetworkEnsemble(Segmenter().eval(), Segmenter().eval())
    with pytest.raises(ValueError, match="no features in common"):
        ASHDetector(maps).fit(sample_inputs(maps.networks[0], 4, 0))


def test_an_ensemble_of_networks_of_one_logit_and_of_collections():
    nets = [seeded(MLP, classes=1, seed=s) for s in range(2)]
    x = torch.randn(5, 8)
    p = torch.stack([torch.sigmoid(net(x)) for net in nets]).mean(0)
    torch.testing.assert_close(NetworkEnsemble(*nets)(x).softmax(1)[:, 1:], p)
    net, network, x = words()
    ensemble = NetworkEnsemble(net, net)
    network = Network(ensemble, "cpu", torch.float32, sample={k: v[:2] for k, v in x.items()})
    torch.testing.assert_close(network.logits()(x), net(**x)["logits"])


def test_what_is_no_ensemble_is_refused():
    nets = [seeded(MLP, seed=s) for s in range(2)]
    with pytest.raises(TypeError, match=r"NetworkEnsemble\(a, b, c\)"):
        NetworkEnsemble(nets)
    with pytest.raises(ValueError, match="no network"):
        NetworkEnsemble()
    with pytest.raises(ValueError, match="average"):
        NetworkEnsemble(*nets, average="votes")
    with pytest.raises(TypeError, match="NetworkEnsemble"):
        GMMDetector(nets).fit(np.zeros((4, 8)))


@pytest.mark.cuda
def test_services_give_on_a_gpu_what_they_give_on_the_cpu():
    class Dropping(ResNet):
        def __init__(self):
            super().__init__()
            self.avgpool = nn.Sequential(nn.Dropout2d(0.3), self.avgpool, nn.Dropout(0.5))

    net = seeded(Dropping).double()
    network, x = network_of(net)
    on_gpu = Network(net, "cuda", torch.float64, sample=x[:2])
    assert on_gpu.stages() == network.stages()

    def modules(network):
        yield network.layers([*LAYERS, None], with_logits=True)
        yield network.gradients(LAYERS, kl_to_uniform_grad, lambda z, g, **where: z * g)
        yield network.moved(energy, 0.01, n_inputs=5)
        yield passes_of(network, 4)
        yield passes_of(network, 4, rate=0.5)
        for layer in "layer2", "layer2.0.bn1":
            body, rest = network.cut(layer)
            yield lambda x, body=body, rest=rest: rest(*tuple_of(body(x)))

    for here, there in zip(modules(network), modules(on_gpu), strict=True):
        for a, b in zip(tuple_of(here(x)), tuple_of(there(x.to("cuda"))), strict=True):
            torch.testing.assert_close(b.cpu(), a)


def tuple_of(value):
    """Return a tuple, of one where there is no tuple."""
    return value if isinstance(value, tuple) else (value,)
