"""DICE: equal to a plain reference, with rows left out by tenths, and which weights stay."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import nn

from skood import DICEDetector, EnergyDetector
from skood.learning.keys import row_keys
from skood.learning.quantiles import quantile_of
from tests import references as ref
from tests.detectors import Method
from tests.parity import DTYPES, TOLERANCE, blobs, linear

METHOD = Method(
    settings={
        "default": DICEDetector(),
        "sparse": DICEDetector(percentile=0.7, logit_score="max_logit", batch_size=7),
    },
    in_networks={"default": DICEDetector()},
)

EACH = pytest.mark.parametrize("percentile", [0, 0.1, 0.5, 0.9])


def reference(H, W, b, H_new, percentile):
    """Score rows one by one, with loops over classes and features."""
    H, W, b = map(ref.as_array, (H, W, b))
    contributions = [[W[c, j] * H[:, j].mean() for j in range(W.shape[1])] for c in range(len(W))]
    least = np.quantile(contributions, percentile) if percentile else -np.inf
    scores = []
    for h in ref.as_array(H_new):
        kept = (np.array(contributions) > least) * W
        scores.append(logsumexp([sum(h * row) + bias for row, bias in zip(kept, b, strict=True)]))
    return np.array(scores)


@DTYPES
@EACH
def test_parity(percentile, dtype):
    (X, _), head = blobs(0, n=40, d=7), linear(0, d=7).to(dtype)
    X, X_new = (part.astype(str(dtype)[6:]) for part in (X, 2 * blobs(1, d=7)[0]))
    found = DICEDetector(head, percentile=percentile).fit(X).score_samples(X_new)
    expected = reference(X, head.weight, head.bias, X_new, percentile)
    np.testing.assert_allclose(found, expected, TOLERANCE[dtype], TOLERANCE[dtype])


@EACH
def test_rows_are_scored_by_the_other_tenths(percentile, left_out):
    (X, _), head = blobs(2, n=50, d=7, scale=0.2), linear(2, d=7)
    found = left_out(DICEDetector(head, percentile=percentile), X)
    folds = np.floor(10 * row_keys(torch.as_tensor(X)).numpy())
    expected = [
        reference(X[folds != fold], head.weight, head.bias, row[None], percentile)[0]
        for row, fold in zip(X, folds, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:false_alarm_rate")
def test_which_weights_stay():
    """Those of large means, not the largest; with 0 the least too."""
    head = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 9.0, -1.0], [2.0, -9.0, 3.0]]))
    X = np.array([[3.0, 0.1, 1.0], [5.0, 0.1, 1.0], [4.0, 0.1, 4.0]])
    # Contributions 4, .9, -2 and 8, -.9, 6.
    for percentile, kept in (
        (0, [[1, 9, -1], [2, -9, 3]]),
        (0.2, [[1, 9, 0], [2, 0, 3]]),
        (0.6, [[0, 0, 0], [2, 0, 3]]),
    ):
        scorer = DICEDetector(head, percentile=percentile).fit(X).scorer_
        assert scorer.weight.tolist() == kept
    assert head.weight.tolist() == [[1, 9, -1], [2, -9, 3]]


def test_all_weights_give_the_energy(iris):
    X, y = iris
    found, expected = (d.fit(X, y) for d in (DICEDetector(percentile=0), EnergyDetector()))
    np.testing.assert_array_equal(found.score_samples(X), expected.score_samples(X))


@pytest.mark.parametrize("score", ["msp", lambda logits: logits[:, 0]])
def test_other_scores_of_the_logits(score):
    (X, _), head = blobs(0), linear(0)
    detector = DICEDetector(head, percentile=0.5, logit_score=score).fit(X)
    logits = X @ detector.scorer_.weight.numpy().T + head.bias.detach().numpy()
    shares = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    expected = shares.max(1) if score == "msp" else logits[:, 0]
    np.testing.assert_allclose(detector.score_samples(X), expected, rtol=1e-10)


def test_features_that_are_all_zero():
    """No contribution is larger than another: the bias is left."""
    head = linear(0)
    found = DICEDetector(head).fit(np.zeros((20, 4))).score_samples(np.eye(4))
    np.testing.assert_allclose(found, logsumexp(head.bias.detach().numpy()))


@pytest.mark.parametrize("percentile", [1, 1.5, -0.1])
def test_percentiles_outside_of_the_range(percentile, iris):
    with pytest.raises(ValueError, match=r"'percentile' parameter .* in the range \[0"):
        DICEDetector(percentile=percentile).fit(*iris)


@pytest.mark.parametrize("level", [0, 0.1, 0.37, 0.5, 0.9, 1])
def test_quantiles_without_sorting(level, rng):
    for values in (rng.normal(size=(11, 3)), rng.integers(0, 3, (11, 1)), rng.normal(size=1)):
        found = quantile_of(torch.as_tensor(values, dtype=torch.float64), level)
        np.testing.assert_allclose(found, np.quantile(values, level, axis=-1), rtol=1e-14)


def test_centred_features_are_warned_of(left_out):
    """Whose means are rounding; without a fold they are the opposite of that fold's."""
    (X, _), head = blobs(0, n=60), linear(0)
    with pytest.warns(UserWarning, match="The features are centred.*\n.*Give the features"):
        detector = DICEDetector(head, percentile=0.5)
        scores = left_out(detector, (X - X.mean(0)).astype(np.float32))
    expected = detector.score_samples((X - X.mean(0)).astype(np.float32))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
