"""Norms of per-sample gradients by rule equal autograd, one sample at a time."""

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skood import GradNormDetector, NACDetector
from skood.functional import kl_to_uniform_grad
from skood.network.parameter_gradients import PerSampleGradientNorm
from tests.detectors.test_gradnorm import gradnorm
from tests.networks import ResNet, SmallCNN, seeded


def scorer_of(net, names=None, temperature=1.0, order=1):
    """Return the scorer of a network's parameters, all of them by default."""
    names = {name for name, _ in net.named_parameters()} if names is None else set(names)
    return PerSampleGradientNorm(net, names, kl_to_uniform_grad, temperature, order)


def assert_by_rule(net, x, but=(), rtol=1e-12):
    """Compare scores to the reference; all parameters but some must have gone by rule."""
    net = net.double().eval()
    for order in (2, 1):
        scorer = scorer_of(net, order=order)
        scores = scorer(x)
        np.testing.assert_allclose(scores, gradnorm(net, x, order=order), rtol=order * rtol)
        assert len(scores.unique()) == len(x)
        assert scorer.names - scorer.by_rule.names == set(but)
    # All by vmap, as where a batch takes another way.
    scorer._reached = set()
    np.testing.assert_allclose(scorer(x), scores, rtol=1e-10)


def rand(*shape):
    """Draw inputs that differ in size from row to row."""
    x = torch.randn(*shape, dtype=torch.float64)
    return x * torch.linspace(0.5, 2, len(x), dtype=x.dtype).view(-1, *[1] * (x.ndim - 1))


@pytest.fixture(autouse=True)
def seed():
    """Draw weights and inputs from a seed; compute as the detectors do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Ids(nn.Module):
    """Whole numbers of floats, to which the reference casts inputs."""

    def forward(self, x):
        """Return ids."""
        return x.long()


class Mean(nn.Module):
    """Average over the axes from one on."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, x):
        """Return (n, features)."""
        return x.mean(tuple(range(self.axis, x.ndim))) if self.axis > 1 else x.mean(1)


CONVOLUTIONS = {
    "stride": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (12, 11)),
    "many positions": (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2)), (30, 11)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (7, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1, bias=False), (12, 12)),
    "dilation": (nn.Conv2d(4, 5, 3, dilation=(2, 3), padding=2), (9, 8)),
    "dilation, many positions": (nn.Conv2d(4, 5, 3, dilation=(2, 3), padding=2), (19, 18)),
    "circular": (nn.Conv2d(4, 5, 3, padding=(2, 1), padding_mode="circular"), (6, 5)),
    "reflect": (nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect", stride=2), (26, 25)),
    "same": (nn.Conv2d(4, 5, (4, 3), padding="same", dilation=(1, 2)), (6, 7)),
    "one position": (nn.Conv2d(4, 5, 1), (1, 1)),
    "one padded position": (nn.Conv2d(4, 5, 3, padding=1), (1, 1)),
    "one window": (nn.Conv2d(4, 5, (6, 5)), (6, 5)),
    "1-D": (nn.Conv1d(4, 5, 4, stride=3, dilation=2), (25,)),
    "1-D, many positions": (nn.Conv1d(4, 5, 4, padding="same"), (90,)),
    "3-D": (nn.Conv3d(4, 5, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 0)), (3, 7, 2)),
    "3-D, many positions": (nn.Conv3d(4, 6, 3, padding=1, groups=2), (5, 6, 4)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind):
    layer, size = CONVOLUTIONS[kind]
    dims = len(size)
    first = getattr(nn, f"Conv{dims}d")(3, 4, 1)
    norm = getattr(nn, f"BatchNorm{dims}d")(4)
    nn.init.normal_(norm.running_mean)
    net = nn.Sequential(first, norm, nn.Tanh(), layer, nn.Tanh(), Mean(2))
    assert_by_rule(net.append(nn.Linear(layer.out_channels, 3)), rand(7, 3, *size))


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_of_vectors_and_tokens(bias):
    linear = [nn.Linear(5, 6, bias), nn.ReLU(), nn.Linear(6, 4, bias)]
    assert_by_rule(nn.Sequential(*linear), rand(9, 5))
    assert_by_rule(nn.Sequential(*linear, Mean(1)), rand(9, 7, 5))
    assert_by_rule(nn.Sequential(*linear, Mean(1), Mean(1)), rand(9, 2, 3, 5))


def test_normalisations():
    norms = [nn.GroupNorm(2, 6), nn.GroupNorm(3, 6, affine=False), nn.LayerNorm((6, 5, 4))]
    norms += [nn.BatchNorm2d(6), nn.LayerNorm(4)]
    for norm in norms:
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        net = nn.Sequential(nn.Conv2d(2, 6, 1), norm, nn.Tanh(), Mean(2), nn.Linear(6, 3))
        assert_by_rule(net, rand(6, 2, 5, 4), rtol=1e-11)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.LayerNorm(6), nn.Linear(6, 3))
    assert_by_rule(net, rand(6, 4))


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embeddings(padding_idx):
    """Tokens that occur several times in a row, the padding among them."""
    net = nn.Sequential(
        Ids(), nn.Embedding(5, 4, padding_idx), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), Mean(1)
    )
    assert_by_rule(net.append(nn.Linear(4, 3)), torch.randint(0, 5, (8, 9)).double())


def test_embeddings_of_positions():
    """They enter as one row for all samples, by (1, T) ids."""

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(7, 4), nn.Embedding(9, 4)
            self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, ids):
            x = self.tokens(ids.long()) + self.positions(torch.arange(ids.shape[1])[None] // 2)
            return self.fc(torch.tanh(self.norm(x)).mean(1))

    assert_by_rule(Text(), torch.randint(0, 7, (6, 8)).double())


class InPlace(nn.Module):
    """In-place operations on the outputs of layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        nn.init.normal_(self.bn.weight)

    def forward(self, x):
        """Map images to logits."""
        x = self.bn(self.conv(x).mul_(0.7))
        out = self.again(F.relu_(x))
        out += x
        return self.fc(F.relu_(out).mean((2, 3))).mul_(2)


def test_in_place_operations_after_a_layer():
    assert_by_rule(InPlace(), rand(6, 2, 5, 5))
    assert_by_rule(seeded(ResNet), rand(6, 3, 16, 16))


class Reuse(nn.Module):
    """Weights that are used twice in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.tokens, self.hidden = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.other, self.fc = nn.Linear(4, 4), nn.Linear(4, 3)
        if way == "shared":
            self.other.weight = self.hidden.weight

    def forward(self, ids):
        """Map tokens to logits."""
        x = torch.tanh(self.hidden(self.tokens(ids.long()).mean(1)))
        x = self.hidden(x) if self.way == "twice" else self.other(x)
        if self.way == "tied":
            x = F.linear(torch.tanh(x), self.tokens.weight) @ self.tokens.weight
        return self.fc(x)


@pytest.mark.parametrize(
    ("way", "but"),
    [
        (None, []),
        ("twice", ["hidden.weight", "hidden.bias", "other.weight", "other.bias"]),
        ("shared", ["hidden.weight"]),
        ("tied", ["tokens.weight"]),
    ],
)
def test_weights_used_twice_sum_their_gradients(way, but):
    # What is never called counts as 0, by rule.
    but = [name for name in but if not name.startswith("other")]
    assert_by_rule(Reuse(way), torch.randint(0, 6, (7, 5)).double(), but)


class Own(nn.Module):
    """Parameters of no layer, attention and a normalised weight beside layers with rules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.position = nn.Parameter(torch.randn(5, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        """Map tokens to logits."""
        x = self.first(x) + self.position
        x = x + self.attention(x, x, x)[0]
        return self.fc(torch.tanh(self.normed(x)).mean(1))


def test_parameters_without_a_rule():
    net = Own()
    by_rule = {"first.weight", "first.bias", "fc.weight", "fc.bias"}
    assert_by_rule(net, rand(6, 5, 3), {n for n, _ in net.named_parameters()} - by_rule)


class ByData(nn.Module):
    """A layer that is called once, twice or not at all, as the data has it."""

    def __init__(self):
        super().__init__()
        self.hidden, self.extra, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        """Map features to logits; rows of one batch have one sign."""
        x, level = torch.tanh(self.hidden(x)), x[:, 0].mean()
        for _ in range(int((level > 0) + (level > 10))):
            x = torch.tanh(self.extra(x))
        return self.fc(x)


def test_batches_that_take_another_way():
    net = ByData().double()
    x = rand(5, 4).abs()
    for first in (x, -x):
        scorer = scorer_of(net)
        for batch in (first, x, -x, x + 20, first):
            np.testing.assert_allclose(scorer(batch), gradnorm(net, batch), rtol=1e-10)


def test_samples_in_windows():
    """Rows of several windows a sample, as in Swin; in another order no rule holds."""

    class Windows(nn.Module):
        def __init__(self, order):
            super().__init__()
            self.order = order
            self.hidden, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            windows = x.transpose(0, 1) if self.order else x
            hidden = torch.tanh(self.hidden(windows.reshape(-1, 4)))
            hidden = hidden.view(*windows.shape[:2], 6)
            return self.fc((hidden.transpose(0, 1) if self.order else hidden).mean(1))

    assert_by_rule(Windows(False), rand(6, 5, 4))
    assert_by_rule(Windows(True), rand(6, 5, 4), ["hidden.weight", "hidden.bias"])


class Frames(nn.Module):
    """Rows of several images each, which go through the layers as so many rows."""

    def __init__(self, layer, norm, how):
        super().__init__()
        self.first, self.layer, self.norm = nn.Conv2d(2, 4, 1), layer, norm
        self.how, self.fc = how, nn.Linear(6, 3)

    def forward(self, x):
        """Map films (n, T, 2, H, W) to logits."""
        n, n_frames = x.shape[:2]
        frames = x.flatten(0, 1) if self.how == "frames" else torch.cat([*x.unbind(1)])
        h = torch.tanh(self.norm(self.layer(torch.tanh(self.first(frames))))).mean((2, 3))
        if self.how == "frames":
            return self.fc(h.view(n, n_frames, -1).mean(1))
        return self.fc(torch.stack(h.chunk(n_frames)).mean(0))


@pytest.mark.parametrize("size", [5, 12], ids=["few positions", "many positions"])
@pytest.mark.parametrize("groups", [1, 2])
def test_frames_folded_into_the_batch_axis(size, groups):
    for norm in (nn.BatchNorm2d(6), nn.GroupNorm(2, 6)):
        nn.init.normal_(norm.weight)
        layer = nn.Conv2d(4, 6, 3, stride=2 - size // 12, groups=groups)
        assert_by_rule(Frames(layer, norm, "frames"), rand(5, 3, 2, size, size))
    # Frame by frame instead of row by row: no rule holds in front of the mean.
    net = Frames(layer, norm, "cat")
    but = [name for name, _ in net.named_parameters() if not name.startswith("fc")]
    assert_by_rule(net, rand(5, 3, 2, size, size), but)


def test_a_layer_of_other_rows_than_the_samples():
    """Three images of the network's own, which go through a layer beside each batch."""

    class Templates(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("templates", torch.randn(3, 2, 4, 4))
            self.conv, self.fc = nn.Conv2d(2, 5, 3), nn.Linear(3, 3)

        def forward(self, x):
            kept, h = (torch.tanh(self.conv(t)).flatten(1) for t in (self.templates, x))
            return self.fc(h @ kept.T)

    net, x = Templates().double(), rand(6, 2, 4, 4)
    np.testing.assert_allclose(scorer_of(net)(x), gradnorm(net, x), rtol=1e-10)


class Registered(nn.Module):
    """Modules under two names each, and one of no rule, so that some go sample by sample."""

    def __init__(self, again):
        super().__init__()
        self.hidden, self.norm, self.fc = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.also, self.also_norm, self.again = self.hidden, self.norm, again
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x):
        """Map features to logits."""
        x = torch.tanh(self.norm(self.hidden(x))) * self.scale
        return self.fc(torch.tanh(self.also_norm(self.also(x))) if self.again else x)


@pytest.mark.parametrize("again", [False, True])
def test_a_module_registered_twice(again):
    net, x = Registered(again).double().eval(), rand(7, 4)
    detector = GradNormDetector(net, params="all").fit(x)
    for _ in range(2):
        np.testing.assert_allclose(detector.score_samples(x), gradnorm(net, x), rtol=1e-10)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_in_float32(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fc = nn.Linear(3, 5), nn.Linear(6, 3)
            self.rnn = kind(5, 6, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x):
            return self.fc(self.rnn(torch.tanh(self.first(x)))[0][:, -1])

    net, x = Recurrent().eval(), rand(6, 7, 3).float()
    found = GradNormDetector(net, params="all").fit(x).score_samples(x)
    np.testing.assert_allclose(found, gradnorm(net, x), rtol=1e-5)
    assert np.isfinite(NACDetector(net, ["first"]).fit(x).score_samples(x)).all()
    assert not net.rnn.training and net.rnn.dropout == 0.5


class Patches(nn.Module):
    """BatchNorm2d on patches that then are tokens, and a parameter of no layer."""

    def __init__(self, branches=False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 2, 2), nn.BatchNorm2d(8)
        self.hidden, self.fc = nn.Linear(8, 8), nn.Linear(8, 4)
        self.scale, self.branches = nn.Parameter(torch.randn(8)), branches
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.weight)

    def forward(self, x):
        """Map (n, 1, 8, 8) to logits."""
        x = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        if self.branches and bool(x.sum() > 1e9):  # vmap follows no branch on data.
            x = -x
        return self.fc(torch.tanh(self.hidden(x * self.scale)).mean(1))


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("params", ["all", ["conv.weight", "norm.bias"], ["scale"]])
def test_one_row_alone_scores_as_in_a_batch(params, branches, monkeypatch):
    net, x = Patches(branches).double().eval(), rand(7, 1, 8, 8)
    names = None if params == "all" else params
    expected = gradnorm(net, x, names)
    detector = GradNormDetector(net, params=params).fit(x)
    for size in (1, 2, 7):
        scores = detector.set_params(batch_size=size).score_samples(x)
        np.testing.assert_allclose(scores, expected, rtol=1e-10)
    # Micro-batches of two rows, and one that is left over.
    monkeypatch.setattr("skood.network.parameter_gradients.MICRO_BATCH_BYTES", 1)
    scores = GradNormDetector(net, params=params).fit(x).score_samples(x)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)


@pytest.mark.parametrize("pooling", ["separate", "product"])
def test_one_row_alone_has_the_states_of_a_batch(pooling):
    net, x = Patches().double().eval(), rand(40, 1, 8, 8)
    detector = NACDetector(net, ["conv", "hidden"], pooling=pooling, o_star=9).fit(x)
    expected = detector.score_samples(x)
    assert len(np.unique(expected)) > 20
    alone = detector.set_params(batch_size=1).score_samples(x)
    np.testing.assert_allclose(alone, expected, rtol=1e-12)


def test_chosen_parameters_and_micro_batches(monkeypatch):
    net, x = seeded(SmallCNN).double(), rand(9, 1, 8, 8)
    everything = scorer_of(net, temperature=3.0)
    monkeypatch.setattr("skood.network.parameter_gradients.MICRO_BATCH_BYTES", 1)
    monkeypatch.setattr("skood.network.parameter_gradients.BLOCK_ELEMENTS", 1)
    monkeypatch.setattr("skood.network.parameter_gradients.LARGE_MATRIX", 100)
    for names in (None, ["conv1.weight"], ["bn.bias", "conv2.weight"]):
        scores = scorer_of(net, names, 3.0)(x)
        np.testing.assert_allclose(scores, gradnorm(net, x, names, "kl", 3.0), rtol=1e-12)
    np.testing.assert_allclose(everything(x[:1]), gradnorm(net, x[:1], None, "kl", 3.0))
    assert everything._micro_batch == 2


def test_float32_and_bfloat16():
    net, x = seeded(SmallCNN), rand(16, 1, 8, 8).float()
    exact = gradnorm(net, x)
    for dtype, rtol in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        scorer = scorer_of(seeded(SmallCNN).to(dtype))
        np.testing.assert_allclose(scorer(x.to(dtype)), exact, rtol=rtol)
        assert scorer.by_rule.names == scorer.names


def test_threads_share_the_hooks():
    net, X = seeded(SmallCNN), rand(24, 1, 8, 8).float().numpy()
    detector = GradNormDetector(net, params="all").fit(X)
    blocks = [X[:n] + n for n in (3, 8, 13, 24)]
    expected = [detector.score_samples(block) for block in blocks]
    found = [[] for _ in blocks]

    def work(i):
        found[i].extend(detector.score_samples(blocks[i]) for _ in range(8))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores, right in zip(found, expected, strict=True):
        assert len(scores) == 8
        for again in scores:
            np.testing.assert_array_equal(again, right)


def test_the_network_is_left_alone():
    net, x = seeded(SmallCNN).requires_grad_(True), rand(6, 1, 8, 8).float()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    scorer_of(net)(x)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    for parameter in net.parameters():
        assert parameter.grad is None and parameter.requires_grad
    assert not any(part._forward_hooks for part in net.modules())
