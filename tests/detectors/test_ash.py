"""ASH: instances, plain reference, parity."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skood import ASHDetector
from skood.detectors.shaping.largest import largest_mask
from skood.functional import energy
from tests import networks
from tests import references as ref
from tests.detectors import Method
from tests.networks import MLP, ResNet, Segmenter, SmallCNN, WeightNormed, seeded
from tests.parity import (
    DTYPES,
    SEEDS,
    assert_parity,
    blobs,
    cast,
    has_power,
    linear,
    logistic_head,
    with_inputs,
)

pytestmark = pytest.mark.filterwarnings("ignore:The features are signed")

METHOD = Method(
    settings={
        "default": ASHDetector(),
        "p": ASHDetector(variant="p", percentile=0.3),
        "b": ASHDetector(variant="b", percentile=0.9),
        "msp": ASHDetector(variant="p", percentile=0, logit_score="msp"),
        "max_logit": ASHDetector(logit_score="max_logit", batch_size=7),
    },
    in_networks={"default": ASHDetector(), "conv1": ASHDetector(layer="conv1")},
    gives_maps=True,
)


# The reference


def ash_shape(x, variant="s", percentile=0.65, max_ratio=np.inf):
    """Shape one sample's activation: keep its k = max(1, n - round(n * percentile)) largest.

    P: kept as they are. B: each becomes s1/k. S: times exp(s1/s2); s1 and s2 are the sums before
    and after pruning. Ties go to the lowest flat index and 0/0 counts as 0. METHODS clips s1/s2 by
    bounds that depend on the dtype and on what follows; here `max_ratio` is that bound, and by
    default there is none, so s2 = 0 alone gives an infinite ratio.
    """
    x = ref.as_array(x)
    flat = x.ravel()
    n = len(flat)
    k = max(1, n - int(np.round(n * percentile)))
    kept = np.argsort(-flat, kind="stable")[:k]
    shaped = np.zeros(n)
    shaped[kept] = flat[kept]
    s1, s2 = flat.sum(), shaped.sum()
    if variant == "b":
        shaped[kept] = s1 / k
    elif variant == "s":
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            ratio = 0.0 if s1 == 0 and s2 == 0 else s1 / s2
            shaped[kept] *= np.exp(np.clip(ratio, -max_ratio, max_ratio))
    elif variant != "p":
        raise ValueError(variant)
    return shaped.reshape(x.shape)


def ash_scores(
    activations, rest, variant="s", percentile=0.65, logit_score="energy", max_ratio=np.inf
):
    """Score the logits that `rest` gives for the shaped activations, one sample at a time.

    `rest` is a module (copied to float64) or a callable that takes float64 tensors. Logits that
    are maps (n, C, H, W) give scores (n, H, W).
    """
    if isinstance(rest, torch.nn.Module):
        rest = ref.as_double(rest)
    scores = []
    for x in ref.as_array(activations):
        shaped = ref.as_tensor(ash_shape(x, variant, percentile, max_ratio))
        with torch.no_grad():
            scores.append(ref.score_of_logits(rest(shaped[None]), logit_score)[0])
    return np.stack(scores)


def ash_network(
    net,
    X,
    layer=None,
    variant="s",
    percentile=0.65,
    logit_score="energy",
    max_ratio=np.inf,
    head_name="fc",
):
    """Run `net` on one sample at a time with the output of `layer` shaped, and score its logits."""
    net = ref.as_double(net)

    def shape(output):
        return ref.as_tensor(ash_shape(output[0], variant, percentile, max_ratio))[None]

    handle = ref.hook(net, layer, shape, head_name)
    with torch.no_grad():
        scores = [ref.score_of_logits(net(x[None]), logit_score)[0] for x in ref.as_tensor(X)]
    handle.remove()
    return np.stack(scores)


# The reference agrees with what was found without it


@pytest.mark.parametrize("variant", ["s", "p", "b"])
@pytest.mark.parametrize("percentile", [0.0, 0.3, 0.65, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(20,), (5, 3), (4, 3, 3)])
def test_ash_keeps_exactly_k(variant, percentile, shape):
    """Exactly k positive values survive, and they are the largest."""
    x = np.random.default_rng(0).uniform(0.1, 1.0, size=shape)
    shaped = ash_shape(x, variant, percentile)
    k = max(1, x.size - round(x.size * percentile))
    assert shaped.shape == shape
    assert np.count_nonzero(shaped) == k
    assert x[shaped != 0].min() >= np.sort(x, axis=None)[-k]


def test_ash_by_hand():
    """The three variants on one small row; ties go to the lowest index; nothing is written to."""
    x = np.array([1.0, 4.0, 0.0, 3.0])
    np.testing.assert_allclose(ash_shape(x, "p", 0.5), [0, 4, 0, 3])
    np.testing.assert_allclose(ash_shape(x, "b", 0.5), [0, 4, 0, 4])
    np.testing.assert_allclose(
        ash_shape(x, "s", 0.5), np.exp(8 / 7) * np.array([0, 4, 0, 3]), rtol=1e-14
    )
    np.testing.assert_array_equal(x, [1, 4, 0, 3])
    np.testing.assert_array_equal(ash_shape([2.0, 0, 0, 0], "b", 0.5), [1, 1, 0, 0])
    np.testing.assert_array_equal(ash_shape([1.0, 2.0, 2.0, 2.0], "p", 0.5), [0, 2, 2, 0])
    np.testing.assert_array_equal(ash_shape(np.zeros(4), "s", 0.5), np.zeros(4))
    np.testing.assert_array_equal(ash_shape([1.0, -1.0, -5.0], "s", 0.3), np.zeros(3))
    signed = [1.0, -1.0 - 1e-9, -5.0]
    assert np.isinf(ash_shape(signed, "s", 0.3)).any()
    assert np.isfinite(ash_shape(signed, "s", 0.3, max_ratio=44)).all()


@pytest.mark.parametrize("variant", ["s", "p", "b"])
def test_ash_scores_of_networks(variant):
    """Cut by hand or by hook, at the features or at maps, in vectors or in maps of logits."""
    net, X = with_inputs(networks.ResNet, 6)
    H = ref.features(net, X)
    at_features = ash_scores(H, net.fc, variant, 0.5)
    np.testing.assert_allclose(at_features, ash_network(net, X, None, variant, 0.5), rtol=1e-12)
    maps = ref.features(net, X, "layer3")
    rest = torch.nn.Sequential(net.layer4, net.avgpool, torch.nn.Flatten(), net.fc)
    at_maps = ash_scores(maps, rest, variant, 0.5)
    np.testing.assert_allclose(at_maps, ash_network(net, X, "layer3", variant, 0.5), rtol=1e-12)
    assert has_power(at_features) and has_power(at_maps)
    assert not np.allclose(at_features, at_maps)
    scores = ash_network(*with_inputs(networks.Segmenter, 2), "backbone", variant, 0.5)
    assert scores.shape == (2, 8, 8)


def test_ash_percentile_zero_is_the_plain_energy(head):
    """P and percentile 0 change nothing; S multiplies the features by e."""
    H, W, b = head
    fc = torch.nn.Linear(6, 4).double()
    with torch.no_grad():
        fc.weight.copy_(torch.from_numpy(W))
        fc.bias.copy_(torch.from_numpy(b))
    H = H[H.any(axis=1)]
    np.testing.assert_allclose(ash_scores(H, fc, "p", 0.0), ref.energy(H @ W.T + b))
    np.testing.assert_allclose(ash_scores(H, fc, "s", 0.0), ref.energy(np.e * H @ W.T + b))
    assert has_power(ash_scores(H, fc, "s", 0.5))


# The detector equals it


VARIANTS = [(v, p) for v in "spb" for p in (0.0, 0.3, 0.65, 0.9, 0.99)]


@DTYPES
@pytest.mark.parametrize(("variant", "percentile"), VARIANTS)
@pytest.mark.parametrize("layer", [None, "conv1", "conv2"])
def test_ash_in_a_network(X, variant, percentile, layer, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    detector = ASHDetector(net, layer, variant=variant, percentile=percentile).fit(X_train)
    expected = ash_network(net, X_new, layer, variant, percentile, max_ratio=44)
    assert_parity(detector.score_samples(X_new), expected, dtype)


@pytest.mark.parametrize("logit_score", ["energy", "msp", "max_logit", lambda x: x[:, 0] ** 2])
def test_ash_logit_scores(X, logit_score):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    detector = ASHDetector(net, logit_score=logit_score).fit(X_train)
    expected = ash_network(net, X_new, logit_score=logit_score)
    assert_parity(detector.score_samples(X_new), expected, torch.float64)


def test_ash_on_channels_last_and_blocks(X):
    net, X_train, X_new = cast(seeded(ResNet, in_channels=1), X, torch.float64)
    detector = ASHDetector(net, "layer3").fit(X_train)
    strided = torch.as_tensor(X_new).to(memory_format=torch.channels_last)
    expected = ash_network(net, X_new, "layer3")
    assert_parity(detector.score_samples(strided), expected, torch.float64)


@pytest.mark.parametrize("layer", ["backbone", None])
def test_ash_of_maps(X, layer):
    net, X_train, X_new = cast(seeded(Segmenter), X, torch.float64)
    detector = ASHDetector(net, layer).fit(X_train)
    expected = ash_network(net, X_new, layer, head_name="classifier")
    assert detector.score_samples(X_new).shape == detector.predict(X_new).shape == (12, 8, 8)
    np.testing.assert_allclose(detector.score_samples(X_new), expected, rtol=1e-8)


@pytest.mark.parametrize("variant", "spb")
def test_ash_without_a_network(data, variant):
    Z, y, X_new = data
    Z, X_new = np.abs(Z), np.abs(X_new)
    W, b = logistic_head(Z, y)
    rest = lambda h: h @ torch.as_tensor(W).T + torch.as_tensor(b)  # noqa: E731
    scores = ASHDetector(variant=variant, percentile=0.4).fit(Z, y).score_samples(X_new)
    assert_parity(scores, ash_scores(X_new, rest, variant, 0.4), torch.float64)


@pytest.mark.parametrize("cls", [MLP, WeightNormed])
def test_ash_on_a_network_of_vectors(vectors, cls):
    net, Z, y, X_new = vectors(cls)
    expected = ash_network(net, X_new)
    assert_parity(ASHDetector(net).fit(Z, y).score_samples(X_new), expected, torch.float64)


# The threshold's scores


# Properties


@given(
    x=arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.integers(1, 20)),
        elements=st.sampled_from([-1.0, 0.0, 0.0, 0.5, 2.0, 3.0]),
    ),
    percentile=st.floats(0, 0.999),
)
def test_ash_keeps_exactly_the_k_largest(x, percentile):
    x = torch.as_tensor(x)
    mask = largest_mask(x, percentile)
    values = torch.where(largest_mask(x, percentile, zeros=False), x, 0)
    assert torch.equal(values, torch.where(mask, x, 0))
    n = x.shape[1]
    k = max(1, n - int(np.round(n * percentile)))
    assert (mask.sum(1) == k).all()
    for row, mask_row in zip(x.numpy(), mask.numpy(), strict=True):
        assert set(np.flatnonzero(mask_row)) == set(np.argsort(-row, kind="stable")[:k])


@given(seed=SEEDS, factor=st.floats(1e-3, 1e3))
def test_ash_without_removal_is_the_energy(seed, factor):
    X, _ = blobs(seed, scale=factor)
    head = linear(seed)
    scores = ASHDetector(head, variant="p", percentile=0).fit(X).score_samples(X)
    with torch.no_grad():
        np.testing.assert_allclose(scores, energy(head(torch.as_tensor(X))), rtol=1e-10)


@given(seed=SEEDS, percentile=st.floats(0, 0.9))
def test_ash_logits_grow_with_the_features(seed, percentile):
    """Without a bias every variant is positively homogeneous, and so is the largest logit."""
    X, _ = blobs(seed)
    for variant in "spb":
        detector = ASHDetector(
            linear(seed, bias=False),
            variant=variant,
            percentile=percentile,
            logit_score="max_logit",
        ).fit(X)
        np.testing.assert_allclose(
            detector.score_samples(7 * X), 7 * detector.score_samples(X), rtol=1e-9
        )
