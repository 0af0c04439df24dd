"""GradNorm: instances, plain reference, parity."""

import decimal
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skood import GradNormDetector
from tests import networks
from tests import references as ref
from tests.detectors import Method
from tests.networks import MLP, ResNet, Segmenter, SmallCNN, ViT, WeightNormed, seeded
from tests.parity import (
    DTYPES,
    IMAGE_NETWORKS,
    SEEDS,
    TOLERANCE,
    assert_parity,
    blobs,
    cast,
    has_power,
    linear,
    logistic_head,
    with_inputs,
)

METHOD = Method(
    settings={
        "default": GradNormDetector(),
        "bce": GradNormDetector(loss="bce"),
        "all": GradNormDetector(params="all", temperature=2.0),
        "l2": GradNormDetector(params="all", norm="l2", loss="ones", batch_size=7),
    },
    in_networks={
        "default": GradNormDetector(),
        "all": GradNormDetector(params="all"),
        "l2": GradNormDetector(params="all", norm="l2", loss="ones"),
    },
)


# The reference


def gradnorm_head(H, W, b, loss="kl", temperature=1.0):
    """Compute ||dL/dW||_1 of each row by autograd through the head h W^T + b.

    With "bce" only for logit gaps below 25 times the temperature; beyond, multiply the L1 norm of
    `gradnorm_bce_exact` by ||h||_1.
    """
    W, b = ref.as_tensor(W).requires_grad_(), ref.as_tensor(b)
    scores = []
    for h in ref.as_tensor(H):
        (gradient,) = torch.autograd.grad(ref.uniform_loss(W @ h + b, loss, temperature), W)
        scores.append(gradient.abs().sum().item())
    return np.array(scores)


def gradnorm(net, X, names=None, loss="kl", temperature=1.0, order=1):
    """Compute sum_names ||dL/dparameter||_1 by autograd, one sample at a time; None: all names.

    With the order 2, the sum of squares of the entries. A parameter that the logits do not depend
    on counts as 0, and a shared one counts once, with the sum of its gradients. With "bce" only for
    logit gaps below 25 times the temperature.
    """
    net = ref.as_double(net)
    parameters = dict(net.named_parameters())
    chosen = [parameters[name] for name in (parameters if names is None else names)]
    scores = []
    for x in ref.as_tensor(X):
        # Beside a copy: gradients of one row alone through BatchNorm2d may be wrong (torch 2.13).
        value = ref.uniform_loss(net(torch.stack([x, x]))[0], loss, temperature)
        gradients = torch.autograd.grad(value, chosen, allow_unused=True)
        scores.append(sum((g.abs() ** order).sum().item() for g in gradients if g is not None))
    return np.array(scores)


def gradnorm_bce_exact(logits, temperature=1.0):
    """Compute the gradient (n, C) of the "bce" loss with respect to the logits in 60 digits.

    The chain rule sum_c dL/dp_c dp_c/dl_k with dL/dp_c = -u/p_c + (1 - u)/(1 - p_c), where 1 - p_c
    is the sum of the other probabilities. One class alone has gradient 0.
    """
    rows = []
    with decimal.localcontext(
        decimal.Context(prec=60, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
    ):
        one, T = decimal.Decimal(1), decimal.Decimal(float(temperature))
        for row in ref.as_array(logits):
            scaled = [decimal.Decimal(value) / T for value in row.tolist()]
            classes = range(len(scaled))
            powers = [(value - max(scaled)).exp() for value in scaled]
            total = sum(powers)
            p = [power / total for power in powers]
            others = [sum(p[j] for j in classes if j != c) for c in classes]
            u = one / len(scaled)
            slope = [
                -u / p[c] + (one - u) / others[c] if len(scaled) > 1 else 0 * one for c in classes
            ]
            rows.append(
                [
                    sum(slope[c] * p[c] * (others[c] if c == k else -p[k]) for c in classes) / T
                    for k in classes
                ]
            )
    return np.array(rows, dtype=np.float64)


# The reference agrees with what was found without it


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradnorm_head_closed_form(head, temperature):
    """The autograd norm equals ||softmax(l/T) - u||_1 ||h||_1 / T."""
    H, W, b = head
    p = torch.from_numpy((H @ W.T + b) / temperature).softmax(dim=1).numpy()
    expected = np.abs(p - 1 / 4).sum(axis=1) * np.abs(H).sum(axis=1) / temperature
    got = gradnorm_head(H, W, b, "kl", temperature)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert has_power(got)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradnorm_bce_exact_equals_autograd(head, temperature):
    """For small gaps, 60 digits and autograd agree, and so does the formula of METHODS."""
    H, W, b = head
    logits = H @ W.T + b
    exact = gradnorm_bce_exact(logits, temperature)
    leaf = torch.from_numpy(logits).requires_grad_()
    sum(ref.uniform_loss(row, "bce", temperature) for row in leaf).backward()
    np.testing.assert_allclose(exact, leaf.grad.numpy(), rtol=1e-8, atol=1e-12)
    p = torch.from_numpy(logits / temperature).softmax(dim=1).numpy()
    q = (p - 1 / 4) / (1 - p)
    formula = (p - 1 / 4) - p * (q.sum(axis=1, keepdims=True) - q)
    np.testing.assert_allclose(exact, formula / temperature, rtol=1e-8, atol=1e-12)
    norms = np.abs(exact).sum(axis=1) * np.abs(H).sum(axis=1)
    got = gradnorm_head(H, W, b, "bce", temperature)
    np.testing.assert_allclose(got, norms, rtol=1e-8)
    assert has_power(got)


@pytest.mark.parametrize("n_classes", [2, 4, 10])
@pytest.mark.parametrize("gap", [40.0, 800.0, 1e5])
def test_gradnorm_bce_exact_limit(n_classes, gap):
    """The norm of the gradient tends to 4 (1 - u) with the gap, where autograd is lost."""
    logits = np.random.default_rng(0).normal(size=(3, n_classes))
    logits[np.arange(3), [0, 1, -1]] += gap
    norms = np.abs(gradnorm_bce_exact(logits)).sum(axis=1)
    np.testing.assert_allclose(norms, 4 * (1 - 1 / n_classes), rtol=1e-12)


def test_gradnorm_bce_exact_at_the_edges():
    """Uniform logits and one class alone have no gradient; two tied leaders share theirs."""
    np.testing.assert_allclose(gradnorm_bce_exact([[2.0, 2.0, 2.0]]), 0, atol=1e-50)
    np.testing.assert_array_equal(gradnorm_bce_exact([[3.0]]), [[0.0]])
    tied = gradnorm_bce_exact([[50.0, 50.0, 0.0]])[0]
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
    expected = gradnorm_head(H, linear.weight, linear.bias, loss, 2.0)
    got = gradnorm(net, X, [weight], loss, 2.0)
    np.testing.assert_allclose(got, expected, rtol=1e-8)
    rest = [name for name, _ in net.named_parameters() if name != weight]
    everything = gradnorm(net, X, None, loss, 2.0)
    np.testing.assert_allclose(got + gradnorm(net, X, rest, loss, 2.0), everything, rtol=1e-12)
    assert has_power(everything)
    assert all(p.grad is None for p in net.parameters())


def test_gradnorm_linear_rule():
    """On vectors a linear layer has ||g||_1 ||a||_1 for its weight and ||g||_1 for its bias."""
    net, X = networks.seeded(networks.MLP), np.random.default_rng(0).normal(size=(20, 8))
    bias = gradnorm(net, X, ["hidden.bias"])
    weight = gradnorm(net, X, ["hidden.weight"])
    np.testing.assert_allclose(weight, bias * np.abs(X).sum(axis=1), rtol=1e-10)
    assert has_power(weight)


# The detector equals it


def test_gradnorm_of_maps(X):
    """Each pixel has a loss of its own."""
    net, X_train, X_new = cast(seeded(Segmenter, enlarged=False), X, torch.float64)
    detector = GradNormDetector(net).fit(X_train, np.zeros((20, 4, 4)))
    features = ref.features(net, X_new, "backbone").transpose(0, 2, 3, 1)
    W, b = ref.as_array(net.classifier.weight)[..., 0, 0], net.classifier.bias
    expected = gradnorm_head(features.reshape(-1, 6), W, b).reshape(12, 4, 4)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-8)
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.predict(X_new), detector.predict(X_new))


@DTYPES
@pytest.mark.parametrize("loss", ["kl", "bce"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("params", ["head", "all", ["conv1.weight", "fc.bias"], "callable"])
def test_gradnorm(X, params, loss, temperature, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    names = {"head": ["fc.weight"], "all": None, "callable": ["conv2.weight", "conv2.bias"]}
    expected = gradnorm(
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


@DTYPES
@pytest.mark.parametrize("params", ["head", "all", ["conv1.weight", "conv2.bias", "fc.bias"]])
@pytest.mark.parametrize("loss", ["kl", "ones"])
def test_squares(X, params, loss, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    names = {"head": ["fc.weight"], "all": None}.get(params) if isinstance(params, str) else params
    detector = GradNormDetector(net, params=params, norm="l2", loss=loss, temperature=2.5)
    scores = detector.fit(X_train).score_samples(X_new)
    assert_parity(scores, gradnorm(net, X_new, names, loss, 2.5, order=2), dtype)


def test_squares_of_a_head(head):
    """GradUncertainty of the head is C² ‖p - u‖² (‖h‖² + 1), also where a softmax is 0 or 1."""
    H, W, b = head
    net = nn.Linear(6, 4).double()
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(W)), net.bias.copy_(torch.from_numpy(b))
    H = np.vstack([H, 300 * H])
    p = torch.from_numpy(H @ W.T + b).softmax(1).numpy()
    expected = 16 * ((p - 1 / 4) ** 2).sum(1) * ((H**2).sum(1) + 1)
    detector = GradNormDetector(net, params="all", norm="l2", loss="ones").fit(H)
    np.testing.assert_allclose(detector.score_samples(H), expected, rtol=1e-12)
    np.testing.assert_allclose(detector.score_samples([[1e160] * 6]), np.finfo("d").max)


@pytest.mark.parametrize("net", [seeded(ResNet, in_channels=1), seeded(ViT)], ids=["ResNet", "ViT"])
def test_gradnorm_all_parameters_of_deep_networks(X, net):
    net, X_train, X_new = cast(net, X, torch.float64)
    scores = GradNormDetector(net, params="all").fit(X_train).score_samples(X_new)
    assert_parity(scores, gradnorm(net, X_new), torch.float64)


@pytest.mark.parametrize("loss", ["kl", "bce"])
def test_gradnorm_head_and_bias_without_a_network(data, loss):
    Z, y, X_new = data
    W, b = logistic_head(Z, y)
    head = nn.Linear(*W.T.shape).double()
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(W))
        head.bias.copy_(torch.as_tensor(b))
    scores = GradNormDetector(loss=loss).fit(Z, y).score_samples(X_new)
    assert_parity(scores, gradnorm_head(X_new, W, b, loss), torch.float64)
    scores = GradNormDetector(params="all", loss=loss).fit(Z, y).score_samples(X_new)
    assert_parity(scores, gradnorm(head, X_new, None, loss), torch.float64)


@DTYPES
@pytest.mark.parametrize("gap", [18, 40, 300, 1e4])
def test_gradnorm_bce_of_confident_samples(gap, dtype):
    logits = torch.tensor([[gap, 0.3, -0.2, 1.0], [-3.0, gap, 0.1, 2.0], [0.5, gap, gap, -gap]])
    head = nn.Linear(4, 4)
    with torch.no_grad():
        head.weight.copy_(torch.eye(4))
        head.bias.zero_()
    net, features = cast(head, (logits,), dtype)
    expected = np.abs(gradnorm_bce_exact(features)).sum(1) * np.abs(features).sum(1)
    scores = GradNormDetector(net, loss="bce").fit(features).score_samples(features)
    np.testing.assert_allclose(scores, expected, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("cls", [MLP, WeightNormed])
def test_gradnorm_on_a_network_of_vectors(vectors, cls):
    net, Z, y, X_new = vectors(cls)
    expected = gradnorm_head(ref.features(net, X_new), *ref.head_of(net))
    assert_parity(GradNormDetector(net).fit(Z, y).score_samples(X_new), expected, torch.float64)
    scores = GradNormDetector(net, params="all").fit(Z, y).score_samples(X_new)
    assert_parity(scores, gradnorm(net, X_new), torch.float64)


# The threshold's scores


# Properties


@given(seed=SEEDS, temperature=st.floats(0.1, 100))
@pytest.mark.parametrize("loss", ["kl", "bce"])
def test_gradnorm_is_zero_for_a_uniform_softmax(seed, temperature, loss):
    X, _ = blobs(seed)
    head = linear(seed)
    with torch.no_grad():
        head.weight.copy_(head.weight[:1].expand_as(head.weight))
        head.bias.fill_(0.5)
    scores = GradNormDetector(head, loss=loss, temperature=temperature).fit(X).score_samples(X)
    np.testing.assert_allclose(scores, 0, atol=1e-12 * np.abs(X).sum(1).max() / temperature)


@given(seed=SEEDS, constant=st.floats(-1e3, 1e3), loss=st.sampled_from(["kl", "bce"]))
def test_gradnorm_does_not_change_with_a_constant_in_all_logits(seed, constant, loss):
    X, _ = blobs(seed)
    head, shifted = linear(seed), linear(seed)
    with torch.no_grad():
        shifted.bias.copy_(head.bias + constant)
    first = GradNormDetector(head, loss=loss).fit(X).score_samples(X)
    second = GradNormDetector(shifted, loss=loss).fit(X).score_samples(X)
    np.testing.assert_allclose(first, second, rtol=1e-8)


@given(
    seed=SEEDS,
    temperature=st.floats(0.2, 20),
    loss=st.sampled_from(["kl", "bce"]),
    params=st.sampled_from([["weight"], ["bias"], ["weight", "bias"]]),
)
def test_gradnorm_closed_form_is_the_gradient(seed, temperature, loss, params):
    X, _ = blobs(seed)
    X /= 3
    head = linear(seed)
    network = nn.Sequential(nn.Identity(), nn.Sequential(head, nn.Identity()))
    closed = GradNormDetector(head, params=params, loss=loss, temperature=temperature)
    # Behind an identity the network no longer ends in a linear layer: autograd runs.
    names = [f"1.0.{name}" for name in params]
    direct = GradNormDetector(network, params=names, loss=loss, temperature=temperature)
    expected = direct.fit(X).score_samples(X)
    np.testing.assert_allclose(closed.fit(X).score_samples(X), expected, rtol=1e-8)
