"""Which axes of a named layer are pooled, and that padding does not count."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

import skood
from skood import FeatureExtractor, GMMDetector, NACDetector, NNGuideDetector
from skood.functional import pool
from tests import references as ref


@pytest.fixture(autouse=True)
def seed():
    """Draw weights from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Turn(nn.Module):
    """Permute axes."""

    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        """Return a view."""
        return x.permute(self.axes)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of maps, as torchvision and timm have it."""

    def forward(self, x):
        """Normalise (n, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A block that turns maps around for its linear layers."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        """Map (n, C, H, W) to the same shape."""
        return x + self.linear(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Swin(nn.Module):
    """A block on channels-last maps."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        """Map (n, H, W, C) to the same shape."""
        return x + torch.tanh(self.linear(self.norm(x)))


class Gate(nn.Module):
    """Squeeze and excitation: its linear layer sees vectors, which tell nothing of maps."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        """Map (n, C, H, W) to the same shape."""
        return x * torch.sigmoid(self.linear(x.mean((2, 3))))[:, :, None, None]


class Joined(nn.Module):
    """The input beside what a convolution makes of it, as in a DenseNet."""

    def __init__(self, width, growth):
        super().__init__()
        self.conv = nn.Conv2d(width, growth, 3, padding=1)

    def forward(self, x):
        """Map (n, C, H, W) to (n, C + growth, H, W)."""
        return torch.cat([x, self.conv(x)], 1)


class Patches(nn.Module):
    """Tokens made of maps."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 2, 2)

    def forward(self, x):
        """Map images to (n, T, C)."""
        return self.conv(x).flatten(2).transpose(1, 2)


class Scale(nn.Module):
    """A layer of the user's own, which tells nothing, in front of all others."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        """Return the shape that comes."""
        return torch.tanh(self.scale * x)


class Classifier(nn.Module):
    """A block behind a stem, and a head on its channels."""

    def __init__(self, stem, block, axis, width):
        super().__init__()
        self.stem, self.block, self.axis = stem, block, axis
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        """Map inputs to logits."""
        x = self.block(self.stem(x))
        return self.fc(torch.tanh(pool(x, channel_axis=self.axis)))


def to_last(width):
    """Return a stem that gives (n, H, W, C)."""
    return nn.Sequential(nn.Conv2d(3, width, 1), Turn(0, 2, 3, 1))


# Stem, block, axis of the channels, their number, size of an image.
KINDS = {
    "Conv1d": (nn.Identity(), nn.Conv1d(3, 5, 3), 1, 5, (3, 12)),
    "Conv1d, ReLU": (nn.Conv1d(3, 5, 3), nn.ReLU(), 1, 5, (3, 12)),
    "Conv1d, square": (nn.Identity(), nn.Conv1d(3, 5, 1), 1, 5, (3, 5)),
    "BatchNorm1d": (nn.Conv1d(3, 5, 1), nn.Sequential(nn.BatchNorm1d(5), nn.Tanh()), 1, 5, (3, 9)),
    "Conv3d": (nn.Identity(), nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU()), 1, 4, (3, 4, 5, 6)),
    "tokens": (nn.Linear(5, 6), nn.Sequential(nn.LayerNorm(6), nn.ReLU()), 2, 6, (7, 5)),
    "tokens, square": (nn.Linear(5, 6), nn.ReLU(), 2, 6, (6, 5)),
    "patches": (nn.Identity(), Patches(5), 2, 5, (3, 8, 8)),
    "Swin": (to_last(6), Swin(6), 3, 6, (3, 7, 7)),
    "Swin, square": (to_last(7), Swin(7), 3, 7, (3, 7, 7)),
    "turned": (nn.Conv2d(3, 6, 1), Turn(0, 2, 3, 1), 3, 6, (3, 7, 7)),
    "ConvNeXt": (nn.Conv2d(3, 6, 1), ConvNeXt(6), 1, 6, (3, 7, 7)),
    "LayerNorm2d": (nn.Conv2d(3, 6, 1), LayerNorm2d(6), 1, 6, (3, 7, 7)),
    "LayerNorm2d, square": (nn.Conv2d(3, 7, 1), LayerNorm2d(7), 1, 7, (3, 7, 7)),
    "gate": (nn.Conv2d(3, 7, 1), Gate(7), 1, 7, (3, 7, 7)),
    "joined": (nn.Conv2d(3, 5, 1), Joined(5, 7), 1, 12, (3, 7, 7)),
    "cut and turned": (
        nn.Conv1d(3, 6, 4, padding=2),
        nn.Sequential(nn.ZeroPad1d((0, -1)), nn.Tanh(), Turn(0, 2, 1)),
        2,
        6,
        (3, 9),
    ),
    "pooled": (nn.Conv2d(3, 4, 1), nn.AvgPool2d(2), 1, 4, (3, 8, 8)),
    "recurrent": (nn.GRU(5, 6, batch_first=True), nn.ReLU(), 2, 6, (4, 5)),
}


def network(kind):
    """Return a network, its rows, and the axis of the channels of its layer "block"."""
    stem, block, axis, width, size = KINDS[kind]
    if kind == "recurrent" and not stem._forward_hooks:
        stem.register_forward_hook(lambda part, args, output: output[0])
    X = np.random.default_rng(0).normal(size=(40, *size))
    net = Classifier(stem, block, axis, width).double().eval()
    for part in net.modules():
        # They were drawn on import, without the seed.
        getattr(part, "reset_parameters", lambda: None)()
    return net, X, axis


def means(net, X, axis):
    """Average what "block" gives over all axes but a row's channels, one row at a time."""
    outputs = ref.features(net, X, "block")
    return np.stack(
        [np.moveaxis(row, axis - 1, 0).reshape(row.shape[axis - 1], -1).mean(1) for row in outputs]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_tell_the_axis_of_the_channels(kind):
    net, X, axis = network(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor = FeatureExtractor(net, "block").fit(X)
    np.testing.assert_allclose(extractor.transform(X), means(net, X, axis), rtol=1e-10)
    said = FeatureExtractor(net, "block", channel_axis=axis - len(X.shape[1:]) - 1)
    if ref.features(net, X[:1], "block").ndim == X.ndim:
        np.testing.assert_array_equal(said.fit_transform(X), extractor.transform(X))


@pytest.mark.parametrize("kind", ["Conv1d", "Swin"])
@pytest.mark.parametrize(
    "detector", [GMMDetector(reg_covar=0.1), NNGuideDetector(k=3), NACDetector(o_star=9)], ids=str
)
def test_detectors_pool_the_channels(detector, kind, tmp_path):
    """Equal to the same network on channels-first maps, also in copies and files."""
    net, X, axis = network(kind)
    turn = Turn(0, axis, *(a for a in range(1, X.ndim) if a != axis))
    first = Classifier(
        nn.Identity(), nn.Sequential(net.stem, net.block, turn), 1, net.fc.in_features
    )
    first.fc = net.fc
    of = {"layers": ["block"]} if isinstance(detector, NACDetector) else {"layer": "block"}
    y = np.arange(40) % 3
    expected = clone_with(detector, first.eval(), channel_axis=1, **of).fit(X, y).score_samples(X)
    assert len(np.unique(expected)) > 8
    for given in (None, axis, -1 if axis == X.ndim - 1 else 1):
        found = clone_with(detector, net, channel_axis=given, **of).fit(X, y)
        np.testing.assert_allclose(found.score_samples(X), expected, rtol=1e-10)
    path = tmp_path / "detector"
    skood.save(found, path)
    for twin in (pickle.loads(pickle.dumps(found)), skood.load(path, model=net)):
        np.testing.assert_array_equal(twin.score_samples(X), found.score_samples(X))


def clone_with(detector, net, **parameters):
    """Return a clone with a network."""
    return clone(detector).set_params(model=net, **parameters)


def test_one_axis_a_layer():
    """Those of NAC's layers, also where tokens are flattened and maps of sequences averaged."""
    net, X, _ = network("Conv1d")
    names = ["stem", "block"]
    found = NACDetector(net, names, channel_axis=[1, None], o_star=9).fit(X).score_samples(X)
    right = NACDetector(net, names, channel_axis=1, o_star=9).fit(X).score_samples(X)
    wrong = NACDetector(net, names, channel_axis=[2, 1], o_star=9).fit(X).score_samples(X)
    np.testing.assert_array_equal(found, right)
    assert not np.allclose(wrong, right)
    neurons = {
        axis: len(
            NACDetector(net, ["block"], pooling="product", channel_axis=axis).fit(X).scorer_.counts
        )
        for axis in (1, 2)
    }
    assert neurons == {1: 5, 2: 50}
    with pytest.raises(ValueError, match="channel_axis has 3 entries for 2 layers"):
        NACDetector(net, names, channel_axis=[1, 1, 1]).fit(X)


def test_a_guess_is_a_warning():
    """Where no layer tells, and where a block of both kinds gives maps of one size."""
    rng = np.random.default_rng(0)
    own = Classifier(nn.Identity(), Scale(), 3, 6).double().eval()
    mixed = Classifier(nn.Conv2d(3, 7, 1), ConvNeXt(7), 1, 7).double().eval()
    for net, X, axis in (
        (own, rng.normal(size=(9, 4, 5, 6)), 3),
        (mixed, rng.normal(size=(9, 3, 7, 7)), 1),
    ):
        with pytest.warns(UserWarning, match="It was guessed that axis 1 of the layer 'block'"):
            guessed = FeatureExtractor(net, "block").fit(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # It is not said again of what is fitted, nor where nothing is pooled.
            twin = pickle.loads(pickle.dumps(guessed))
            FeatureExtractor(net, "block", pool=None).fit(X)
            said = FeatureExtractor(net, "block", channel_axis=axis).fit(X)
        np.testing.assert_array_equal(twin.transform(X), guessed.transform(X))
        np.testing.assert_allclose(said.transform(X), means(net, X, axis), rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 4, -4, -5])
def test_axes_that_hold_no_channels(axis):
    net, X, _ = network("Swin")
    with pytest.raises(
        ValueError, match="is no axis of channels of the layer 'block', which gives"
    ):
        GMMDetector(net, "block", channel_axis=axis).fit(X)


def test_features_with_the_channels_last():
    X = np.random.default_rng(0).normal(size=(9, 4, 5, 6))
    found = FeatureExtractor(channel_axis=-1).fit_transform(X)
    np.testing.assert_allclose(found, X.mean((1, 2)), rtol=1e-12)
    with pytest.raises(ValueError, match="channel_axis=0 is the axis of the samples"):
        FeatureExtractor(channel_axis=0).fit(X)


class Text(nn.Module):
    """Tokens that see each other, but for the padding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.position = nn.Embedding(30, 8), nn.Linear(1, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 6, 1)
        self.fc = nn.Linear(6, 3)
        for part in (self.embedding, self.hidden, self.conv, self.fc):
            nn.init.normal_(part.weight)

    def tokens(self, input_ids, mask):
        """Map texts to tokens (n, T, 8)."""
        places = (mask.cumsum(1) - 1).to(self.fc.weight.dtype)[..., None] / 10
        x = self.embedding(input_ids) + self.position(places)
        x = x + self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
        return torch.tanh(self.hidden(x))

    def forward(self, input_ids, attention_mask):
        """Map texts to logits."""
        mask = attention_mask != 0
        x = torch.tanh(self.conv(self.tokens(input_ids, mask).mT)) * mask[:, None]
        return self.fc(x.sum(2) / mask.sum(1, keepdim=True))


class TextWithoutHead(Text):
    """The same network, whose output is its tokens, alone or as Hugging Face's entry."""

    def __init__(self, returns_dict):
        super().__init__()
        self.returns_dict = returns_dict

    def forward(self, input_ids, attention_mask):
        """Map texts to tokens."""
        tokens = self.tokens(input_ids, attention_mask != 0)
        return {"last_hidden_state": tokens} if self.returns_dict else tokens


def texts(width, left=False):
    """Return 30 texts of 3 to 12 tokens, padded to a width with tokens that mean something."""
    rng = np.random.default_rng(0)
    ids, mask = np.full((30, width), 7), np.zeros((30, width), dtype=int)
    for row, row_mask, length in zip(ids, mask, rng.integers(3, 13, size=30), strict=True):
        where = slice(width - length, None) if left else slice(length)
        row[where], row_mask[where] = rng.integers(0, 30, size=length), 1
    return {"input_ids": ids, "attention_mask": mask}


def one_by_one(transform, X):
    """Apply to each text without its padding."""
    rows = []
    for ids, mask in zip(X["input_ids"], X["attention_mask"], strict=True):
        kept = mask != 0
        rows.append(transform({"input_ids": ids[None, kept], "attention_mask": mask[None, kept]}))
    return np.concatenate(rows)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("layer", ["hidden", "conv"])
@pytest.mark.parametrize("how", ["avg", "max", "token"])
def test_padding_changes_no_feature(how, layer, left):
    if (how, layer) == ("token", "conv"):
        pytest.skip("maps have no first token")
    extractor = FeatureExtractor(Text().double(), layer, pool=how).fit(texts(20))
    plain = one_by_one(extractor.transform, texts(20))
    for width in (12, 20, 40):
        found = extractor.transform(texts(width, left))
        np.testing.assert_allclose(found, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "detector",
    [
        GMMDetector(layer="hidden", reg_covar=0.1),
        NNGuideDetector(layer="conv", k=3),
        NACDetector(layers=["hidden", "conv"], o_star=9),
        NACDetector(layers=["conv"], pooling="product", o_star=9),
    ],
    ids=str,
)
def test_padding_changes_no_score(detector):
    net, y = Text().double(), np.arange(30) % 3
    detector = clone_with(detector, net).fit(texts(20), y)
    scores = detector.score_samples(texts(20))
    assert len(np.unique(scores)) > 5
    np.testing.assert_allclose(one_by_one(detector.score_samples, texts(20)), scores, rtol=1e-9)
    for width in (12, 40):
        again = clone_with(detector, net).fit(texts(width), y)
        np.testing.assert_allclose(again.score_samples(texts(width)), scores, rtol=1e-9)
        assert again.offset_ == pytest.approx(detector.offset_)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(detector)).score_samples(texts(40)),
        detector.score_samples(texts(40)),
    )


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("how", ["avg", "max", "token"])
@pytest.mark.parametrize("returns_dict", [False, True])
def test_padding_does_not_count_without_a_head(how, returns_dict, left):
    net = TextWithoutHead(returns_dict).double()
    extractor = FeatureExtractor(net, pool=how).fit(texts(20))
    plain = one_by_one(extractor.transform, texts(20))
    assert plain.shape == (30, 8) and len(np.unique(plain[:, 0])) > 5
    for width in (12, 40):
        found = extractor.transform(texts(width, left))
        np.testing.assert_allclose(found, plain, rtol=1e-10, atol=1e-12)
    detector = GMMDetector(net, reg_covar=0.1).fit(texts(20), np.arange(30) % 3)
    scores = detector.score_samples(texts(20))
    np.testing.assert_allclose(detector.score_samples(texts(40, left)), scores, rtol=1e-9)


def test_masks_that_do_not_apply():
    """Of another length, of another form, and of texts without any token."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.normal(size=(4, 5, 3)))
    for mask in (torch.ones(4, 6), torch.ones(4, 1, 5, 5), None):
        np.testing.assert_array_equal(pool(tokens, mask=mask), tokens.mean(1))
    mask = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 1, 0]])
    for how in ("avg", "max", "sum"):
        found = pool(tokens, how, mask=mask)
        np.testing.assert_allclose(found[:2], pool(tokens[:2], how), rtol=1e-14)
        np.testing.assert_allclose(found[2], pool(tokens[2:3, [1, 4]], how)[0], rtol=1e-14)
    # What is padding may hold anything, and half precision sums in float32.
    tokens[3, 0] = torch.nan
    np.testing.assert_allclose(pool(tokens, mask=mask)[3], tokens[3, 3], rtol=1e-14)
    wide = torch.full((1, 3000, 2), 50.0).half()
    assert pool(wide, mask=torch.ones(1, 3000)).tolist() == [[50.0, 50.0]]


@pytest.mark.parametrize("layer", ["hidden", "conv"])
def test_exported_graphs_leave_padding_out(layer, tmp_path):
    detector = GMMDetector(Text().double(), layer, reg_covar=0.1).fit(texts(20))
    X = {name: torch.as_tensor(values) for name, values in texts(20).items()}
    skood.export(detector, tmp_path / "graph.pt2", X)
    scores, _ = torch.export.load(tmp_path / "graph.pt2").module()(X)
    np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-9)
