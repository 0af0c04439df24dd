"""NAC: instances, plain reference, parity; settings right at any number of rows and scale."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from torch import nn

import skood
from skood import NACDetector
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score
from tests import networks
from tests import references as ref
from tests.detectors import NEEDS_VECTORS, Method
from tests.networks import MLP, ResNet, SmallCNN, ViT, WeightNormed, seeded
from tests.parity import (
    IMAGE_NETWORKS,
    SEEDS,
    blobs,
    cast,
    has_power,
    linear,
    logistic_head,
    with_inputs,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*saturated")

METHOD = Method(
    settings={
        "default": NACDetector(),
        "geometric": NACDetector(bins="geometric"),
        "product": NACDetector(pooling="product", n_bins=20, batch_size=7),
    },
    in_networks={
        "default": NACDetector(),
        "layers": NACDetector(layers=["conv2", None, "bn"]),
    },
    # Scores jump where a state falls into the next bin.
    agreement=0.95,
    fixed={"alpha": 1.0},
    refuses={"segmenter": NEEDS_VECTORS},
)


# The reference


def nac_products_features(H, W, b):
    """Compute h * dKL(u || p)/dh of each row (n, D) by autograd through the head h W^T + b."""
    W, b = ref.as_tensor(W), ref.as_tensor(b)
    rows = []
    for h in ref.as_tensor(H):
        h.requires_grad_()
        (gradient,) = torch.autograd.grad(ref.uniform_loss(W @ h + b), h)
        rows.append(ref.as_array(h) * ref.as_array(gradient))
    return np.stack(rows)


def nac_pool(z, gradient, pooling="separate"):
    """Reduce one sample's output and gradient, (N,), (T, N) or (N, H, W), to one product a neuron.

    "separate": the sum over places of each, then the product. "product": the mean over H, W of
    the product, and (T, N) flattened. More than two places' axes are treated as H, W.
    """
    if z.ndim == 1:
        return z * gradient
    if pooling == "separate":
        places = 0 if z.ndim == 2 else tuple(range(1, z.ndim))
        return z.sum(axis=places) * gradient.sum(axis=places)
    if pooling == "product":
        product = z * gradient
        return product.ravel() if z.ndim == 2 else product.mean(axis=tuple(range(1, z.ndim)))
    raise ValueError(pooling)


def nac_products(net, X, layers=(None,), pooling="separate", head_name="fc", masks=None):
    """Compute pooled z * dKL(u || p)/dz, a list of (n, N), by autograd, one sample at a time.

    Masks (n, T) are zero for the tokens that are left out.

    A layer's z is what it returns, before an in-place operation that follows overwrites it; of a
    layer that is called twice, the last call's. None: the input of the last linear layer.
    """
    net = ref.as_double(net)
    kept = {}

    def keep_as(i):
        def keep(output):
            kept[i] = output
            return output.clone()

        return keep

    handles = [ref.hook(net, layer, keep_as(i), head_name) for i, layer in enumerate(layers)]
    products = [[] for _ in layers]
    for i, x in enumerate(ref.as_tensor(X)):
        places = slice(None) if masks is None else ref.as_array(masks[i]) != 0
        value = ref.uniform_loss(net(x[None].requires_grad_().clone())[0])
        outputs = [kept[i] for i in range(len(layers))]
        gradients = torch.autograd.grad(value, outputs, allow_unused=True)
        for rows, z, gradient in zip(products, outputs, gradients, strict=True):
            gradient = torch.zeros_like(z) if gradient is None else gradient
            z, gradient = (ref.as_array(tensor)[0][places] for tensor in (z, gradient))
            rows.append(nac_pool(z, gradient, pooling))
    for handle in handles:
        handle.remove()
    return [np.stack(rows) for rows in products]


def nac_auto_alpha(product, n_bins=50, bins="log"):
    """Find the first spread over the std of all products that is steep enough, else the last.

    Steep enough: at most half of the rows are in less covered bins than they would be with a
    quarter of their products. 1 if all products are equal.
    """
    product = ref.as_array(product)
    if product.std() == 0:
        return 1.0
    for spread in {"log": [1, 2, 6], "geometric": [12, 24, 72]}[bins]:
        alpha = spread / product.std()
        o_star = nac_auto_o_star(len(product), n_bins)
        coverage = np.minimum(nac_counts(product, alpha, n_bins, bins) / o_star, 1)
        sure, doubted = (
            coverage[np.arange(len(coverage)), nac_bins(nac_states(p, alpha), n_bins, bins)]
            for p in (product, product / 4)
        )
        worse = [a.mean() < b.mean() - 1e-6 for a, b in zip(sure, doubted, strict=True)]
        if np.mean(worse) <= 0.5:
            break
    return alpha


def nac_auto_o_star(n, n_bins):
    """Compute max(1, n / n_bins), not rounded."""
    return max(1.0, n / n_bins)


def nac_states(product, alpha):
    """Compute the neurons' states sigmoid(alpha * product), in [0, 1]."""
    return expit(alpha * ref.as_array(product))


def nac_edges(bins="log", n_bins=50):
    """List the edges of the bins of [0, 1].

    "log": with m = n_bins // 2, the logarithm to base 1000 of m points evenly spaced in
    [1, sqrt(1000)] without the last, then 1 minus all of them backwards, 0.01 added to the last,
    then 1.2. "geometric": n_bins // 2 + 1 points geometric from 1e-6 to 0.5, the last lowered to
    the float32 number below 0.5, then 1 minus the others backwards.
    """
    m = n_bins // 2
    if bins == "log":
        if n_bins % 2 or n_bins < 4:
            raise ValueError("n_bins must be even and at least 4")
        left = [np.log(x) / np.log(1000) for x in np.linspace(1, np.sqrt(1000), m)]
        right = [1 - edge for edge in reversed(left)]
        right[-1] += 0.01
        return np.array([*left[:-1], *right, 1.2])
    if bins == "geometric":
        left = [1e-6 * (0.5 / 1e-6) ** (i / m) for i in range(m)]
        return np.array([*left, 0.5 - 2.0**-25, *(1 - edge for edge in reversed(left))])
    raise ValueError(bins)


def nac_bins(states, n_bins=50, bins="log"):
    """Find the bin of each state: [a, b) for "log"; (a, b] for "geometric".

    For "geometric", states are first clamped to [1e-6, 1 - 1e-6], and the first bin has its lower
    edge too. The edges are one more than the bins only if n_bins is even: for an odd n_bins the
    last bin stays empty.
    """
    edges = nac_edges(bins, n_bins)
    states = ref.as_array(states)
    found = np.full(states.shape, -1)
    if bins == "geometric":
        states = np.clip(states, 1e-6, 1 - 1e-6)
        found[states <= edges[0]] = 0
    for j in range(len(edges) - 1):
        a, b = edges[j], edges[j + 1]
        inside = (a <= states) & (states < b) if bins == "log" else (a < states) & (states <= b)
        found[inside] = j
    assert (found >= 0).all()
    return found


def nac_counts(product, alpha, n_bins=50, bins="log"):
    """Count, for each neuron and bin, the rows whose state falls there; shape (N, bins)."""
    found = nac_bins(nac_states(product, alpha), n_bins, bins)
    counts = np.zeros((found.shape[1], len(nac_edges(bins, n_bins)) - 1))
    for neuron in range(counts.shape[0]):
        for j in range(counts.shape[1]):
            counts[neuron, j] = np.sum(found[:, neuron] == j)
    return counts


def nac_settings(products_train, alpha, o_star, n_bins, bins):
    """List (alpha, o_star, n_bins) of each layer; each given once, one per layer, or "auto"."""
    settings = []
    for i, product in enumerate(products_train):
        a, o, m = (
            value[i] if isinstance(value, list | tuple | np.ndarray) else value
            for value in (alpha, o_star, n_bins)
        )
        a = nac_auto_alpha(product, m, bins) if isinstance(a, str) else a
        o = nac_auto_o_star(len(product), m) if isinstance(o, str) else o
        settings.append((a, o, m))
    return settings


def nac_scores(products_train, products, alpha="auto", o_star="auto", n_bins=50, bins="log"):
    """Average the coverage min(count / o_star, 1) over neurons, then over layers.

    "auto" uses all training rows, and their number, as the pilot sample.
    """
    settings = nac_settings(products_train, alpha, o_star, n_bins, bins)
    scores = np.zeros((len(products[0]), len(products)))
    for i, (train, test) in enumerate(zip(products_train, products, strict=True)):
        a, o, m = settings[i]
        counts = nac_counts(train, a, m, bins)
        found = nac_bins(nac_states(test, a), m, bins)
        for row in range(found.shape[0]):
            coverage = [min(counts[neuron, j] / o, 1.0) for neuron, j in enumerate(found[row])]
            scores[row, i] = np.mean(coverage)
    return scores.mean(axis=1)


def nac_leave_one_out(products, alpha="auto", o_star="auto", n_bins=50, bins="log"):
    """Score each training row by counts that lack it; "auto" is settled once, on all rows."""
    products = [ref.as_array(product) for product in products]
    settings = nac_settings(products, alpha, o_star, n_bins, bins)
    alphas, o_stars, bin_numbers = (list(values) for values in zip(*settings, strict=True))
    n = len(products[0])
    scores = []
    for i in range(n):
        others = [product[np.arange(n) != i] for product in products]
        row = [product[[i]] for product in products]
        scores.append(nac_scores(others, row, alphas, o_stars, bin_numbers, bins)[0])
    return np.array(scores)


# The reference agrees with what was found without it


@pytest.mark.parametrize("n_bins", [4, 6, 50, 500])
def test_nac_edges_log(n_bins):
    """n_bins edges from 0, through exactly 0.5, symmetric and dense around it, to 1.01 and 1.2."""
    edges = nac_edges("log", n_bins)
    m = n_bins // 2
    assert len(edges) == n_bins
    assert edges[0] == 0 and edges[m - 1] == 0.5 and edges[-1] == 1.2
    np.testing.assert_allclose(edges[-2], 1.01, rtol=1e-15)
    assert (np.diff(edges) > 0).all()
    inner = edges[:-1] - np.eye(len(edges) - 1)[-1] * 0.01
    np.testing.assert_allclose(inner + inner[::-1], 1, rtol=1e-12)
    assert (np.diff(inner[:m], n=2) < 0).all()
    np.testing.assert_allclose(np.diff(1000 ** inner[:m], n=2), 0, atol=1e-10)


@pytest.mark.parametrize("n_bins", [2, 3, 5, 50])
def test_nac_edges_geometric(n_bins):
    """From 1e-6 by a constant ratio to just below 0.5, and mirrored: dense at 0 and 1."""
    edges = nac_edges("geometric", n_bins)
    m = n_bins // 2
    assert len(edges) == 2 * m + 1
    np.testing.assert_allclose(edges[[0, -1]], [1e-6, 1 - 1e-6], rtol=1e-12)
    assert edges[m] == np.nextafter(np.float32(0.5), np.float32(0))
    assert (np.diff(edges) > 0).all()
    np.testing.assert_allclose(edges + edges[::-1], 1, rtol=1e-7)
    np.testing.assert_allclose(edges[1 : m + 1] / edges[:m], (5e5) ** (1 / m), rtol=1e-6)


def test_nac_edges_refuse():
    """The logarithmic bins want an even number of at least 4."""
    for n_bins in (2, 5):
        with pytest.raises(ValueError, match="n_bins"):
            nac_edges("log", n_bins)


def test_nac_bins():
    """Ends, middle and edges fall where METHODS says; digitize agrees elsewhere."""
    states = np.random.default_rng(0).uniform(size=(40, 3))
    for bins, right in [("log", False), ("geometric", True)]:
        edges = nac_edges(bins, 10)
        expected = np.digitize(states, edges, right=right) - 1
        np.testing.assert_array_equal(nac_bins(states, 10, bins), expected)
    assert nac_bins([0.0, 0.5, 1.0], 10, "log").tolist() == [0, 4, 7]
    assert nac_bins([0.0, 0.5, 1.0], 10, "geometric").tolist() == [0, 5, 9]
    assert nac_bins([1.0], 11, "geometric").tolist() == [9]
    edges = nac_edges("log", 10)[:8]
    assert nac_bins(edges, 10, "log").tolist() == list(range(8))
    edges = nac_edges("geometric", 10)[1:-1]
    assert nac_bins(edges, 10, "geometric").tolist() == list(range(9))


def test_nac_products_features(head):
    """Autograd through the head equals h * (p - u) W."""
    H, W, b = head
    p = torch.from_numpy(H @ W.T + b).softmax(dim=1).numpy()
    got = nac_products_features(H, W, b)
    np.testing.assert_allclose(got, H * ((p - 1 / 4) @ W), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("pooling", ["separate", "product"])
@pytest.mark.parametrize("cls, layer", IMAGE_NETWORKS)
def test_nac_products(cls, layer, pooling):
    """Features equal the head's; layers read together, in any order, equal layers read alone."""
    net, X = with_inputs(cls, 5)
    (head_name,) = net.head_names
    linear = net.get_submodule(head_name)
    inner, last = nac_products(net, X, [layer, None], pooling, head_name)
    H = ref.features(net, X, head_name=head_name)
    expected = nac_products_features(H, linear.weight, linear.bias)
    np.testing.assert_allclose(last, expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(inner, nac_products(net, X, [layer], pooling)[0], rtol=1e-12)
    swapped = nac_products(net, X, [None, layer], pooling, head_name)
    np.testing.assert_array_equal(swapped[1], inner)
    places = ref.features(net, X, layer).shape
    if cls is networks.ViT:
        n_neurons = places[1] * places[2] if pooling == "product" else places[2]
    else:
        n_neurons = places[1]
    assert inner.shape == (5, n_neurons)
    assert np.abs(inner).max() > 0


def test_nac_products_by_finite_differences():
    """The mean of z * gradient is the slope of the loss along z itself."""
    net, X = with_inputs(networks.SmallCNN, 3)
    (product,) = nac_products(net, X, ["conv2"], "product")
    z = ref.features(net, X, "conv2")
    rest = torch.nn.Sequential(net.relu, net.avgpool, torch.nn.Flatten(), net.fc)
    rest = ref.as_double(rest)

    def loss(scale):
        with torch.no_grad():
            rows = rest(torch.from_numpy(z * scale))
        return np.array([ref.uniform_loss(row).item() for row in rows])

    slope = (loss(1 + 1e-6) - loss(1 - 1e-6)) / 2e-6
    places = z.shape[2] * z.shape[3]
    np.testing.assert_allclose(product.sum(axis=1) * places, slope, rtol=1e-6, atol=1e-8)


def test_nac_pool_by_hand():
    """Both poolings of a map and of tokens."""
    z, gradient = np.arange(4.0).reshape(1, 2, 2), np.array([[[1.0, 0.0], [0.0, 2.0]]])
    np.testing.assert_array_equal(nac_pool(z, gradient, "separate"), [18.0])
    np.testing.assert_array_equal(nac_pool(z, gradient, "product"), [1.5])
    z, gradient = z[0], gradient[0]
    np.testing.assert_array_equal(nac_pool(z, gradient, "separate"), [2.0, 8.0])
    np.testing.assert_array_equal(nac_pool(z, gradient, "product"), [0.0, 0.0, 0.0, 6.0])


def products_of(head):
    """Compute products of two layers of unlike width, for 40 rows."""
    wide = np.random.default_rng(3).standard_t(3, size=(40, 9))
    return [nac_products_features(*head), wide]


@pytest.mark.parametrize("bins, n_bins", [("log", 20), ("geometric", 20), ("geometric", 7)])
def test_nac_scores_by_histogram(head, bins, n_bins):
    """Explicit loops agree with numpy's histogram and a table look-up; layers are averaged."""
    products = products_of(head)
    train, test = [p[:25] for p in products], [p[25:] for p in products]
    edges = nac_edges(bins, n_bins)
    expected = np.zeros(15)
    for i, (alpha, o_star) in enumerate([(2.0, 3.0), (0.7, 6.0)]):
        train_states, test_states = (1 / (1 + np.exp(-alpha * p[i])) for p in (train, test))
        for neuron in range(train[i].shape[1]):
            counts = np.histogram(train_states[:, neuron], edges)[0]
            if bins == "geometric":  # numpy's bins are [a, b)
                assert not np.isin(train_states, edges).any()
            found = np.searchsorted(edges, test_states[:, neuron], "right") - 1
            expected += np.minimum(counts[found] / o_star, 1) / train[i].shape[1] / 2
    got = nac_scores(train, test, [2.0, 0.7], [3.0, 6.0], n_bins, bins)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    alone = [
        nac_scores([train[i]], [test[i]], alpha, o_star, n_bins, bins)
        for i, (alpha, o_star) in enumerate([(2.0, 3.0), (0.7, 6.0)])
    ]
    np.testing.assert_allclose(got, np.mean(alone, axis=0), rtol=1e-12)


def test_nac_auto():
    """The automatic settings, and that they are the defaults."""
    product = np.random.default_rng(0).normal(size=(200, 40))
    np.testing.assert_allclose(nac_auto_alpha(product), 1 / np.std(product))
    # One row in ten is large: the others, all near 0, would be covered better still when shrunk.
    rare = np.where(np.arange(200)[:, None] % 10 == 0, 5, 0.3) * product
    spreads = [nac_auto_alpha(scale * rare) * np.std(scale * rare) for scale in (1, 16)]
    assert spreads[0] == spreads[1] in (2, 6)
    assert nac_auto_alpha(np.zeros((3, 2))) == 1
    values = [nac_auto_o_star(n, 50) for n in (10, 50, 120, 2500, 10**6)]
    assert values == [1, 1, 2.4, 50, 20_000]
    given = nac_scores([product], [product[:50]], nac_auto_alpha(product), 4.0)
    got = nac_scores([product], [product[:50]])
    np.testing.assert_array_equal(got, given)
    assert len(np.unique(got)) > 10


@pytest.mark.parametrize("bins", ["log", "geometric"])
def test_nac_leave_one_out(head, bins):
    """Refitting equals the row's own counts less one."""
    products = products_of(head)
    expected = np.zeros(40)
    for product in products:
        alpha, o_star = nac_auto_alpha(product, 10, bins), nac_auto_o_star(40, 10)
        counts = nac_counts(product, alpha, 10, bins)
        found = nac_bins(nac_states(product, alpha), 10, bins)
        own = counts[np.arange(counts.shape[0]), found]
        expected += np.minimum((own - 1) / o_star, 1).mean(axis=1) / 2
    got = nac_leave_one_out(products, n_bins=10, bins=bins)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert (got <= nac_scores(products, products, n_bins=10, bins=bins)).all()


@pytest.mark.parametrize("pooling, bins", [("separate", "log"), ("product", "geometric")])
def test_nac_of_a_network_has_power(pooling, bins):
    """Scores take many values where `o_star` is beyond most counts."""
    net, X = with_inputs(networks.SmallCNN, 120)
    products = nac_products(net, X, ["conv1", None], pooling)
    train, test = [p[:90] for p in products], [p[90:] for p in products]
    scores = nac_scores(train, test, "auto", 30, bins=bins)
    assert has_power(scores)
    assert 0 < scores.min() and scores.max() < 1


# The detector equals it


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
    products = [[nac_products_features(z, W, b)] for z in (Z, X_new)]
    scores = NACDetector(**settings).fit(Z, y).score_samples(X_new)
    np.testing.assert_allclose(scores, nac_scores(*products, **settings), rtol=1e-12)
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
    products = [nac_products(net, x, layers, pooling, head_name) for x in (X_train, X_new)]
    detector = NACDetector(net, layers, pooling=pooling, **settings).fit(X_train)
    expected = nac_scores(*products, **settings)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-10)


def test_nac_parameters_go_with_the_layers_name(X):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    settings = {"alpha": [0.01, 5.0], "o_star": [3, 1]}
    swapped = {name: values[::-1] for name, values in settings.items()}
    scores = NACDetector(net, ["conv2", "conv1"], **settings).fit(X_train).score_samples(X_new)
    again = NACDetector(net, ["conv1", "conv2"], **swapped).fit(X_train).score_samples(X_new)
    products = [nac_products(net, x, ["conv2", "conv1"]) for x in (X_train, X_new)]
    np.testing.assert_allclose(scores, nac_scores(*products, **settings), rtol=1e-10)
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
        for product, expected in zip(products, nac_products(net, x, layers), strict=True):
            states, wanted = nac_states(product, 3.0), nac_states(expected, 3.0)
            np.testing.assert_allclose(states, wanted, atol=1e-4)
    expected = nac_scores(*found, **settings)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-6)


@pytest.mark.parametrize("cls", [MLP, WeightNormed])
def test_nac_on_a_network_of_vectors(vectors, cls):
    net, Z, y, X_new = vectors(cls)
    features = [ref.features(net, x) for x in (Z, X_new)]
    products = [[nac_products_features(h, *ref.head_of(net))] for h in features]
    scores = NACDetector(net).fit(Z, y).score_samples(X_new)
    np.testing.assert_allclose(scores, nac_scores(*products), rtol=1e-8)


# The threshold's scores


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alpha": 2.0, "o_star": 3},
        {"alpha": 2.0, "o_star": 30, "bins": "geometric", "n_bins": 9},
    ],
)
def test_nac_leaves_one_out(left_out, few_rows, settings):
    Z, y = few_rows
    classifier = LogisticRegression(max_iter=1000).fit(Z, y)
    products = [nac_products_features(Z, classifier.coef_, classifier.intercept_)]
    found = left_out(NACDetector(FrozenEstimator(classifier), **settings), Z, y)
    np.testing.assert_allclose(found, nac_leave_one_out(products, **settings), rtol=1e-12)
    assert len(np.unique(found)) > 3


def test_nac_over_layers_leaves_one_out(left_out, images):
    net = seeded(SmallCNN).double()
    X = images[0].astype(np.float64)
    settings = {"alpha": [1.0, 3.0], "o_star": [4, 9]}
    found = left_out(NACDetector(net, ["conv1", None], **settings), X)
    products = nac_products(net, X, ["conv1", None])
    np.testing.assert_allclose(found, nac_leave_one_out(products, **settings), rtol=1e-12)


# Properties


@given(seed=SEEDS, o_star=st.floats(1, 100), bins=st.sampled_from(["log", "geometric"]))
def test_nac_coverage_is_a_share_and_falls_as_o_star_grows(seed, o_star, bins):
    X, y = blobs(seed)
    new = 3 * np.random.default_rng(seed).normal(size=(20, 4))
    head = linear(seed)

    def score(o_star):
        return NACDetector(head, o_star=o_star, bins=bins).fit(X, y).score_samples(new)

    low, high = score(o_star), score(2 * o_star)
    assert ((low >= 0) & (low <= 1)).all() and (high <= low + 1e-12).all()


@given(seed=SEEDS, bins=st.sampled_from(["log", "geometric"]), cut=st.integers(2, 28))
def test_nac_counts_of_two_parts_add_up(seed, bins, cut):
    X, _ = blobs(seed)

    def counts(rows):
        detector = NACDetector(linear(seed), alpha=2.0, o_star=5, bins=bins).fit(rows)
        return detector.scorer_.counts.numpy()

    whole = counts(X)
    np.testing.assert_array_equal(counts(X[:cut]) + counts(X[cut:]), whole)
    assert (whole.sum(1) == len(X)).all()


# Settings


def auroc(detector, X, ood):
    """Return how well scores tell rows from OOD rows."""
    labels = np.repeat([1, -1], [len(X), len(ood)])
    return auroc_score(labels, detector.score_samples(np.concatenate([X, ood])))


def relu_features(rng, n_rows, spread=1.0):
    """Draw features of four classes as a ReLU network has them; return the centres too."""
    centres = 3 * np.random.default_rng(0).random((4, 16))
    rows = centres[rng.integers(0, 4, n_rows)] + spread * rng.normal(size=(n_rows, 16))
    return np.maximum(rows, 0), centres


@pytest.fixture
def linear_head():
    """Return a linear head that tells the classes of `relu_features` apart."""
    _, centres = relu_features(np.random.default_rng(0), 1)
    linear = nn.Linear(16, 4).double()
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(centres))
        linear.bias.copy_(torch.from_numpy(-(centres**2).sum(1) / 2))
    return linear


def test_many_rows_are_as_good_as_few(linear_head, rng):
    X, new, ood = (relu_features(rng, n, s)[0] for n, s in ((40_000, 1), (2000, 1), (2000, 2)))
    few, many = (
        auroc(NACDetector(linear_head, random_state=0).fit(X[:n]), new, ood) for n in (1000, 40_000)
    )
    assert few > 0.65
    assert many > few - 0.01


def test_features_of_length_one_are_not_upside_down():
    """OOD rows lie in the fullest bins there, those around 0, unless states are steep enough."""
    data = load_digits_ood(as_images=False)
    detector = make_pipeline(PCA(32, whiten=True), Normalizer(), NACDetector(random_state=0))
    detector.fit(data.X_train, data.y_train)
    for ood in data.ood.values():
        assert auroc(detector, data.X_test, ood) > 0.9


@pytest.mark.parametrize("bins", ["log", "geometric"])
def test_the_scale_of_features_does_not_matter(linear_head, rng, bins):
    X, new = (relu_features(rng, n, 1.5)[0] for n in (300, 100))
    small = nn.Linear(16, 4).double()
    small.load_state_dict({"weight": linear_head.weight / 16, "bias": linear_head.bias})
    scores = NACDetector(linear_head, bins=bins).fit(X).score_samples(new)
    scaled = NACDetector(small, bins=bins).fit(16 * X).score_samples(16 * new)
    np.testing.assert_array_equal(scores, scaled)


def test_equal_scores_of_most_rows_are_told(linear_head, rng):
    X, _ = relu_features(rng, 20_000)
    with pytest.warns(UserWarning, match="100% of the training rows score the same with o_star=1,"):
        NACDetector(linear_head, o_star=1).fit(X)
    with warnings.catch_warnings(action="error"):
        NACDetector(linear_head).fit(X)


MIXED = [
    {"n_bins": [8, 50], "alpha": [3.0, 2.0], "o_star": [4, 2.5]},
    {"n_bins": (50, 20)},
    {"n_bins": np.array([7, 12]), "bins": "geometric"},
]


@pytest.fixture
def pictures(images):
    """Return images and a network for them, in float64."""
    return seeded(SmallCNN).double(), images[0].astype(np.float64)


@pytest.mark.parametrize("settings", MIXED)
def test_numbers_of_bins_of_layers(pictures, settings, tmp_path):
    net, X = pictures
    layers = ["conv1", None]
    detector = NACDetector(net, layers, **settings).fit(X[:16])
    products = [nac_products(net, x, layers) for x in (X[:16], X)]
    scores = detector.score_samples(X)
    np.testing.assert_allclose(scores, nac_scores(*products, **settings), rtol=1e-10)
    left_out = detector.scorer_.leave_one_out(detector._body(torch.from_numpy(X[:16])), None, None)
    expected = nac_leave_one_out(products[0], **settings)
    np.testing.assert_allclose(left_out.detach(), expected, rtol=1e-10)
    skood.save(detector, tmp_path / "nac.safetensors")
    loaded = skood.load(tmp_path / "nac.safetensors", model=net)
    for again in (loaded, pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(again.score_samples(X), scores)


def test_layers_of_other_numbers_of_bins_learn_in_pieces(pictures):
    net, X = pictures
    detector = NACDetector(net, ["conv1", None], n_bins=[8, 50], alpha=[3.0, 2.0])
    whole = clone(detector).fit(X).score_samples(X)
    pieces = [clone(detector).partial_fit(piece) for piece in (X[:10], X[10:])]
    merged = pieces[0].merge(pieces[1]) or pieces[0]
    np.testing.assert_array_equal(merged.score_samples(X), whole)


@pytest.mark.parametrize(
    "n_bins, message",
    [
        ([50, 20], "n_bins has 2 entries for 1 layers"),
        ([7], "n_bins=7 must be even"),
        ([1], "n_bins must be integers from 2 on, got 1"),
        (["auto"], "n_bins must be integers from 2 on, got 'auto'"),
    ],
)
def test_numbers_of_bins_that_do_not_fit(linear_head, rng, n_bins, message):
    with pytest.raises(ValueError, match=message):
        NACDetector(linear_head, n_bins=n_bins).fit(relu_features(rng, 20)[0])
