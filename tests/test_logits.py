"""What a network returns: one logit, logits that are not those of y, none at all."""

import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn

import skood
from skood import (
    ASHDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    NACDetector,
    NNGuideDetector,
)
from skood.functional import msp
from skood.open_set import OpenSetClassifier
from tests.networks import ResNet, Segmenter, sample_inputs, seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:There is a performance drop", "ignore:k="
)
ON_LOGITS = [ASHDetector, NNGuideDetector, NACDetector, GradNormDetector]
NO_AGREEMENT = "The largest logit is that of the label"


class Binary(nn.Module):
    """A classifier of one logit, with or without an axis for it; or of the two it stands for."""

    def __init__(self, returns="column"):
        super().__init__()
        torch.manual_seed(0)
        self.returns = returns
        self.hidden = nn.Linear(6, 12).double()
        self.fc = nn.Linear(12, 1).double()

    def forward(self, x):
        """Map (n, 6) to one logit or two."""
        logit = self.fc(F.relu(self.hidden(x)))
        return logit.squeeze() if self.returns == "squeezed" else logit


def doubled(net):
    """Return the network of the two logits that a network's one stands for."""
    twin = Binary().eval()
    twin.hidden.load_state_dict(net.hidden.state_dict())
    twin.fc = nn.Linear(12, 2).double()
    with torch.no_grad():
        twin.fc.weight.copy_(torch.cat([-net.fc.weight, net.fc.weight]) / 2)
        twin.fc.bias.copy_(torch.cat([-net.fc.bias, net.fc.bias]) / 2)
    return twin


@pytest.fixture
def binary(rng):
    """Return rows for `Binary` and labels that its logit gives."""
    X = rng.normal(size=(60, 6))
    with torch.no_grad():
        y = (Binary()(torch.from_numpy(X))[:, 0] > 0).numpy().astype(int)
    return X, y


def test_the_values_of_one_logit():
    """The logit l stands for -l/2 and l/2, as in logistic regression."""
    net = nn.Linear(1, 1).double()
    with torch.no_grad():
        net.weight.fill_(1), net.bias.zero_()
    X, y = np.array([[-4.0], [4.0], [0.0]]), [0, 1, 1]
    energy = ASHDetector(net, variant="p", percentile=0)
    for model in (net, nn.Sequential(net, nn.Identity())):
        for detector, expected in (
            (energy, [2.01815, 2.01815, 0.693147]),
            (clone(energy).set_params(logit_score="msp"), [0.982014, 0.982014, 0.5]),
            (GradNormDetector(), [3.85611, 3.85611, 0]),
            # Of the network's own weight.
            (GradNormDetector(params=lambda name: "weight" in name), [1.928055, 1.928055, 0]),
        ):
            found = clone(detector).set_params(model=model).fit(X, y).score_samples(X)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("returns", ["column", "squeezed"])
def test_one_logit_is_as_good_as_two(returns, binary):
    """Each method, at the features and inside of the network, from file and pickle."""
    X, y = binary
    one = Binary(returns)
    two = doubled(one)
    for detector in (
        ASHDetector(),
        ASHDetector(layer="hidden"),
        GMMDetector(reg_covar=0.1),
        GradNormDetector(),
        NACDetector(),
        NACDetector(layers=["hidden", None], random_state=0),
        NNGuideDetector(),
        NNGuideDetector(layer="hidden"),
    ):
        fitted = [clone(detector).set_params(model=net).fit(X, y) for net in (one, two)]
        expected = fitted[1].score_samples(X)
        np.testing.assert_allclose(fitted[0].score_samples(X), expected, rtol=1e-9)
        np.testing.assert_allclose(
            fitted[0].score_samples(X[:1]), expected[:1], rtol=1e-9, err_msg="one row alone"
        )
        twin = pickle.loads(pickle.dumps(fitted[0]))
        np.testing.assert_allclose(twin.score_samples(X), expected, rtol=1e-9)
        assert fitted[0].accuracy_ == fitted[1].accuracy_ > 0.8


def test_gradients_of_one_logit_are_those_of_its_weights(binary):
    X, y = binary
    net = Binary()
    found = GradNormDetector(net, params="all").fit(X, y).score_samples(X[:5])
    for x, score in zip(torch.from_numpy(X[:5]), found, strict=True):
        logit = net(x[None])
        loss = -F.log_softmax(torch.cat([-logit, logit], 1) / 2, 1).mean()
        grads = torch.autograd.grad(loss, list(net.parameters()))
        np.testing.assert_allclose(score, sum(float(g.abs().sum()) for g in grads), rtol=1e-9)


def test_one_logit_a_pixel(rng):
    X = rng.normal(size=(12, 1, 8, 8))
    for enlarged in (False, True):
        one, two = (seeded(Segmenter, classes=c, enlarged=enlarged).double() for c in (1, 2))
        with torch.no_grad():
            two.load_state_dict({**two.state_dict(), **one.backbone.state_dict(prefix="backbone.")})
            for name in ("weight", "bias"):
                value = getattr(one.classifier, name)
                getattr(two.classifier, name).copy_(torch.cat([-value, value]) / 2)
        y = rng.integers(0, 2, (12, 8, 8) if enlarged else (12, 4, 4))
        squeezed = nn.Sequential(one, nn.Flatten(1, 2))
        detectors = [ASHDetector(), ASHDetector(layer="backbone")]
        detectors += [] if enlarged else [GradNormDetector()]
        for detector in detectors:
            expected = clone(detector).set_params(model=two).fit(X, y).score_samples(X)
            found = clone(detector).set_params(model=one).fit(X, y).score_samples(X)
            np.testing.assert_allclose(found, expected, rtol=1e-9)
        expected = ASHDetector(two).fit(X, y).score_samples(X)
        found = ASHDetector(squeezed).fit(X, y).score_samples(X)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_one_logit_behind_an_extractor_and_in_an_open_set(binary, tmp_path):
    X, y = binary
    net = Binary()
    expected = ASHDetector(net).fit(X, y).score_samples(X)
    extractor = FeatureExtractor(net).fit(X)
    assert extractor.head.out_features == 2
    found = make_pipeline(extractor, ASHDetector(extractor.head)).fit(X, y).score_samples(X)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    found = OpenSetClassifier(net, GMMDetector(reg_covar=0.1, false_alarm_rate=0.01)).fit(X, y)
    with torch.no_grad():
        p = torch.sigmoid(net(torch.from_numpy(X)))[:, 0].numpy()
    np.testing.assert_allclose(found.predict_proba(X)[:, 1], p)
    skood.save(ASHDetector(net).fit(X, y), tmp_path / "detector")
    loaded = skood.load(tmp_path / "detector", model=net)
    np.testing.assert_allclose(loaded.score_samples(X), expected, rtol=1e-9)
    skood.export(ASHDetector(net, "hidden").fit(X, y), tmp_path / "graph", X[:2])
    score, _ = torch.export.load(tmp_path / "graph").module()(torch.from_numpy(X))
    expected = ASHDetector(net, "hidden").fit(X, y).score_samples(X)
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-9)


def test_one_number_a_row_that_may_be_no_logit(binary, rng):
    X, y = binary
    for cls in ON_LOGITS:
        with pytest.warns(UserWarning, match="taken for the logit l of two classes"):
            cls(Binary()).fit(X)
        with pytest.raises(ValueError, match=r"GMMDetector\(net\)") as error:
            cls(Binary()).fit(X, rng.normal(size=60))
        assert str(error.value).count("\n") < 3
        with pytest.raises(
            ValueError, match=r"3 classes, but .* logits of 2[^$]*GMMDetector\(net\)"
        ):
            cls(Binary()).fit(X, np.arange(60) % 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GMMDetector(Binary(), reg_covar=0.1).fit(X)
        ASHDetector(Binary(), logit_score=msp).fit(X, y)
    probabilities = nn.Sequential(Binary(), nn.Sigmoid())
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        NNGuideDetector(probabilities).fit(X, y)


# Labels that are not those of the logits


@pytest.fixture(scope="module")
def digits():
    """Return standardised digits, their classes, and a network that knows them."""
    X, y = load_digits(return_X_y=True)
    X = ((X - X.mean()) / X.std()).astype(np.float32)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.from_numpy(X)), torch.from_numpy(y)).backward()
        optimizer.step()
    return SimpleNamespace(X=X, y=y, net=net)


EACH = pytest.mark.parametrize(
    "detector",
    [
        ASHDetector(),
        ASHDetector(layer="0"),
        GMMDetector(),
        GradNormDetector(),
        GradNormDetector(params=["0.weight"]),
        NACDetector(),
        NACDetector(layers=["0", None]),
        NNGuideDetector(),
        NNGuideDetector(layer="0"),
    ],
    ids=lambda d: f"{type(d).__name__}-{getattr(d, 'layer', getattr(d, 'layers', None))}",
)


class Counting(nn.Module):
    """Count the rows that pass."""

    def __init__(self):
        super().__init__()
        self.n_rows = []

    def __deepcopy__(self, memo):
        # One count for all copies.
        return self

    def forward(self, x):
        """Pass on."""
        self.n_rows.append(len(x))
        return x


@EACH
def test_accuracy(detector, digits):
    X, y = digits.X[:500], np.where(np.arange(500) % 9 == 8, -1, digits.y[:500])
    with torch.no_grad():
        found = digits.net(torch.from_numpy(X)).argmax(1).numpy()
    expected = np.mean(found[y >= 0] == y[y >= 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = clone(detector).set_params(model=digits.net).fit(X, y)
        if getattr(detector, "layer", None) is None:
            assert detector.accuracy_ == expected
        pieces = clone(detector)
        for piece in np.array_split(np.arange(500), 3):
            pieces.partial_fit(X[piece], y[piece])
        assert getattr(pieces, "accuracy_", None) == getattr(detector, "accuracy_", None)
    shift = (y + 1) % 10
    if isinstance(detector, ASHDetector) and detector.layer or type(detector) is NNGuideDetector:
        assert 0.5 < detector.accuracy_
    with pytest.warns(UserWarning, match=f"{NO_AGREEMENT}[^$]*order of its classes"):
        assert clone(detector).fit(X, np.where(y < 0, y, shift)).accuracy_ < 0.05
    with warnings.catch_warnings():
        # Names do not tell which logit is theirs.
        warnings.simplefilter("error")
        named = clone(detector).fit(X, [f"digit {label}" for label in shift])
    assert not hasattr(named, "accuracy_")


def test_accuracy_takes_no_pass_of_its_own(digits):
    for detector in (ASHDetector(), GMMDetector(), GradNormDetector(), NNGuideDetector()):
        count = Counting()
        net = nn.Sequential(count, *digits.net)
        fitted = clone(detector).set_params(model=net).fit(digits.X, digits.y)
        assert fitted.accuracy_ > 0.9
        # Two rows to take the network, and each row once.
        assert sum(count.n_rows) <= len(digits.X) + 4


def test_accuracy_of_what_knows_its_classes(digits):
    X, names = digits.X, np.array([f"digit {label}" for label in digits.y])
    classifier = LogisticRegression(max_iter=30).fit(X[:500], names[:500])
    model = FrozenEstimator(classifier)
    found = NNGuideDetector(model).fit(X, names)
    assert found.accuracy_ == pytest.approx(classifier.score(X, names), abs=2e-3)
    with pytest.warns(UserWarning, match=NO_AGREEMENT):
        NNGuideDetector(model).fit(X, np.roll(names, 1))


def test_accuracy_of_a_stream(digits):
    rows = torch.utils.data.TensorDataset(torch.from_numpy(digits.X), torch.from_numpy(digits.y))
    expected = ASHDetector(digits.net).fit(digits.X, digits.y).accuracy_
    assert ASHDetector(digits.net).fit(rows).accuracy_ == expected
    with pytest.raises(ValueError, match="y has 10 classes, but the network has logits of 3"):
        ASHDetector(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))).fit(rows)


@pytest.mark.parametrize("labelled", [True, False])
def test_an_autoencoder_is_no_classifier(labelled, digits):
    X, y = digits.X, digits.y if labelled else None
    coder = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64))
    for cls in ON_LOGITS:
        for net in (coder, nn.Sequential(coder, nn.Sigmoid())):
            with pytest.raises(ValueError, match="layer=") as error:
                cls(net).fit(X, y)
            assert str(error.value).count("\n") <= 2
    found = GMMDetector(coder, layer="1", reg_covar=0.1).fit(X, y).score_samples(X)
    with torch.no_grad():
        H = coder[:2](torch.from_numpy(X)).numpy()
    expected = GMMDetector(reg_covar=0.1).fit(H, y).score_samples(H)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_as_many_classes_as_columns(rng):
    """Of two columns a classifier may well have two logits."""
    X = rng.normal(size=(80, 2)).astype(np.float32)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        y = net(torch.from_numpy(X)).argmax(1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ASHDetector(net).fit(X, y).accuracy_ == 1
        ASHDetector(net).fit(X)


def test_labels_of_several_classes_a_row(digits):
    several = np.eye(10, dtype=int)[digits.y]
    for detector in (
        ASHDetector(digits.net),
        GMMDetector(),
        OpenSetClassifier(digits.net, GMMDetector()),
    ):
        with pytest.raises(ValueError, match=r"one label a row[^$]*argmax") as error:
            detector.fit(digits.X, several)
        assert str(error.value).count("\n") <= 2


# Other outputs


class Autocast(nn.Module):
    """Computes in bfloat16 inside, and returns float32."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.fc = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        """Map (n, 8) to logits."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.fc(F.relu(self.hidden(x)))
        return logits.float()


def test_autocast_inside_of_a_network(rng):
    net, X = Autocast(), rng.normal(size=(60, 8)).astype(np.float32)
    with torch.no_grad():
        y = net(torch.from_numpy(X)).argmax(1).numpy()
    exact = nn.Sequential(net.hidden, nn.ReLU(), net.fc)
    for detector in (
        ASHDetector(),
        GMMDetector(reg_covar=0.1),
        GradNormDetector(),
        GradNormDetector(params="all"),
        NACDetector(layers=[None]),
        NNGuideDetector(),
    ):
        found, expected = (
            clone(detector).set_params(model=model).fit(X, y).score_samples(X)
            for model in (net, exact)
        )
        # The states of NAC are counted in bins.
        assert np.corrcoef(found, expected)[0, 1] > (0.8 if "layers" in vars(detector) else 0.98)


class WithAuxiliary(nn.Module):
    """As torchvision's segmenters: a dict of enlarged maps, the auxiliary head called last."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.classifier = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)
        )
        self.auxiliary = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1))

    def enlarge(self, maps):
        """Give maps of the size of X."""
        return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)

    def forward(self, x):
        """Map (n, 3, H, W) to two maps of logits."""
        features = self.backbone(x)
        return {
            "out": self.enlarge(self.classifier(features)),
            "aux": self.enlarge(self.auxiliary(features)),
        }


def test_a_segmenter_with_an_auxiliary_head(rng):
    net, X = WithAuxiliary(), rng.normal(size=(6, 3, 8, 8)).astype(np.float32)
    energy = ASHDetector(net, variant="p", percentile=0).fit(X, rng.integers(0, 4, (6, 8, 8)))
    with torch.no_grad():
        expected = net(torch.from_numpy(X))["out"].logsumexp(1).numpy()
    np.testing.assert_allclose(energy.score_samples(X), expected, rtol=1e-5)
    assert energy._network.map_head == "classifier.2"


class Volumes(nn.Module):
    """A 1×1×1 convolution as its head, averaged or of each voxel."""

    def __init__(self, averages):
        super().__init__()
        torch.manual_seed(0)
        self.averages = averages
        self.body = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Conv3d(6, 4, 1)

    def forward(self, x):
        """Map (n, 1, D, H, W) to logits or to maps of them."""
        maps = self.head(self.body(x))
        return maps.mean((2, 3, 4)) if self.averages else maps


def test_heads_that_are_3d_convolutions(rng):
    X = rng.normal(size=(20, 1, 3, 4, 5))
    net = Volumes(averages=True).double()
    with torch.no_grad():
        H = net.body(torch.from_numpy(X)).mean((2, 3, 4)).numpy()
    head = nn.Linear(6, 4).double()
    head.load_state_dict({"weight": net.head.weight.flatten(1), "bias": net.head.bias})
    np.testing.assert_allclose(FeatureExtractor(net).fit_transform(X), H)
    for cls in ON_LOGITS:
        expected = cls(head).fit(H).score_samples(H)
        np.testing.assert_allclose(cls(net).fit(X).score_samples(X), expected)
    voxels = Volumes(averages=False).double()
    y = rng.integers(0, 4, (20, 3, 4, 5))
    energy = ASHDetector(voxels, variant="p", percentile=0).fit(X, y)
    with torch.no_grad():
        maps = voxels(torch.from_numpy(X))
    np.testing.assert_allclose(energy.score_samples(X), maps.logsumexp(1).numpy())
    assert GradNormDetector(voxels).fit(X, y).score_samples(X).shape == (20, 3, 4, 5)


# No head


class Tower(nn.Module):
    """A transformer without a head: tokens, alone or as Hugging Face's entries."""

    def __init__(self, returns):
        super().__init__()
        torch.manual_seed(0)
        self.returns = returns
        self.first, self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.norm, self.dense = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x):
        """Map (n, T, 5) to tokens, to the first of them, or to a dict of both."""
        x = self.first(x)
        tokens = self.norm(x + self.down(F.gelu(self.up(x))))
        if self.returns == "dict":
            pooled = torch.tanh(self.dense(tokens[:, 0]))
            return {"last_hidden_state": tokens, "pooler_output": pooled}
        return tokens[:, 0] if self.returns == "token" else tokens


def headless_resnet():
    """Return a network as timm's ``num_classes=0`` makes it."""
    net = seeded(ResNet)
    net.fc = nn.Identity()
    return net


def test_networks_without_a_head(rng):
    tokens = rng.normal(size=(30, 7, 5)).astype(np.float32)
    y = np.arange(30) % 3
    for net, X in (
        (headless_resnet(), sample_inputs(seeded(ResNet), 30)),
        (seeded(Segmenter).backbone, rng.normal(size=(30, 1, 8, 8))),
        (Tower("token"), tokens),
        (Tower("tokens"), tokens),
        (Tower("dict"), tokens),
    ):
        X = np.asarray(X, np.float32)
        with torch.no_grad():
            H = net.eval()(torch.from_numpy(X))
            H = H["pooler_output"] if isinstance(H, dict) else H
        H = H.mean((2, 3)) if H.ndim == 4 else H.mean(1) if H.ndim == 3 else H
        extractor = FeatureExtractor(net).fit(X)
        np.testing.assert_allclose(extractor.transform(X), H.numpy(), rtol=1e-5, atol=1e-6)
        detector = GMMDetector(net, reg_covar=0.1).fit(X, y)
        expected = GMMDetector(reg_covar=0.1).fit(H.numpy(), y).score_samples(H.numpy())
        np.testing.assert_allclose(detector.score_samples(X), expected, rtol=1e-3, atol=1e-3)
        twin = pickle.loads(pickle.dumps(detector))
        np.testing.assert_array_equal(twin.score_samples(X), detector.score_samples(X))
        for cls in ON_LOGITS:
            with pytest.raises(ValueError, match="no head.*FeatureExtractor"):
                cls(net).fit(X, y)
    found = FeatureExtractor(Tower("tokens"), pool="token").fit_transform(tokens)
    np.testing.assert_allclose(found, FeatureExtractor(Tower("token")).fit_transform(tokens))
