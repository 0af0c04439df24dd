"""Monte-Carlo dropout: equal to a plain reference, with masks that all rows share."""

import pickle

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp, softmax
from torch import nn

import skood
from skood import EntropyDetector, MCDropoutDetector, MSPDetector
from skood.detectors.logits.passes import CRITERIA, score_passes
from skood.learning.learning import learned_buffers
from skood.network.passes import keep_masks
from tests.detectors import Method
from tests.networks import MLP, ResNet, Segmenter, WithDropout, sample_inputs, seeded

METHOD = Method(
    settings={
        "default": MCDropoutDetector(rate=0.5),
        "msp": MCDropoutDetector(n_passes=5, criterion="msp", random_state=1, batch_size=7),
    },
    in_networks={
        "default": MCDropoutDetector(rate=0.5),
        "variance": MCDropoutDetector(n_passes=4, rate=0.2, criterion="variance"),
    },
    gives_maps=True,
    # Of the others some layers are dropout.
    refuses=dict.fromkeys(("ResNet", "ViT", "channels last", "segmenter"), "has no dropout layer"),
)

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
EACH = pytest.mark.parametrize("criterion", sorted(CRITERIA))


def reference(passes, criterion):
    """Score the rows of logits (n_passes, n_samples, n_classes) one by one."""
    scores = []
    for row in np.asarray(passes, dtype=np.float64).swapaxes(0, 1):
        p = [softmax(logits) for logits in row]
        mean = sum(p) / len(p)
        if criterion == "msp":
            score = np.log(mean.max() / np.delete(mean, mean.argmax()).sum())
        elif criterion == "entropy":
            score = -np.log(-sum(m * np.log(m) for m in mean))
        elif criterion == "mutual_information":
            score = -np.mean([sum(q * np.log(q / mean)) for q in p])
        else:
            squares = [sum((q[c] - mean[c]) ** 2 for q in p) for c in range(len(mean))]
            score = -np.mean(squares) / (len(p) - 1)
        scores.append(score)
    return np.array(scores)


class TwoDropouts(ResNet):
    """A network whose dropout drops channels, and features."""

    def __init__(self):
        super().__init__()
        self.drop, self.avgpool = nn.Dropout(0.4), nn.Sequential(nn.Dropout2d(0.3), self.avgpool)

    def forward(self, x):
        """Map (n, in_channels, H, W) to logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.drop(torch.flatten(self.avgpool(x), 1)))


@EACH
@DTYPES
def test_parity_with_the_dropout_of_a_network(criterion, dtype, tolerance, rng):
    net = seeded(WithDropout).to(getattr(torch, dtype))
    X = rng.normal(size=(40, 8)).astype(dtype)
    detector = MCDropoutDetector(net, n_passes=6, criterion=criterion).fit(X)
    seed = int(learned_buffers(detector.scorer_)["seed"])
    masks = keep_masks(6, [1, 16], 0.5, seed, "dropout", 0)
    h = net.relu(net.hidden(torch.from_numpy(X)))
    passes = torch.stack([net.fc(2 * h * mask) for mask in masks]).detach()
    found = detector.score_samples(X)
    np.testing.assert_allclose(found, reference(passes, criterion), tolerance, tolerance)


@EACH
@DTYPES
def test_parity_with_dropout_of_features(criterion, dtype, tolerance, rng):
    head = seeded(nn.Linear, 6, 4).to(getattr(torch, dtype))
    H = rng.normal(size=(40, 6)).astype(dtype)
    weight, bias = (part.detach().double().numpy() for part in (head.weight, head.bias))
    for rate, share in ((None, 0.5), (0.2, 0.2)):
        detector = MCDropoutDetector(head, rate=rate, criterion=criterion, random_state=3).fit(H)
        seed = int(learned_buffers(detector.scorer_)["seed"])
        masks = keep_masks(30, [6], share, seed).numpy()
        passes = [H @ (weight * mask).T / (1 - share) + bias for mask in masks]
        found = detector.score_samples(H)
        np.testing.assert_allclose(found, reference(passes, criterion), tolerance, tolerance)


def test_scores_depend_neither_on_batch_nor_call_nor_copy():
    net = seeded(TwoDropouts).double()
    X = sample_inputs(net, 24, 0).astype(np.float64)
    random_state = np.random.RandomState(5)
    detector = MCDropoutDetector(net, n_passes=5, random_state=random_state).fit(X)
    expected = detector.score_samples(X)
    for batch_size in (1, 2, 5):
        found = detector.set_params(batch_size=batch_size).score_samples(X)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    random_state.rand()
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.score_samples(X), found)
    other = MCDropoutDetector(net, n_passes=5, random_state=1).fit(X).score_samples(X)
    assert not np.allclose(other, expected)


def test_files(tmp_path, rng):
    net, X = seeded(WithDropout).double(), rng.normal(size=(24, 8))
    detector = MCDropoutDetector(net, n_passes=2).fit(X)
    skood.save(detector, tmp_path / "file")
    loaded = skood.load(tmp_path / "file", net)
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


class SequenceFirst(nn.Module):
    """Rows lie along the second axis; dropout of positions is of no rows."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Linear(3, 8), nn.Parameter(torch.randn(4, 1, 8))
        self.drop = nn.Dropout(0.3)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, 0.2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        """Map (n, 4, 3) to logits."""
        x = self.embed(x.transpose(0, 1)) + self.drop(self.position)
        return self.fc(self.encoder(x)[0])


def test_the_axis_of_the_rows(rng):
    """Batches of 1, 2 and 4 rows divide the four positions."""
    net, X = seeded(SequenceFirst).double(), rng.normal(size=(24, 4, 3))
    detector = MCDropoutDetector(net, n_passes=3).fit(X)
    expected = detector.score_samples(X)
    for batch_size in (1, 2, 4, 5):
        found = detector.set_params(batch_size=batch_size).score_samples(X)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_frames_of_a_row_have_masks_of_their_own(rng):
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.drop(x.flatten(0, 1)).unflatten(0, (-1, 2)).mean(1))

    net, X = seeded(Frames).double(), rng.normal(size=(30, 2, 4))
    detector = MCDropoutDetector(net, n_passes=3).fit(X)
    seed = int(learned_buffers(detector.scorer_)["seed"])
    masks = keep_masks(3, [1, 2, 4], 0.5, seed, "drop", 0)
    passes = [net.fc((2 * mask * torch.from_numpy(X)).mean(1)).detach() for mask in masks]
    np.testing.assert_allclose(detector.score_samples(X), reference(passes, "entropy"))


class Text(nn.Module):
    """Dropout of tokens, and of how much they heed each other."""

    def __init__(self):
        super().__init__()
        self.embed, self.drop, self.heed = nn.Embedding(9, 6), nn.Dropout(0.3), nn.Dropout(0.2)
        self.fc = nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        """Map texts to logits."""
        x = self.drop(self.embed(input_ids))
        weights = (x @ x.mT).masked_fill(attention_mask[:, None] == 0, -torch.inf).softmax(2)
        x = self.heed(weights) @ x * attention_mask[..., None]
        return self.fc(x.sum(1) / attention_mask.sum(1, keepdim=True))


def test_texts_of_any_width(rng):
    """Padding does not count, nor which width came first."""
    net, lengths = Text().double(), rng.integers(2, 6, size=20)

    def padded(width):
        mask = np.arange(width) < lengths[:, None]
        ids = np.random.default_rng(0).integers(0, 9, size=(20, 9))[:, :width]
        return {"input_ids": ids, "attention_mask": mask.astype(int)}

    detector = MCDropoutDetector(net, n_passes=4).fit(padded(7))
    scores = detector.score_samples(padded(7))
    assert len(np.unique(scores)) == 20
    for width in (9, 5, 7):
        np.testing.assert_allclose(detector.score_samples(padded(width)), scores, rtol=1e-9)
    again = MCDropoutDetector(net, n_passes=4).fit(padded(5))
    np.testing.assert_allclose(again.score_samples(padded(9)), scores, rtol=1e-9)


def test_a_layer_called_by_what_rows_hold(rng):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4, 3)

        def forward(self, x):
            x = self.drop(x)
            return self.fc(self.drop(x) if bool((x > 100).any()) else x)

    X = rng.normal(size=(30, 4))
    detector = MCDropoutDetector(Branching().double()).fit(X)
    with pytest.raises(ValueError, match="'drop' is called another number of times"):
        detector.score_samples(X + 900)


@pytest.mark.parametrize("enlarged", [False, True])
def test_maps(enlarged):
    """Whole channels of what enters the 1×1 convolution are dropped."""
    net = seeded(Segmenter, enlarged=enlarged).double()
    X = sample_inputs(net, 20, 0).astype(np.float64)
    detector = MCDropoutDetector(net, n_passes=4, rate=0.5).fit(X)
    masks = keep_masks(4, [6], 0.5, int(learned_buffers(detector.scorer_)["seed"]))
    maps = net.backbone(torch.from_numpy(X))
    passes = [net.classifier(2 * maps * mask.view(-1, 1, 1)).detach() for mask in masks]
    if enlarged:
        passes = [nn.functional.interpolate(logits, scale_factor=2.0) for logits in passes]
    found = detector.score_samples(X)
    rows = np.moveaxis(np.stack(passes), 2, -1)
    expected = reference(rows.reshape(4, -1, 3), "entropy").reshape(found.shape)
    np.testing.assert_allclose(found, expected)


def test_one_pass_is_as_many_equal_ones(rng):
    """Without anything to drop it is the entropy, and the maximum softmax probability."""
    logits = torch.from_numpy(rng.normal(size=(20, 5)))
    identity = nn.Linear(5, 5, bias=False).double().requires_grad_(False)
    nn.init.eye_(identity.weight)
    for criterion, single in (("entropy", EntropyDetector), ("msp", MSPDetector)):
        scores, _ = score_passes([logits] * 3, criterion)
        expected = single(identity).fit(logits.numpy()).score_samples(logits.numpy())
        np.testing.assert_allclose(scores, expected)
    for criterion in ("mutual_information", "variance"):
        scores, _ = score_passes([logits] * 3, criterion)
        np.testing.assert_allclose(scores, 0, atol=1e-15)


def test_confident_passes():
    """Probabilities of 1 - e⁻²⁰⁰, and logits of 1e30."""
    gaps = torch.tensor([[200.0, 210], [220, 203], [90, 1e30], [1e30, 1e30]], dtype=torch.float64)
    passes = [torch.stack([gap, torch.zeros(4), -gap], 1) for gap in gaps.T.double()]
    rows = torch.stack(passes).numpy()
    log_p = log_softmax(rows, axis=2)
    mean = logsumexp(log_p, axis=0) - np.log(2)
    for criterion in CRITERIA:
        scores, found = score_passes(passes, criterion)
        assert scores.isfinite().all()
        np.testing.assert_allclose(found, mean, rtol=1e-12, atol=1e-15)
    odds, _ = score_passes(passes, "msp")
    np.testing.assert_allclose(odds[:3], -mean[:3, 1], rtol=1e-12)
    information, _ = score_passes(passes, "mutual_information")
    # Of the class in the middle Σ p log (p / mean) - p + mean, beside which the others are nothing.
    p, q = np.exp(log_p[:, :2, 1]), np.exp(mean[:2, 1])
    expected = (p * (log_p[:, :2, 1] - mean[:2, 1]) - p + q).mean(0)
    np.testing.assert_allclose(-information[:2], expected, rtol=1e-8)


def test_passes_that_agree_to_many_digits(rng):
    """The difference of entropies is noise here, of 1e-16."""
    logits = rng.normal(size=(10, 4))
    noise = 1e-6 * rng.normal(size=(3, 10, 4))
    information, _ = score_passes(torch.from_numpy(logits + noise), "mutual_information")
    p = softmax(logits, axis=1)
    # KL to second order: half the variance of the noise over the classes.
    centred = noise - noise.mean(0)
    variances = (p * centred**2).sum(2) - (p * centred).sum(2) ** 2
    np.testing.assert_allclose(-information, variances.mean(0) / 2, rtol=1e-3)


def test_accuracy_is_that_of_the_mean(rng):
    net = seeded(WithDropout).double()
    X = rng.normal(size=(60, 8))
    detector = MCDropoutDetector(net).fit(X)
    detector.scorer_.note = lambda log_p: predicted.append(log_p.argmax(1))
    predicted = []
    detector.score_samples(X)
    y = torch.cat(predicted).numpy()
    assert MCDropoutDetector(net).fit(X, y).accuracy_ == 1


@pytest.mark.parametrize("cls", [MLP, lambda: nn.Sequential(nn.Dropout(0.0), MLP())])
def test_networks_without_dropout(cls, rng):
    X = rng.normal(size=(20, 8)).astype(np.float32)
    with pytest.raises(ValueError, match=r"no dropout layer(.|\n)*Give `rate`"):
        MCDropoutDetector(cls()).fit(X)
    MCDropoutDetector(seeded(MLP), rate=0.1).fit(X)
