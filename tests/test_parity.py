"""Every method and setting equals its plain reference, in float64 and float32."""

import copy
import pickle

import numpy as np
import pytest
import references as ref
import torch
from networks import MLP, ResNet, Segmenter, SmallCNN, ViT, WeightNormed, seeded
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from skood import (
    ASHDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    NACDetector,
    NNGuideDetector,
    _gaussians,
)

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
N_TRAIN = 32


@pytest.fixture
def data(rng):
    """Return features of 4 classes, their labels and rows to score, far ones among them."""
    y = np.arange(N_TRAIN) % 4
    Z = rng.normal(size=(N_TRAIN, 6)) + 2 * rng.normal(size=(4, 6))[y]
    X_new = np.vstack([rng.normal(size=(10, 6)) + 1, 5 * rng.normal(size=(10, 6))])
    return Z, y, X_new


@pytest.fixture
def X():
    """Return images to fit on and to score."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(20, 1, 8, 8)), 2 * rng.normal(size=(12, 1, 8, 8))


def assert_parity(scores, expected, dtype):
    """Compare scores to a reference that has power."""
    expected = np.asarray(expected)
    assert len(np.unique(np.round(expected, 6))) > expected.size / 2
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        np.asarray(scores), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale
    )


def cast(net, X, dtype):
    """Return a network and arrays in a dtype."""
    net = copy.deepcopy(net).to(dtype)
    return net, *(torch.as_tensor(x).to(dtype).numpy() for x in X)


def logistic_head(Z, y):
    """Return weight and bias of the head that model=None fits."""
    classifier = LogisticRegression(max_iter=1000).fit(Z, y)
    return classifier.coef_, classifier.intercept_


VARIANTS = [(v, p) for v in "spb" for p in (0.0, 0.3, 0.65, 0.9, 0.99)]


@DTYPES
@pytest.mark.parametrize(("variant", "percentile"), VARIANTS)
@pytest.mark.parametrize("layer", [None, "conv1", "conv2"])
def test_ash_in_a_network(X, variant, percentile, layer, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    detector = ASHDetector(net, layer, variant=variant, percentile=percentile).fit(X_train)
    expected = ref.ash_network(net, X_new, layer, variant, percentile, max_ratio=44)
    assert_parity(detector.score_samples(X_new), expected, dtype)


@pytest.mark.parametrize("logit_score", ["energy", "msp", "max_logit", lambda x: x[:, 0] ** 2])
def test_ash_logit_scores(X, logit_score):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    detector = ASHDetector(net, logit_score=logit_score).fit(X_train)
    expected = ref.ash_network(net, X_new, logit_score=logit_score)
    assert_parity(detector.score_samples(X_new), expected, torch.float64)


def test_ash_on_channels_last_and_blocks(X):
    net, X_train, X_new = cast(seeded(ResNet, in_channels=1), X, torch.float64)
    detector = ASHDetector(net, "layer3").fit(X_train)
    strided = torch.as_tensor(X_new).to(memory_format=torch.channels_last)
    expected = ref.ash_network(net, X_new, "layer3")
    assert_parity(detector.score_samples(strided), expected, torch.float64)


@pytest.mark.parametrize("layer", ["backbone", None])
def test_ash_of_maps(X, layer):
    net, X_train, X_new = cast(seeded(Segmenter), X, torch.float64)
    detector = ASHDetector(net, layer).fit(X_train)
    expected = ref.ash_network(net, X_new, layer, head_name="classifier")
    assert detector.score_samples(X_new).shape == detector.predict(X_new).shape == (12, 8, 8)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-8)


def test_gradnorm_of_maps(X):
    """Each pixel has a loss of its own."""
    net, X_train, X_new = cast(seeded(Segmenter, enlarged=False), X, torch.float64)
    detector = GradNormDetector(net).fit(X_train, np.zeros((20, 4, 4)))
    features = ref.features(net, X_new, "backbone").transpose(0, 2, 3, 1)
    W, b = ref.as_array(net.classifier.weight)[..., 0, 0], net.classifier.bias
    expected = ref.gradnorm_head(features.reshape(-1, 6), W, b).reshape(12, 4, 4)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-8)
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.predict(X_new), detector.predict(X_new))
    with pytest.raises(ValueError, match="GradNormDetector where they come straight from"):
        GradNormDetector(seeded(Segmenter)).fit(X_train)


@pytest.mark.parametrize("variant", "spb")
def test_ash_without_a_network(data, variant):
    Z, y, X_new = data
    Z, X_new = np.abs(Z), np.abs(X_new)
    W, b = logistic_head(Z, y)
    rest = lambda h: h @ torch.as_tensor(W).T + torch.as_tensor(b)  # noqa: E731
    scores = ASHDetector(variant=variant, percentile=0.4).fit(Z, y).score_samples(X_new)
    assert_parity(scores, ref.ash_scores(X_new, rest, variant, 0.4), torch.float64)


@DTYPES
@pytest.mark.parametrize("loss", ["kl", "bce"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("params", ["head", "all", ["conv1.weight", "fc.bias"], "callable"])
def test_gradnorm(X, params, loss, temperature, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    names = {"head": ["fc.weight"], "all": None, "callable": ["conv2.weight", "conv2.bias"]}
    expected = ref.gradnorm(
        net,
        X_new,
        names.get(params) if isinstance(params, str) else params,
        loss,
        temperature,
    )
    if params == "callable":
        params = lambda name: name.startswith("conv2")  # noqa: E731
    detector = GradNormDetector(net, params=params, loss=loss, temperature=temperature)
    assert_parity(detector.fit(X_train).score_samples(X_new), expected, dtype)


@pytest.mark.parametrize("net", [seeded(ResNet, in_channels=1), seeded(ViT)], ids=["ResNet", "ViT"])
def test_gradnorm_all_parameters_of_deep_networks(X, net):
    net, X_train, X_new = cast(net, X, torch.float64)
    scores = GradNormDetector(net, params="all").fit(X_train).score_samples(X_new)
    assert_parity(scores, ref.gradnorm(net, X_new), torch.float64)


@pytest.mark.parametrize("loss", ["kl", "bce"])
def test_gradnorm_head_and_bias_without_a_network(data, loss):
    Z, y, X_new = data
    W, b = logistic_head(Z, y)
    head = nn.Linear(*W.T.shape).double()
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(W))
        head.bias.copy_(torch.as_tensor(b))
    scores = GradNormDetector(loss=loss).fit(Z, y).score_samples(X_new)
    assert_parity(scores, ref.gradnorm_head(X_new, W, b, loss), torch.float64)
    scores = GradNormDetector(params="all", loss=loss).fit(Z, y).score_samples(X_new)
    assert_parity(scores, ref.gradnorm(head, X_new, None, loss), torch.float64)


@DTYPES
@pytest.mark.parametrize("gap", [18, 40, 300, 1e4])
def test_gradnorm_bce_of_confident_samples(gap, dtype):
    logits = torch.tensor([[gap, 0.3, -0.2, 1.0], [-3.0, gap, 0.1, 2.0], [0.5, gap, gap, -gap]])
    head = nn.Linear(4, 4)
    with torch.no_grad():
        head.weight.copy_(torch.eye(4))
        head.bias.zero_()
    net, features = cast(head, (logits,), dtype)
    expected = np.abs(ref.gradnorm_bce_exact(features)).sum(1) * np.abs(features).sum(1)
    scores = GradNormDetector(net, loss="bce").fit(features).score_samples(features)
    np.testing.assert_allclose(scores, expected, rtol=TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("k", [1, 5, N_TRAIN])
@pytest.mark.parametrize("energy_weighted", [True, False])
def test_nnguide_on_features(data, k, energy_weighted, dtype):
    Z, y, X_new = (torch.as_tensor(a).to(dtype).numpy() if a.ndim > 1 else a for a in data)
    W, b = logistic_head(Z, y)
    detector = NNGuideDetector(k=k, energy_weighted=energy_weighted).fit(Z, y)
    energies = [ref.energy(ref.as_array(z) @ W.T + b) for z in (Z, X_new)]
    expected = ref.nnguide(Z, energies[0], X_new, energies[1], k, energy_weighted)
    assert_parity(detector.score_samples(X_new), expected, dtype)


@DTYPES
@pytest.mark.parametrize("layer", [None, "conv1", "relu"])
def test_nnguide_in_a_network(X, layer, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    if layer == "relu":
        with pytest.raises(ValueError, match="calls the layer 'relu' 2 times"):
            NNGuideDetector(net, layer).fit(X_train)
        return
    detector = NNGuideDetector(net, layer, k=3).fit(X_train)
    H_train, H = (ref.features(net, x, layer) for x in (X_train, X_new))
    if layer:
        H_train, H = H_train.mean((2, 3)), H.mean((2, 3))
    energies = [ref.energy(ref.logits(net, x)) for x in (X_train, X_new)]
    expected = ref.nnguide(H_train, energies[0], H, energies[1], 3)
    assert_parity(detector.score_samples(X_new), expected, dtype)


def test_nnguide_with_a_random_subset(data):
    Z, y, X_new = data
    first = NNGuideDetector(k=3, bank_size=9, random_state=1).fit(Z, y)
    bank = first.scorer_.bank.numpy()
    W, b = logistic_head(Z, y)
    weighted = Z / np.linalg.norm(Z, axis=1, keepdims=True) * ref.energy(Z @ W.T + b)[:, None]
    rows = [int(np.flatnonzero(np.isclose(weighted, row).all(1))[0]) for row in bank]
    assert len(set(rows)) == 9
    expected = ref.nnguide(
        Z[rows], ref.energy(Z @ W.T + b)[rows], X_new, ref.energy(X_new @ W.T + b), 3
    )
    assert_parity(first.score_samples(X_new), expected, torch.float64)
    again = NNGuideDetector(k=3, bank_size=9 / N_TRAIN, random_state=1).fit(Z, y)
    assert (again.scorer_.bank.numpy() == bank).all()
    other = NNGuideDetector(k=3, bank_size=9, random_state=2).fit(Z, y)
    assert (other.scorer_.bank.numpy() != bank).any()


NAC_SETTINGS = [
    {},
    {"bins": "geometric", "alpha": 30.0},
    {"n_bins": 8, "alpha": 3.0, "o_star": 4},
    {"bins": "geometric", "n_bins": 7, "alpha": 100.0, "o_star": 2.5},
]


@pytest.mark.parametrize("settings", NAC_SETTINGS)
@pytest.mark.filterwarnings("ignore:.*saturated")
def test_nac_on_features(data, settings):
    Z, y, X_new = data
    W, b = logistic_head(Z, y)
    products = [[ref.nac_products_features(z, W, b)] for z in (Z, X_new)]
    scores = NACDetector(**settings).fit(Z, y).score_samples(X_new)
    np.testing.assert_allclose(scores, ref.nac_scores(*products, **settings), rtol=1e-12)
    assert len(np.unique(scores)) > 5


LAYERS = {
    "SmallCNN": (SmallCNN, [["conv2"], ["bn", None], ["conv2", "conv1"], ["avgpool", "bn", None]]),
    "ResNet": (ResNet, [["layer1", "layer2", "layer3", "layer4"], [None, "layer2.0.conv1"]]),
    "ViT": (ViT, [["encoder.layers.0", "encoder.layers.1", None], ["encoder"]]),
}
CASES = [(name, layers) for name, (_, choices) in LAYERS.items() for layers in choices]


@pytest.mark.parametrize("pooling", ["separate", "product"])
@pytest.mark.parametrize(("name", "layers"), CASES, ids=[f"{n}-{c}" for n, c in CASES])
@pytest.mark.parametrize("settings", NAC_SETTINGS[:3])
def test_nac_over_layers(X, name, layers, pooling, settings):
    cls = LAYERS[name][0]
    net = seeded(cls, in_channels=1) if cls is ResNet else seeded(cls)
    net, X_train, X_new = cast(net, X, torch.float64)
    head_name = "head" if cls is ViT else "fc"
    products = [ref.nac_products(net, x, layers, pooling, head_name) for x in (X_train, X_new)]
    detector = NACDetector(net, layers, pooling=pooling, **settings).fit(X_train)
    expected = ref.nac_scores(*products, **settings)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-10)


def test_nac_parameters_go_with_the_layers_name(X):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    settings = {"alpha": [0.01, 5.0], "o_star": [3, 1]}
    swapped = {name: values[::-1] for name, values in settings.items()}
    scores = NACDetector(net, ["conv2", "conv1"], **settings).fit(X_train).score_samples(X_new)
    again = NACDetector(net, ["conv1", "conv2"], **swapped).fit(X_train).score_samples(X_new)
    products = [ref.nac_products(net, x, ["conv2", "conv1"]) for x in (X_train, X_new)]
    np.testing.assert_allclose(scores, ref.nac_scores(*products, **settings), rtol=1e-10)
    np.testing.assert_allclose(scores, again, rtol=1e-12)


def test_nac_float32_states_and_exact_counts(X):
    """A float32 state may fall into the next bin; given the states everything is exact."""
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float32)
    settings = {"alpha": 3.0, "o_star": 4, "n_bins": 8}
    layers = ["conv1", None]
    detector = NACDetector(net, layers, **settings).fit(X_train)
    with torch.no_grad():
        found = [[p.numpy() for p in detector._body(torch.as_tensor(x))] for x in (X_train, X_new)]
    for products, x in zip(found, (X_train, X_new), strict=True):
        for product, expected in zip(products, ref.nac_products(net, x, layers), strict=True):
            states, wanted = ref.nac_states(product, 3.0), ref.nac_states(expected, 3.0)
            np.testing.assert_allclose(states, wanted, atol=1e-4)
    expected = ref.nac_scores(*found, **settings)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-6)


COVARIANCES = pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
CRITERIA = pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])


@DTYPES
@COVARIANCES
@CRITERIA
@pytest.mark.parametrize("reg_covar", ["auto", 0, 0.3])
@pytest.mark.parametrize("labels", [True, False])
def test_gmm_on_features(data, covariance_type, criterion, reg_covar, labels, dtype):
    Z, y, X_new = (torch.as_tensor(a).to(dtype).numpy() if a.ndim > 1 else a for a in data)
    y = y if labels else None
    settings = {"covariance_type": covariance_type, "reg_covar": reg_covar}
    detector = GMMDetector(criterion=criterion, **settings).fit(Z, y)
    expected = ref.gmm_scores(ref.gmm_fit(Z, y, **settings), X_new, criterion)
    assert_parity(detector.score_samples(X_new), expected, dtype)


@DTYPES
@COVARIANCES
@pytest.mark.parametrize("layer", [None, "conv1", "bn"])
def test_gmm_in_a_network(X, covariance_type, layer, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    y = np.arange(len(X_train)) % 2
    H_train, H = (ref.features(net, x, layer) for x in (X_train, X_new))
    if layer:
        H_train, H = H_train.mean((2, 3)), H.mean((2, 3))
    settings = {"covariance_type": covariance_type, "reg_covar": 0.2}
    scores = GMMDetector(net, layer, **settings).fit(X_train, y).score_samples(X_new)
    assert_parity(scores, ref.gmm_scores(ref.gmm_fit(H_train, y, **settings), H), dtype)


def test_gmm_of_ill_conditioned_float32_at_an_offset(rng):
    """Condition 1e8 and 1000 standard deviations away from 0."""
    scales = np.geomspace(1e-4, 1, 8)
    mixing = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    Z = ((rng.normal(size=(400, 8)) * scales) @ mixing + 1000).astype(np.float32)
    exact = GMMDetector(reg_covar=0).fit(Z.astype(np.float64)).score_samples(Z.astype(np.float64))
    np.testing.assert_allclose(GMMDetector(reg_covar=0).fit(Z).score_samples(Z), exact, rtol=1e-4)


@CRITERIA
def test_gmm_in_float32_is_as_good_as_float64(rng, criterion):
    """At condition 1e8 and 1000 standard deviations from 0, within 1e-4 of a score or of D."""
    D, y = 80, np.arange(1200) % 3
    mixing = np.linalg.qr(rng.normal(size=(D, D)))[0] * np.geomspace(1e-4, 1, D)[:, None]
    shapes = np.eye(D) + 0.3 * rng.normal(size=(3, D, D)) / np.sqrt(D)
    Z = (rng.normal(size=(1200, 1, D)) @ shapes[y])[:, 0]
    Z = ((Z + 2 * rng.normal(size=(3, D))[y]) @ mixing + 1000).astype(np.float32)
    new = np.vstack([Z, Z + 10 * Z.std(0) * rng.normal(size=Z.shape)]).astype(np.float32)
    detector = GMMDetector(reg_covar=0, criterion=criterion)
    scores = detector.fit(Z, y).score_samples(new)
    assert detector.scorer_.factors.dtype == torch.float32
    exact = detector.fit(Z.astype(np.float64), y).score_samples(new.astype(np.float64))
    size = 1 if criterion == "mahalanobis" else D
    assert (np.abs(scores - exact) <= 1e-4 * np.maximum(np.abs(exact), size)).all()


@DTYPES
@CRITERIA
def test_gmm_of_classes_of_different_shape(rng, criterion, dtype):
    """Each class is flat in its own direction: no coordinates in which float32 would do."""
    D, y = 6, np.arange(90) % 3
    scales = np.ones((3, D))
    scales[range(3), range(3)] = 1e-3
    Z = rng.normal(size=(90, D)) * scales[y] + rng.normal(size=(3, D))[y]
    Z, new = (torch.as_tensor(a).to(dtype).numpy() for a in (Z, rng.normal(size=(40, D))))
    detector = GMMDetector(reg_covar=0, criterion=criterion).fit(Z, y)
    assert detector.scorer_.factors.dtype == torch.float64
    expected = ref.gmm_scores(ref.gmm_fit(Z, y, reg_covar=0), new, criterion)
    assert_parity(detector.score_samples(new), expected, dtype)


@DTYPES
@CRITERIA
@pytest.mark.parametrize(
    ("separation", "off", "finished"),
    [(0, 0, []), (3, 0, ["best", "near"]), (3, 30, ["best"])],
    ids=["overlapping", "separated", "far off"],
)
def test_gmm_leaves_out_only_what_does_not_matter(
    rng, monkeypatch, criterion, dtype, separation, off, finished
):
    """Classes are dropped by the first 64 dimensions, where those tell enough of them apart."""
    D, y = 160, np.arange(1600) % 8
    shapes = np.eye(D) + 0.5 * rng.normal(size=(8, D, D)) / np.sqrt(D)
    Z = (rng.normal(size=(1600, 1, D)) @ shapes[y])[:, 0] + separation * rng.normal(size=(8, D))[y]
    new = Z[:40] + off * rng.normal(size=(40, D))
    Z, new = (torch.as_tensor(a).to(dtype).numpy() for a in (Z, new))
    detector = GMMDetector(reg_covar=0.01, criterion=criterion).fit(Z, y)
    calls = []
    later = _gaussians._later_squares
    monkeypatch.setattr(
        _gaussians, "_later_squares", lambda *args: calls.append(args) or later(*args)
    )
    scores = detector.score_samples(new)
    assert len(calls) == len(finished)
    assert_parity(scores, ref.gmm_scores(ref.gmm_fit(Z, y, reg_covar=0.01), new, criterion), dtype)


class LargestTensor(TorchDispatchMode):
    """Notes how many bytes the largest tensor takes that is computed."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.nbytes)
        return out


@COVARIANCES
def test_gmm_scores_in_blocks(rng, covariance_type):
    """They fit into working_memory, and into 64 MiB where that is more."""
    y = np.arange(40_000) % 40
    X = rng.normal(size=(len(y), 40)) + y[:, None] / 10
    scorer = GMMDetector(covariance_type=covariance_type).fit(X[:4000], y[:4000]).scorer_
    rows, found = torch.as_tensor(X), []
    for memory in (1, 100_000):
        with config_context(working_memory=memory), LargestTensor() as tensors:
            found.append(scorer(rows))
        assert tensors.bytes <= min(memory, 64) * 2**20
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", [MLP, WeightNormed])
def test_every_detector_on_a_network_of_vectors(data, cls):
    Z, y, X_new = data
    net = seeded(cls, in_features=6).double()
    head = ref.as_double(net).fc
    W, b = ref.as_array(head.weight), ref.as_array(head.bias)
    H_train, H = ref.features(net, Z), ref.features(net, X_new)
    energies = [ref.energy(h @ W.T + b) for h in (H_train, H)]
    products = [[ref.nac_products_features(h, W, b)] for h in (H_train, H)]
    expected = {
        ASHDetector(net): ref.ash_network(net, X_new),
        GMMDetector(net): ref.gmm_scores(ref.gmm_fit(H_train, y), H),
        GradNormDetector(net): ref.gradnorm_head(H, W, b),
        GradNormDetector(net, params="all"): ref.gradnorm(net, X_new),
        NACDetector(net): ref.nac_scores(*products),
        NNGuideDetector(net): ref.nnguide(H_train, energies[0], H, energies[1]),
    }
    for detector, scores in expected.items():
        found = detector.fit(Z, y).score_samples(X_new)
        np.testing.assert_allclose(found, scores, rtol=1e-8, err_msg=str(type(detector)))


@pytest.mark.parametrize("layer", [None, "conv1"])
@pytest.mark.parametrize("pool", ["avg", "max", None])
def test_feature_extractor(X, layer, pool):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    found = FeatureExtractor(net, layer, pool=pool).fit(X_train).transform(X_new)
    expected = ref.features(net, X_new, layer)
    if layer and pool:
        expected = expected.mean((2, 3)) if pool == "avg" else expected.max((2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_feature_extractor_of_tokens(X):
    net, X_train, X_new = cast(seeded(ViT), X, torch.float64)
    tokens = ref.features(net, X_new, "encoder.layers", "head")
    for pool, expected in {"avg": tokens.mean(1), "token": tokens[:, 0], None: tokens}.items():
        extractor = FeatureExtractor(net, "encoder.layers", pool=pool).fit(X_train)
        np.testing.assert_allclose(extractor.transform(X_new), expected, rtol=1e-10)
