"""Properties of the detectors, over data that hypothesis draws."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone

from skood.functional import all_finite
from skood.testing.scores import check_rows_are_scored_each_on_its_own
from tests.parity import SEEDS, blobs, linear
from tests.registry import DEFAULTS, KINDS, SETTINGS, each, needs_logits

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:.*saturated", "ignore:k=.*is more than"
)


@each(DEFAULTS, often=KINDS)
@given(seed=SEEDS)
def test_rows_are_scored_each_on_its_own(detector, seed):
    check_rows_are_scored_each_on_its_own(detector, seed)


@each(DEFAULTS)
@given(seed=SEEDS)
def test_the_order_of_the_training_rows_does_not_matter(detector, seed):
    X, y = blobs(seed)
    order = np.random.default_rng(seed).permutation(len(X))
    head = linear(seed) if needs_logits(detector) else None
    first = clone(detector).set_params(model=head).fit(X, y)
    second = clone(detector).set_params(model=head).fit(X[order], y[order])
    np.testing.assert_allclose(first.score_samples(X), second.score_samples(X), rtol=1e-8)
    assert first.offset_ == pytest.approx(second.offset_, rel=1e-7)


EXTREMES = st.sampled_from([0.0, 1.0, -1.0, 1e-30, -1e-30, 1e30, -1e30, 1e15, 3.5, -2e-5])


def fitted_where_rows_tell_enough(detector, X, y):
    """Return a fitted clone; None where the error is that the rows leave ViM no residual."""
    try:
        return clone(detector).fit(X, y)
    except ValueError as error:
        assert "there is no residual" in str(error)


@each(SETTINGS, often=KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_scores_are_finite_for_any_finite_input(detector, dtype, data):
    X = data.draw(arrays(dtype, (12, 3), elements=EXTREMES))
    new = data.draw(arrays(dtype, (8, 3), elements=EXTREMES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for y in (None, np.arange(12) % 3):
            detector = fitted_where_rows_tell_enough(detector, X, y)
            if detector is None:
                return
            assert np.isfinite(detector.offset_)
            for rows in (X, new):
                assert np.isfinite(detector.score_samples(rows)).all()
                assert np.isfinite(detector.decision_function(rows)).all()


@pytest.mark.filterwarnings("ignore")
def test_a_head_is_found_for_float32_of_mixed_scales():
    X = np.array([[1e15, 1e15, -1], [1e15, 1, -1e30], [1e15, 1, -1e30]], np.float32)
    for detector in filter(needs_logits, DEFAULTS):
        detector = fitted_where_rows_tell_enough(detector, X, [0, 1, 0])
        assert detector is None or np.isfinite(detector.score_samples(X)).all()


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
