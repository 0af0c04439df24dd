"""Properties of the detectors, over data that hypothesis draws."""

import warnings

import numpy as np
import pytest
import torch
from detectors import SETTINGS, name_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from torch import nn

from skood import ASHDetector, GMMDetector, GradNormDetector, NACDetector, NNGuideDetector
from skood.detectors.shaping.ash import largest_mask
from skood.functional import all_finite, energy
from skood.testing.scores import check_rows_are_scored_each_on_its_own

ALL = pytest.mark.parametrize("detector", SETTINGS, ids=name_of)
pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:.*saturated", "ignore:k=.*is more than"
)
settings.register_profile(
    "skood",
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("skood")

SEEDS = st.integers(0, 2**32 - 1)


def blobs(seed, n=30, d=4, n_classes=3, scale=1.0):
    """Return features around class means, positive mostly, and their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return scale * (rng.normal(size=(n, d)) + 3 * rng.uniform(size=(n_classes, d))[y] + 3), y


def linear(seed, d=4, n_classes=3, bias=True):
    """Return a float64 head."""
    rng = np.random.default_rng(seed)
    head = nn.Linear(d, n_classes, bias=bias).double()
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(rng.normal(size=(n_classes, d))))
        if bias:
            head.bias.copy_(torch.as_tensor(rng.normal(size=n_classes)))
    return head


@ALL
@given(seed=SEEDS)
def test_rows_are_scored_each_on_its_own(detector, seed):
    check_rows_are_scored_each_on_its_own(detector, seed)


@ALL
@given(seed=SEEDS)
def test_the_order_of_the_training_rows_does_not_matter(detector, seed):
    if isinstance(detector, NNGuideDetector) and detector.bank_size is not None:
        return
    X, y = blobs(seed)
    order = np.random.default_rng(seed).permutation(len(X))
    head = None if isinstance(detector, GMMDetector) else linear(seed)
    first = clone(detector).set_params(model=head).fit(X, y)
    second = clone(detector).set_params(model=head).fit(X[order], y[order])
    np.testing.assert_allclose(first.score_samples(X), second.score_samples(X), rtol=1e-8)
    assert first.offset_ == pytest.approx(second.offset_, rel=1e-7)


EXTREMES = st.sampled_from([0.0, 1.0, -1.0, 1e-30, -1e-30, 1e30, -1e30, 1e15, 3.5, -2e-5])


@ALL
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_scores_are_finite_for_any_finite_input(detector, dtype, data):
    X = data.draw(arrays(dtype, (12, 3), elements=EXTREMES))
    new = data.draw(arrays(dtype, (8, 3), elements=EXTREMES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for y in (None, np.arange(12) % 3):
            detector = clone(detector).fit(X, y)
            assert np.isfinite(detector.offset_)
            for rows in (X, new):
                assert np.isfinite(detector.score_samples(rows)).all()
                assert np.isfinite(detector.decision_function(rows)).all()


@pytest.mark.filterwarnings("ignore")
def test_a_head_is_found_for_float32_of_mixed_scales():
    X = np.array([[1e15, 1e15, -1], [1e15, 1, -1e30], [1e15, 1, -1e30]], np.float32)
    for detector in (ASHDetector(), GradNormDetector(), NNGuideDetector(), NACDetector()):
        assert np.isfinite(detector.fit(X, [0, 1, 0]).score_samples(X)).all()


# ASH


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


# GMM


@given(seed=SEEDS, offset=st.floats(-100, 100))
@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_gmm_moves_with_affine_maps(seed, offset, covariance_type):
    X, y = blobs(seed, n=60)
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(4, 4))
    assume(np.linalg.cond(A) < 1e3)
    detector = GMMDetector(covariance_type=covariance_type, reg_covar=0)
    before = detector.fit(X, y).score_samples(X)
    after = detector.fit(X @ A + offset, y).score_samples(X @ A + offset)
    np.testing.assert_allclose(after, before - np.linalg.slogdet(A)[1], rtol=1e-6, atol=1e-6)


@given(seed=SEEDS, reg_covar=st.sampled_from(["auto", 0.0, 0.1, 10.0]))
@pytest.mark.parametrize("covariance_type", ["full", "tied", "spherical"])
@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
def test_gmm_does_not_change_with_rotations(seed, reg_covar, covariance_type, criterion):
    X, y = blobs(seed, n=60)
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    detector = GMMDetector(
        covariance_type=covariance_type, reg_covar=reg_covar, criterion=criterion
    )
    before = detector.fit(X, y)
    scores, offset = before.score_samples(X), before.offset_
    after = detector.fit(X @ Q, y)
    np.testing.assert_allclose(after.score_samples(X @ Q), scores, rtol=1e-8, atol=1e-8)
    assert after.offset_ == pytest.approx(offset, rel=1e-7)


@given(seed=SEEDS, factor=st.sampled_from([1e-25, 1e-5, 1e5, 1e25]))
def test_gmm_with_the_automatic_ridge_does_not_depend_on_scale(seed, factor):
    X, y = blobs(seed)
    first, second = GMMDetector().fit(X, y), GMMDetector().fit(factor * X, y)
    shift = 4 * np.log(factor)
    np.testing.assert_allclose(
        second.score_samples(factor * X) + shift, first.score_samples(X), rtol=1e-7, atol=1e-7
    )


# NNGuide


@given(seed=SEEDS, k=st.integers(1, 30))
def test_nnguide_does_not_change_with_rotations_of_features_and_head(seed, k):
    X, y = blobs(seed)
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    head, rotated = linear(seed), linear(seed)
    with torch.no_grad():
        rotated.weight.copy_(head.weight @ torch.as_tensor(Q))
    before = NNGuideDetector(head, k=k).fit(X, y)
    after = NNGuideDetector(rotated, k=k).fit(X @ Q, y)
    np.testing.assert_allclose(after.score_samples(X @ Q), before.score_samples(X), rtol=1e-9)


@given(seed=SEEDS)
def test_nnguide_falls_as_k_grows(seed):
    """The mean of more neighbours is no larger; the energies here are positive."""
    X, _ = blobs(seed)
    head = linear(seed)
    with torch.no_grad():
        head.bias.fill_(100)
    guided = [NNGuideDetector(head, k=k).fit(X).score_samples(X) for k in (1, 3, 10, 30)]
    assert (np.diff(guided, axis=0) <= 1e-9).all()


# GradNorm


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


# NAC


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


@given(
    values=st.lists(
        st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=9
    ),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_all_finite_equals_isfinite(values, dtype):
    """Sums that overflow or cancel to NaN included."""
    x = torch.tensor(values, dtype=torch.float64).to(dtype)
    assert all_finite(x) == bool(torch.isfinite(x).all())
