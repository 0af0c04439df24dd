"""The references agree with each other and with facts that were found without them."""

import networks
import numpy as np
import pytest
import references as ref
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Run tiny operations on one thread: on a busy machine several are ten times slower."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def with_inputs(cls, n):
    """Build a seeded network and `n` inputs for it."""
    net = networks.seeded(cls)
    return net, networks.sample_inputs(net, n)


@pytest.fixture
def head():
    """Draw 40 non-negative feature rows, as after a ReLU, and a linear head of 4 classes."""
    rng = np.random.default_rng(0)
    H = np.maximum(rng.normal(size=(40, 6)), 0)
    return H, rng.normal(size=(4, 6)), rng.normal(size=4)


@pytest.fixture
def clusters():
    """Draw 60 rows of three classes with unlike covariances and sizes."""
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [30, 18, 12])
    Z = rng.normal(size=(60, 4)) * np.array([0.5, 1.0, 2.0])[y, None]
    return Z @ rng.normal(size=(4, 4)) + 2.0 * y[:, None], y


def has_power(scores):
    """Tell whether the scores take distinct, finite values on more than four rows in five."""
    return np.isfinite(scores).all() and len(np.unique(scores.round(9))) > 0.8 * len(scores)


# Networks

IMAGE_NETWORKS = [
    (networks.SmallCNN, "conv1"),
    (networks.ResNet, "layer2"),
    (networks.ViT, "encoder.layers.0"),
    (networks.DenseNetLike, "conv0"),
]
VECTOR_NETWORKS = [
    networks.MLP,
    networks.Branching,
    networks.WeightNormed,
    networks.WithDropout,
]


@pytest.mark.parametrize("cls", [*(case[0] for case in IMAGE_NETWORKS), *VECTOR_NETWORKS])
def test_networks_give_varied_logits(cls):
    """Every class is predicted, and the softmax is mostly neither uniform nor saturated."""
    net, X = with_inputs(cls, 64)
    with torch.no_grad():
        logits = net(torch.from_numpy(X))
    top = logits.softmax(dim=1).max(dim=1)
    assert not net.training
    assert len(top.indices.unique()) == logits.shape[1]
    assert has_power(top.values.double().numpy())
    assert 0.3 < top.values.median() < 0.99


@pytest.mark.parametrize("cls", [*VECTOR_NETWORKS, networks.EndsInSoftmax, networks.TwoHeads])
def test_seeded(cls):
    """The same seed gives the same network, another seed another; the generator stays as it is."""
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 8))).float()
    state = torch.random.get_rng_state()
    outputs = [networks.seeded(cls, seed=seed)(X) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    first, again, other = (
        torch.cat(out) if isinstance(out, tuple) else out.detach() for out in outputs
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_traps_are_set():
    """Each network does what its docstring warns of."""
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 8))).float()
    net = networks.seeded(networks.WithDropout).train()
    assert not torch.equal(net(X), net(X))
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(networks.seeded(networks.Branching))
    net = networks.seeded(networks.EndsInSoftmax)
    torch.testing.assert_close(net(X).sum(dim=1), torch.ones(5))
    main, auxiliary = networks.seeded(networks.TwoHeads)(X)
    both = networks.seeded(networks.TwoHeads, returns="sum")(X)
    torch.testing.assert_close(main + auxiliary, both)
    assert "weight" not in dict(networks.seeded(networks.WeightNormed).fc.named_parameters())
    net, maps = with_inputs(networks.Segmenter, 2)
    assert net(torch.from_numpy(maps)).shape == (2, 3, 8, 8)
    kept = []
    net = networks.seeded(networks.SmallCNN)
    assert (net.bn.running_mean != 0).all()
    net.bn.register_forward_hook(lambda _, __, output: kept.append(output))
    net(torch.from_numpy(maps))
    assert (kept[0] >= 0).all()


@pytest.mark.parametrize("cls, layer", IMAGE_NETWORKS)
def test_features_and_logits(cls, layer):
    """The head applied to the features gives the logits, and the user's network is untouched."""
    net, X = with_inputs(cls, 4)
    (head_name,) = net.head_names
    linear = net.get_submodule(head_name)
    H = ref.features(net, X, head_name=head_name)
    expected = H @ ref.as_array(linear.weight).T + ref.as_array(linear.bias)
    np.testing.assert_allclose(ref.logits(net, X), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        batch = net(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(batch, expected, rtol=1e-4, atol=1e-4)
    assert ref.features(net, X, layer).shape[0] == 4
    assert next(net.parameters()).dtype == torch.float32
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_features_are_not_overwritten():
    """What BatchNorm returned is read before the in-place ReLU behind it."""
    net, X = with_inputs(networks.SmallCNN, 3)
    assert (ref.features(net, X, "bn") < 0).any()
    products = ref.nac_products(net, X, ["bn"])
    net.relu.inplace = False
    np.testing.assert_array_equal(products, ref.nac_products(net, X, ["bn"]))


@pytest.mark.parametrize("cls", [networks.SmallCNN, networks.WithDropout])
def test_train_mode_does_not_matter(cls):
    """References run in eval mode whatever the mode of the network, and leave it there."""
    net, X = with_inputs(cls, 3)
    expected = ref.logits(net, X)
    np.testing.assert_array_equal(ref.logits(net.train(), X), expected)
    assert net.training


# ASH


@pytest.mark.parametrize("variant", ["s", "p", "b"])
@pytest.mark.parametrize("percentile", [0.0, 0.3, 0.65, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(20,), (5, 3), (4, 3, 3)])
def test_ash_keeps_exactly_k(variant, percentile, shape):
    """Exactly k positive values survive, and they are the largest."""
    x = np.random.default_rng(0).uniform(0.1, 1.0, size=shape)
    shaped = ref.ash_shape(x, variant, percentile)
    k = max(1, x.size - round(x.size * percentile))
    assert shaped.shape == shape
    assert np.count_nonzero(shaped) == k
    assert x[shaped != 0].min() >= np.sort(x, axis=None)[-k]


def test_ash_by_hand():
    """The three variants on one small row; ties go to the lowest index; nothing is written to."""
    x = np.array([1.0, 4.0, 0.0, 3.0])
    np.testing.assert_allclose(ref.ash_shape(x, "p", 0.5), [0, 4, 0, 3])
    np.testing.assert_allclose(ref.ash_shape(x, "b", 0.5), [0, 4, 0, 4])
    np.testing.assert_allclose(
        ref.ash_shape(x, "s", 0.5), np.exp(8 / 7) * np.array([0, 4, 0, 3]), rtol=1e-14
    )
    np.testing.assert_array_equal(x, [1, 4, 0, 3])
    np.testing.assert_array_equal(ref.ash_shape([2.0, 0, 0, 0], "b", 0.5), [1, 1, 0, 0])
    np.testing.assert_array_equal(ref.ash_shape([1.0, 2.0, 2.0, 2.0], "p", 0.5), [0, 2, 2, 0])
    np.testing.assert_array_equal(ref.ash_shape(np.zeros(4), "s", 0.5), np.zeros(4))
    np.testing.assert_array_equal(ref.ash_shape([1.0, -1.0, -5.0], "s", 0.3), np.zeros(3))
    signed = [1.0, -1.0 - 1e-9, -5.0]
    assert np.isinf(ref.ash_shape(signed, "s", 0.3)).any()
    assert np.isfinite(ref.ash_shape(signed, "s", 0.3, max_ratio=44)).all()


@pytest.mark.parametrize("logit_score", ["energy", "msp", "max_logit"])
def test_logit_scores(logit_score):
    """The logit scores equal torch's, on vectors and on maps."""
    functions = {
        "energy": lambda t: t.logsumexp(dim=1),
        "msp": lambda t: t.softmax(dim=1).amax(dim=1),
        "max_logit": lambda t: t.amax(dim=1),
    }
    for shape in [(5, 4), (5, 4, 2, 3)]:
        logits = np.random.default_rng(0).normal(size=shape)
        got = ref.score_of_logits(logits, logit_score)
        assert got.shape == (5, *shape[2:])
        np.testing.assert_allclose(got, functions[logit_score](torch.from_numpy(logits)))
        np.testing.assert_allclose(got, ref.score_of_logits(logits, functions[logit_score]))


@pytest.mark.parametrize("variant", ["s", "p", "b"])
def test_ash_scores_of_networks(variant):
    """Cut by hand or by hook, at the features or at maps, in vectors or in maps of logits."""
    net, X = with_inputs(networks.ResNet, 6)
    H = ref.features(net, X)
    at_features = ref.ash_scores(H, net.fc, variant, 0.5)
    np.testing.assert_allclose(at_features, ref.ash_network(net, X, None, variant, 0.5), rtol=1e-12)
    maps = ref.features(net, X, "layer3")
    rest = torch.nn.Sequential(net.layer4, net.avgpool, torch.nn.Flatten(), net.fc)
    at_maps = ref.ash_scores(maps, rest, variant, 0.5)
    np.testing.assert_allclose(at_maps, ref.ash_network(net, X, "layer3", variant, 0.5), rtol=1e-12)
    assert has_power(at_features) and has_power(at_maps)
    assert not np.allclose(at_features, at_maps)
    scores = ref.ash_network(*with_inputs(networks.Segmenter, 2), "backbone", variant, 0.5)
    assert scores.shape == (2, 8, 8)


def test_ash_percentile_zero_is_the_plain_energy(head):
    """P and percentile 0 change nothing; S multiplies the features by e."""
    H, W, b = head
    fc = torch.nn.Linear(6, 4).double()
    with torch.no_grad():
        fc.weight.copy_(torch.from_numpy(W))
        fc.bias.copy_(torch.from_numpy(b))
    H = H[H.any(axis=1)]
    np.testing.assert_allclose(ref.ash_scores(H, fc, "p", 0.0), ref.energy(H @ W.T + b))
    np.testing.assert_allclose(ref.ash_scores(H, fc, "s", 0.0), ref.energy(np.e * H @ W.T + b))
    assert has_power(ref.ash_scores(H, fc, "s", 0.5))


# GradNorm


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradnorm_head_closed_form(head, temperature):
    """The autograd norm equals ||softmax(l/T) - u||_1 ||h||_1 / T."""
    H, W, b = head
    p = torch.from_numpy((H @ W.T + b) / temperature).softmax(dim=1).numpy()
    expected = np.abs(p - 1 / 4).sum(axis=1) * np.abs(H).sum(axis=1) / temperature
    got = ref.gradnorm_head(H, W, b, "kl", temperature)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert has_power(got)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradnorm_bce_exact_equals_autograd(head, temperature):
    """For small gaps, 60 digits and autograd agree, and so does the formula of METHODS."""
    H, W, b = head
    logits = H @ W.T + b
    exact = ref.gradnorm_bce_exact(logits, temperature)
    leaf = torch.from_numpy(logits).requires_grad_()
    sum(ref.uniform_loss(row, "bce", temperature) for row in leaf).backward()
    np.testing.assert_allclose(exact, leaf.grad.numpy(), rtol=1e-8, atol=1e-12)
    p = torch.from_numpy(logits / temperature).softmax(dim=1).numpy()
    q = (p - 1 / 4) / (1 - p)
    formula = (p - 1 / 4) - p * (q.sum(axis=1, keepdims=True) - q)
    np.testing.assert_allclose(exact, formula / temperature, rtol=1e-8, atol=1e-12)
    norms = np.abs(exact).sum(axis=1) * np.abs(H).sum(axis=1)
    got = ref.gradnorm_head(H, W, b, "bce", temperature)
    np.testing.assert_allclose(got, norms, rtol=1e-8)
    assert has_power(got)


@pytest.mark.parametrize("n_classes", [2, 4, 10])
@pytest.mark.parametrize("gap", [40.0, 800.0, 1e5])
def test_gradnorm_bce_exact_limit(n_classes, gap):
    """The norm of the gradient tends to 4 (1 - u) with the gap, where autograd is lost."""
    logits = np.random.default_rng(0).normal(size=(3, n_classes))
    logits[np.arange(3), [0, 1, -1]] += gap
    norms = np.abs(ref.gradnorm_bce_exact(logits)).sum(axis=1)
    np.testing.assert_allclose(norms, 4 * (1 - 1 / n_classes), rtol=1e-12)


def test_gradnorm_bce_exact_at_the_edges():
    """Uniform logits and one class alone have no gradient; two tied leaders share theirs."""
    np.testing.assert_allclose(ref.gradnorm_bce_exact([[2.0, 2.0, 2.0]]), 0, atol=1e-50)
    np.testing.assert_array_equal(ref.gradnorm_bce_exact([[3.0]]), [[0.0]])
    tied = ref.gradnorm_bce_exact([[50.0, 50.0, 0.0]])[0]
    assert tied[0] == tied[1]
    np.testing.assert_allclose(tied.sum(), 0, atol=1e-15)


@pytest.mark.parametrize("loss", ["kl", "bce"])
@pytest.mark.parametrize("cls, layer", IMAGE_NETWORKS)
def test_gradnorm_of_networks(cls, layer, loss):
    """The head's weight alone is `gradnorm_head`; disjoint selections add up to all names."""
    net, X = with_inputs(cls, 4)
    (head_name,) = net.head_names
    linear = net.get_submodule(head_name)
    weight = f"{head_name}.weight"
    H = ref.features(net, X, head_name=head_name)
    expected = ref.gradnorm_head(H, linear.weight, linear.bias, loss, 2.0)
    got = ref.gradnorm(net, X, [weight], loss, 2.0)
    np.testing.assert_allclose(got, expected, rtol=1e-8)
    rest = [name for name, _ in net.named_parameters() if name != weight]
    everything = ref.gradnorm(net, X, None, loss, 2.0)
    np.testing.assert_allclose(got + ref.gradnorm(net, X, rest, loss, 2.0), everything, rtol=1e-12)
    assert has_power(everything)
    assert all(p.grad is None for p in net.parameters())


def test_gradnorm_linear_rule():
    """On vectors a linear layer has ||g||_1 ||a||_1 for its weight and ||g||_1 for its bias."""
    net, X = networks.seeded(networks.MLP), np.random.default_rng(0).normal(size=(20, 8))
    bias = ref.gradnorm(net, X, ["hidden.bias"])
    weight = ref.gradnorm(net, X, ["hidden.weight"])
    np.testing.assert_allclose(weight, bias * np.abs(X).sum(axis=1), rtol=1e-10)
    assert has_power(weight)


# NNGuide


@pytest.fixture
def bank():
    """Draw a training bank and queries with energies of both signs, and one zero row."""
    rng = np.random.default_rng(2)
    H_train, H = rng.normal(size=(30, 5)), rng.normal(size=(20, 5))
    H[0] = 0
    return H_train, rng.normal(1.0, 1.0, size=30), H, rng.normal(1.0, 1.0, size=20)


@pytest.mark.parametrize("k", [1, 4, 30, 99])
def test_nnguide_matrix_form(bank, k):
    """Loops and one matrix product agree; a zero row scores 0; k above the bank is the bank."""
    H_train, E_train, H, E = bank
    scaled = H_train / np.linalg.norm(H_train, axis=1, keepdims=True) * E_train[:, None]
    unit = H / np.maximum(np.linalg.norm(H, axis=1, keepdims=True), 1e-300)
    expected = np.sort(unit @ scaled.T, axis=1)[:, -min(k, 30) :].mean(axis=1) * E
    got = ref.nnguide(H_train, E_train, H, E, k)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14)
    assert got[0] == 0
    assert has_power(got)


def test_nnguide_unweighted_is_cosine(bank):
    """Without energies the guidance is 1 - the mean cosine distance of scikit-learn's search."""
    H_train, E_train, H, E = (array[1:] for array in bank)
    search = NearestNeighbors(n_neighbors=4, metric="cosine").fit(H_train)
    expected = (1 - search.kneighbors(H)[0].mean(axis=1)) * E
    got = ref.nnguide(H_train, E_train, H, E, 4, energy_weighted=False)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert has_power(got)
    assert not np.allclose(got, ref.nnguide(H_train, E_train, H, E, 4))


@pytest.mark.parametrize("energy_weighted", [True, False])
@pytest.mark.parametrize("k", [1, 4, 29, 99])
def test_nnguide_leave_one_out(bank, k, energy_weighted):
    """Refitting equals striking the row itself out of the matrix of inner products."""
    H, E, *_ = bank
    unit = H / np.linalg.norm(H, axis=1, keepdims=True)
    products = unit @ unit.T * (E if energy_weighted else 1.0)
    np.fill_diagonal(products, -np.inf)
    expected = np.sort(products, axis=1)[:, -min(k, 29) :].mean(axis=1) * E
    got = ref.nnguide_leave_one_out(H, E, k, energy_weighted)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert has_power(got)


# NAC


@pytest.mark.parametrize("n_bins", [4, 6, 50, 500])
def test_nac_edges_log(n_bins):
    """n_bins edges from 0, through exactly 0.5, symmetric and dense around it, to 1.01 and 1.2."""
    edges = ref.nac_edges("log", n_bins)
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
    edges = ref.nac_edges("geometric", n_bins)
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
            ref.nac_edges("log", n_bins)


def test_nac_bins():
    """Ends, middle and edges fall where METHODS says; digitize agrees elsewhere."""
    states = np.random.default_rng(0).uniform(size=(40, 3))
    for bins, right in [("log", False), ("geometric", True)]:
        edges = ref.nac_edges(bins, 10)
        expected = np.digitize(states, edges, right=right) - 1
        np.testing.assert_array_equal(ref.nac_bins(states, 10, bins), expected)
    assert ref.nac_bins([0.0, 0.5, 1.0], 10, "log").tolist() == [0, 4, 7]
    assert ref.nac_bins([0.0, 0.5, 1.0], 10, "geometric").tolist() == [0, 5, 9]
    assert ref.nac_bins([1.0], 11, "geometric").tolist() == [9]
    edges = ref.nac_edges("log", 10)[:8]
    assert ref.nac_bins(edges, 10, "log").tolist() == list(range(8))
    edges = ref.nac_edges("geometric", 10)[1:-1]
    assert ref.nac_bins(edges, 10, "geometric").tolist() == list(range(9))


def test_nac_products_features(head):
    """Autograd through the head equals h * (p - u) W."""
    H, W, b = head
    p = torch.from_numpy(H @ W.T + b).softmax(dim=1).numpy()
    got = ref.nac_products_features(H, W, b)
    np.testing.assert_allclose(got, H * ((p - 1 / 4) @ W), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("pooling", ["separate", "product"])
@pytest.mark.parametrize("cls, layer", IMAGE_NETWORKS)
def test_nac_products(cls, layer, pooling):
    """Features equal the head's; layers read together, in any order, equal layers read alone."""
    net, X = with_inputs(cls, 5)
    (head_name,) = net.head_names
    linear = net.get_submodule(head_name)
    inner, last = ref.nac_products(net, X, [layer, None], pooling, head_name)
    H = ref.features(net, X, head_name=head_name)
    expected = ref.nac_products_features(H, linear.weight, linear.bias)
    np.testing.assert_allclose(last, expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(inner, ref.nac_products(net, X, [layer], pooling)[0], rtol=1e-12)
    swapped = ref.nac_products(net, X, [None, layer], pooling, head_name)
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
    (product,) = ref.nac_products(net, X, ["conv2"], "product")
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
    np.testing.assert_array_equal(ref.nac_pool(z, gradient, "separate"), [18.0])
    np.testing.assert_array_equal(ref.nac_pool(z, gradient, "product"), [1.5])
    z, gradient = z[0], gradient[0]
    np.testing.assert_array_equal(ref.nac_pool(z, gradient, "separate"), [2.0, 8.0])
    np.testing.assert_array_equal(ref.nac_pool(z, gradient, "product"), [0.0, 0.0, 0.0, 6.0])


def products_of(head):
    """Compute products of two layers of unlike width, for 40 rows."""
    wide = np.random.default_rng(3).standard_t(3, size=(40, 9))
    return [ref.nac_products_features(*head), wide]


@pytest.mark.parametrize("bins, n_bins", [("log", 20), ("geometric", 20), ("geometric", 7)])
def test_nac_scores_by_histogram(head, bins, n_bins):
    """Explicit loops agree with numpy's histogram and a table look-up; layers are averaged."""
    products = products_of(head)
    train, test = [p[:25] for p in products], [p[25:] for p in products]
    edges = ref.nac_edges(bins, n_bins)
    expected = np.zeros(15)
    for i, (alpha, o_star) in enumerate([(2.0, 3.0), (0.7, 6.0)]):
        train_states, test_states = (1 / (1 + np.exp(-alpha * p[i])) for p in (train, test))
        for neuron in range(train[i].shape[1]):
            counts = np.histogram(train_states[:, neuron], edges)[0]
            if bins == "geometric":  # numpy's bins are [a, b)
                assert not np.isin(train_states, edges).any()
            found = np.searchsorted(edges, test_states[:, neuron], "right") - 1
            expected += np.minimum(counts[found] / o_star, 1) / train[i].shape[1] / 2
    got = ref.nac_scores(train, test, [2.0, 0.7], [3.0, 6.0], n_bins, bins)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    alone = [
        ref.nac_scores([train[i]], [test[i]], alpha, o_star, n_bins, bins)
        for i, (alpha, o_star) in enumerate([(2.0, 3.0), (0.7, 6.0)])
    ]
    np.testing.assert_allclose(got, np.mean(alone, axis=0), rtol=1e-12)


def test_nac_auto():
    """The automatic settings, and that they are the defaults."""
    product = np.random.default_rng(0).normal(size=(200, 40))
    np.testing.assert_allclose(ref.nac_auto_alpha(product), 1 / np.std(product))
    # One row in ten is large: the others, all near 0, would be covered better still when shrunk.
    rare = np.where(np.arange(200)[:, None] % 10 == 0, 5, 0.3) * product
    spreads = [ref.nac_auto_alpha(scale * rare) * np.std(scale * rare) for scale in (1, 16)]
    assert spreads[0] == spreads[1] in (2, 6)
    assert ref.nac_auto_alpha(np.zeros((3, 2))) == 1
    values = [ref.nac_auto_o_star(n, 50) for n in (10, 50, 120, 2500, 10**6)]
    assert values == [1, 1, 2.4, 50, 20_000]
    given = ref.nac_scores([product], [product[:50]], ref.nac_auto_alpha(product), 4.0)
    got = ref.nac_scores([product], [product[:50]])
    np.testing.assert_array_equal(got, given)
    assert len(np.unique(got)) > 10


@pytest.mark.parametrize("bins", ["log", "geometric"])
def test_nac_leave_one_out(head, bins):
    """Refitting equals the row's own counts less one."""
    products = products_of(head)
    expected = np.zeros(40)
    for product in products:
        alpha, o_star = ref.nac_auto_alpha(product, 10, bins), ref.nac_auto_o_star(40, 10)
        counts = ref.nac_counts(product, alpha, 10, bins)
        found = ref.nac_bins(ref.nac_states(product, alpha), 10, bins)
        own = counts[np.arange(counts.shape[0]), found]
        expected += np.minimum((own - 1) / o_star, 1).mean(axis=1) / 2
    got = ref.nac_leave_one_out(products, n_bins=10, bins=bins)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert (got <= ref.nac_scores(products, products, n_bins=10, bins=bins)).all()


@pytest.mark.parametrize("pooling, bins", [("separate", "log"), ("product", "geometric")])
def test_nac_of_a_network_has_power(pooling, bins):
    """Scores take many values where `o_star` is beyond most counts."""
    net, X = with_inputs(networks.SmallCNN, 120)
    products = ref.nac_products(net, X, ["conv1", None], pooling)
    train, test = [p[:90] for p in products], [p[90:] for p in products]
    scores = ref.nac_scores(train, test, "auto", 30, bins=bins)
    assert has_power(scores)
    assert 0 < scores.min() and scores.max() < 1


# Class-conditional Gaussians


def mixture_of(fit, covariance_type):
    """Build scikit-learn's mixture with the fitted parameters, precisions by explicit inverse."""
    mixture = GaussianMixture(len(fit["weights"]), covariance_type=covariance_type)
    mixture.weights_, mixture.means_ = fit["weights"], fit["means"]
    factors = [np.linalg.cholesky(np.linalg.inv(c)) for c in fit["covariances"]]
    mixture.precisions_cholesky_ = {
        "full": np.array(factors),
        "tied": factors[0],
        "diag": np.array([np.diag(factor) for factor in factors]),
        "spherical": np.array([factor[0, 0] for factor in factors]),
    }[covariance_type]
    return mixture


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("reg_covar", ["auto", 0.0, 0.3])
def test_gmm_equals_sklearn(clusters, covariance_type, reg_covar):
    """The log-likelihood equals that of scikit-learn's mixture with the same parameters."""
    Z, y = clusters
    fit = ref.gmm_fit(Z, y, covariance_type, reg_covar)
    X = np.random.default_rng(5).normal(size=(25, 4)) * 3
    got = ref.gmm_scores(fit, X)
    expected = mixture_of(fit, covariance_type).score_samples(X)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert has_power(got)
    assert has_power(ref.gmm_scores(fit, X, "mahalanobis"))


def test_gmm_parameters(clusters):
    """Moments equal numpy's and scikit-learn's, and the automatic ridge is what METHODS says."""
    Z, y = clusters
    means = np.array([Z[y == k].mean(axis=0) for k in range(3)])
    reg_covar = 0.01 * np.mean((Z - means[y]) ** 2)
    full = ref.gmm_fit(Z, y)
    np.testing.assert_allclose(full["reg_covar"], reg_covar, rtol=1e-12)
    np.testing.assert_allclose(full["weights"], [0.5, 0.3, 0.2])
    np.testing.assert_allclose(full["means"], means, rtol=1e-12)
    ridge = reg_covar * np.eye(4)
    for k in range(3):
        expected = EmpiricalCovariance().fit(Z[y == k]).covariance_ + ridge
        np.testing.assert_allclose(full["covariances"][k], expected, rtol=1e-10)
        spherical = np.mean(Z[y == k].var(axis=0)) * np.eye(4) + ridge
        np.testing.assert_allclose(
            ref.gmm_fit(Z, y, "spherical")["covariances"][k], spherical, rtol=1e-10
        )
    lda = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(Z, y)
    tied = ref.gmm_fit(Z, y, "tied", 0.0)["covariances"]
    np.testing.assert_allclose(tied, np.stack([lda.covariance_] * 3), rtol=1e-10)
    np.testing.assert_allclose(ref.gmm_auto_reg_covar(1000 * Z + 7, y), 1e6 * reg_covar, rtol=1e-10)
    single = ref.gmm_fit(Z, None, "full", 0.0)
    np.testing.assert_allclose(single["covariances"][0], np.cov(Z.T, bias=True), rtol=1e-10)


def test_gmm_mahalanobis(clusters):
    """The criterion is -min of scikit-learn's squared Mahalanobis distances / D."""
    Z, y = clusters
    distances = [EmpiricalCovariance().fit(Z[y == k]).mahalanobis(Z) for k in range(3)]
    got = ref.gmm_scores(ref.gmm_fit(Z, y, "full", 0.0), Z, "mahalanobis")
    np.testing.assert_allclose(got, -np.min(distances, axis=0) / 4, rtol=1e-9)


def test_gmm_leave_one_out_closed_form(clusters):
    """Without a ridge, refitting equals METHODS' closed form d -> n d / (n - 1 - d)."""
    Z, _ = clusters
    n, D = Z.shape
    fit = ref.gmm_fit(Z, None, "full", 0.0)
    d = -D * ref.gmm_scores(fit, Z, "mahalanobis")
    left_out = n * d / (n - 1 - d)
    got = ref.gmm_leave_one_out(Z, None, "full", 0.0, "mahalanobis")
    np.testing.assert_allclose(got, -left_out / D, rtol=1e-9)
    log_det = np.linalg.slogdet(fit["covariances"][0])[1]
    log_det = log_det + D * np.log(n / (n - 1)) + np.log(1 - d / (n - 1))
    expected = -0.5 * (D * np.log(2 * np.pi) + log_det + left_out)
    got = ref.gmm_leave_one_out(Z, None, "full", 0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_gmm_leave_one_out(clusters, covariance_type, criterion):
    """Left-out scores vary and are lower than in-sample ones on average."""
    Z, y = clusters
    got = ref.gmm_leave_one_out(Z, y, covariance_type, "auto", criterion)
    plain = ref.gmm_scores(ref.gmm_fit(Z, y, covariance_type), Z, criterion)
    assert has_power(got)
    assert got.mean() < plain.mean()
